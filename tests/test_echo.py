"""The echo: a text given back with the probability of each of its tokens, from the engine to the client."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from inference.api import create_app
from inference.api.schema import CompletionBody, read
from inference.backends._echo import Cut, Echo, after_echo, ending, to_bytes
from inference.backends._llamacpp_score import Scorer, read_prompt
from inference.choice import check
from inference.errors import CancelledError, ContextLengthExceededError, InternalError, InvalidRequestError
from inference.generation import Chunk, FinishReason, GenerateRequest, Message, Timings, TokenLogprob, Usage
from inference.inference_engine import InferenceEngine
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import worker_environment
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from tests.conftest import DEADLINE_S, wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_service import FakeService, end, logprob
from tests.scripted_service import MODEL as SCRIPTED
from tests.scripted_service import scripted_backend, scripted_registry

GOLDEN = json.loads((Path(__file__).parent / "data" / "score_smollm2.json").read_text())
TEXT, TOKENS = GOLDEN["text"], GOLDEN["tokens"]
REFERENCE = GOLDEN["logprobs"][1:]
# llama.cpp rounds activations to 8 bits here. From the same weights as F32 it was within 0.003.
ROUNDED = 0.15
TRICKY = "<|im_start|>user\nCafé 日本 🦜<|im_end|>\nx"


def never() -> bool:
    return False


# The words that are shared.


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (GenerateRequest(prompt="x", max_tokens=0), "max_tokens"),
        (GenerateRequest(prompt="x", max_tokens=-1, echo=True), "max_tokens"),
        (GenerateRequest(messages=(Message("user", "x"),), echo=True), "echo"),
    ],
)
def test_what_nobody_can_answer_is_refused(request_: GenerateRequest, param: str) -> None:
    """Nothing at all is asked for with 0 tokens and no echo; a conversation is no text to give back."""
    with pytest.raises(InvalidRequestError) as caught:
        check(request_)
    assert caught.value.param == param


def test_an_echo_of_nothing_more_is_answered() -> None:
    """With echo, 0 tokens are a question: what does the model think of the text."""
    check(GenerateRequest(prompt="x", max_tokens=0, echo=True))
    check(GenerateRequest(prompt="x", max_tokens=1))


def test_a_token_without_a_probability_survives_the_wire() -> None:
    """The first token's is unknown, which is neither 0 nor infinity."""
    chunk = Chunk("a", (TokenLogprob("a", None, (97,)),))
    assert Chunk.from_dict(json.loads(json.dumps(chunk.to_dict()))) == chunk


def test_characters_come_with_their_last_token() -> None:
    """Texts are whole characters, token bytes are exact, and together they are the prompt."""
    echo = Echo(Cut((1, 5, 6, 7), (b"", b"a\xc3", b"\xa9", b"\xff")))
    chunks = [echo.tell(None), echo.tell(-1.0), echo.tell(-2.0), echo.tell(-3.0)]
    assert [chunk.text for chunk in chunks] == ["", "a", "é", "\N{REPLACEMENT CHARACTER}"]
    assert [chunk.logprobs[0].token_bytes for chunk in chunks] == [(), (97, 0xC3), (0xA9,), (0xFF,)]
    with pytest.raises(ValueError, match="expected a piece for each token, got 1 for 2"):
        Cut((1, 2), (b"x",))


def test_a_prompt_that_was_scored_was_read_once() -> None:
    """Generation after an echo finds the prompt in the cache; the reading of it is counted all the same."""
    last = Chunk(finish_reason=FinishReason.LENGTH, usage=Usage(7, 2, 6), timings=Timings(0.5, 1.0))
    assert after_echo(last, 2.0) == Chunk(
        finish_reason=FinishReason.LENGTH, usage=Usage(7, 2, 0), timings=Timings(2.5, 1.0)
    )
    assert after_echo(Chunk("a"), 2.0) == Chunk("a")
    assert ending(7, 2.0).usage == Usage(7, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "text", "wanted"),
    [
        (["The", "Ġcap", "Ã", "©"], "The cap\xe9", (b"The", b" cap", b"\xc3", b"\xa9")),
        (["▁The", "▁cap", "<0xC3>", "<0xA9>"], "The cap\xe9", (b"The", b" cap", b"\xc3", b"\xa9")),
        (["The", "▁cap"], "The cap", (b"The", b" cap")),
        (["[UNK]"], "x", None),
    ],
)
def test_bytes_of_tokens_are_read_from_their_names(
    tokens: list[str], text: str, wanted: tuple[bytes, ...] | None
) -> None:
    """Both ways of writing a vocabulary are known, and proven by the text."""
    assert to_bytes(tokens, text) == wanted


