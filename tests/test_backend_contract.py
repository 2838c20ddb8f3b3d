"""What every backend keeps, run over all of them in real worker processes: one test each, no exceptions."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.errors import ContextLengthExceededError, InvalidRequestError, UnsupportedParameterError
from inference.generation import Chunk, FinishReason, GenerateRequest, Message
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import worker_environment
from tests.conftest import DEADLINE_S, wait_until
from tests.mlc_model import CHAT_TEMPLATE, make_model, worker_spec
from tests.tiny_gpt2 import load_options, make_tiny_gpt2

SLOTS = 2
CONTEXT_TOKENS = 256


def _llamacpp(directory: Path, request: pytest.FixtureRequest) -> WorkerSpec:
    options = load_options(
        request.getfixturevalue("smollm2_path"), context_tokens=CONTEXT_TOKENS, device=None
    )
    options = replace(options, slots=SLOTS, threads=None, prefill_batch_tokens=64)
    return WorkerSpec("contract/llamacpp", "llamacpp", options.to_dict(), worker_environment())


def _transformers(directory: Path, request: pytest.FixtureRequest) -> WorkerSpec:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason="needs the extra 'transformers': make test-transformers")
    weights = make_tiny_gpt2(directory / "tiny", chat_template=CHAT_TEMPLATE)
    options = load_options(weights, context_tokens=CONTEXT_TOKENS, slots=SLOTS)
    return WorkerSpec("contract/transformers", "transformers", options.to_dict(), worker_environment())


def _mlc(directory: Path, request: pytest.FixtureRequest) -> WorkerSpec:
    weights = make_model(directory / "tiny", step_s=0.002)
    return worker_spec(weights, "contract/mlc", context_tokens=CONTEXT_TOKENS, slots=SLOTS)


BACKENDS: dict[str, Callable[[Path, pytest.FixtureRequest], WorkerSpec]] = {
    "llamacpp": _llamacpp,
    "transformers": _transformers,
    "mlc": _mlc,
}


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One loaded model of each backend for all tests here."""
    spec = BACKENDS[request.param](tmp_path_factory.mktemp(request.param), request)
    started = Worker(spec, on_change=lambda: None)
    started.start()
    wait_until(lambda: started.ready or started.exited, "ready", 120)
    assert started.ready, started.exit_error
    yield started
    started.stop()
    assert started.wait(DEADLINE_S)
    assert started.exit_error is None


def never() -> bool:
    return False


def run(
    worker: Worker, cancelled: Callable[[], bool] = never, prompt: str | None = "Hello there", **options: Any
) -> list[Any]:
    prompt = None if "messages" in options else prompt
    asked = GenerateRequest(prompt=prompt, **{"max_tokens": 8, "ignore_eos": True, **options})
    return list(worker.generate(asked, cancelled))


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def can(worker: Worker, capability: str) -> bool:
    assert worker.info is not None
    return capability in worker.info["capabilities"]


def test_the_engine_says_what_it_got(worker: Worker) -> None:
    """Slots and context are those granted, never more than asked for; the engine has a name."""
    assert worker.info is not None
    assert 1 <= worker.info["slots"] <= SLOTS
    assert worker.info["context_tokens"] <= CONTEXT_TOKENS
    assert worker.info["engine"]


def test_the_last_chunk_and_only_it_closes(worker: Worker) -> None:
    """Reason, counts and times come once, at the end."""
    *texts, last = run(worker)
    assert all(chunk.finish_reason is chunk.usage is chunk.timings is None for chunk in texts)
    assert last.finish_reason is FinishReason.LENGTH
    assert last.usage.completion_tokens == 8
    assert last.usage.prompt_tokens >= len(worker.tokenize("Hello there"))
    assert last.timings.prefill_s >= 0 and last.timings.decode_s >= 0


def test_one_token_is_one_token(worker: Worker) -> None:
    """The smallest limit is kept."""
    assert run(worker, max_tokens=1)[-1].usage.completion_tokens == 1


def test_greedy_text_is_repeatable(worker: Worker) -> None:
    """Temperature 0 twice is the same text."""
    first, second = (run(worker, temperature=0.0, cache_prompt=False) for _ in range(2))
    assert text_of(first) == text_of(second)


