"""The targets, in process and through a daemon: the same contract, on the real SmolLM2."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import inference
from inference.backends import engine_versions
from inference.inference_engine import InferenceEngine
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.measured import Ask, End, MeasuredTarget, Piece, reply_of
from phase3.target import Target, TargetError, TokenLogprob
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.lying_server import LyingServer
from tests.model_script import ModelScript
from tests.scripted_service import MODEL as SCRIPTED
from tests.scripted_service import ScriptedDaemon, model_registry, scripted_backend, scripted_registry

CONTEXT_TOKENS = 1024
KEY = "a-key-for-tests"
CHAT = [{"role": "user", "content": "Say hi"}]
LONG = [{"role": "user", "content": "Tell me about the sea. " * 20}]
WAYS = ("engine", "http")


@pytest.fixture(scope="module")
def targets(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """SmolLM2 in process and through a daemon that wants a key, both loaded."""
    states = [tmp_path_factory.mktemp(way) for way in WAYS]
    settings: dict[str, Any] = {"context_tokens": CONTEXT_TOKENS, "keep_alive_s": -1}
    with (
        InferenceEngine(state_dir=states[0], **settings) as engine,
        DaemonProcess(states[1], api_key=KEY, **settings) as daemon,
    ):
        made = {
            "engine": EngineTarget(engine, MODEL),
            "http": HttpTarget(daemon.url, "smollm2", "llamacpp-q4_1", api_key=KEY),
        }
        for target in made.values():
            target.load()
            target.environment()  # starts the thread that reads the gauges
        yield dict(made)


@pytest.fixture(params=WAYS)
def target(targets: dict[str, Target], request: pytest.FixtureRequest) -> Target:
    """Each of the two."""
    return targets[request.param]


@pytest.fixture(params=WAYS)
def scripted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MeasuredTarget]:
    """Each of the two over the scripted backend, with two slots."""
    settings: dict[str, Any] = {"registry": scripted_registry(tmp_path, slots=2), "context_tokens": 256}
    if request.param == "engine":
        with scripted_backend(), InferenceEngine(**settings) as engine:
            yield EngineTarget(engine, SCRIPTED)
    else:
        with ScriptedDaemon(tmp_path / "state", **settings) as daemon:
            yield HttpTarget(daemon.url, SCRIPTED)


@contextmanager
def modelled(way: str, directory: Path, script: ModelScript) -> Iterator[MeasuredTarget]:
    """One of the two over the scripted model, loaded."""
    directory.mkdir()
    registry, state = model_registry(directory, script), directory / "state"
    if way == "engine":
        with scripted_backend(), InferenceEngine(registry=registry, state_dir=state) as engine:
            target: MeasuredTarget = EngineTarget(engine, SCRIPTED)
            target.load()
            yield target
    else:
        with ScriptedDaemon(state, registry=registry) as daemon:
            target = HttpTarget(daemon.url, SCRIPTED)
            target.load()
            yield target


class TestTheContract:
    """What both targets do alike."""

    def test_names_what_it_tests(self, target: Target) -> None:
        """An alias becomes the registered name, and no variant the best one."""
        assert (target.model, target.variant) == (MODEL, "llamacpp-q4_1")

    def test_streams_what_it_says_in_one_piece(self, target: Target) -> None:
        """Streamed and whole answers agree; only the streamed one has arrivals."""
        streamed = target.generate(messages=CHAT, max_tokens=12)
        whole = target.generate(messages=CHAT, max_tokens=12, stream=False)
        assert (streamed.text, streamed.finish_reason) == (whole.text, whole.finish_reason) != ("", "")
        assert streamed.prompt_tokens == whole.prompt_tokens > 0
        assert streamed.completion_tokens == whole.completion_tokens <= 12
        assert (whole.arrivals_s, whole.ttft_s) == ((), None) and whole.total_s > 0

    def test_times_every_piece(self, target: Target) -> None:
        """Arrivals rise from the first token's time to the end; without EOS there is one for each token."""
        reply = target.generate(messages=CHAT, max_tokens=12, ignore_eos=True)
        assert (reply.completion_tokens, reply.finish_reason) == (12, "length")
        assert list(reply.arrivals_s) == sorted(reply.arrivals_s) and len(reply.arrivals_s) <= 12
        assert reply.ttft_s is not None and 0 < reply.ttft_s == reply.arrivals_s[0]
        assert reply.arrivals_s[-1] <= reply.total_s
        assert reply.engine_prefill_s is not None and 0 < reply.engine_prefill_s < reply.ttft_s
        assert reply.itl_s and reply.engine_decode_s and reply.engine_decode_s < reply.total_s

    def test_never_uses_the_prompt_cache_unasked(self, target: Target) -> None:
        """The same prompt again is computed again; only who asks for the cache gets it."""
        assert [target.generate(messages=LONG, max_tokens=1).cached_tokens for _ in range(2)] == [0, 0]
        asked = [target.generate(messages=LONG, max_tokens=1, cache_prompt=True) for _ in range(2)]
        assert asked[1].cached_tokens > 0

    def test_honours_what_is_asked(self, target: Target) -> None:
        """A stop text ends the text before itself; a seed repeats; a raw prompt gets no template."""
        text = target.generate(messages=CHAT, max_tokens=12).text
        stopped = target.generate(messages=CHAT, max_tokens=12, stop=(text[3:6],))
        assert (stopped.text, stopped.finish_reason) == (text[: text.index(text[3:6])], "stop")
        warm = [target.generate(messages=CHAT, max_tokens=12, temperature=1.5, seed=7) for _ in range(2)]
        assert warm[0].text == warm[1].text != text
        raw = target.generate(prompt="Say hi", max_tokens=1)
        assert raw.prompt_tokens < target.generate(messages=CHAT, max_tokens=1).prompt_tokens

    @pytest.mark.parametrize("asked", [{"messages": CHAT}, {"prompt": "Once upon"}], ids=["chat", "raw"])
    def test_gives_log_probabilities(self, target: Target, asked: dict[str, object]) -> None:
        """Whoever asks gets one for each token, streamed or not; the tokens make the text."""
        for stream in (True, False):
            reply = target.generate(**asked, max_tokens=6, logprobs=True, ignore_eos=True, stream=stream)  # type: ignore[arg-type]
            assert reply.logprobs is not None and len(reply.logprobs) == reply.completion_tokens == 6
            assert "".join(item.token for item in reply.logprobs) == reply.text
            assert all(item.logprob <= 0 for item in reply.logprobs)
        assert target.generate(**asked, max_tokens=2).logprobs is None  # type: ignore[arg-type]

    def test_serves_several_at_once(self, target: Target) -> None:
        """Threads share a target and get their own answers."""
        prompts = [f"The number after {number} is" for number in (1, 2, 3, 4)]
        alone = [target.generate(prompt=prompt, max_tokens=1) for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            beside = list(pool.map(lambda text: target.generate(prompt=text, max_tokens=1), prompts))
        assert [r.prompt_tokens for r in beside] == [r.prompt_tokens for r in alone]
        assert all(reply.completion_tokens == 1 for reply in beside)

    def test_leaves_a_generation(self, target: Target) -> None:
        """Cancelling frees the slot long before the text would have ended."""
        left_s = target.cancel_after(3, messages=CHAT, max_tokens=900, ignore_eos=True)
        assert left_s is not None and 0 < left_s < 2
        with pytest.raises(TargetError, match="ended after 2 pieces; it was to be cancelled after 5"):
            target.cancel_after(5, messages=CHAT, max_tokens=2, ignore_eos=True)
        with pytest.raises(ValueError, match="at least 1"):
            target.cancel_after(0, messages=CHAT, max_tokens=2)

    def test_says_what_it_measures_on(self, target: Target, smollm2_path: Path) -> None:
        """Engine, weights, context and machine are those that serve."""
        environment = target.environment()
        assert environment.version == inference.__version__
        assert (environment.model, environment.variant, environment.backend) == (
            MODEL,
            "llamacpp-q4_1",
            "llamacpp",
        )
        assert environment.engine == engine_versions()["llamacpp"]
        assert environment.weights_sha256 == hashlib.sha256(smollm2_path.read_bytes()).hexdigest()
        assert (environment.quantization, environment.context_tokens) == ("Q4_1", CONTEXT_TOKENS)
        assert environment.cpu_cores and environment.memory_available_bytes and environment.slots == 4

    def test_says_what_was_declared(self, target: Target) -> None:
        """The registry's words, in bytes and tokens, beside the prediction."""
        registered = target.registered()
        assert registered.is_chat is True
        assert (registered.memory_requirement_bytes, registered.context_length_tokens) == (10**9, 8192)
        assert registered.predicted_memory_bytes and registered.predicted_decode_tokens_per_s
        assert registered.predicted_source == "predicted"

    def test_asks_for_one_thing(self, target: Target) -> None:
        """Messages or a prompt: anything else is a mistake of the caller."""
        for asked in ({}, {"messages": CHAT, "prompt": "x"}):
            with pytest.raises(ValueError, match="expected messages or a prompt"):
                target.generate(**asked, max_tokens=1)  # type: ignore[arg-type]


class TestBothWays:
    """What the two targets agree on."""

    def test_same_model_same_text(self, targets: dict[str, Target]) -> None:
        """Greedy text, token counts and log-probabilities do not depend on the way."""
        replies = [t.generate(messages=CHAT, max_tokens=16, logprobs=True) for t in targets.values()]
        assert replies[0].text == replies[1].text and replies[0].logprobs == replies[1].logprobs
        assert replies[0].prompt_tokens == replies[1].prompt_tokens

    def test_same_error_same_words(self, targets: dict[str, Target]) -> None:
        """What JetLLM refuses is one exception with its hint and its code."""
        told = []
        for target in targets.values():
            with pytest.raises(TargetError, match="context") as caught:
                target.generate(prompt="word " * 2 * CONTEXT_TOKENS, max_tokens=1)
            told.append((str(caught.value), caught.value.code))
        assert told[0] == told[1] and told[0][1] == "context_length_exceeded"

    def test_unknown_model_is_told_with_the_likely_name(self, tmp_path: Path) -> None:
        """A mistyped name fails before anything is measured, with the hint of JetLLM."""
        registry = scripted_registry(tmp_path)
        with InferenceEngine(registry=registry) as engine, pytest.raises(TargetError) as first:
            EngineTarget(engine, "scriptd")
        with DaemonProcess(tmp_path, registry=registry) as daemon, pytest.raises(TargetError) as second:
            HttpTarget(daemon.url, "scriptd")
        assert str(first.value) == str(second.value) and "hint: did you mean 'scripted'" in str(first.value)
        assert first.value.code == second.value.code == "model_not_found"


@pytest.mark.parametrize("way", WAYS)
class TestScriptedModel:
    """With the scripted model, whose service is the test's own: a worker that comes anew stays nowhere."""

    def test_loads_and_unloads(self, way: str, tmp_path: Path) -> None:
        """A load is timed step by step, an unload takes the worker and its memory away."""
        with modelled(way, tmp_path / "model", ModelScript()) as target:
            held = target.memory()
            assert held.available_bytes and held.worker_bytes
            assert held.worker_bytes > ModelScript().held_bytes
            freed_bytes = target.unload()
            assert freed_bytes is not None and freed_bytes >= 0
            assert target.memory().worker_bytes is None and target.environment().engine is None
            cold, warm = target.load(), target.load()
            assert cold.load_s is not None and cold.load_s > 0 < cold.first_token_s
            assert (cold.pull_s, cold.build_s, warm.load_s) == (None, None, None)

    def test_a_slot_that_is_not_given_back_is_seen(self, way: str, tmp_path: Path) -> None:
        """A backend deaf to the cancel holds its slot for over a second, one that hears it for less."""
        asked = {"prompt": "Once", "max_tokens": 2000, "ignore_eos": True}
        with modelled(way, tmp_path / "hears", ModelScript()) as target:
            heard_s = target.cancel_after(2, **asked)
        with modelled(way, tmp_path / "deaf", ModelScript(defect="slot_never_frees")) as target:
            deaf_s = target.cancel_after(2, **asked)
        assert heard_s is not None and heard_s < 1 and (deaf_s is None or deaf_s > 1)


class TestExactTimes:
    """What is known to the millisecond, with the scripted backend; benchmarks/harness.py has the rest."""

    def test_a_wait_is_seen_where_it_was(self, scripted: MeasuredTarget) -> None:
        """The time to the first text and the times between are no shorter than the script's waits."""
        scripted.load()
        reply = scripted.generate(prompt="wait:0.1 say:a wait:0.02 tokens:3 wait:0.1 say:z", max_tokens=9)
        assert len(reply.arrivals_s) == reply.completion_tokens == 5
        assert reply.ttft_s is not None and reply.ttft_s >= 0.1
        assert reply.arrivals_s[4] >= 0.1 + 3 * 0.02 + 0.1
        assert reply.arrivals_s[0] < reply.arrivals_s[1] < reply.arrivals_s[2]

    def test_a_crash_in_the_middle_is_an_error(self, scripted: MeasuredTarget) -> None:
        """A worker that dies while it speaks gives an error and no half answer; then it works again."""
        scripted.load()
        with pytest.raises(TargetError) as caught:
            scripted.generate(prompt="say:a kill", max_tokens=9)
        assert caught.value.code == "backend_crashed"
        assert scripted.generate(prompt="say:b", max_tokens=9).text == "b"

    def test_no_text_has_no_first_text(self, scripted: MeasuredTarget) -> None:
        """An answer without text has neither a first token's time nor arrivals, and is no error."""
        scripted.load()
        reply = scripted.generate(prompt="wait:0", max_tokens=9)
        assert (reply.text, reply.ttft_s, reply.arrivals_s, reply.itl_s) == ("", None, (), None)


def test_a_pull_is_timed(smollm2_path: Path, tmp_path: Path) -> None:
    """Weights that are not here are brought by `load`, which says how long that took; both ways."""
    data = smollm2_path.read_bytes()
    with LyingServer({"/w.gguf": data}) as server:
        source = {
            "type": "url",
            "url": server.url("/w.gguf"),
            "sha256": hashlib.sha256(data).hexdigest(),
            "local": True,
        }
        registry = scripted_registry(tmp_path, backend="llamacpp", source=source)
        settings: dict[str, Any] = {"registry": registry, "context_tokens": 256}
        with InferenceEngine(**settings, cache_dir=tmp_path / "a", state_dir=tmp_path / "sa") as engine:
            _pulls_once(EngineTarget(engine, SCRIPTED))
        with DaemonProcess(tmp_path / "sb", **settings, cache_dir=tmp_path / "b") as daemon:
            _pulls_once(HttpTarget(daemon.url, SCRIPTED))
            wait_until(lambda: not daemon.workers(), "unloaded")


def _pulls_once(target: Target) -> None:
    first = target.load()
    target.unload()
    again = target.load()
    target.unload()
    assert first.pull_s is not None and first.pull_s > 0 and again.pull_s is None


def test_figures_are_those_worked_out_by_hand() -> None:
    """An empty piece is no arrival; ITL divides by the tokens after the first, not by the pieces."""
    end = End("length", 30, 5, 0, 0.25, 0.5)
    pieces = [Piece(10.1), Piece(10.5, "a"), Piece(10.7, "b"), Piece(10.7, ""), Piece(11.3, "cd")]
    reply = reply_of(Ask(5, prompt="x"), 10.0, [*pieces, Piece(11.4, "", (), end)])
    assert reply.text == "abcd" and reply.ttft_s == pytest.approx(0.5)
    assert reply.arrivals_s == pytest.approx((0.5, 0.7, 1.3)) and reply.total_s == pytest.approx(1.4)
    assert reply.itl_s == pytest.approx(0.8 / 4) and reply.decode_tokens_per_s == pytest.approx(5.0)
    assert reply.prefill_tokens_per_s() == pytest.approx(60.0)
    assert reply.prefill_tokens_per_s(queue_s=0.2) == pytest.approx(100.0)
    assert reply.prefill_tokens_per_s(queue_s=0.5) is None and reply.logprobs is None


def test_one_token_has_no_time_between_tokens() -> None:
    """With one token, or one piece, nothing is known of the time between tokens."""
    one = reply_of(Ask(1, prompt="x"), 0.0, [Piece(1.0, "a", (), End("length", 1, 1, 0, None, None))])
    lump = reply_of(Ask(2, prompt="x"), 0.0, [Piece(1.0, "ab", (), End("length", 1, 2, 0, None, None))])
    assert (one.itl_s, one.decode_tokens_per_s, lump.itl_s) == (None, None, None)
    assert one.ttft_s == one.total_s == 1.0


def test_an_answer_without_an_end_is_an_error() -> None:
    """Pieces without the last one are half an answer."""
    with pytest.raises(TargetError, match="without a reason"):
        reply_of(Ask(1, prompt="x"), 0.0, [Piece(1.0, "a", (TokenLogprob("a", -1.0),))])
