"""`inference.service` and `InferenceEngine` on the real SmolLM2: crashes, stalls, bad files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference import InferenceEngine
from inference.decisions import replay_all
from inference.errors import (
    BackendTimeoutError,
    DoesNotFitError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotPulledError,
    NoUsableBackendError,
    UnsafeArtifactError,
    WorkerCrashedError,
)
from inference.generation import FinishReason, GenerateRequest, Message
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.conftest import wait_until

MODEL = "smollm2-135m-instruct"
LONG = "word " * 400


@pytest.fixture
def make_service(smollm2_path: Path) -> Iterator[Callable[..., Service]]:
    """Make services with short limits; they are closed at the end."""
    made: list[Service] = []

    def make(**settings: Any) -> Service:
        usual = {"context_tokens": 1024, "keep_alive_s": -1, "min_residency_s": 0}
        made.append(build_service(load_settings({**usual, **settings})))
        return made[-1]

    yield make
    for service in made:
        service.close()


def ask(service: Service, text: str, **options: Any) -> str:
    request = GenerateRequest(
        messages=(Message("user", text),), **{"model": MODEL, "max_tokens": 8, "temperature": 0.0, **options}
    )
    with service.generate(request) as stream:
        return "".join(chunk.text for chunk in stream)


def worker_pid(service: Service) -> int:
    pid: int = service.status()["workers"][0]["pid"]
    return pid


def registry_with(tmp_path: Path, weights: Path) -> Path:
    """A registry with one model whose weights are a file of the user's."""
    entry = {
        "name": "Mine",
        "parameters": "135M",
        "memory_requirement": 300,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation"],
        "variants": {"gguf": {"backend": "llamacpp", "source": {"type": "file", "path": str(weights)}}},
    }
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": {"mine": entry}}))
    return path


def test_the_result_has_text_counts_and_times(make_service: Callable[..., Service]) -> None:
    """An exhausted stream knows its result; the text is the sum of the chunks."""
    service = make_service()
    request = GenerateRequest(
        model=MODEL, messages=(Message("user", "Hello"),), max_tokens=5, ignore_eos=True
    )
    with service.generate(request) as stream:
        text = "".join(chunk.text for chunk in stream)
    result = stream.result
    assert result is not None and result.text == text
    assert result.finish_reason is FinishReason.LENGTH
    assert result.usage.completion_tokens == 5
    assert 0 < result.ttft_s <= result.total_s


def test_auto_chooses_a_model_that_is_here(make_service: Callable[..., Service]) -> None:
    """Without a name the selector answers, says why, and nothing that is not pulled is chosen."""
    service = make_service()
    selection = service.select(GenerateRequest(messages=(Message("user", "Hello, how are you?"),)))
    assert selection.model == MODEL
    assert "conversation" in selection.reason
    assert ask(service, "Hello", model="auto")


def test_every_choice_is_logged_and_repeats(make_service: Callable[..., Service], tmp_path: Path) -> None:
    """With `decision_log` a request leaves a line from which the same choice, or refusal, comes out."""
    log = tmp_path / "log" / "decisions.jsonl"
    service = make_service(decision_log=str(log))
    ask(service, "Say hi", model="auto")
    with pytest.raises(DoesNotFitError):
        service.select(GenerateRequest(task="translation"), context_tokens=1_000_000)
    with pytest.raises(NoUsableBackendError):
        ask(service, "Say hi", variant="mlc-q4f16_1")
    results = replay_all(log, load_settings({}))
    assert [result["same"] for result in results] == [True] * len(results)
    assert [result["recorded"] for result in results] == [f"{MODEL}/llamacpp-q4_1", "refused"]


def test_a_chat_prefers_a_model_that_chats(make_service: Callable[..., Service], gemma_path: Path) -> None:
    """A larger base model without a chat template loses a chat, and wins where text is continued."""
    service = make_service()
    story = "Write a story about a dragon."
    assert service.select(GenerateRequest(messages=(Message("user", story),))).model == MODEL
    assert service.select(GenerateRequest(prompt=story)).model == "gemma-3-270m"