def test_a_seed_repeats_a_text(worker: Worker) -> None:
    """Where a backend knows seeds: the same one gives the same text, another one another."""
    if not can(worker, "seed"):
        pytest.skip("the backend has no seeds")
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 16, "cache_prompt": False}
    first, second, other = (text_of(run(worker, seed=seed, **options)) for seed in (7, 7, 8))
    assert first == second != other


def test_a_chat_and_its_turns_count(worker: Worker) -> None:
    """Messages are rendered; more of them are more tokens."""
    turns = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Who?"))
    short, long = (run(worker, messages=messages)[-1].usage.prompt_tokens for messages in (turns[:1], turns))
    assert 1 < short < long


def test_stop_is_never_part_of_the_text(worker: Worker) -> None:
    """The text ends before the stop string, whatever tokens it was cut into."""
    whole = text_of(run(worker, temperature=0.0, max_tokens=12))
    stop = whole[3:5]
    chunks = run(worker, temperature=0.0, max_tokens=12, stop=(stop,))
    assert text_of(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_a_stop_that_only_begins_takes_nothing_away(worker: Worker) -> None:
    """Where the tokens end in the middle of what could be a stop string, the text has that middle."""
    whole = text_of(run(worker, temperature=0.0, max_tokens=12))
    chunks = run(worker, temperature=0.0, max_tokens=12, stop=(whole[-3:] + " and on it goes",))
    assert text_of(chunks) == whole
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_a_stopped_text_is_counted(worker: Worker) -> None:
    """The tokens up to the one that completed the stop string, and the prompt's as ever."""
    unstopped = run(worker, temperature=0.0, max_tokens=12)
    stop = text_of(unstopped)[3:5]
    usage, whole = run(worker, temperature=0.0, max_tokens=12, stop=(stop,))[-1].usage, unstopped[-1].usage
    assert usage is not None and whole is not None
    assert usage.prompt_tokens == whole.prompt_tokens
    assert 1 <= usage.completion_tokens < whole.completion_tokens


def test_a_prompt_beyond_the_context_is_told_with_its_counts(worker: Worker) -> None:
    """An error with both numbers, never a silent cut."""
    with pytest.raises(ContextLengthExceededError) as caught:
        run(worker, prompt="word " * 300)
    assert caught.value.details["prompt_tokens"] >= 300
    assert caught.value.details["context_tokens"] <= CONTEXT_TOKENS


def test_without_a_limit_the_context_ends_the_text(worker: Worker) -> None:
    """Prompt and answer never have more tokens than the context."""
    last = run(worker, max_tokens=None)[-1]
    assert last.usage.prompt_tokens + last.usage.completion_tokens <= CONTEXT_TOKENS
    assert last.finish_reason is FinishReason.LENGTH


def test_tokens_are_the_texts_own(worker: Worker) -> None:
    """No special token is added, and nothing is nothing."""
    assert worker.tokenize("") == []
    assert 1 <= len(worker.tokenize("Hello there")) <= 11


def test_tokens_go_back_to_their_text(worker: Worker) -> None:
    """And bytes that are no whole character to U+FFFD; no tokens are no text."""
    text = "Hello thére €"
    tokens = worker.tokenize(text)
    assert worker.ask("detokenize", ids=tokens).strip() == text
    piece = next(token for token in worker.tokenize("\N{OGHAM LETTER BEITH}") if token)
    assert worker.ask("detokenize", ids=[piece]).strip() in ("\N{REPLACEMENT CHARACTER}", "")
    assert worker.ask("detokenize", ids=[]) == ""


def test_the_prompts_tokens_are_those_that_are_counted(worker: Worker) -> None:
    """Of a text and of a chat, with what is put around them; also beyond the context."""
    for asked in (
        GenerateRequest(prompt="Hello there", max_tokens=1),
        GenerateRequest(messages=(Message("user", "Hello there"),), max_tokens=1),
    ):
        tokens = worker.ask("prompt_tokens", request=asked.to_dict())
        usage = list(worker.generate(asked, never))[-1].usage
        assert usage is not None and usage.prompt_tokens == len(tokens)
    long = GenerateRequest(prompt="word " * 300)
    assert len(worker.ask("prompt_tokens", request=long.to_dict())) >= 300


def test_a_prompt_of_tokens_is_read_as_it_is(worker: Worker) -> None:
    """A text's own tokens give its answer, and each of them counts."""
    options: dict[str, Any] = {"temperature": 0.0, "cache_prompt": False}
    asked = GenerateRequest(prompt="Hello there")
    tokens = tuple(worker.ask("prompt_tokens", request=asked.to_dict()))
    of_text, of_tokens = run(worker, **options), run(worker, prompt=None, prompt_ids=tokens, **options)
    assert text_of(of_tokens) == text_of(of_text)
    assert of_tokens[-1].usage.prompt_tokens == len(tokens)
    assert run(worker, prompt=None, prompt_ids=tokens[:1])[-1].usage.prompt_tokens == 1


@pytest.mark.parametrize("ids", [(), (10_000_000,), (-1,)])
def test_tokens_that_there_are_not_are_refused(worker: Worker, ids: tuple[int, ...]) -> None:
    """An error that names the prompt, as a prompt, as what is counted, and on the way back to text."""
    with pytest.raises(InvalidRequestError) as caught:
        run(worker, prompt=None, prompt_ids=ids)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequestError):
        worker.ask("prompt_tokens", request=GenerateRequest(prompt_ids=ids).to_dict())
    if ids:
        with pytest.raises(InvalidRequestError):
            worker.ask("detokenize", ids=list(ids))
    assert run(worker)[-1].usage.completion_tokens == 8


