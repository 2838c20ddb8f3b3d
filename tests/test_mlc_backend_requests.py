"""The mlc backend on the fake engine: requests, chats, and what would harm the engine."""

# ruff: noqa: F811 - a fixture is asked for by its name
from __future__ import annotations

import json
import time
from typing import Any

import pytest

from inference.backends._mlc_request import finish_reason_of, refusal
from inference.errors import (
    ContextLengthExceededError,
    InvalidRequestError,
    InvalidSchemaError,
    LoadFailedError,
    MemoryPressureError,
)
from inference.generation import FinishReason, GenerateRequest, Message
from tests.mlc_engine import Load, fake_engine, load, never, run  # noqa: F401
from tests.mlc_model import CONFIG, CONTEXT_TOKENS

pytestmark = pytest.mark.usefixtures("fake_engine")


# Generating


def test_the_last_chunk_has_the_counts_and_our_own_times(load: Load) -> None:
    """Tokens are the engine's count; its own clock, which says 9 s, is not believed."""
    backend = load(step_s=0.005)
    started_s = time.perf_counter()
    _, chunks = run(backend, prompt="hello", max_tokens=20)
    wall_s = time.perf_counter() - started_s
    last = chunks[-1]
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 20)
    assert 0 < last.timings.prefill_s < wall_s
    assert 0.09 < last.timings.decode_s < wall_s


def test_greedy_is_repeatable_and_seeds_differ(load: Load) -> None:
    """Temperature 0 and a seed each give the same text again."""
    backend = load()
    greedy = [run(backend, prompt="go", max_tokens=16, temperature=0)[0] for _ in range(2)]
    seeded = [run(backend, prompt="go", max_tokens=16, temperature=1, seed=seed)[0] for seed in (1, 1, 2)]
    assert greedy[0] == greedy[1]
    assert seeded[0] == seeded[1] != seeded[2]


def test_stop_ends_the_text_and_the_requests_own_list_stays(load: Load) -> None:
    """The engine adds the model's stops to the list that it is given."""
    backend = load(answer="one two STOP three")
    request = GenerateRequest(prompt="x", stop=("STOP",))
    chunks = list(backend.generate(request, never))
    assert "".join(chunk.text for chunk in chunks) == "one two "
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert request.stop == ("STOP",)


def test_the_models_own_end_token_ends_a_text(load: Load) -> None:
    """mlc_llm alone ends at those of its conversation template, which may lack it."""
    backend = load(answer="all")
    text, chunks = run(backend, prompt="x", max_tokens=50)
    assert (text, chunks[-1].finish_reason) == ("all", FinishReason.STOP)


def test_ignore_eos_goes_on_to_the_limit(load: Load) -> None:
    """Benchmarks need a fixed length."""
    _, chunks = run(load(answer="all"), prompt="x", max_tokens=8, ignore_eos=True)
    assert chunks[-1].usage.completion_tokens == 8


def test_penalties_and_biases_reach_the_engine(load: Load) -> None:
    """A bias makes a token certain; a frequency penalty makes it rare again."""
    backend = load()
    biased: dict[str, Any] = {"prompt": "x", "max_tokens": 6, "temperature": 0, "logit_bias": {122: 3.0}}
    assert run(backend, **{**biased, "logit_bias": {122: 100.0}})[0] == "zzzzzz"
    plain, penal = run(backend, **biased)[0], run(backend, **biased, frequency_penalty=2.0)[0]
    assert plain != penal


def test_an_incomplete_character_at_the_end_is_left_out(load: Load) -> None:
    """The engine writes a replacement for it."""
    assert run(load(answer="a€"), prompt="x", max_tokens=3)[0] == "a"


def test_without_a_limit_the_context_is_the_limit(load: Load) -> None:
    """The engine would go on to the end of a context of its own."""
    _, chunks = run(load({"context_tokens": 32}), prompt="x" * 10)
    assert chunks[-1].usage.completion_tokens == 22
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_a_prompt_begins_as_the_model_was_trained(load: Load) -> None:
    """mlc_llm's tokenizer adds no begin-of-text; the conversation template names the tokens."""
    template = {**CONFIG["conv_template"], "system_prefix_token_ids": [257]}
    backend = load(config={"conv_template": template})
    assert run(backend, prompt="abc", max_tokens=1)[1][-1].usage.prompt_tokens == 4
    assert run(backend, prompt="", max_tokens=1)[1][-1].usage.prompt_tokens == 1
    assert backend.tokenize("abc") == [97, 98, 99]


# Chats


def chat(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in turns)


def test_a_chat_is_rendered_by_the_models_own_template(load: Load) -> None:
    """No system prompt of MLC's comes between, and special tokens are one token."""
    backend = load()
    _, chunks = run(backend, messages=chat(("user", "hi")), max_tokens=1)
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chunks[-1].usage.prompt_tokens == len(backend.tokenize(rendered)) == 21


def test_a_chat_without_a_template_is_rendered_by_mlc(load: Load) -> None:
    """Then its conversation template is better than none."""
    _, chunks = run(load(chat_template=None), messages=chat(("user", "hi")), max_tokens=3)
    assert chunks[-1].usage.prompt_tokens == len("user: hi\nassistant:")
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ((("tool", "x"),), "no role 'tool'"),
        ((("user", "x"), ("system", "y")), "comes first"),
    ],
)
def test_what_mlcs_template_has_no_place_for_is_refused(load: Load, turns: Any, words: str) -> None:
    """A KeyError of the engine is no answer to a client."""
    with pytest.raises(InvalidRequestError, match=words):
        run(load(chat_template=None), messages=chat(*turns))


