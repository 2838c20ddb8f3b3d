"""The transformers backend, on a tiny random GPT-2 and on SmolLM2."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.backends import BackendProtocol, open_backend
from inference.errors import (
    ContextLengthExceededError,
    InternalError,
    InvalidRequestError,
)
from inference.generation import Chunk, FinishReason, GenerateRequest, Message
from tests.tiny_gpt2 import CHAT_TEMPLATE, CONTEXT_TOKENS, END_OF_TEXT, load_options, make_tiny_gpt2

EXTRA = "needs the extra 'transformers': make test-transformers"
torch = pytest.importorskip("torch", reason=EXTRA)
transformers = pytest.importorskip("transformers", reason=EXTRA)
pytestmark = pytest.mark.transformers

GOLDEN = Path(__file__).parent / "data" / "golden_smollm2.json"
DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gpt2(tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[Any]:
    loaded = open_backend("transformers", load_options(checkpoint))
    yield loaded
    loaded.close()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "generate"] == []


def never() -> bool:
    return False


def run(
    backend: BackendProtocol, cancelled: Callable[[], bool] = never, **request: Any
) -> tuple[str, list[Chunk]]:
    chunks = list(backend.generate(GenerateRequest(**request), cancelled))
    return "".join(chunk.text for chunk in chunks), chunks


def usage(chunks: list[Chunk]) -> tuple[int, int]:
    """Prompt tokens and completion tokens of a finished stream."""
    found = chunks[-1].usage
    assert found is not None
    return found.prompt_tokens, found.completion_tokens


def letters(backend: BackendProtocol) -> dict[int, float]:
    """A bias under which the random model writes lower-case letters only."""
    return dict.fromkeys(backend.tokenize("abcdefghijklmnopqrstuvwxyz"), 100.0)


def greedy(backend: BackendProtocol, tokens: int = 40) -> dict[str, Any]:
    return {"prompt": "Hello", "max_tokens": tokens, "temperature": 0, "logit_bias": letters(backend)}


def ending(backend: Any) -> dict[str, Any]:
    """A request to which the model answers with its end token only."""
    end = backend._tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return {"prompt": "Hello", "max_tokens": 5, "temperature": 0, "logit_bias": {end: 1000.0}}


def test_greedy_text_is_what_the_model_itself_generates(backend: Any) -> None:
    """Streaming, detokenization and bookkeeping change nothing of the model's own greedy tokens."""
    ids = torch.tensor([backend.tokenize("Hello")])
    config = transformers.GenerationConfig(max_new_tokens=40, do_sample=False)
    expected = backend._model.generate(ids, generation_config=config)[0, ids.shape[1] :]
    text, _ = run(backend, prompt="Hello", max_tokens=40, temperature=0, ignore_eos=True)
    decoded = backend._tokenizer.decode(expected, skip_special_tokens=True)
    assert len(text) > 10
    assert text == decoded.rstrip("\N{REPLACEMENT CHARACTER}")


def test_exactly_one_last_chunk_has_reason_counts_and_timings(backend: Any) -> None:
    """A stream ends in one chunk with finish reason, usage and timings, and no other has them."""
    _, chunks = run(backend, **greedy(backend, 12))
    assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [FinishReason.LENGTH]
    assert [chunk for chunk in chunks if chunk.usage or chunk.timings] == chunks[-1:]
    assert usage(chunks) == (5, 12)
    timings = chunks[-1].timings
    assert timings is not None and timings.prefill_s > 0 and timings.decode_s > 0


def test_letters_come_one_by_one(backend: Any) -> None:
    """Text is streamed per token; it does not wait for a space."""
    _, chunks = run(backend, **greedy(backend, 8))
    assert [len(chunk.text) for chunk in chunks] == [1] * 8 + [0]


def test_silent_request_is_greedy_and_fills_the_context(backend: Any) -> None:
    """Without sampling and limit, the answer is greedy and ends where the context does."""
    silent, chunks = run(backend, prompt="Hello", logit_bias=letters(backend))
    explicit, _ = run(backend, **greedy(backend, 1000))
    assert silent == explicit
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert sum(usage(chunks)) == CONTEXT_TOKENS