def test_a_model_for_text_makes_no_embeddings(worker: Worker) -> None:
    """It is loaded for the one or the other."""
    with pytest.raises(UnsupportedParameterError):
        worker.ask("embed", inputs=["Hello there"])


def test_requests_side_by_side_do_not_mix(worker: Worker) -> None:
    """As many at once as there are slots, each with its own counts and a whole answer."""
    with ThreadPoolExecutor(SLOTS) as pool:
        prompts = ["a", "b c d e f g h"]
        results = list(pool.map(lambda prompt: run(worker, prompt=prompt, max_tokens=12), prompts))
    assert [chunks[-1].usage.completion_tokens for chunks in results] == [12, 12]
    assert results[0][-1].usage.prompt_tokens < results[1][-1].usage.prompt_tokens


def test_leaving_early_frees_the_slot_within_a_second(worker: Worker) -> None:
    """Every slot is taken and left; the next caller gets an answer, and it is its own."""
    expected = text_of(run(worker, temperature=0.0, cache_prompt=False))
    for _ in range(2 * SLOTS):
        stream = worker.generate(GenerateRequest(prompt="Once", ignore_eos=True), never)
        next(stream)
        stream.close()
    started_s = time.monotonic()
    assert text_of(run(worker, temperature=0.0, cache_prompt=False)) == expected
    assert time.monotonic() - started_s < 5


def test_a_cancelled_stream_has_no_last_chunk(worker: Worker) -> None:
    """The caller is told that it left, soon."""
    gone = threading.Event()
    chunks: list[Chunk] = []
    started_s = time.monotonic()
    with pytest.raises(Exception, match="the caller left"):
        for chunk in worker.generate(GenerateRequest(prompt="Once", ignore_eos=True), gone.is_set):
            chunks.append(chunk)
            gone.set()
    assert all(chunk.finish_reason is None for chunk in chunks)
    assert time.monotonic() - started_s < 5


def test_logprobs_are_those_of_the_text(worker: Worker) -> None:
    """One per token, at most 0, the alternatives in order, and as many as were asked for."""
    if not can(worker, "logprobs"):
        pytest.skip("the backend has no logprobs")
    found = [
        item for chunk in run(worker, logprobs=True, top_logprobs=3, max_tokens=5) for item in chunk.logprobs
    ]
    assert len(found) == 5
    for item in found:
        assert item.logprob <= 0
        values = [other.logprob for other in item.top]
        assert len(values) == 3 and values == sorted(values, reverse=True)


