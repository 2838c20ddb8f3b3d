"""`inference.runtime.supervisor`: what workers are seen to hold, and what follows from it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from inference.backends import LoadOptions
from inference.errors import MemoryPressureError
from inference.generation import GenerateRequest
from inference.registry import load_registry
from inference.runtime.account import Account
from inference.runtime.calibration import Calibration, Prediction
from inference.runtime.entry import Entry
from inference.runtime.plan import Limits, Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker, WorkerSpec
from inference.selection.estimate import estimate_memory
from inference.settings import load_settings, worker_environment
from tests.conftest import Scripted, wait_until
from tests.test_supervisor import Make, acquire, say, states

MIB = 2**20
PLENTY = 4096 * MIB


def observed_mib(supervisor: Supervisor, model: str = "m") -> float:
    """The peak that `status` shows."""
    row = next(worker for worker in supervisor.snapshot() if worker.model == model)
    return (row.memory_observed_bytes or 0) / MIB


@pytest.fixture
def calibrated(scripted: Scripted) -> Plan:
    """A plan whose formula says 100 MiB, of which 20 come later."""
    return predicted(scripted.plan(memory_bytes=100 * MIB))


def predicted(plan: Plan, later_mib: int | None = 20) -> Plan:
    later = None if later_mib is None else later_mib * MIB
    return replace(plan, prediction=Prediction(plan.memory_bytes, later, weights_bytes=1))


def test_memory_taken_after_the_load_is_seen(make_supervisor: Make, scripted: Scripted) -> None:
    """A worker is looked at again when it has served, not only after its load."""
    supervisor = make_supervisor()
    say(supervisor, scripted.plan(), "say:x")
    before = observed_mib(supervisor)
    say(supervisor, scripted.plan(), "take:64 say:x")
    wait_until(lambda: observed_mib(supervisor) > before + 60, "another look")


def test_memory_taken_by_a_long_request_is_seen(make_supervisor: Make, scripted: Scripted) -> None:
    """A worker that serves without a pause is looked at every second."""
    supervisor = make_supervisor()
    lease, worker = acquire(supervisor, scripted.plan())
    before = observed_mib(supervisor)
    stream = worker.generate(GenerateRequest(prompt="take:64 say:x wait:60 say:y"), lambda: False)
    assert next(stream).text == "x"
    wait_until(lambda: observed_mib(supervisor) > before + 60, "another look")
    stream.close()
    lease.release()


def test_the_last_look_is_before_the_end(
    make_supervisor: Make, calibrated: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken since the last look is not lost when the worker is unloaded."""
    calibration = Calibration()
    supervisor = make_supervisor(calibration=calibration)
    monkeypatch.setattr(Entry, "look_due", lambda *_: False)
    say(supervisor, calibrated, "say:x")
    (loaded,) = calibration.observations()
    say(supervisor, calibrated, "take:64 say:x")
    assert supervisor.unload(calibrated.key, 5)
    (ended,) = calibration.observations()
    assert ended.loaded_bytes == loaded.peak_bytes
    assert ended.peak_bytes > loaded.peak_bytes + 60 * MIB


def test_what_was_learned_is_written_before_the_end(tmp_path: Path, calibrated: Plan) -> None:
    """When `close` returns, the next start knows what this one has seen."""
    path = tmp_path / "state" / "ledger.json"
    limits = Limits(2, 32, -1, 0, 30, 30, 5)
    supervisor = Supervisor(limits, budget=lambda: None, calibration=Calibration(path))
    say(supervisor, calibrated, "say:x")
    supervisor.close()
    (seen,) = Calibration(path).observations()
    assert (seen.model, seen.variant, seen.backend) == ("m", "v", "scripted")
    assert (seen.context_tokens, seen.slots, seen.formula_bytes) == (128, 4, 100 * MIB)
    assert 10 * MIB < seen.loaded_bytes <= seen.peak_bytes