def test_context_is_what_the_model_has(backend: Any) -> None:
    """A model with a shorter context than asked for says so, and has one slot."""
    assert (backend.context_tokens, backend.slots) == (CONTEXT_TOKENS, 1)
    assert backend.engine.startswith(f"transformers {transformers.__version__} (torch ")
    assert "float32" in backend.engine


def test_stop_string_over_several_tokens_is_cut_out(backend: Any) -> None:
    """A stop string ends the text before its first character, and nothing of it is ever shown."""
    whole, _ = run(backend, **greedy(backend))
    stop = whole[17:21]
    text, chunks = run(backend, **greedy(backend), stop=(stop,))
    at = whole.index(stop)
    assert text == whole[:at]
    assert chunks[-1].finish_reason is FinishReason.STOP
    assert usage(chunks)[1] == at + len(stop)


def test_begun_stop_string_that_does_not_come_is_shown(backend: Any) -> None:
    """Text that was held back because a stop string might follow is shown at the end."""
    whole, _ = run(backend, **greedy(backend))
    text, chunks = run(backend, **greedy(backend), stop=(whole[-2:] + "0",))
    assert text == whole
    assert chunks[-1].finish_reason is FinishReason.LENGTH


def test_end_token_ends_the_text(backend: Any) -> None:
    """The model's end token ends the text, counts as a token and is not shown."""
    text, chunks = run(backend, **ending(backend))
    assert (text, chunks[-1].finish_reason) == ("", FinishReason.STOP)
    assert usage(chunks)[1] == 1


def test_ignore_eos_goes_on_to_the_limit(backend: Any) -> None:
    """With ignore_eos the end token does not end the text."""
    _, chunks = run(backend, **ending(backend), ignore_eos=True)
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert usage(chunks)[1] == 5


def test_stop_string_that_is_a_special_token_ends_the_text(backend: Any) -> None:
    """A special token has no text, but naming it as a stop string works, even with ignore_eos."""
    _, chunks = run(backend, **ending(backend), ignore_eos=True, stop=(END_OF_TEXT,))
    assert chunks[-1].finish_reason is FinishReason.STOP


def test_same_seed_same_text(backend: Any) -> None:
    """A seed fixes the text; another seed gives another."""
    request = {**greedy(backend), "temperature": 1.5}
    first, second, other = (run(backend, **request, seed=seed)[0] for seed in (7, 7, 8))
    assert first == second != other


def test_without_a_seed_texts_differ(backend: Any) -> None:
    """A seed of one request has no effect on later ones."""
    request = {**greedy(backend), "temperature": 1.5}
    texts = set()
    for _ in range(2):
        run(backend, **request, seed=7)
        texts.add(run(backend, **request)[0])
    assert len(texts) == 2


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_narrowest_filter_leaves_the_greedy_text(backend: Any, narrow: dict[str, Any]) -> None:
    """Each of top_k, top_p and min_p keeps the likeliest token and can remove all others."""
    text, _ = run(backend, **{**greedy(backend), "temperature": 1.5}, seed=7, **narrow)
    assert text == run(backend, **greedy(backend))[0]


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 50.0}, {"presence_penalty": 50.0}, {"repetition_penalty": 1.9}]
)
def test_penalties_keep_tokens_from_coming_again(backend: Any, penalty: dict[str, Any]) -> None:
    """A strong penalty of any kind makes the text use more different letters."""
    plain, _ = run(backend, **greedy(backend, 20))
    varied, _ = run(backend, **greedy(backend, 20), **penalty)
    assert len(set(plain)) < len(set(varied))


