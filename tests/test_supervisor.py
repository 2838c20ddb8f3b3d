"""`inference.runtime.supervisor`: leases, swaps, evictions, crashes, draining."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psutil
import pytest

from inference.errors import (
    BackendTimeoutError,
    CancelledError,
    DrainingError,
    LoadFailedError,
    MemoryPressureError,
    QueueFullError,
    WorkerCrashedError,
)
from inference.generation import GenerateRequest
from inference.runtime.entry import Lease, State
from inference.runtime.plan import Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker
from tests.conftest import DEADLINE_S, Scripted, wait_until

Make = Callable[..., Supervisor]


def never() -> bool:
    return False


def acquire(supervisor: Supervisor, plan: Plan) -> tuple[Lease, Worker]:
    with supervisor.exclusive():
        lease = supervisor.apply(plan)
    try:
        return lease, supervisor.wait(lease, never, time.monotonic() + DEADLINE_S)
    except BaseException:
        lease.release()
        raise


def say(supervisor: Supervisor, plan: Plan, prompt: str) -> list[str]:
    lease, worker = acquire(supervisor, plan)
    try:
        return [c.text for c in worker.generate(GenerateRequest(prompt=prompt), never) if c.text]
    finally:
        lease.release()


def states(supervisor: Supervisor) -> dict[str, State]:
    return {worker.model: worker.state for worker in supervisor.snapshot()}


def test_a_model_is_loaded_once_for_many_requests(make_supervisor: Make, scripted: Scripted) -> None:
    """The first lease starts the worker; later ones share it."""
    supervisor = make_supervisor()
    assert say(supervisor, scripted.plan(), "say:a") == ["a"]
    pid = supervisor.snapshot()[0].pid
    assert say(supervisor, scripted.plan(), "say:b") == ["b"]
    assert supervisor.snapshot()[0].pid == pid
    assert supervisor.snapshot()[0].requests_total == 2


def test_slots_are_granted_in_the_order_of_asking(make_supervisor: Make, scripted: Scripted) -> None:
    """With one slot, the second waits until the first has released, and goes before the third."""
    supervisor, plan = make_supervisor(), scripted.plan(slots=1)
    first, _ = acquire(supervisor, plan)
    second, third = supervisor.apply(plan), supervisor.apply(plan)
    assert not second.granted and not third.granted
    first.release()
    assert second.settled.wait(5) and not third.granted
    second.release()
    assert third.settled.wait(5)
    third.release()


def test_the_queue_is_bounded(make_supervisor: Make, scripted: Scripted) -> None:
    """One request more than may wait is refused at once, with a time to come back."""
    supervisor, plan = make_supervisor(max_queue=1), scripted.plan(slots=1)
    running, _ = acquire(supervisor, plan)
    waiting = supervisor.apply(plan)
    with pytest.raises(QueueFullError) as caught:
        supervisor.apply(plan)
    assert caught.value.retry_after_s
    waiting.release()
    running.release()


def test_a_waiting_caller_can_leave(make_supervisor: Make, scripted: Scripted) -> None:
    """Its place in the queue goes to the next."""
    supervisor, plan = make_supervisor(), scripted.plan(slots=1)
    running, _ = acquire(supervisor, plan)
    leaving, staying = supervisor.apply(plan), supervisor.apply(plan)
    with pytest.raises(CancelledError):
        supervisor.wait(leaving, lambda: True, time.monotonic() + DEADLINE_S)
    leaving.release()
    running.release()
    assert staying.settled.wait(5)
    staying.release()


def test_a_request_waits_no_longer_than_its_deadline(make_supervisor: Make, scripted: Scripted) -> None:
    """A request whose time is over does not cost a load any more."""
    supervisor = make_supervisor()
    lease = supervisor.apply(scripted.plan(load="hang"))
    with pytest.raises(BackendTimeoutError):
        supervisor.wait(lease, never, time.monotonic() + 0.2)
    lease.release()


def test_a_swap_waits_for_running_requests(make_supervisor: Make, scripted: Scripted) -> None:
    """The loaded model finishes what it serves before the other takes its place."""
    supervisor = make_supervisor(max_loaded_models=1)
    lease, worker = acquire(supervisor, scripted.plan("a"))
    stream = worker.generate(GenerateRequest(prompt="tokens:3"), never)
    next(stream)
    other = supervisor.apply(scripted.plan("b"))
    wait_until(lambda: states(supervisor) == {"a": State.STOPPING, "b": State.QUEUED}, "the eviction's start")
    assert [chunk.text for chunk in stream] == ["t1 ", "t2 ", ""]
    lease.release()
    assert other.settled.wait(DEADLINE_S) and other.error is None
    assert states(supervisor) == {"b": State.READY}
    other.release()


def test_a_model_being_evicted_queues_behind_its_successor(make_supervisor: Make, scripted: Scripted) -> None:
    """First come, first served: a leaving model gets no new requests, it is loaded again later."""
    supervisor = make_supervisor(max_loaded_models=1)
    first, _ = acquire(supervisor, scripted.plan("a"))
    second = supervisor.apply(scripted.plan("b"))
    wait_until(lambda: states(supervisor).get("a") is State.STOPPING, "the eviction's start")
    third = supervisor.apply(scripted.plan("a"))
    assert not third.granted
    first.release()
    assert second.settled.wait(DEADLINE_S) and not third.settled.is_set()
    second.release()
    assert third.settled.wait(DEADLINE_S) and third.error is None
    third.release()


def test_two_models_that_alternate_both_advance(make_supervisor: Make, scripted: Scripted) -> None:
    """16 clients over two models that exclude each other: every request is served."""
    supervisor = make_supervisor(max_loaded_models=1, min_residency_s=0.1)
    answers: list[list[str]] = []

    def client(n: int) -> None:
        plan = scripted.plan("ab"[n % 2])
        answers.extend(say(supervisor, plan, f"say:{n}-{k}") for k in range(3))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(a[0] for a in answers) == sorted(f"{n}-{k}" for n in range(16) for k in range(3))


def test_minimum_residency_delays_a_swap(make_supervisor: Make, scripted: Scripted) -> None:
    """A model that was just loaded stays for a while, and goes on serving meanwhile."""
    supervisor = make_supervisor(max_loaded_models=1, min_residency_s=0.5)
    say(supervisor, scripted.plan("a"), "say:x")
    started_s = time.monotonic()
    other = supervisor.apply(scripted.plan("b"))
    assert say(supervisor, scripted.plan("a"), "say:still") == ["still"]
    assert other.settled.wait(DEADLINE_S)
    assert time.monotonic() - started_s > 0.3
    other.release()


def test_a_pinned_model_is_not_evicted(make_supervisor: Make, scripted: Scripted) -> None:
    """What cannot be loaded beside it is refused with the way out."""
    supervisor = make_supervisor(max_loaded_models=1)
    say(supervisor, scripted.plan("a", pinned=True), "say:x")
    with pytest.raises(MemoryPressureError) as caught:
        say(supervisor, scripted.plan("b"), "say:y")
    assert "unpin" in (caught.value.hint or "")
    supervisor.pin(("a", "v"), False)
    assert say(supervisor, scripted.plan("b"), "say:y") == ["y"]


def test_what_does_not_fit_in_memory_evicts_or_is_refused(make_supervisor: Make, scripted: Scripted) -> None:
    """The budget is asked before a start: too little, and an idle model has to go."""
    mib = 2**20
    free = [100 * mib]
    supervisor = make_supervisor(budget=lambda: free[0])
    say(supervisor, scripted.plan("a", memory_bytes=60 * mib), "say:x")
    free[0] = 40 * mib

    def budget_comes_back() -> None:
        wait_until(lambda: "a" not in states(supervisor), "the eviction")
        free[0] = 100 * mib

    watcher = threading.Thread(target=budget_comes_back)
    watcher.start()
    assert say(supervisor, scripted.plan("b", memory_bytes=45 * mib), "say:y") == ["y"]
    watcher.join()
    free[0] = 10 * mib
    with pytest.raises(MemoryPressureError):
        say(supervisor, scripted.plan("c", memory_bytes=900 * mib), "say:z")


def test_an_idle_model_is_unloaded(make_supervisor: Make, scripted: Scripted) -> None:
    """After keep_alive_s without a request its process ends; a pinned one stays."""
    supervisor = make_supervisor(keep_alive_s=0.2)
    lease, worker = acquire(supervisor, scripted.plan("a"))
    lease.release()
    say(supervisor, scripted.plan("p", pinned=True), "say:x")
    wait_until(lambda: states(supervisor) == {"p": State.READY}, "the unloading")
    assert not psutil.pid_exists(worker.pid)


def test_a_used_model_is_not_idle(make_supervisor: Make, scripted: Scripted) -> None:
    """A running request keeps its model however long it takes."""
    supervisor = make_supervisor(keep_alive_s=0.05)
    lease, worker = acquire(supervisor, scripted.plan())
    assert len(list(worker.generate(GenerateRequest(prompt="wait:0.1 tokens:4"), never))) == 5
    assert say(supervisor, scripted.plan(), "wait:0.1 say:beside") == ["beside"]  # makes the supervisor look
    assert states(supervisor) == {"m": State.READY}
    lease.release()


def test_unloading_ends_the_process(make_supervisor: Make, scripted: Scripted) -> None:
    """`unload` returns when the child has been reaped."""
    supervisor = make_supervisor()
    say(supervisor, scripted.plan(), "say:x")
    pid = supervisor.snapshot()[0].pid
    assert supervisor.unload(("m", "v"), 5)
    assert pid is not None and not psutil.pid_exists(pid)
    assert supervisor.snapshot() == ()


def test_unloading_while_loading_serves_those_who_asked(make_supervisor: Make, scripted: Scripted) -> None:
    """A request that was accepted before the unload is not lost."""
    supervisor = make_supervisor()
    lease = supervisor.apply(scripted.plan())
    wait_until(lambda: states(supervisor).get("m") in (State.STARTING, State.READY), "the start")
    done = threading.Thread(target=supervisor.unload, args=(("m", "v"), DEADLINE_S))
    done.start()
    assert lease.settled.wait(DEADLINE_S) and lease.error is None
    lease.release()
    done.join()
    assert supervisor.snapshot() == ()


def test_a_failed_load_is_told_to_all_who_wait(make_supervisor: Make, scripted: Scripted) -> None:
    """Everyone in the queue gets the reason; the next request tries again."""
    supervisor = make_supervisor()
    leases = [supervisor.apply(scripted.plan(load="fail")) for _ in range(3)]
    for lease in leases:
        with pytest.raises(LoadFailedError, match="told to fail"):
            supervisor.wait(lease, never, time.monotonic() + DEADLINE_S)
        lease.release()
    assert supervisor.loads == {("m", "failed"): 1}
    assert isinstance(supervisor.failure(("m", "v")), LoadFailedError)
    assert say(supervisor, scripted.plan(load="ok"), "say:x") == ["x"]
    assert supervisor.failure(("m", "v")) is None


def test_a_crash_hits_running_requests_only(make_supervisor: Make, scripted: Scripted) -> None:
    """Those who wait for a slot of a worker that dies get one of its successor."""
    supervisor, plan = make_supervisor(), scripted.plan(slots=1)
    lease, worker = acquire(supervisor, plan)
    waiting = supervisor.apply(plan)
    with pytest.raises(WorkerCrashedError):
        list(worker.generate(GenerateRequest(prompt="segv"), never))
    lease.release()
    successor = supervisor.wait(waiting, never, time.monotonic() + DEADLINE_S)
    assert [c.text for c in successor.generate(GenerateRequest(prompt="say:ok"), never)] == ["ok", ""]
    waiting.release()
    assert supervisor.restarts == {("m", "backend_crashed"): 1}


def test_the_stacks_of_a_stalled_worker_are_logged(
    make_supervisor: Make, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """What hung can be read in the daemon's log."""
    supervisor = make_supervisor(stall_timeout_s=0.3)
    with pytest.raises(BackendTimeoutError):
        say(supervisor, scripted.plan(), "hang")
    wait_until(lambda: "_hang" in caplog.text, "the stacks in the log")


