"""The memory checks on machines that behave, and on machines that do not, each in one way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from phase3 import watch
from phase3.case import Case
from phase3.checks import memory
from phase3.plan import FULL, QUICK
from phase3.target import Memory
from phase3.watch import SYSTEM, WORKER, MemoryWatch
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of
from tests.memory_machine import MIB, TOTAL, Machine

JETSON = {"board": "orin-nano-8gb-super", "soc": "tegra234", "l4t": "36.4.3", "power_mode": "25W"}
SEEDS = range(20)


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readings follow one another at once."""
    monkeypatch.setattr(watch, "_READ_EVERY_S", 0.0)


class TestLeakOverGenerations:
    """200 identical requests."""

    @pytest.mark.parametrize("seed", SEEDS)
    def test_100_kb_for_each_request_are_found(self, seed: int) -> None:
        """Whatever the noise; the slope is the leak within a tenth."""
        found = memory.leak_generations(Machine(seed, leaks=100_000).case())
        assert found.verdict == "fail" and found.value == pytest.approx(100_000, rel=0.1), found
        assert found.unit == "bytes/generation" and found.diagnosis

    @pytest.mark.parametrize("seed", SEEDS)
    def test_a_clean_run_is_not_accused(self, seed: int) -> None:
        """Nor with four times the steps that were seen; its slope is far below the limit."""
        found = memory.leak_generations(Machine(seed, steps=4).case())
        assert found.verdict == "pass" and found.diagnosis is None, found
        assert abs(found.value or 0) < memory.LEAK_BYTES_PER_GENERATION / 2

    @pytest.mark.parametrize("seed", range(5))
    def test_a_leak_of_the_gpu_is_found_in_the_machines_memory(self, seed: int) -> None:
        """On a Jetson the worker's share holds none of it."""
        machine = Machine(seed)
        leak = lambda _: machine.requests * 100_000.0 + machine._chance.random() * MIB  # noqa: E731
        machine.others = leak
        assert memory.leak_generations(machine.case()).verdict == "pass"
        found = memory.leak_generations(machine.case(**JETSON))
        assert found.verdict == "fail" and found.value == pytest.approx(100_000, rel=0.1)
        assert "the machine's memory in use" in (found.detail or "")

    def test_another_machines_worker_is_judged_by_the_machine(self) -> None:
        """Where no process can be seen there is still MemAvailable; its noise widens the interval."""
        far: dict[str, Any] = {"sees_worker": False, "others": lambda chance: chance.gauss(0, MIB)}
        assert memory.leak_generations(Machine(**far, leaks=100_000).case()).verdict == "fail"
        found = memory.leak_generations(Machine(**far).case())
        assert found.verdict == "pass" and "the machine's memory in use" in (found.detail or "")

    @pytest.mark.parametrize("seed", range(10))
    def test_noise_that_hides_a_leak_is_told(self, seed: int) -> None:
        """It accuses nobody, whatever the slope happens to be, and says that it proves nothing."""
        machine = Machine(seed, sees_worker=False, others=lambda chance: chance.random() * 1300 * MIB)
        found = memory.leak_generations(machine.case())
        assert found.verdict == "pass" and "too unsteady to exclude a leak" in (found.detail or "")

    def test_the_warm_up_is_not_counted(self) -> None:
        """The first requests fill buffers; the series begins after them."""
        case = Machine().case()
        memory.leak_generations(case)
        points = case.series["worker_bytes_over_generations"]
        assert [x for x, _ in points] == [float(n) for n in range(1, 201)]
        asked = case.target.asked  # type: ignore[attr-defined]
        assert len(asked) == 220 and len({repr(ask) for ask in asked}) == 1
        assert (asked[0].temperature, asked[0].cache_prompt, asked[0].ignore_eos) == (0.0, False, True)

    def test_memory_that_cannot_be_read_is_unfit(self) -> None:
        """No reading is no proof of health."""
        found = memory.leak_generations(case_of(FakeTarget(memory=lambda: Memory(None, None)), FULL))
        assert found.verdict == "unfit"

    def test_a_quick_run_leaves_it_out(self) -> None:
        """And says how to get it."""
        for check in (memory.leak_generations, memory.cycles, memory.leak_cycles, memory.soak):
            found = check(case_of(FakeTarget(), QUICK))
            assert found.verdict == "skip" and "--" in (found.detail or "")


