"""The openai package: sync, async, streams, structured output, tools, embeddings, errors.

In `make test` it is the newest major version, in `make test-clients` the one that LiteLLM wants.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.clients.conftest import TOOL_MODEL
from tests.daemon_process import MODEL, DaemonProcess

QUESTION: list[Any] = [{"role": "user", "content": "Name three animals that live in the sea."}]
GREEDY: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Paris"]}, "celsius": {"type": "boolean"}},
            "required": ["city", "celsius"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[openai.OpenAI]:
    """A client as the documentation makes it."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def test_a_stream_is_the_whole_answer_in_parts(client: openai.OpenAI) -> None:
    """Greedy decoding says the same both ways; role, reason, usage and model are where they belong."""
    whole = client.chat.completions.create(**GREEDY)
    asked: Any = {**GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices)
    assert text == whole.choices[0].message.content and len(text.split()) > 3
    assert choices[0].delta.role == "assistant"
    assert choices[-1].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert {chunk.model for chunk in chunks} == {whole.model} == {MODEL}


def test_the_package_itself_puts_a_stream_together(client: openai.OpenAI) -> None:
    """Its `stream` helper follows the events and ends with the completion that it made of them."""
    with client.chat.completions.stream(**GREEDY) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(texts) == final.choices[0].message.content
    assert final.choices[0].finish_reason in ("stop", "length")


def test_several_ask_at_once_without_mixing(daemon: DaemonProcess) -> None:
    """Four asynchronous streams at a time; each gets the answer to its own question."""
    words = ("lighthouse", "volcano", "bicycle", "orchard")

    async def ask(client: openai.AsyncOpenAI, word: str) -> str:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": False, "required": ["word"]}
        schema["properties"] = {"word": {"const": word}}
        wanted: Any = {"type": "json_schema", "json_schema": {"name": "echo", "schema": schema}}
        asked: Any = {**GREEDY, "stream": True, "response_format": wanted, "max_tokens": 64}
        stream = await client.chat.completions.create(**asked)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, word) for word in words))

    assert [json.loads(text) for text in asyncio.run(ask_all())] == [{"word": word} for word in words]


class Animal(BaseModel):
    """What is asked for in the test of structured output."""

    size: Literal["small", "large"]
    legs: int
    swims: bool


def test_structured_output_is_parsed_into_its_class(client: openai.OpenAI) -> None:
    """`parse` with a pydantic class gives an instance: the grammar leaves the model no other way."""
    asked: Any = {**GREEDY, "max_tokens": 64, "response_format": Animal}
    asked["messages"] = [{"role": "user", "content": "Describe a whale."}]
    answer = client.chat.completions.parse(**asked)
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, Animal), answer.choices[0].message.content


def test_a_response_can_be_looked_at_raw(client: openai.OpenAI) -> None:
    """Our header says which model was chosen, and the package's own accessors reach it."""
    answer = client.chat.completions.with_raw_response.create(**{**GREEDY, "max_tokens": 1})
    assert answer.headers["x-jetllm-selection"].startswith(f"{MODEL}/")
    assert answer.parse().model == MODEL


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    """`models.list` has what can answer now; `models.retrieve` knows one by its name."""
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value"),
        (
            {"messages": [{"role": "user", "content": "word " * 3000}]},
            openai.BadRequestError,
            "context_length_exceeded",
        ),
    ],
)
def test_refusals_are_the_packages_own_errors(
    client: openai.OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError], code: str
) -> None:
    """Each refusal has the class and the code that programs look at, streamed or not."""
    for stream in (False, True):
        with pytest.raises(error) as caught:
            client.chat.completions.create(**{**GREEDY, **changes, "stream": stream})
        assert caught.value.code == code


def test_an_echo_has_one_entry_more_than_the_prompt(client: openai.OpenAI) -> None:
    """Evaluation harnesses drop the last entry as the generated one, also where the model has said all:
    were it missing, the last token of the prompt would go."""
    begun = "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n"
    asked: Any = {"model": MODEL, "temperature": 0, "echo": True, "logprobs": 1, "max_tokens": 1}
    reasons = set()
    for prompt in ("The capital of", f"{begun}Hello! How can I help you today?"):
        answer = client.completions.create(prompt=prompt, **asked)
        reasons.add(answer.choices[0].finish_reason)
        found = answer.choices[0].logprobs
        assert found is not None and found.token_logprobs is not None and answer.usage is not None
        assert len(found.token_logprobs) == answer.usage.prompt_tokens + 1, prompt
    assert reasons == {"length", "stop"}  # or the second has not shown what it is there for


def test_a_tool_is_called_and_its_result_is_read(client: openai.OpenAI) -> None:
    """A required call has arguments as declared, whole and streamed; its result goes back as a turn."""
    question: Any = {"role": "user", "content": "What is the weather in Oslo?"}
    asked: Any = {"model": TOOL_MODEL, "messages": [question], "temperature": 0, "max_tokens": 96}
    asked |= {"tools": [WEATHER], "tool_choice": "required"}
    answer = client.chat.completions.create(**asked).choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.tool_calls is not None
    [call] = answer.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather"
    assert arguments["city"] in ("Oslo", "Paris") and isinstance(arguments["celsius"], bool)
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed is not None and json.loads(streamed[0].function.arguments) == arguments
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "4 degrees and rain"}
    asked["messages"] = [question, answer.message.model_dump(exclude_none=True), result]
    read = client.chat.completions.create(**{**asked, "tool_choice": "none", "max_tokens": 24})
    assert read.choices[0].finish_reason in ("stop", "length") and read.choices[0].message.content


def test_a_template_without_tools_says_so(client: openai.OpenAI) -> None:
    """Tools that the model would never read are a 400, and no answer that ignores them."""
    asked: Any = {**GREEDY, "tools": [WEATHER]}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asked)
    assert caught.value.param == "tools"


def test_near_paraphrases_are_nearer_than_strangers(client: openai.OpenAI, embedding_model: str) -> None:
    """A batch in its order, as floats or as base64 (which the package asks for by itself)."""
    texts = ["A cat sits on the mat.", "On the mat there is a cat.", "Interest rates rose in March."]
    answer = client.embeddings.create(model=embedding_model, input=texts)
    vectors = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
    near, far = (_cosine(vectors[0], other) for other in vectors[1:])
    assert near > 0.8 > far + 0.4
    plain = client.embeddings.create(model=embedding_model, input=texts[0], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(vectors[0], abs=1e-4)
    assert answer.usage.prompt_tokens > 15


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