@pytest.mark.parametrize("misdeed", ["stop", "hang"])
def test_a_worker_that_stalls_is_killed(make_supervisor: Make, scripted: Scripted, misdeed: str) -> None:
    """Silence longer than the limit ends in a timeout for the caller and a new worker for the next."""
    supervisor = make_supervisor(stall_timeout_s=0.3)
    say(supervisor, scripted.plan(), "say:x")
    started_s = time.monotonic()
    with pytest.raises(BackendTimeoutError, match="no progress"):
        say(supervisor, scripted.plan(), misdeed)
    assert time.monotonic() - started_s < 0.3 + 1.0  # told within a second of being noticed
    assert say(supervisor, scripted.plan(), "say:next") == ["next"]


def test_progress_of_a_prefill_is_no_stall(make_supervisor: Make, scripted: Scripted) -> None:
    """A long prefill that reports progress lives, however long it takes in all."""
    supervisor = make_supervisor(stall_timeout_s=0.4)
    assert say(supervisor, scripted.plan(), "wait:0.1 prefill:12 say:done") == ["done"]


def test_a_load_that_hangs_is_killed(make_supervisor: Make, scripted: Scripted) -> None:
    """A loading worker that uses no CPU and takes no memory for the time limit is given up."""
    supervisor = make_supervisor(load_timeout_s=0.5)
    with pytest.raises(BackendTimeoutError, match="while loading"):
        say(supervisor, scripted.plan(load="hang"), "say:x")


