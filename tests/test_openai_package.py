"""The openai package against a real daemon: choices, prompts, tools, structured output, names that choose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.gguf_template import TOOL_MODEL, tool_registry

CITIES = ("Paris", "Rome", "Oslo")
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city now",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer"}},
            "required": ["city"],
            "$defs": {"City": {"type": "string", "enum": list(CITIES)}},
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time in a zone",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "get_time"}}
ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with SmolLM2 as it is and, loaded, with a chat template that has tools."""
    directory = tmp_path_factory.mktemp("openai")
    registry = tool_registry(directory, smollm2_path)
    with DaemonProcess(
        directory / "state",
        "--preload",
        TOOL_MODEL,
        registry=registry,
        context_tokens=512,
        slots=1,
        keep_alive_s=-1,
        offline=True,
    ) as started:
        wait_until(lambda: started.ask("GET", "/readyz")[0] == 200, "readiness")
        yield started


@pytest.fixture
def client(daemon: DaemonProcess) -> Iterator[openai.OpenAI]:
    """The package's client, which repeats nothing by itself."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_choices_differ_and_repeat(client: openai.OpenAI) -> None:
    """n choices of one seed are different texts, the same ones each time, from a worker of one slot."""

    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(
            model=TOOL_MODEL, messages=ASKED, max_tokens=12, temperature=1.5, **fields
        )

    first = [choice.message.content for choice in ask(n=3, seed=5).choices]
    assert len(set(first)) == 3
    assert [choice.message.content for choice in ask(n=2, seed=6).choices] == first[1:]
    texts = ["", "", ""]
    for chunk in ask(n=3, seed=5, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == first and chunk.usage.completion_tokens <= 36


def test_prompts_may_be_tokens(daemon: DaemonProcess, client: openai.OpenAI) -> None:
    """A list of texts, and the same as token lists, are completed alike, each in its place."""
    prompts = ["The sky is", "Once upon a time"]

    def ask(prompt: Any) -> list[str]:
        answer = client.completions.create(model=TOOL_MODEL, prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.index for choice in answer.choices] == [0, 1]
        return [choice.text for choice in answer.choices]

    ids = [
        daemon.ask("POST", "/jetllm/v1/tokenize", {"model": TOOL_MODEL, "text": prompt})[1]["tokens"]
        for prompt in prompts
    ]
    assert ask(prompts) == ask(ids)
    alone = client.completions.create(model=TOOL_MODEL, prompt=ids[1], max_tokens=6, temperature=0)
    assert alone.choices[0].text == ask(prompts)[1]


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"get_weather", "get_time"}), (NAMED, {"get_time"})]
)
def test_a_call_that_must_be_made_is_made(client: openai.OpenAI, choice: Any, names: set[str]) -> None:
    """The grammar leaves no way but a call whose arguments are as declared, references and all."""
    for seed in range(2):
        answer: Any = client.chat.completions.create(
            model=TOOL_MODEL, messages=ASKED, tools=[WEATHER, CLOCK], tool_choice=choice, temperature=1.5,
            seed=seed, max_tokens=64, stop=["}"],
        )  # fmt: skip
        (call,) = answer.choices[0].message.tool_calls
        assert call.type == "function" and call.function.name in names and call.id
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        arguments = json.loads(call.function.arguments)
        if call.function.name == "get_time":
            assert arguments in ({"zone": "UTC"}, {"zone": "CET"})
        else:
            assert arguments["city"] in CITIES and set(arguments) <= {"city", "days"}


def test_a_streamed_call_is_the_same(client: openai.OpenAI) -> None:
    """In a stream the call comes in one delta, before the one with the reason."""
    asked: Any = {"model": TOOL_MODEL, "messages": ASKED, "tools": [WEATHER], "temperature": 0}
    asked["tool_choice"] = "required"
    (whole,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    choices = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
        (0, whole.function.name, whole.function.arguments)
    ]
    assert choices[-1].finish_reason == "tool_calls" and choices[-2].delta.tool_calls


def test_a_result_goes_back(client: openai.OpenAI) -> None:
    """The assistant's turn and the tool's are read, and change what is said."""
    asked: Any = {"model": TOOL_MODEL, "tools": [WEATHER], "temperature": 0, "max_tokens": 48}
    first = client.chat.completions.create(**asked, messages=ASKED, tool_choice="required")
    message = first.choices[0].message
    (call,) = message.tool_calls

    def said(result: str) -> Any:
        turns = [*ASKED, message, {"role": "tool", "tool_call_id": call.id, "content": result}]
        return client.chat.completions.create(**asked, messages=turns, tool_choice="auto")

    sunny, snow = said("sunny, 31 degrees"), said("heavy snow, minus 5 degrees")
    assert sunny.choices[0].message.content != snow.choices[0].message.content
    assert sunny.usage.prompt_tokens > first.usage.prompt_tokens


def test_the_model_may_answer_in_words(client: openai.OpenAI) -> None:
    """With "auto" it may say something instead, streamed as ever."""
    answer = client.chat.completions.create(
        model=TOOL_MODEL, messages=ASKED, tools=[WEATHER], max_tokens=8, temperature=0,
        parallel_tool_calls=False,
    )  # fmt: skip
    message = answer.choices[0].message
    assert message.content or message.tool_calls


def test_a_template_without_tools_refuses_them(client: openai.OpenAI) -> None:
    """The same weights with their own template say that they have no tools; "none" is no offence."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=ASKED, tools=[WEATHER])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, tools=[WEATHER], tool_choice="none", max_tokens=4
    )
    assert answer.choices[0].message.content