def test_logprobs_are_those_of_the_bare_model(backend: Any) -> None:
    """Log-probabilities are the model's, before bias and temperature, with the likeliest beside."""
    tokens = backend.tokenize("Hello")
    with torch.no_grad():
        expected = torch.log_softmax(backend._model(torch.tensor([tokens])).logits[0, -1], dim=-1)
    text, chunks = run(backend, **greedy(backend, 6), logprobs=True, top_logprobs=3)
    found = [logprob for chunk in chunks for logprob in chunk.logprobs]
    assert "".join(logprob.token for logprob in found) == text
    first = found[0]
    assert first.logprob == pytest.approx(float(expected[backend.tokenize(first.token)[0]]), abs=1e-4)
    assert [t.logprob for t in first.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert first.token_bytes == tuple(first.token.encode())


def test_logprobs_end_where_the_text_does(backend: Any) -> None:
    """Tokens that were cut away with a stop string have no log-probabilities either."""
    whole, _ = run(backend, **greedy(backend))
    text, chunks = run(backend, **greedy(backend), stop=(whole[5:9],), logprobs=True)
    assert "".join(logprob.token for chunk in chunks for logprob in chunk.logprobs) == text


def test_prefill_is_reported_in_steps(backend: Any) -> None:
    """While a prompt is being read, chunks say how far; they have no text."""
    _, chunks = run(backend, prompt="x" * 50, max_tokens=2, temperature=0)
    assert [chunk.prefill for chunk in chunks if chunk.prefill] == [(16, 50), (32, 50), (48, 50)]
    assert all(not chunk.text for chunk in chunks if chunk.prefill)


def test_prompt_over_the_context_is_refused_with_counts(backend: Any) -> None:
    """A prompt that leaves no room for one token is refused, and the error has both counts."""
    with pytest.raises(ContextLengthExceededError) as caught:
        run(backend, prompt="x" * CONTEXT_TOKENS)
    assert caught.value.details == {"prompt_tokens": CONTEXT_TOKENS, "context_tokens": CONTEXT_TOKENS}
    _, chunks = run(backend, prompt="x" * (CONTEXT_TOKENS - 1))
    assert usage(chunks)[1] == 1


@pytest.mark.parametrize("field", [{"json_schema": {}}, {"grammar": 'root ::= "a"'}])
def test_structured_output_is_refused(backend: Any, field: dict[str, Any]) -> None:
    """What this backend cannot do is refused by name and not ignored."""
    with pytest.raises(InvalidRequestError, match="not supported by the transformers backend") as caught:
        run(backend, prompt="Hello", **field)
    assert caught.value.param == next(iter(field))


def test_logit_bias_beyond_the_vocabulary_is_refused(backend: Any) -> None:
    """A token id that does not exist is the caller's error, not a crash."""
    with pytest.raises(InvalidRequestError, match="logit_bias: expected token ids below 257, got 257"):
        run(backend, prompt="Hello", logit_bias={257: 1.0})


def test_cancelling_ends_the_stream_without_a_last_chunk(backend: Any) -> None:
    """Soon after cancelled() turns true the stream ends, and claims no finish."""
    left = threading.Event()
    seen = []
    for chunk in backend.generate(GenerateRequest(prompt="Hello", ignore_eos=True), left.is_set):
        seen.append(chunk)
        left.set()
    assert len(seen) < CONTEXT_TOKENS - 5
    assert seen[-1].finish_reason is None


def test_prefill_can_be_cancelled(backend: Any) -> None:
    """A prompt is read in steps, and cancelled() is asked before each."""
    asked: list[int] = []

    def at_third() -> bool:
        asked.append(1)
        return len(asked) >= 3

    _, chunks = run(backend, at_third, prompt="x" * 100)
    assert [chunk.prefill for chunk in chunks] == [(16, 100)]


def test_closing_the_iterator_stops_the_computation(backend: Any) -> None:
    """A reader that leaves early leaves no thread behind, and the next request is served."""
    steps: list[None] = []
    request = GenerateRequest(**{**greedy(backend), "max_tokens": None})
    stream = backend.generate(request, lambda: steps.append(None) or False)  # type: ignore[func-returns-value]
    next(stream)
    stream.close()
    assert len(steps) < CONTEXT_TOKENS / 2
    assert all(thread.name != "generate" for thread in threading.enumerate())
    assert usage(run(backend, **greedy(backend, 3))[1])[1] == 3


def test_second_caller_waits_and_can_give_up(backend: Any) -> None:
    """One sequence runs at a time; who waits may leave without a chunk."""
    first = backend.generate(GenerateRequest(prompt="Hello", ignore_eos=True), never)
    next(first)
    assert run(backend, lambda: True, prompt="Hello")[1] == []
    first.close()


def test_second_caller_is_served_after_the_first(backend: Any) -> None:
    """Callers of several threads each get their whole text."""
    expected, _ = run(backend, **greedy(backend))
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(run(backend, **greedy(backend))[0])) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert texts == [expected] * 3