def test_a_process_that_cannot_start_is_told(
    make_supervisor: Make, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room for another process fails the request, leaves nothing, and the next one works."""

    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    supervisor = make_supervisor()
    with monkeypatch.context() as patched:
        patched.setattr("inference.runtime.worker.subprocess.Popen", full)
        with pytest.raises(LoadFailedError, match="Cannot allocate memory"):
            say(supervisor, scripted.plan(), "say:x")
    assert say(supervisor, scripted.plan(), "say:x") == ["x"]


def test_the_supervisor_outlives_a_defect_of_its_own(
    make_supervisor: Make, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected exception in one step is logged, and the steps go on."""
    failing = [True]

    def budget() -> int | None:
        if failing.pop() if failing else False:
            raise RuntimeError("a reader broke")
        return None

    supervisor = make_supervisor(budget=budget)
    assert say(supervisor, scripted.plan(), "say:x") == ["x"]
    assert "a reader broke" in caplog.text


def test_nobody_is_loaded_for_callers_who_left(make_supervisor: Make, scripted: Scripted) -> None:
    """A queued load is dropped when all who asked have gone."""
    supervisor = make_supervisor(max_loaded_models=1)
    lease, _ = acquire(supervisor, scripted.plan("a"))
    supervisor.apply(scripted.plan("b")).release()
    wait_until(lambda: "b" not in states(supervisor), "the drop")
    lease.release()


def test_draining_refuses_new_work_and_finishes_the_old(make_supervisor: Make, scripted: Scripted) -> None:
    """After `begin_drain` accepted requests end normally and new ones are told to come back."""
    supervisor = make_supervisor()
    lease, worker = acquire(supervisor, scripted.plan())
    supervisor.begin_drain()
    with pytest.raises(DrainingError):
        supervisor.apply(scripted.plan())
    assert not supervisor.drain(0.05)
    assert [c.text for c in worker.generate(GenerateRequest(prompt="say:end"), never)] == ["end", ""]
    lease.release()
    assert supervisor.drain(5)


def test_closing_tells_those_who_wait(make_supervisor: Make, scripted: Scripted) -> None:
    """Nobody waits for ever on a supervisor that has ended."""
    supervisor, plan = make_supervisor(), scripted.plan(slots=1)
    running, _ = acquire(supervisor, plan)
    waiting = supervisor.apply(plan)
    supervisor.close()
    with pytest.raises(DrainingError):
        supervisor.wait(waiting, never, time.monotonic() + 5)
    running.release()
    waiting.release()


def test_the_snapshot_takes_no_lock(make_supervisor: Make, scripted: Scripted) -> None:
    """Status answers while somebody holds the set of workers."""
    supervisor = make_supervisor()
    say(supervisor, scripted.plan(), "say:x")
    seen = threading.Event()

    def look() -> None:
        supervisor.snapshot()
        seen.set()

    with supervisor.exclusive():
        thread = threading.Thread(target=look)
        thread.start()
        assert seen.wait(2)
    thread.join()
