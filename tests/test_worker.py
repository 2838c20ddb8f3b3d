"""`inference.runtime.worker`: every way a worker can behave, and what its caller is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from inference.errors import (
    CancelledError,
    InternalError,
    InvalidRequestError,
    JetLLMError,
    LoadFailedError,
    WorkerCrashedError,
)
from inference.generation import Chunk, FinishReason, GenerateRequest
from inference.runtime.worker import Worker, WorkerSpec
from tests.conftest import Scripted, wait_until

Start = Callable[[WorkerSpec], Worker]
TOLD_S = 1.0  # facts/faults.md, B1: noticed and told to the client


def never() -> bool:
    return False


def collect(worker: Worker, prompt: str, cancelled: Callable[[], bool] = never) -> list[Chunk]:
    return list(worker.generate(GenerateRequest(prompt=prompt), cancelled))


def test_chunks_come_through_in_order(start_worker: Start, scripted: Scripted) -> None:
    """The caller sees the backend's texts, then one last chunk with reason and counts."""
    *texts, last = collect(start_worker(scripted.spec()), "say:one say:two tokens:3")
    assert [chunk.text for chunk in texts] == ["one", "two", "t0 ", "t1 ", "t2 "]
    assert last.finish_reason is FinishReason.STOP
    assert last.usage is not None and last.usage.completion_tokens == 5


def test_prefill_progress_is_not_for_the_caller(start_worker: Start, scripted: Scripted) -> None:
    """It proves life to the watchdog; the caller sees text only."""
    assert [c.text for c in collect(start_worker(scripted.spec()), "prefill:3 say:x")] == ["x", ""]


def test_frames_of_nobodys_call_are_swallowed(start_worker: Start, scripted: Scripted) -> None:
    """A late frame of a call that has ended disturbs no other."""
    worker = start_worker(scripted.spec())
    assert [c.text for c in collect(worker, "stray say:mine")] == ["mine", ""]
    assert worker.ready


def test_requests_run_side_by_side(start_worker: Start, scripted: Scripted) -> None:
    """One request that waits does not hold up another."""
    worker = start_worker(scripted.spec())
    slow = worker.generate(GenerateRequest(prompt="say:first wait:60 say:never"), never)
    assert next(slow).text == "first"
    assert collect(worker, "say:quick")[0].text == "quick"
    slow.close()


def test_leaving_early_swallows_the_rest(start_worker: Start, scripted: Scripted) -> None:
    """After a caller leaves, the next caller gets its own words only, and nothing runs on."""
    worker = start_worker(scripted.spec())
    for _ in range(5):
        stream = worker.generate(GenerateRequest(prompt="wait:0.001 tokens:100000"), never)
        assert next(stream).text == "t0 "
        stream.close()
    assert [c.text for c in collect(worker, "say:mine")] == ["mine", ""]
    assert worker.silent_s(time.monotonic() + 100) == 0.0


def test_a_silent_request_is_cancelled_within_half_a_second(start_worker: Start, scripted: Scripted) -> None:
    """`cancelled` is looked at while nothing arrives, as in a long prefill."""
    worker = start_worker(scripted.spec())
    gone = threading.Event()
    threading.Timer(0.1, gone.set).start()
    started_s = time.monotonic()
    with pytest.raises(CancelledError):
        collect(worker, "wait:60 say:never", gone.is_set)
    assert time.monotonic() - started_s < 0.6


@pytest.mark.parametrize(
    ("misdeed", "words"),
    [
        ("segv", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("exit", "exit code 0"),
        ("garbage", "garbage"),
    ],
)
def test_a_death_is_told_within_a_second(
    start_worker: Start, scripted: Scripted, misdeed: str, words: str
) -> None:
    """Signals, an unasked exit and nonsense on the wire all end the stream with their cause."""
    worker = start_worker(scripted.spec())
    stream = worker.generate(GenerateRequest(prompt=f"say:before {misdeed}"), never)
    assert next(stream).text == "before"
    started_s = time.monotonic()
    with pytest.raises(WorkerCrashedError, match=words) as caught:
        list(stream)
    assert time.monotonic() - started_s < TOLD_S
    assert caught.value.retryable
    assert worker.wait(TOLD_S)


def test_a_killed_worker_hints_at_the_oom_killer(start_worker: Start, scripted: Scripted) -> None:
    """SIGKILL that nobody here sent is most often the kernel's."""
    with pytest.raises(WorkerCrashedError) as caught:
        collect(start_worker(scripted.spec()), "kill")
    assert "OOM" in (caught.value.hint or "")


def test_a_flood_on_stderr_blocks_nothing_and_is_bounded(start_worker: Start, scripted: Scripted) -> None:
    """20 MB of stderr pass through; only the tail is kept."""
    worker = start_worker(scripted.spec())
    assert collect(worker, "flood say:done")[0].text == "done"
    assert len("\n".join(worker.stderr_tail(10**6))) <= 80_000


def test_grandchildren_die_with_the_worker(start_worker: Start, scripted: Scripted) -> None:
    """The whole process group ends, also when the worker itself was shot."""
    worker = start_worker(scripted.spec())
    collect(worker, "grandchild")
    grandchild = psutil.Process(worker.pid).children()[0]
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait(5)
    wait_until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE, "gone")