def test_a_crash_before_the_first_token_is_not_seen(make_service: Callable[..., Service]) -> None:
    """The worker is replaced and the request replayed; the caller only waits longer."""
    service = make_service()
    expected = ask(service, LONG, cache_prompt=False)
    pid = worker_pid(service)

    def shoot() -> None:
        wait_until(lambda: service.status()["workers"][0]["requests_total"] == 2, "the second request")
        os.kill(pid, signal.SIGSEGV)

    killer = threading.Thread(target=shoot)
    killer.start()
    assert ask(service, LONG, cache_prompt=False) == expected
    killer.join()
    assert worker_pid(service) != pid


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_in_mid_stream_is_told_within_a_second(
    make_service: Callable[..., Service], sig: int
) -> None:
    """The stream ends in an error, and the next request gets a new worker."""
    service = make_service()
    request = GenerateRequest(model=MODEL, prompt="Once upon a time", max_tokens=800, ignore_eos=True)
    with pytest.raises(WorkerCrashedError), service.generate(request) as stream:
        next(iter(stream))
        os.kill(worker_pid(service), sig)
        shot_s = time.monotonic()
        for _ in stream:
            pass
    assert time.monotonic() - shot_s < 1.0
    assert ask(service, "Hello")


def test_a_hang_is_told_and_the_next_request_served(make_service: Callable[..., Service]) -> None:
    """A stopped worker is noticed by its silence and killed."""
    service = make_service(stall_timeout_s=0.5)
    request = GenerateRequest(model=MODEL, prompt="Once upon a time", max_tokens=800, ignore_eos=True)
    with pytest.raises(BackendTimeoutError), service.generate(request) as stream:
        next(iter(stream))
        os.kill(worker_pid(service), signal.SIGSTOP)
        for _ in stream:
            pass
    assert ask(service, "Hello")


def test_leaving_frees_the_slot(make_service: Callable[..., Service]) -> None:
    """A closed stream holds no lease, and its worker is idle again within half a second."""
    service = make_service(slots=1)
    request = GenerateRequest(model=MODEL, prompt="Once upon a time", max_tokens=900, ignore_eos=True)
    stream = service.generate(request)
    next(iter(stream))
    left_s = time.monotonic()
    stream.close()
    assert ask(service, "Hello", max_tokens=1)
    assert time.monotonic() - left_s < 1.5
    assert service.status()["queue"] == {"waiting": 0, "running": 0}


def test_the_request_timeout_ends_a_generation(make_service: Callable[..., Service]) -> None:
    """No request lives longer than request_timeout_s."""
    service = make_service(request_timeout_s=1.0)
    service.load(MODEL)
    with pytest.raises(BackendTimeoutError, match="request_timeout_s"):
        ask(service, "Tell me a story", max_tokens=900, ignore_eos=True)


def test_unknown_names_get_a_likely_one(make_service: Callable[..., Service]) -> None:
    """A typing mistake in a model, variant or task is answered with what was meant."""
    service = make_service()
    with pytest.raises(ModelNotFoundError) as caught:
        ask(service, "Hello", model="smollm2-135m-instrukt")
    assert MODEL in (caught.value.hint or "")
    with pytest.raises(ModelNotFoundError, match="q9"):
        ask(service, "Hello", variant="q9")
    with pytest.raises(InvalidRequestError, match="task"):
        ask(service, "Hello", task="cooking")


def test_a_model_that_is_not_here_says_how_to_get_it(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    """Nothing is downloaded by a request; the hint is the command."""
    with pytest.raises(ModelNotPulledError) as caught:
        ask(make_service(cache_dir=tmp_path), "Hello")
    assert f"jetllm pull {MODEL}" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["truncated", "garbage"])
