"""The bench: what it sends, what it makes of the times, and how it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.api import create_app
from inference.bench import BenchProgress, Course, measure
from inference.errors import CancelledError, ContextLengthExceededError
from inference.generation import Chunk, FinishReason, GenerateRequest, Generation, Timings, Usage
from inference.service import build_service
from inference.settings import load_settings
from tests.fake_service import FakeService
from tests.test_api_pull import events

MODEL = "smollm2-135m-instruct"
CHOSEN = SimpleNamespace(
    verdict="chosen", tokens_per_s=50.0, tokens_per_s_source="measured", predicted_tokens_per_s=40.0
)


class Played:
    """A generation that took the times that it was told: 11 tokens, the first after *ttft_s*."""

    system_fingerprint = "engine q4"
    selection = SimpleNamespace(candidates=[SimpleNamespace(verdict="lost"), CHOSEN])

    def __init__(self, ttft_s: float, decode_s: float) -> None:
        usage, timings = Usage(100, 11, 20), Timings(prefill_s=0.5, decode_s=decode_s)
        self.result = Generation(
            text="x", finish_reason=FinishReason.LENGTH, usage=usage, timings=timings, logprobs=(),
            model="m", variant="q4", ttft_s=ttft_s, total_s=ttft_s + decode_s,
        )  # fmt: skip
        self.closed = False

    def __iter__(self) -> Iterator[Chunk]:
        return iter(())

    def close(self) -> None:
        """Note it."""
        self.closed = True


def run(
    course: Course, *streams: Played
) -> tuple[dict[str, Any], list[GenerateRequest], list[BenchProgress]]:
    """Measure with scripted streams, one after the other."""
    left = list(streams)
    requests: list[GenerateRequest] = []
    told: list[BenchProgress] = []

    def generate(request: GenerateRequest, cancelled: Callable[[], bool]) -> Played:
        requests.append(request)
        return left.pop(0)

    found = measure(generate, course, progress=told.append, cancelled=lambda: False)
    assert not left and all(stream.closed for stream in streams)
    return found, requests, told


def test_figures_are_medians_of_what_the_client_saw() -> None:
    """The first request only loads the model: it counts for nothing."""
    slow = Played(ttft_s=9.0, decode_s=99.0)
    timed = [Played(0.1, 1.0), Played(0.3, 2.0), Played(0.2, 0.5)]
    found, _, told = run(Course("m", max_tokens=11, runs=3), slow, *timed)
    assert found.pop("all_tokens_per_s") > 0
    assert found == {
        "model": "m",
        "variant": "q4",
        "engine": "engine q4",
        "concurrency": 1,
        "runs": 3,
        "prompt_tokens": 100,
        "completion_tokens": 11,
        "ttft_s": {"median": 0.2, "min": 0.1, "max": 0.3},
        "decode_tokens_per_s": {
            "median": pytest.approx(10.0),
            "min": pytest.approx(5.0),
            "max": pytest.approx(20.0),
        },
        "prefill_tokens_per_s": {"median": 160.0, "min": 160.0, "max": 160.0},
        "predicted": {"decode_tokens_per_s": 50.0, "source": "measured", "by_formula_tokens_per_s": 40.0},
    }
    assert [each.run for each in told] == [1, 2, 3] and told[1].ttft_s == 0.3


def test_no_prompt_helps_another() -> None:
    """Every request computes all of its prompt and all of its answer."""
    _, requests, _ = run(
        Course("m", "q4", prompt_tokens=50, max_tokens=9, runs=2), *(Played(1, 1) for _ in "abc")
    )
    assert len({request.prompt for request in requests}) == 3
    for request in requests:
        assert request.prompt is not None and len(request.prompt.split()) == 50
        assert (request.model, request.variant, request.max_tokens) == ("m", "q4", 9)
        assert request.ignore_eos and not request.cache_prompt and request.temperature == 0


def test_requests_of_a_round_run_at_once() -> None:
    """As many as are asked for, all of them under way together."""
    together = threading.Barrier(3, timeout=5)

    def generate(request: GenerateRequest, cancelled: Callable[[], bool]) -> Played:
        if first.is_set():
            together.wait()
        first.set()
        return Played(0.1, 1.0)

    first = threading.Event()
    found = measure(
        generate, Course("m", concurrency=3, runs=2), progress=lambda _: None, cancelled=lambda: False
    )
    assert found["concurrency"] == 3 and not together.broken


def test_one_failure_ends_the_others() -> None:
    """The first error is the answer's; no request is left running."""
    loaded = threading.Event()

    def generate(request: GenerateRequest, cancelled: Callable[[], bool]) -> Played:
        if not loaded.is_set():
            loaded.set()
            return Played(0.1, 1.0)
        if threading.current_thread().name != "bench":
            raise ContextLengthExceededError("too long")
        deadline_s = time.monotonic() + 5
        while not cancelled() and time.monotonic() < deadline_s:
            threading.Event().wait(0.001)
        stopped.append(cancelled())
        raise CancelledError("stopped")

    stopped: list[bool] = []

    with pytest.raises(ContextLengthExceededError):
        measure(generate, Course("m", concurrency=2), progress=lambda _: None, cancelled=lambda: False)
    assert stopped == [True]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"runs": 0},
        {"runs": 11},
        {"max_tokens": 1},
        {"prompt_tokens": 8193},
        {"concurrency": 5},
        {"runs": True},
    ],
)
def test_a_bench_has_bounds(body: dict[str, Any]) -> None:
    """What would run for long, or more at once than a worker computes, is refused; slots are 4 here."""
    given = body if not body else {"model": MODEL, **body}
    refused = create_app(FakeService()).test_client().post("/jetllm/v1/bench", json=given)
    assert refused.status_code == 400
    assert refused.get_json()["error"]["param"] == (next(iter(body)) if body else "model")


def test_a_bench_of_a_real_model_over_http(smollm2_path: Path) -> None:
    """Progress for each round, then the figures beside the prediction; too long a prompt is a 400."""
    service = build_service(load_settings({"context_tokens": 256, "slots": 2}))
    try:
        client = create_app(service).test_client()
        body = {"model": MODEL, "prompt_tokens": 20, "max_tokens": 8, "concurrency": 2, "runs": 2}
        told = events(client.post("/jetllm/v1/bench", json=body).get_data(as_text=True))
        assert [kind for kind, _ in told] == ["progress", "progress", "done"], told
        figures = told[-1][1]
        assert (figures["model"], figures["completion_tokens"]) == (MODEL, 8)
        assert 18 <= figures["prompt_tokens"] <= 30
        for name in ("ttft_s", "decode_tokens_per_s", "prefill_tokens_per_s"):
            spread = figures[name]
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert figures["predicted"]["decode_tokens_per_s"] > 0
        refused = client.post("/jetllm/v1/bench", json={**body, "prompt_tokens": 500})
        assert (refused.status_code, refused.get_json()["error"]["code"]) == (400, "context_length_exceeded")
    finally:
        service.close()