def test_a_text_is_scored_or_the_request_refused(worker: Worker) -> None:
    """Its tokens come first, the first of them without a probability; what follows is as without them."""
    asked: dict[str, Any] = {"echo": True, "logprobs": True, "top_logprobs": 2, "temperature": 0.0}
    if not can(worker, "score"):
        with pytest.raises(UnsupportedParameterError) as caught:
            run(worker, **asked)
        assert caught.value.param == "echo" and caught.value.hint
        return
    prompt = "Hello thére"
    alone = text_of(run(worker, prompt=prompt, temperature=0.0, max_tokens=3))
    for tokens in (0, 3):
        chunks = run(worker, prompt=prompt, max_tokens=tokens, **asked)
        first, *others = (item for chunk in chunks for item in chunk.logprobs)
        usage = chunks[-1].usage
        assert text_of(chunks) == prompt + (alone if tokens else "")
        # Not every engine tells of tokens that complete no character; the prompt's all count.
        assert usage.prompt_tokens <= len(others) + 1 <= usage.prompt_tokens + tokens
        assert (usage.completion_tokens, chunks[-1].finish_reason) == (tokens, FinishReason.LENGTH)
        assert first.logprob is None and all(item.logprob <= 0 for item in others)
        assert all(len(item.top) == 2 for item in others)
        assert all(chunk.finish_reason is None for chunk in chunks[:-1])


def test_a_prompt_of_tokens_is_scored_like_its_text(worker: Worker) -> None:
    """The echo has the text of the tokens, and each the probability that it has in the text."""
    if not can(worker, "score"):
        pytest.skip("the backend scores nothing")
    text = "Hello thére 日 there"
    tokens = tuple(worker.tokenize(text))
    asked: dict[str, Any] = {"echo": True, "max_tokens": 0, "ignore_eos": False}
    of_text = run(worker, prompt=text, logprobs=True, **asked)
    of_tokens = run(worker, prompt=None, prompt_ids=tokens, logprobs=True, **asked)
    assert text_of(of_tokens) == text_of(run(worker, prompt=None, prompt_ids=tokens, **asked)) == text
    expected, found = (
        [item.logprob for chunk in chunks for item in chunk.logprobs][1:] for chunks in (of_text, of_tokens)
    )
    assert len(found) == len(tokens) - 1
    assert found == pytest.approx(expected, abs=1e-3)


def test_tokens_in_another_cut_are_scored_or_refused(worker: Worker) -> None:
    """Words letter by letter are a text too; half a character of another cut is said to be none."""
    if not can(worker, "score"):
        pytest.skip("the backend scores nothing")
    asked: dict[str, Any] = {"echo": True, "logprobs": True, "max_tokens": 0, "ignore_eos": False}
    letters = tuple(token for letter in "Hello" for token in worker.tokenize(letter))
    chunks = run(worker, prompt=None, prompt_ids=letters, **asked)
    assert text_of(chunks) == "Hello"
    assert len([item for chunk in chunks for item in chunk.logprobs]) == len(letters) == 5
    half = (*letters, worker.tokenize("日")[0])
    try:
        assert run(worker, prompt=None, prompt_ids=half, **asked)
    except InvalidRequestError as error:
        assert error.param == "prompt"


def test_a_schema_holds_the_text_or_is_refused(worker: Worker) -> None:
    """Never a text that does not keep to it."""
    schema: dict[str, Any] = {"type": "object", "properties": {"ok": {"type": "boolean"}}}
    schema |= {"required": ["ok"], "additionalProperties": False}
    options: dict[str, Any] = {"json_schema": schema, "max_tokens": 60, "ignore_eos": False}
    if not can(worker, "json_schema"):
        with pytest.raises(InvalidRequestError):
            run(worker, **options)
        return
    value = json.loads(text_of(run(worker, temperature=0.0, **options)))
    assert list(value) == ["ok"] and isinstance(value["ok"], bool)


@pytest.mark.parametrize("schema", [{"type": "strange"}, {"type": 3}])
def test_a_schema_that_is_none_is_refused_and_the_engine_lives(
    worker: Worker, schema: dict[str, Any]
) -> None:
    """A client's mistake is the client's error."""
    with pytest.raises(InvalidRequestError):
        run(worker, json_schema=schema)
    assert run(worker)[-1].usage.completion_tokens == 8


def test_a_grammar_is_kept_or_refused(worker: Worker) -> None:
    """What an engine cannot do is never ignored."""
    asked: dict[str, Any] = {"grammar": 'root ::= "yes"', "ignore_eos": False}
    if can(worker, "grammar"):
        assert text_of(run(worker, **asked)) == "yes"
    else:
        with pytest.raises(InvalidRequestError):
            run(worker, **asked)