def test_bad_weights_of_the_users_are_refused_and_kept(
    kind: str, make_service: Callable[..., Service], smollm2_path: Path, tmp_path: Path
) -> None:
    """The reason is named, the file stays where it is, and a repaired one is used again."""
    weights = tmp_path / "mine.gguf"
    if kind == "truncated":
        with smollm2_path.open("rb") as source:
            weights.write_bytes(source.read(60_000_000))
    else:
        weights.write_bytes(os.urandom(10_000))
    service = make_service(registry=registry_with(tmp_path, weights))
    with pytest.raises(UnsafeArtifactError) as first:
        ask(service, "Hello", model="mine")
    assert ("truncated" if kind == "truncated" else "GGUF") in first.value.message
    with pytest.raises(UnsafeArtifactError, match="put aside"):
        ask(service, "Hello", model="mine")
    assert weights.exists()
    shutil.copyfile(smollm2_path, weights)
    assert ask(service, "Hello", model="mine")


def test_flipped_bits_in_the_store_are_quarantined(
    make_service: Callable[..., Service], smollm2_path: Path, tmp_path: Path
) -> None:
    """Weights that the engine refuses and whose checksum is wrong are never loaded again."""
    cache = tmp_path / "cache"
    service = make_service(cache_dir=cache)
    service.pull(MODEL, from_path=smollm2_path)
    blob = next((cache / "blobs").iterdir())
    with blob.open("r+b") as file:
        file.seek(4)
        file.write((1).to_bytes(4, "little"))  # a version that nothing reads
    with pytest.raises(UnsafeArtifactError):
        ask(service, "Hello")
    with pytest.raises(UnsafeArtifactError) as caught:
        ask(service, "Hello")
    assert "jetllm pull" in (caught.value.hint or "")
    service.pull(MODEL, from_path=smollm2_path)
    assert ask(service, "Hello")


def test_loading_and_unloading_leave_nothing(make_service: Callable[..., Service]) -> None:
    """A load is visible in the status; after the unload its process is gone."""
    service = make_service()
    row = service.load(MODEL, pin=True)
    assert row["state"] == "ready" and row["memory_observed_bytes"] > 10**8
    assert service.status()["workers"][0]["pinned"]
    assert service.unload("smollm2")["variants"] == ["llamacpp-q4_1"]
    assert service.status()["workers"] == []
    assert service.unload(MODEL)["variants"] == []


def test_preloading_decides_readiness(make_service: Callable[..., Service]) -> None:
    """Ready once all preloads have loaded; a failed one says why."""
    service = make_service(preload=[MODEL])
    assert service.readiness()[0] is False
    service.preload()
    assert service.readiness() == (True, {"status": "ready", "phase": None, "percent": None, "reason": None})


def test_a_failed_preload_is_reported(
    make_service: Callable[..., Service], smollm2_path: Path, tmp_path: Path
) -> None:
    """Readiness names the reason, until the model has been loaded after all."""
    service = make_service(preload=[MODEL], cache_dir=tmp_path)
    service.preload()
    ready, detail = service.readiness()
    assert not ready and detail["status"] == "failed" and MODEL in detail["reason"]
    service.pull(MODEL, from_path=smollm2_path)
    service.load(MODEL)
    assert service.readiness()[0]


def test_the_engine_of_the_readme(smollm2_path: Path) -> None:
    """load_model, generate()["text"], chat, stream, unload_model, close work as documented."""
    with InferenceEngine(context_tokens=1024) as engine:
        engine.load_model(MODEL)
        answer = engine.generate("Hello, world!", max_tokens=8)
        assert isinstance(answer["text"], str) and answer["text"]
        assert answer["model"] == MODEL and answer["usage"]["completion_tokens"] <= 8
        raw = engine.generate("The capital of France is", raw=True, max_tokens=1, temperature=0)
        assert raw["usage"]["prompt_tokens"] < answer["usage"]["prompt_tokens"]
        chat = engine.chat([{"role": "user", "content": "Hi"}], max_tokens=4, stop="zzz")
        assert chat["finish_reason"] in ("stop", "length")
        with engine.stream("Hi", max_tokens=4) as stream:
            assert "".join(chunk.text for chunk in stream)
        with pytest.raises(InvalidRequestError, match="max_tokenz"):
            engine.generate("Hi", max_tokenz=4)
        assert engine.unload_model()["variants"] == ["llamacpp-q4_1"]
        with pytest.raises(InvalidRequestError):
            engine.unload_model()