class TestMemoryWithinLimits:
    """The peak against the declaration, the guide's 6 GB and the board."""

    @staticmethod
    def _case(worker: float | None, system: float, declared: int | None, **environment: Any) -> Case:
        registered = replace(REGISTERED, memory_requirement_bytes=declared)
        last = Memory(int(TOTAL - 10**9 - system), None if worker is None else int(worker))
        target = FakeTarget(
            memory=lambda: last, registered=registered, environment=replace(ENVIRONMENT, **environment)
        )
        case = case_of(target)
        case.used_before_bytes = 10**9
        for second in range(60):
            case.point(SYSTEM, second / 10, 10**9 + system)
        return case

    @pytest.mark.parametrize(
        ("worker", "declared", "verdict"),
        [(1.1e9, 10**9, "pass"), (1.2e9, 10**9, "fail"), (5.9e9, None, "pass"), (6.1e9, None, "fail")],
    )
    def test_a_tenth_more_than_declared(self, worker: float, declared: int | None, verdict: str) -> None:
        """Nothing declared: the guide's limit holds alone."""
        found = memory.memory(self._case(worker, worker, declared))
        assert found.verdict == verdict and found.value == worker
        assert found.limit == (1.1e9 if declared else 6e9)

    def test_the_guides_6_gb_bind_what_declares_less(self) -> None:
        """5.8 GB declared do not allow 6.38."""
        found = memory.memory(self._case(6.2e9, 0, 5_800_000_000))
        assert (found.verdict, found.limit) == ("fail", 6e9)

    def test_a_bigger_model_may_take_a_bigger_board(self) -> None:
        """Declared above 6 GB: its declaration binds, and at last the board."""
        board = {"memory_total_bytes": 64 * 10**9}
        assert memory.memory(self._case(20e9, 0, 20 * 10**9, **board)).limit == pytest.approx(22e9)
        assert memory.memory(self._case(7e9, 0, 20 * 10**9)).limit == TOTAL

    def test_which_figure_is_judged(self) -> None:
        """The worker's own where it is all; on a Jetson the larger; the machine's where nobody sees it."""
        here = memory.memory(self._case(0.5e9, 3e9, 10**9))
        assert (here.verdict, here.value) == ("pass", 0.5e9) and "worker" in (here.detail or "")
        board = memory.memory(self._case(0.5e9, 3e9, 10**9, **JETSON))
        assert (board.verdict, board.value) == ("fail", 3e9) and "GPU" in (board.detail or "")
        assert memory.memory(self._case(3e9, 0.5e9, 10**9, **JETSON)).value == 3e9
        far = memory.memory(self._case(None, 0.7e9, 10**9))
        assert (far.verdict, far.value) == ("pass", 0.7e9) and "unknown" in (far.detail or "")

    def test_the_peak_is_not_what_is_held_last(self) -> None:
        """What was needed for a moment was needed."""
        case = self._case(0.5e9, 0, 10**9)
        case.point(WORKER, 1.0, 2e9)
        assert memory.memory(case).verdict == "fail"

    def test_nothing_known_is_unfit(self) -> None:
        """Neither a worker nor the machine's memory."""
        assert memory.memory(case_of(FakeTarget(memory=lambda: Memory(None, None)))).verdict == "unfit"