class Place(BaseModel):
    """What is asked for."""

    city: str
    country: str


def test_structured_output_is_an_instance(client: openai.OpenAI) -> None:
    """The package's parse gives an instance of the class whose schema it sent."""
    answer = client.chat.completions.parse(
        model=TOOL_MODEL,
        messages=[{"role": "user", "content": "Paris is in France. Name the city and its country."}],
        response_format=Place,
        temperature=0,
        max_tokens=64,
    )
    assert isinstance(answer.choices[0].message.parsed, Place)


def test_many_at_once_with_choices(daemon: DaemonProcess) -> None:
    """Requests of several choices share a worker of one slot without waiting for themselves."""

    async def ask(number: int) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key="none", timeout=60) as client:
            texts = ["", ""]
            stream = await client.completions.create(
                model=TOOL_MODEL,
                prompt=f"{number}, {number + 1},",
                n=2,
                max_tokens=4,
                temperature=0,
                stream=True,
            )
            async for chunk in stream:
                texts[chunk.choices[0].index] += chunk.choices[0].text
            return texts

    async def all_of_them() -> list[list[str]]:
        return await asyncio.gather(*(ask(number) for number in range(3)))

    together = asyncio.run(all_of_them())
    assert all(first == second and first for first, second in together)
    wait_until(lambda: daemon.ask("GET", "/jetllm/v1/status")[1]["queue"]["running"] == 0, "the end")


def test_names_that_choose(client: openai.OpenAI) -> None:
    """ "auto:..." is answered by a model that has a name; a wrong one is a 404 with the right ones."""
    answer = client.completions.with_raw_response.create(model="auto:fast", prompt="Once", max_tokens=2)
    assert answer.parse().model in (MODEL, TOOL_MODEL) and answer.headers["X-JetLLM-Selection"]
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="auto:warp", prompt="Once")
    assert isinstance(caught.value.body, dict) and "auto:fast" in caught.value.body["hint"]


def test_leaving_between_choices_frees_the_worker(daemon: DaemonProcess, client: openai.OpenAI) -> None:
    """Who closes a stream of many choices stops them all: the one slot is free again at once."""
    stream = client.completions.create(
        model=TOOL_MODEL, prompt="Once", n=16, max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: daemon.ask("GET", "/jetllm/v1/status")[1]["queue"]["running"] == 0, "the end", 5)