# llama.cpp, told to generate a text.


def pretend() -> Callable[[str, Any], Any]:
    """A tokenizer of letters that puts a begin-of-text token and a space before a text."""

    def ask(_path: str, body: dict[str, Any]) -> Any:
        letters = [ord(letter) for letter in " " + body["content"]]
        if not body.get("with_pieces"):
            return {"tokens": letters}
        pieces = [{"id": letter, "piece": chr(letter)} for letter in letters]
        return {"tokens": [{"id": 1, "piece": "<s>"}, *pieces]}

    return ask


def test_what_the_model_puts_before_a_text_is_no_part_of_it() -> None:
    """The begin-of-text token and SentencePiece's space are tokens, and not the caller's."""
    assert read_prompt(pretend(), "ab") == Cut((1, 32, 97, 98), (b"", b"", b"a", b"b"))


@pytest.mark.parametrize(
    ("told", "problem"),
    [([], "left the text"), ([{"id": 9, "logprob": -1.0, "top_logprobs": []}], "left the text")],
)
def test_another_token_than_the_wanted_one_is_never_taken_for_it(told: list[Any], problem: str) -> None:
    """A score of anything but the text would be a lie: it is an error."""

    def send(_body: Any, read: Callable[[Any], None]) -> bool:
        read({"choices": [{"logprobs": {"content": told}}]})
        return True

    scorer = Scorer(send, 1, Cut((5, 6), (b"a", b"b")), 0, lambda _: None)
    with pytest.raises(InternalError, match=problem):
        scorer.run()


def test_a_token_that_cannot_be_told_is_looked_up_further_and_further() -> None:
    """First among the likeliest, then among all; one that is nowhere is an error."""
    limits = []

    def send(body: Any, read: Callable[[Any], None]) -> bool:
        limits.append((body["logit_bias"][0][0], body["logprobs"]))
        others = [{"id": 6, "token": "?", "logprob": -3.0}] if body["logprobs"] > 256 else []
        content = {"id": 1, "token": "a", "logprob": -9.0, "top_logprobs": others}
        read({"choices": [{"logprobs": {"content": [content]}}]})
        return True

    chunks: list[Chunk] = []
    Scorer(send, 1, Cut((5, 6), (b"a", b"\xc3")), 0, chunks.append).run()
    assert chunks[1].logprobs[0].logprob == -3.0
    assert limits == [(1, 256), (1, 1_000_000)]
    with pytest.raises(InternalError, match="did not tell"):
        Scorer(send, 1, Cut((5, 7), (b"a", b"\xc3")), 0, chunks.append).run()


@pytest.fixture(scope="module")
def worker(smollm2_path: Path) -> Iterator[Worker]:
    """SmolLM2 with two slots."""
    options = {
        "weights": str(smollm2_path),
        "context_tokens": 512,
        "slots": 2,
        "threads": None,
        "prefill_batch_tokens": 128,
        "prompt_cache_bytes": 0,
        "device": None,
    }
    started = Worker(
        WorkerSpec("smollm2/q4_1", "llamacpp", options, worker_environment()), on_change=lambda: None
    )
    started.start()
    wait_until(lambda: started.ready or started.exited, "ready")
    assert started.ready, started.exit_error
    yield started
    started.stop()
    assert started.wait(DEADLINE_S)


def run(worker: Worker, text: str, **options: Any) -> list[Chunk]:
    asked = {"echo": True, "logprobs": True, "max_tokens": 0, "temperature": 0.0, **options}
    return list(worker.generate(GenerateRequest(prompt=text, **asked), never))


def items_of(chunks: list[Chunk]) -> list[TokenLogprob]:
    return [item for chunk in chunks for item in chunk.logprobs]


def test_a_score_is_the_references(worker: Worker) -> None:
    """Each token's is near that of the same weights in float32, their sum nearer; the first has none."""
    chunks = run(worker, TEXT, top_logprobs=2)
    first, *others = items_of(chunks)
    assert [item.token for item in (first, *others)] == TOKENS
    assert (first.logprob, first.top) == (None, ())
    assert [item.logprob for item in others] == pytest.approx(REFERENCE, abs=ROUNDED)
    assert sum(item.logprob or 0 for item in others) == pytest.approx(sum(REFERENCE), rel=0.005)
    assert [len(item.top) for item in others] == [2] * 6
    assert "".join(chunk.text for chunk in chunks) == TEXT
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert chunks[-1].usage == Usage(7, 0, 0)
    assert chunks[-1].timings is not None and chunks[-1].timings.prefill_s > 0