def test_the_backends_own_errors_come_through(start_worker: Start, scripted: Scripted) -> None:
    """A JetLLMError keeps its type and text over the wire."""
    with pytest.raises(InvalidRequestError, match="told to refuse"):
        collect(start_worker(scripted.spec()), "refuse")


def test_other_exceptions_give_no_detail_away(start_worker: Start, scripted: Scripted) -> None:
    """What a backend did not mean to say is logged in the worker and not told to a client."""
    worker = start_worker(scripted.spec())
    with pytest.raises(InternalError) as caught:
        collect(worker, "raise")
    assert "secret" not in str(caught.value)
    wait_until(lambda: any("secret detail" in line for line in worker.stderr_tail()), "the log")
    assert collect(worker, "say:alive")[0].text == "alive"


def test_a_failed_load_names_the_reason(start_worker: Start, scripted: Scripted) -> None:
    """The backend's error becomes the worker's exit error."""
    worker = start_worker(scripted.spec(load="fail"))
    assert isinstance(worker.exit_error, LoadFailedError)
    assert "told to fail" in worker.exit_error.message


def test_a_crash_while_loading_is_a_failed_load(start_worker: Start, scripted: Scripted) -> None:
    """A segmentation fault before readiness is the model's fault, and no reason to try again at once."""
    worker = start_worker(scripted.spec(load="crash"))
    assert isinstance(worker.exit_error, LoadFailedError)
    assert "SIGSEGV" in worker.exit_error.message


def test_an_unknown_backend_is_told(start_worker: Start, scripted: Scripted) -> None:
    """The child reports what it cannot open."""
    spec = scripted.spec()
    worker = start_worker(WorkerSpec(spec.name, "nonsense", spec.options, spec.environment, spec.main))
    assert isinstance(worker.exit_error, JetLLMError)
    assert "nonsense" in worker.exit_error.message


def test_stopping_is_quick_and_no_crash(start_worker: Start, scripted: Scripted) -> None:
    """A worker that was asked to go has no exit error."""
    worker = start_worker(scripted.spec())
    worker.stop()
    assert worker.wait(2)
    assert worker.exit_error is None


def test_a_request_to_a_dead_worker_fails_at_once(start_worker: Start, scripted: Scripted) -> None:
    """Nobody waits for an answer that cannot come."""
    worker = start_worker(scripted.spec())
    worker.kill()
    assert worker.wait(5)
    with pytest.raises(WorkerCrashedError):
        collect(worker, "say:x")


def test_the_worker_is_confined(start_worker: Start, scripted: Scripted) -> None:
    """Own process group and session, first in line for the OOM killer, no core dumps."""
    worker = start_worker(scripted.spec())
    assert os.getpgid(worker.pid) == worker.pid
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text().strip() == "800"
    assert (
        "Max core file size        0                    0" in Path(f"/proc/{worker.pid}/limits").read_text()
    )


def test_the_environment_is_an_allow_list(
    start_worker: Start, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No key or token of the daemon reaches a worker; what an engine needs does."""
    monkeypatch.setenv("JETLLM_API_KEY", "do-not-pass")
    monkeypatch.setenv("HF_TOKEN", "do-not-pass")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    worker = start_worker(scripted.spec())
    environment = psutil.Process(worker.pid).environ()
    assert "do-not-pass" not in environment.values()
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["GOMP_SPINCOUNT"] == "1000"


def test_tokenizing_goes_over_the_wire(start_worker: Start, scripted: Scripted) -> None:
    """Token ids come from the model's own tokenizer, in the worker."""
    assert start_worker(scripted.spec()).tokenize("a bcd") == [1, 3]


def test_workers_die_with_the_daemon(scripted: Scripted, tmp_path: Path) -> None:
    """SIGKILL of the daemon leaves no worker behind."""
    import json
    import subprocess
    import sys

    spec = scripted.spec()
    program = (
        "import json, sys, threading\n"
        "from inference.runtime.worker import Worker, WorkerSpec\n"
        "spec = WorkerSpec(**json.loads(sys.argv[1]))\n"
        "ready = threading.Event()\n"
        "worker = Worker(spec, on_change=ready.set)\n"
        "worker.start()\n"
        "ready.wait(20)\n"
        "print(worker.pid, flush=True)\n"
        "threading.Event().wait()\n"
    )
    data = json.dumps({**spec.__dict__})
    daemon = subprocess.Popen([sys.executable, "-c", program, data], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pid = int(daemon.stdout.readline())
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    wait_until(lambda: not psutil.pid_exists(pid), "the worker's end")