def test_writing_does_not_hold_the_workers_up(
    make_supervisor: Make, calibrated: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes its time delays nobody who wants a lease."""
    calibration, begun, go_on = Calibration(), threading.Event(), threading.Event()

    def slow() -> None:
        if calibration.unsaved:
            calibration.unsaved = False
            begun.set()
            assert go_on.wait(20)

    monkeypatch.setattr(calibration, "save", slow)
    supervisor = make_supervisor(calibration=calibration)
    say(supervisor, calibrated, "say:x")
    assert begun.wait(20)
    assert say(supervisor, calibrated, "say:y") == ["y"]
    go_on.set()


def test_a_worker_with_a_gpu_keeps_its_promise(
    make_supervisor: Make, calibrated: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its resident memory is a part of what it holds: neither the ledger nor the formula follows it."""
    calibration = Calibration()
    monkeypatch.setattr(Worker, "uses_gpu", lambda _: True)
    supervisor = make_supervisor(calibration=calibration)
    say(supervisor, calibrated, "say:x")
    (row,) = supervisor.snapshot()
    assert row.memory_observed_bytes is None and row.memory_predicted_bytes == 100 * MIB
    assert calibration.observations() == ()


@pytest.mark.parametrize(("later_mib", "to_come_mib"), [(20, 20), (0, 0)])
def test_what_is_still_to_come_is_shown(
    make_supervisor: Make, scripted: Scripted, later_mib: int, to_come_mib: int
) -> None:
    """After the load the part that fills with use is still promised."""
    supervisor = make_supervisor()
    say(supervisor, predicted(scripted.plan(memory_bytes=100 * MIB), later_mib), "say:x")
    (row,) = supervisor.snapshot()
    assert to_come_mib * MIB - MIB <= row.memory_to_come_bytes <= to_come_mib * MIB


def test_a_declared_figure_is_kept_promised(make_supervisor: Make, scripted: Scripted) -> None:
    """Nobody knows which part of it is still to come."""
    supervisor = make_supervisor()
    say(supervisor, predicted(scripted.plan(memory_bytes=900 * MIB), None), "say:x")
    (row,) = supervisor.snapshot()
    assert row.memory_to_come_bytes == 900 * MIB - (row.memory_observed_bytes or 0)


def test_a_newcomer_may_not_take_what_is_still_to_come(make_supervisor: Make, scripted: Scripted) -> None:
    """The prompt cache of a loaded model is empty at first, but it is promised."""
    supervisor = make_supervisor(budget=lambda: 300 * MIB)
    say(supervisor, predicted(scripted.plan("a", memory_bytes=280 * MIB), later_mib=250), "say:x")
    newcomer = supervisor.apply(scripted.plan("b", memory_bytes=100 * MIB))
    wait_until(lambda: "a" not in states(supervisor), "the eviction")
    assert newcomer.settled.wait(20) and newcomer.error is None
    newcomer.release()


class TightMachine:
    """A machine on which a worker finds its promise too small when its room is gone."""

    def __init__(self, make: Make, scripted: Scripted, **limits: float) -> None:
        self.budget = PLENTY
        self.enough_without: str | None = None
        self.supervisor: Supervisor = make(budget=self._budget, max_loaded_models=4, **limits)
        self._scripted = scripted

    def _budget(self) -> int:
        """There is plenty as soon as the model that makes the difference has left."""
        gone = self.enough_without is not None and self.enough_without not in states(self.supervisor)
        return PLENTY if gone else self.budget

    def load(self, model: str, pinned: bool = False) -> Plan:
        """Load a model that keeps its promise so far."""
        plan = self._scripted.plan(model, memory_bytes=100 * MIB, pinned=pinned)
        say(self.supervisor, plan, "take:40 say:x")
        return plan

    def overrun(self, plan: Plan) -> None:
        """Let a model take more than was promised, with no room left."""
        self.budget = 0
        say(self.supervisor, plan, "take:150 say:x")


def test_an_overrun_evicts_the_idle_least_recently_used_first(
    make_supervisor: Make, scripted: Scripted
) -> None:
    """A worker that needs more than there is costs the one that was idle longest its place."""
    machine = TightMachine(make_supervisor, scripted)
    machine.load("old")
    machine.load("new")
    greedy = machine.load("greedy")
    machine.enough_without = "old"
    machine.overrun(greedy)
    wait_until(lambda: "old" not in states(machine.supervisor), "the eviction")
    assert say(machine.supervisor, greedy, "say:still") == ["still"]
    assert set(states(machine.supervisor)) == {"new", "greedy"}


def test_an_overrun_spares_the_pinned_and_the_busy(make_supervisor: Make, scripted: Scripted) -> None:
    """They stay; the culprit itself leaves when it is idle and nothing else helps."""
    machine = TightMachine(make_supervisor, scripted)
    machine.load("pinned", pinned=True)
    lease, _ = acquire(machine.supervisor, machine.load("busy"))
    machine.overrun(machine.load("greedy"))
    wait_until(lambda: set(states(machine.supervisor)) == {"pinned", "busy"}, "the eviction")
    lease.release()


def test_nothing_is_started_while_an_overrun_lasts(make_supervisor: Make, scripted: Scripted) -> None:
    """With less than nothing to give, not even a model of a byte is started."""
    machine = TightMachine(make_supervisor, scripted)
    greedy = machine.load("greedy", pinned=True)
    machine.overrun(greedy)
    newcomer = machine.supervisor.apply(scripted.plan("b", memory_bytes=1))
    assert newcomer.settled.wait(20)
    assert newcomer.error is not None and newcomer.error.code == "memory_pressure"
    newcomer.release()
    machine.budget = PLENTY
    assert say(machine.supervisor, scripted.plan("b", memory_bytes=1), "say:y") == ["y"]


def test_an_overrun_that_fits_evicts_nobody(make_supervisor: Make, scripted: Scripted) -> None:
    """More than was promised is granted where the machine has it."""
    machine = TightMachine(make_supervisor, scripted)
    machine.load("idle")
    greedy = machine.load("greedy")
    say(machine.supervisor, greedy, "take:150 say:x")
    wait_until(lambda: observed_mib(machine.supervisor, "greedy") > 150, "the look")
    machine.budget = 200 * MIB
    assert say(machine.supervisor, greedy, "say:x") == ["x"]
    assert set(states(machine.supervisor)) == {"idle", "greedy"}


def test_the_formula_holds_for_a_real_model(make_supervisor: Make, smollm2_path: Path) -> None:
    """SmolLM2 with full slots: the formula within 10 % of the peak, corrected within 5 %."""
    settings = load_settings()
    spec = load_registry(settings.registry_path).models["smollm2-135m-instruct"]
    key = next((spec.name, name) for name, v in spec.variants.items() if v.backend == "llamacpp")
    size, slots, context, batch = smollm2_path.stat().st_size, 2, 512, 64
    estimate = estimate_memory(
        spec,
        spec.variants[key[1]],
        context_tokens=context,
        slots=slots,
        prompt_cache_bytes=0,
        weights_bytes=size,
        prefill_batch_tokens=batch,
    )
    options = LoadOptions(smollm2_path, context, slots, None, batch, 0, Path())
    worker = WorkerSpec("smollm2", "llamacpp", options.to_dict(), worker_environment())
    prediction = Prediction(estimate.total_bytes, estimate.later_bytes, size)
    plan = Plan(key, worker, slots=slots, memory_bytes=estimate.total_bytes, prediction=prediction)
    calibration = Calibration()
    supervisor = make_supervisor(calibration=calibration)
    for letter in "ab":  # a text that shares nothing with the other goes to the other slot
        lease, running = acquire(supervisor, plan)
        request = GenerateRequest(prompt=f"{letter} " * 400, max_tokens=2)
        assert list(running.generate(request, lambda: False))
        lease.release()
    assert supervisor.unload(key, 20)
    (seen,) = calibration.observations()
    corrected = seen.formula_bytes + calibration.variant_corrections({key: size})[key]
    assert abs(seen.error) <= 0.10
    assert abs(corrected / seen.peak_bytes - 1) <= 0.05


def test_the_account_refuses_what_is_not_free(scripted: Scripted) -> None:
    """The ledger has the last word, whatever the policy said."""
    account = Account(lambda: 100, Calibration())
    entry = Entry(scripted.plan(memory_bytes=101), 0.0)
    with pytest.raises(MemoryPressureError, match="not reserved"):
        account.admit(entry, account.free_bytes([]))