def test_error_in_the_engine_reaches_the_caller(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong in the generation thread is raised from the iterator, and then it is over."""

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match\nadvice")

    with monkeypatch.context() as patched:
        patched.setattr(backend._model, "forward", broken)
        with pytest.raises(InternalError, match=r"^transformers: RuntimeError: shapes do not match$"):
            run(backend, prompt="Hello")
    assert usage(run(backend, **greedy(backend, 3))[1])[1] == 3


def test_chat_without_a_template_is_a_transcript(backend: Any) -> None:
    """A base model gets the documented plain transcript, and does not speak for the user."""
    turns = (Message("system", "Be brief."), Message("user", "Hi"))
    request: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    transcript = "system: Be brief.\nuser: Hi\nassistant:"
    assert run(backend, messages=turns, **request)[0] == run(backend, prompt=transcript, **request)[0]
    asked = GenerateRequest(messages=turns, stop=("x",))
    assert backend._prompts.stop_strings(asked) == ("x", "\nuser:")


def test_chat_uses_the_checkpoints_template(tmp_path: Path) -> None:
    """With a template the prompt is what the template makes of the messages; its refusal is a 400."""
    loaded = open_backend("transformers", load_options(make_tiny_gpt2(tmp_path, chat_template=CHAT_TEMPLATE)))
    request: dict[str, Any] = {"max_tokens": 20, "temperature": 0}
    chat, chunks = run(loaded, messages=(Message("user", "Hi"),), **request)
    assert chat == run(loaded, prompt="[user]Hi\n[assistant]", **request)[0]
    assert usage(chunks)[0] == len("[user]Hi\n[assistant]")
    with pytest.raises(InvalidRequestError, match="template refuses them: no tools here"):
        run(loaded, messages=(Message("tool", "42"),))
    loaded.close()


def test_empty_prompt_starts_from_the_begin_token(backend: Any) -> None:
    """An empty prompt is one begin-of-text token."""
    assert usage(run(backend, prompt="", max_tokens=2)[1])[0] == 1


def test_tokens_are_counted_as_they_stand(backend: Any) -> None:
    """tokenize adds no special tokens, and every byte is a token of this model."""
    assert len(backend.tokenize("naïve €")) == len("naïve €".encode())
    assert backend.detokenize(backend.tokenize("naïve €")) == "naïve €"


def test_close_stops_what_runs(checkpoint: Path) -> None:
    """close() ends a running generation, may be called twice, and nothing is generated after it."""
    loaded = open_backend("transformers", load_options(checkpoint))
    stream = loaded.generate(GenerateRequest(prompt="Hello", ignore_eos=True), never)
    next(stream)
    loaded.close()
    loaded.close()
    assert all(chunk.finish_reason is None for chunk in stream)
    with pytest.raises(InternalError, match="closed"):
        run(loaded, prompt="Hello")


def test_golden_outputs_of_smollm2(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On real weights (GGUF), the greedy text of each golden prompt comes out again, token by token."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # the bar for GGUF tensors leaves a thread behind
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    loaded = open_backend("transformers", load_options(smollm2_path, prefill_batch_tokens=256))
    for case in golden["cases"]:
        messages = tuple(Message(turn["role"], turn["content"]) for turn in case["messages"])
        text, chunks = run(loaded, messages=messages, max_tokens=golden["max_tokens"], temperature=0)
        assert text == case["text"]
        assert usage(chunks) == (len(case["prompt_token_ids"]), len(case["token_ids"]))
        assert all("\N{REPLACEMENT CHARACTER}" not in chunk.text for chunk in chunks)
    loaded.close()