def test_a_score_is_what_generating_said(worker: Worker) -> None:
    """Generate greedily, then score what came: the same numbers, within 0.001."""
    made = items_of(run(worker, TEXT, echo=False, max_tokens=8, ignore_eos=True, cache_prompt=False))
    scored = items_of(run(worker, TEXT + "".join(item.token for item in made)))[len(TOKENS) :]
    assert [item.token for item in scored] == [item.token for item in made]
    wanted = [item.logprob for item in made]
    assert [item.logprob for item in scored] == pytest.approx(wanted, abs=1e-3)


def test_special_tokens_and_pieces_of_characters_are_scored(worker: Worker) -> None:
    """An end of turn does not end a score, and of a character that is cut every token counts."""
    chunks = run(worker, TRICKY)
    items = items_of(chunks)
    assert "".join(chunk.text for chunk in chunks) == TRICKY
    assert b"".join(bytes(item.token_bytes or ()) for item in items) == TRICKY.encode()
    assert [items[0].token, items[-3].token] == ["<|im_start|>", "<|im_end|>"]
    assert len(items) == chunks[-1].usage.prompt_tokens == len(worker.tokenize(TRICKY))  # type: ignore[union-attr]
    values = [item.logprob for item in items[1:]]
    assert all(value is not None and -40 < value <= 0 for value in values)


def test_what_is_generated_follows_the_echo(worker: Worker) -> None:
    """The text goes on as it would have without the echo; counts are of what was generated."""
    plain = run(worker, TEXT, echo=False, logprobs=False, max_tokens=5)
    for logprobs in (True, False):
        chunks = run(worker, TEXT, logprobs=logprobs, max_tokens=5)
        texts = [chunk.text for chunk in chunks]
        assert "".join(texts) == TEXT + "".join(chunk.text for chunk in plain)
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 5
        assert len(items_of(chunks)) == (len(TOKENS) + 5 if logprobs else 0)


def test_an_echo_alone_needs_no_computing(worker: Worker) -> None:
    """Without probabilities and with 0 tokens the text is counted and given back."""
    text, last = run(worker, TEXT, logprobs=False)
    assert (text.text, text.logprobs) == (TEXT, ()) and last.usage == Usage(7, 0, 0)


def test_scores_side_by_side_are_those_alone(worker: Worker) -> None:
    """Texts that begin alike do not take each other's place, nor do generations beside them."""
    texts = [f"{TEXT} It is {what}." for what in ("large", "old", "far away")]
    alone = [[item.logprob for item in items_of(run(worker, text))] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        beside = pool.submit(run, worker, TEXT, echo=False, logprobs=False, max_tokens=20)
        together = list(pool.map(lambda text: items_of(run(worker, text)), texts))
        assert len(beside.result(DEADLINE_S)) > 1
    for expected, found in zip(alone, together, strict=True):
        assert [item.logprob for item in found[1:]] == pytest.approx(expected[1:], abs=ROUNDED)


def test_leaving_ends_a_score(worker: Worker) -> None:
    """Between two tokens it is noticed that the caller has left; the next one is served."""
    gone = threading.Event()
    told = 0
    request = GenerateRequest(prompt="word " * 400, echo=True, logprobs=True, max_tokens=0)
    with pytest.raises(CancelledError):
        for _ in worker.generate(request, gone.is_set):
            told += 1
            gone.set()
    assert told < 20
    assert len(items_of(run(worker, TEXT))) == 7


def test_a_text_beyond_the_context_is_told_with_its_counts(worker: Worker) -> None:
    """As of a prompt that is to be continued, and before any of it is given back."""
    for logprobs in (True, False):
        with pytest.raises(ContextLengthExceededError) as caught:
            run(worker, "word " * 600, logprobs=logprobs)
        assert caught.value.details["prompt_tokens"] >= 600


# Python and HTTP.


def test_the_engine_scores_a_text(smollm2_path: Path) -> None:
    """`generate(text, raw=True, echo=True, logprobs=True, max_tokens=0)`; a conversation has no echo."""
    with InferenceEngine(context_tokens=512) as engine:
        engine.load_model(MODEL)
        asked: dict[str, Any] = {"echo": True, "logprobs": True, "max_tokens": 0}
        answer = engine.generate(TEXT, raw=True, **asked)
        assert (answer["text"], answer["usage"]["completion_tokens"]) == (TEXT, 0)
        values = [item["logprob"] for item in answer["logprobs"]]
        assert values[0] is None and values[1:] == pytest.approx(REFERENCE, abs=ROUNDED)
        with pytest.raises(InvalidRequestError, match="echo"):
            engine.generate(TEXT, **asked)
        with pytest.raises(InvalidRequestError, match="max_tokens: expected at least 1, got 0"):
            engine.generate(TEXT, raw=True, max_tokens=0)
        scored = EngineTarget(engine, MODEL).score(TEXT)
        assert scored is not None and [item.token for item in scored] == TOKENS[1:]
        assert [item.logprob for item in scored] == pytest.approx(REFERENCE, abs=ROUNDED)


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with SmolLM2."""
    with DaemonProcess(tmp_path_factory.mktemp("state"), context_tokens=512, keep_alive_s=-1) as started:
        yield started


def test_the_openai_package_gets_what_evaluation_harnesses_ask_for(daemon: DaemonProcess) -> None:
    """`echo`, one alternative, and 0 tokens or 1: the text's tokens come first, the very first with null."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none") as client:
        for wanted in (0, 1):
            answer = client.completions.create(
                model=MODEL, prompt=TEXT, max_tokens=wanted, echo=True, logprobs=1, temperature=0
            )
            choice = answer.choices[0]
            found = choice.logprobs
            assert found is not None and found.tokens is not None and found.token_logprobs is not None
            assert found.tokens[:7] == TOKENS and len(found.tokens) == 7 + wanted
            assert choice.text.startswith(TEXT) and "".join(found.tokens) == choice.text
            assert found.text_offset == [choice.text.index(token) for token in found.tokens]
            assert found.token_logprobs[0] is None and found.top_logprobs is not None
            assert found.token_logprobs[1:7] == pytest.approx(REFERENCE, abs=ROUNDED)
            assert found.top_logprobs[0] is None and len(found.top_logprobs[1]) == 1
            assert answer.usage is not None
            assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, wanted)
        stream = client.completions.create(
            model=MODEL, prompt=TEXT, max_tokens=1, echo=True, logprobs=1, temperature=0, stream=True
        )
        pieces = [piece.choices[0] for piece in stream if piece.choices]
        assert "".join(piece.text for piece in pieces) == choice.text
        told = [piece.logprobs for piece in pieces if piece.logprobs is not None]
        assert choice.logprobs is not None
        assert [
            value for item in told for value in item.token_logprobs or ()
        ] == choice.logprobs.token_logprobs
        assert [offset for item in told for offset in item.text_offset or ()] == choice.logprobs.text_offset