class TestUnload:
    """How much comes back, and how fast."""

    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The check's clock is the machine's."""
        self.clock = [0.0]
        monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: self.clock[0]))

    def _unloaded(self, **options: Any) -> Any:
        machine = Machine(clock=self.clock, **options)
        case = machine.case()
        for _ in range(20):
            watch.note(case, machine.memory())
        return memory.unload(case)

    def test_all_of_it_comes_back(self) -> None:
        """The worker is gone, and the machine is as before."""
        found = self._unloaded()
        assert found.verdict == "pass" and found.value == pytest.approx(100, abs=0.1), found
        assert "JetLLM itself says 419 MB" in (found.detail or "")

    @pytest.mark.parametrize(
        "kept",
        [{"keeps_worker": 60 * MIB}, {"keeps": 120 * MIB}, {"keeps": 60 * MIB, "sees_worker": False}],
        ids=["a part of the worker", "shared memory", "another machine"],
    )
    def test_what_stays_is_found_whatever_jetllm_says(self, kept: dict[str, Any]) -> None:
        """The worker's memory, and the machine's, beyond the noise that the watch has seen."""
        found = self._unloaded(**kept)
        assert found.verdict == "fail" and (found.value or 0) < 90 and found.limit == 90 and found.diagnosis

    def test_a_slow_one_fails_although_all_comes_back(self) -> None:
        """Seconds are judged then."""
        found = self._unloaded(unload_s=5.5)
        assert (found.verdict, found.value, found.unit) == ("fail", pytest.approx(5.5), "s")
        assert self._unloaded(unload_s=4.5).verdict == "pass"

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize("moved", [100 * MIB, 300 * MIB])
    def test_others_are_not_taken_for_it(self, moved: int, seed: int) -> None:
        """What others take and give is let off; where it is much, the worker's own memory decides."""
        found = self._unloaded(seed=seed, others=lambda chance: chance.random() * moved)
        assert found.verdict == "pass", found

    def test_what_others_took_meanwhile_is_not_missing(self) -> None:
        """Another program that grows all through the run, by 70 MB since the load: the watch saw it."""
        readings = itertools.count()
        found = self._unloaded(others=lambda _: next(readings) * 2.0 * MIB)
        assert found.verdict == "pass" and "% of the machine's" in (found.detail or ""), found

    def test_where_only_noise_is_seen_it_is_not_judged(self) -> None:
        """Another machine, on which others move more than the model takes."""
        found = self._unloaded(sees_worker=False, others=lambda chance: chance.random() * 1300 * MIB)
        assert found.verdict == "unfit"


class TestCycles:
    """20 times loaded and unloaded."""

    @staticmethod
    def _ran(**options: Any) -> tuple[Any, Any, Case]:
        case = Machine(**options).case(**options.pop("environment", {}))
        return memory.cycles(case), memory.leak_cycles(case), case

    def test_survives_them_all(self) -> None:
        """Each has a load, a generation and an unload, and leaves a point."""
        survived, leak, case = self._ran()
        assert (survived.verdict, survived.value, leak.verdict) == ("pass", 20, "pass")
        assert len(case.series["service_bytes_over_cycles"]) == 20
        events = case.target.events  # type: ignore[attr-defined]
        assert events[1:] == ["load", "generate", "unload"] * 20

    def test_says_how_many_it_survived(self) -> None:
        """The fifth load fails: four were survived, and why is told."""
        survived, leak, _ = self._ran(unloads_until_stuck=4)
        assert (survived.verdict, survived.value, survived.limit) == ("fail", 4, 20)
        assert "SIGKILL" in survived.detail and leak.verdict == "unfit"

    @pytest.mark.parametrize("seed", SEEDS)
    def test_a_leak_of_the_service_is_found_and_a_clean_one_not_accused(self, seed: int) -> None:
        """200 kB a cycle, against the measured noise of a few pages."""
        assert self._ran(seed=seed)[1].verdict == "pass"
        survived, leak, _ = self._ran(seed=seed, service_leaks=200_000)
        assert (survived.verdict, leak.verdict) == ("pass", "fail")
        assert leak.value == pytest.approx(200_000, rel=0.1)

    @pytest.mark.parametrize("seed", range(5))
    def test_what_no_process_holds_is_found_in_the_machines_memory(self, seed: int) -> None:
        """Where the service cannot be seen: 10 MB a cycle stay, others move 4 MB."""
        far: dict[str, Any] = {"sees_worker": False, "others": lambda chance: chance.random() * 4 * MIB}
        assert self._ran(seed=seed, **far)[1].verdict == "pass"
        leak = self._ran(seed=seed, **far, keeps=10 * MIB)[1]
        assert leak.verdict == "fail" and leak.value == pytest.approx(10 * MIB, rel=0.1)


def test_the_watch_gives_the_memory_check_its_peak() -> None:
    """A peak between two checks is seen by the thread."""
    peak = iter((400, 1200, *(400,) * 10**6))
    case = case_of(FakeTarget(memory=lambda: Memory(TOTAL // 2, next(peak) * 10**6)))
    with MemoryWatch(case, every_s=0.001):
        while len(case.series.get(WORKER, [])) < 3:
            pass
    found = memory.memory(case)
    assert (found.verdict, found.value) == ("fail", 1200 * 10**6)
