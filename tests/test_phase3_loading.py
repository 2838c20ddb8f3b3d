"""Loading, and the memory of a real model: SmolLM2, in process and through a daemon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.inference_engine import InferenceEngine
from phase3.case import Case
from phase3.checks import memory
from phase3.checks.loading import load
from phase3.checks.machine import container, environment
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.plan import FULL
from phase3.target import Environment, LoadTimes, Memory, Target, TargetError
from phase3.watch import WORKER, MemoryWatch
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_target import ENVIRONMENT, FakeTarget, case_of

MB = 10**6
WAYS = ("engine", "http")
# As many as a slope needs: the whole run does 200 generations and 20 cycles.
PLAN = replace(FULL, generations=10, cycles=2, soak_s=3.0)


class TestTheCheck:
    """Of loading alone."""

    def test_unloads_first_and_leaves_what_later_checks_need(self) -> None:
        """The value is the load with its first token; the bytes in use are those before it."""
        loaded = False
        target = FakeTarget(
            memory=lambda: Memory(4 * 10**9 if loaded else 5 * 10**9, 500 * MB if loaded else None),
            environment=lambda: replace(ENVIRONMENT, engine="fake 1.0" if loaded else None),
        )

        def change(to: bool) -> None:
            nonlocal loaded
            loaded = to

        target._unload = lambda: change(False)
        target._load = lambda: change(True) or LoadTimes(3.0, None, 1.5, 0.25)  # type: ignore[func-returns-value]
        case = case_of(target)
        found = load(case)
        assert target.events == ["unload", "load"]
        assert (found.verdict, found.value, found.unit) == ("pass", 1.75, "s")
        assert "fetched in 3 s, loaded in 1.50 s, first token in 250 ms" in (found.detail or "")
        total = ENVIRONMENT.memory_total_bytes or 0
        assert case.used_before_bytes == total - 5 * 10**9 and case.idle_worker_bytes == 500 * MB
        assert case.loaded is not None and case.loaded.engine == "fake 1.0" and case.loaded_s

    def test_what_fails_to_load_fails(self) -> None:
        """The error is the runner's to tell."""

        def broken() -> LoadTimes:
            raise TargetError("smollm2: not a GGUF file")

        with pytest.raises(TargetError, match="not a GGUF"):
            load(case_of(FakeTarget(load=broken)))

    def test_nothing_to_unload_is_no_failure(self) -> None:
        """A target may refuse to unload what is not loaded, and only then."""

        def refuse() -> int:
            raise TargetError("not loaded")

        absent = FakeTarget(unload=refuse, environment=replace(ENVIRONMENT, engine=None))
        assert load(case_of(absent)).verdict == "pass"
        with pytest.raises(TargetError, match="not loaded"):
            load(case_of(FakeTarget(unload=refuse)))

    def test_a_load_by_somebody_else_is_told(self) -> None:
        """Then there is no time to report but the first token's."""
        found = load(case_of(FakeTarget(load=lambda: LoadTimes(None, None, None, 0.1))))
        assert (found.verdict, found.value) == ("pass", 0.1) and "was not timed" in (found.detail or "")


@pytest.fixture(params=WAYS)
def target(smollm2_path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Target]:
    """SmolLM2, not loaded, in process and behind a daemon."""
    settings: dict[str, Any] = {"context_tokens": 512, "slots": 2, "keep_alive_s": -1}
    if request.param == "engine":
        with InferenceEngine(state_dir=tmp_path, **settings) as engine:
            yield EngineTarget(engine, MODEL)
    else:
        with DaemonProcess(tmp_path, **settings) as daemon:
            yield HttpTarget(daemon.url, MODEL)


@pytest.mark.harness
def test_a_healthy_model_passes_them_all(target: Target) -> None:
    """Every check of this group on the real engine; what each measured is what it must be."""
    case = Case(target, PLAN, before=_calm(target.environment()))
    with MemoryWatch(case) as watched:
        loaded = load(case)
        assert loaded.verdict == "pass" and loaded.value and "first token" in (loaded.detail or "")
        assert case.loaded is not None and (case.loaded.context_tokens, case.loaded.slots) == (512, 2)
        leak = memory.leak_generations(case)
        assert leak.verdict == "pass" and leak.limit == 16_000, leak
        soak = memory.soak(case)
        assert (soak.verdict, soak.value) == ("pass", 0), soak
        held = memory.memory(case)
        assert held.verdict == "pass" and 150 * MB < (held.value or 0) < 450 * MB, held
        assert held.limit == pytest.approx(1.1e9)
        unloaded = memory.unload(case)
        assert unloaded.verdict == "pass" and "100 % of the worker's memory" in (unloaded.detail or ""), (
            unloaded
        )
        assert target.memory().worker_bytes is None
        survived = memory.cycles(case)
        assert (survived.verdict, survived.value) == ("pass", 2)
    assert watched.missed == 0 and watched.worker_peak_bytes and case.series[WORKER]
    assert len(case.series["service_bytes_over_cycles"]) == 2
    assert environment(case).verdict == "pass" and container(case).verdict == "skip"


def _calm(environment: Environment) -> Environment:
    """The machine that tests run on may be busy with them."""
    return replace(environment, load_average_1m=0.0)


def test_a_worker_that_takes_memory_for_each_request_is_found(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real worker's own noise does not hide 100 kB a request: they are added to its readings."""
    monkeypatch.setattr(memory, "WARM_UP_GENERATIONS", 2)
    case = Case(target, replace(PLAN, generations=16), before=target.environment())
    requests = itertools.count()
    read = target.memory

    def leaking() -> Memory:
        now = read()
        own = now.worker_own_bytes
        return replace(now, worker_own_bytes=None if own is None else own + 100_000 * next(requests))

    target.memory = leaking  # type: ignore[method-assign]
    load(case)
    found = memory.leak_generations(case)
    assert found.verdict == "fail" and found.value == pytest.approx(100_000, rel=0.2), found