def test_the_daemon_scores_for_the_harness(daemon: DaemonProcess) -> None:
    """The same numbers as in process."""
    scored = HttpTarget(daemon.url, MODEL).score(TEXT)
    assert scored is not None and [item.logprob for item in scored] == pytest.approx(REFERENCE, abs=ROUNDED)


def test_nothing_at_all_is_no_request(daemon: DaemonProcess) -> None:
    """0 tokens and no echo is the client's mistake."""
    body = json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 0}).encode()
    status, answer = daemon.ask("POST", "/v1/completions", body)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "max_tokens", "invalid_value")


def test_an_engine_that_cannot_score_says_so(tmp_path: Path) -> None:
    """The refusal has a code of its own, from which the harness knows that there is nothing to judge."""
    with (
        scripted_backend(),
        InferenceEngine(registry=scripted_registry(tmp_path, slots=2), context_tokens=256) as engine,
    ):
        target = EngineTarget(engine, SCRIPTED)
        assert target.score(TEXT) is None


def test_a_completion_body_may_echo() -> None:
    """The fields arrive; chats know neither echo nor 0 tokens."""
    body = read(CompletionBody, {"prompt": "x", "echo": True, "max_tokens": 0, "logprobs": 0})
    request = body.to_request()
    assert (request.echo, request.max_tokens, request.logprobs, request.top_logprobs) == (True, 0, True, 0)
    with pytest.raises(InvalidRequestError, match="echo"):
        read(CompletionBody, {"prompt": "x", "echo": 1})


def test_offsets_count_characters_of_the_text() -> None:
    """A character of two tokens begins where the first of them does; the next one follows it."""
    script = (
        Chunk("a", (TokenLogprob("a", None, (97,)),)),
        Chunk("", (TokenLogprob("\N{REPLACEMENT CHARACTER}", -1.0, (0xC3,)),)),
        Chunk("é", (TokenLogprob("\N{REPLACEMENT CHARACTER}", -1.5, (0xA9,)),)),
        Chunk("b", (logprob("b", -math.log(2), ("b", -math.log(2))),)),
        end(),
    )
    client = create_app(FakeService(script=script)).test_client()
    answer = client.post("/v1/completions", json={"prompt": "aé", "echo": True, "logprobs": 1}).get_json()
    found = answer["choices"][0]["logprobs"]
    assert found["text_offset"] == [0, 1, 1, 2]
    assert found["top_logprobs"] == [None, {}, {}, {"b": -math.log(2)}]
    assert found["token_logprobs"][:2] == [None, -1.0]