def test_a_template_that_refuses_is_the_clients_error(load: Load) -> None:
    """Its words are told."""
    with pytest.raises(InvalidRequestError, match="no tools here"):
        run(load(), messages=chat(("tool", "x")))


def test_a_broken_template_is_a_failed_load(load: Load) -> None:
    """It is found before the first chat."""
    with pytest.raises(LoadFailedError, match="chat template"):
        load(chat_template="{% for %}")


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_too_long_a_prompt_is_told_with_its_counts(load: Load, template: str | None) -> None:
    """The same error, whether we count the tokens or mlc_llm does."""
    backend = load(chat_template=template)
    with pytest.raises(ContextLengthExceededError) as caught:
        run(backend, messages=chat(("user", "x" * 600)))
    assert caught.value.details["prompt_tokens"] >= 600
    assert caught.value.details["context_tokens"] == CONTEXT_TOKENS
    assert caught.value.param == "messages"


# What would harm the engine


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"logit_bias": {260: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: 101.0}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        ({"logprobs": True, "temperature": 0.0}, "temperature"),
        ({"logprobs": True, "top_p": 0.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"top_k": 40}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"prompt": "x" * CONTEXT_TOKENS}, "prompt"),
    ],
)
def test_what_the_engine_cannot_take_is_refused(load: Load, request_: dict[str, Any], param: str) -> None:
    """Refused by name, never ignored and never tried: the engine serves the next request."""
    backend = load()
    with pytest.raises(InvalidRequestError) as caught:
        run(backend, **{"prompt": "x", **request_})
    assert caught.value.param == param
    assert run(backend, prompt="x", max_tokens=1)[1][-1].usage.completion_tokens == 1


def test_ids_beyond_the_vocabulary_never_reach_the_engine(load: Load) -> None:
    """A tokenizer with more tokens than the model has rows would end its thread."""
    backend = load(config={"vocab_size": 100})
    with pytest.raises(InvalidRequestError, match="token 122; the model has 100"):
        run(backend, prompt="z")


def test_neutral_values_are_no_wish(load: Load) -> None:
    """A client that sends every default is served."""
    request: dict[str, Any] = {
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    assert run(load(), prompt="x", max_tokens=2, **request)[1][-1].usage.completion_tokens == 2


def test_a_schema_is_checked_before_and_holds_the_text(load: Load) -> None:
    """One that the engine dies of is refused; one that it takes gives JSON of that form."""
    backend = load()
    with pytest.raises(InvalidSchemaError):
        run(backend, prompt="x", json_schema={"type": "strange"})
    schema = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}, "required": ["n"]}
    assert json.loads(run(backend, prompt="x", json_schema=schema)[0]) == {"n": 1}
    assert json.loads(run(backend, prompt="x", json_schema={})[0]) == {}


@pytest.mark.parametrize("messages", [None, chat(("user", "hi"))])
@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_logprobs_are_the_models_own(load: Load, messages: Any, template: str | None) -> None:
    """Asked for at temperature 1 and top_p 1: at 0 the engine answers 0.0 for every token."""
    backend = load(chat_template=template)
    asked: dict[str, Any] = {"messages": messages} if messages else {"prompt": "hi"}
    _, chunks = run(backend, **asked, max_tokens=4, logprobs=True, top_logprobs=3)
    found = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert len(found) == 4
    for token in found:
        assert token.logprob < 0
        assert len(token.top) == 3
        assert token.token_bytes == tuple(token.token.encode())
        assert token.top[0].logprob == max(other.logprob for other in token.top)


def test_a_preempted_request_may_be_tried_again() -> None:
    """The engine gives it up when its cache is full; its chats cannot even say so."""

    class Choice:
        finish_reason = "preempt"

    with pytest.raises(MemoryPressureError):
        finish_reason_of(Choice())
    said = ValueError(
        "1 validation error for Choice\nfinish_reason\n  Input should be 'stop' [input_value='preempt']"
    )
    assert isinstance(refusal(said, "messages"), MemoryPressureError)


def test_a_long_prefill_proves_that_it_lives(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine says nothing while it computes; the daemon ends a worker that is silent for 30 s."""
    backend = load(prefill_s=2.5, prefill_cpu=True)
    _, chunks = run(backend, prompt="x" * 60, max_tokens=1)
    assert chunks[0].prefill == (0, 60)
    assert [chunk.prefill for chunk in chunks if chunk.text or chunk.finish_reason] == [None, None]


@pytest.mark.parametrize("script", [{"prefill_s": 1.3}, {"prefill_s": 1.3, "prefill_cpu": True}])
def test_a_prefill_that_cannot_be_is_no_life(
    load: Load, monkeypatch: pytest.MonkeyPatch, script: dict[str, Any]
) -> None:
    """Neither an engine that waits without working is vouched for, nor one that takes for ever."""
    if "prefill_cpu" in script:
        monkeypatch.setattr("inference.backends.mlc._LEAST_TOKENS_PER_S", 1000.0)
    _, chunks = run(load(**script), prompt="x" * 60, max_tokens=1)
    assert [chunk.prefill for chunk in chunks] == [None, None]


def test_pydantics_own_words_are_cut_to_what_is_wrong() -> None:
    """Its first line has a count, the third the reason."""
    said = (
        "1 validation error for CompletionRequest\nlogprobs\n  must be in range [0, 5] [type=value_error, x]"
    )
    assert refusal(ValueError(said), "prompt").message == (
        "mlc_llm refuses the request: logprobs: must be in range [0, 5]"
    )
