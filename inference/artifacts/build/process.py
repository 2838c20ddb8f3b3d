"""A build step: one Python program in a process of its own, within limits of memory and time."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

from inference.artifacts.build.group import MARK, Group, Reading
from inference.artifacts.build.step_log import StepLog
from inference.errors import BuildFailedError, CancelledError

_POLL_S = 0.1
_ALIVE_CPU_S = 0.05  # what a process spends that only wakes up to look whether it may go on is less
_STARVED = re.compile(
    r"no space left|quota exceeded|MemoryError|bad_alloc|out of memory|cannot allocate", re.IGNORECASE
)
_CHILD = "inference.artifacts.build_child"
_PACKAGE_PARENT = Path(__file__).resolve().parents[3]


class StepFailedError(BuildFailedError):
    """A step ended with an exit code; it would with the same inputs again."""

    cached: ClassVar[bool] = True


class StepStarvedError(BuildFailedError):
    """A step ended with an exit code because the disk or the memory was full."""


class StepKilledError(BuildFailedError):
    """A step was ended by a signal."""


class StepStalledError(BuildFailedError):
    """A step did nothing for too long, or took too long."""


class StepMemoryError(BuildFailedError):
    """A step took more memory than it was given."""


@dataclass(frozen=True)
class Budget:
    """What a step may take.

    Args:
        memory_bytes: of all its processes together, shared pages counted in each; ``None``: no limit.
        time_s: from its start to its end.
        stall_s: without using a processor. The compiler writes nothing for minutes while it works, so
            that its output tells nothing.
    """

    memory_bytes: int | None
    time_s: float
    stall_s: float


@dataclass(frozen=True)
class Usage:
    """What a step took.

    Args:
        peak_bytes: the most that was resident of all its processes, seen ten times a second; of the
            first process the kernel's own figure.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int


def run_step(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    budget: Budget,
    cancelled: Callable[[], bool],
    watch: Callable[[], None] = lambda: None,
) -> Usage:
    """Run ``python -m module arguments`` to its end, or end it; nothing of it lives afterwards.

    The kernel kills the step when the thread that called this ends, which it does not before this
    returns, and all of the step's group when this process ends, however it does.

    Args:
        name: what messages call the step.
        log: a file that its output is appended to, see `StepLog`.
        cwd: a directory of the build's own: Python below 3.11 imports what the step's own children
            find there.
        environment: the whole environment; its PYTHONPATH comes behind the place of this package.
        cancelled: asked ten times a second, as *watch* is called; both on the calling thread.

    Raises:
        StepFailedError: it ended with another exit code than 0.
        StepStarvedError: the same, and its last words were of a full disk or memory.
        StepKilledError: a signal ended it that was not ours.
        StepStalledError, StepMemoryError: it was ended for that reason.
        CancelledError: *cancelled* came true.
        OSError: it could not be started.
    """
    started_s = time.monotonic()
    with StepLog(log) as record, _child(module, arguments, cwd, environment) as (process, group):
        limits = _Limits(name, budget, started_s)
        output = _output(process)
        while True:
            ended = _has_ended(process.pid)
            reading = group.look()
            if ended:
                break
            watch()
            if cancelled():
                raise CancelledError(f"{name}: cancelled")
            limits.check(reading)
            record.take(output, _POLL_S)
        group.kill()  # what the step has started and left behind
        record.take_rest(output)
        usage = Usage(time.monotonic() - started_s, reading.cpu_s, reading.peak_bytes)
        if process.wait() != 0:
            _fail(name, process.returncode, usage, record.telling_line())
    return usage


@contextlib.contextmanager
def _child(
    module: str, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Group]]:
    """Start the process, and kill and reap it and all that belongs to it in the end."""
    mark = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        lifeline, writer = os.pipe()
        stack.callback(os.close, writer)
        try:
            process = subprocess.Popen(  # noqa: S603 - a list, and nothing of a user's is its program
                [sys.executable, "-m", _CHILD, str(cwd), str(lifeline), str(os.getpid()), module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(lifeline,),
                start_new_session=True,
                env=_environment(environment, mark),
                cwd=_PACKAGE_PARENT,  # "-m" imports from here first; the child goes to cwd later
            )
        finally:
            os.close(lifeline)
        group = Group(process.pid, mark)
        stack.enter_context(process)  # closes the pipe, and waits
        stack.callback(_end, process, group)
        yield process, group


def _end(process: subprocess.Popen[bytes], group: Group) -> None:
    if process.returncode is None:  # once it is reaped its number may be another's
        group.kill()


def _environment(given: Mapping[str, str], mark: str) -> dict[str, str]:
    path = [str(_PACKAGE_PARENT), *filter(None, given.get("PYTHONPATH", "").split(os.pathsep))]
    # Unbuffered, so that a step that is killed has written what it had to say.
    return {"PYTHONUNBUFFERED": "1", **given, "PYTHONPATH": os.pathsep.join(path), MARK: mark}


def _output(process: subprocess.Popen[bytes]) -> int:
    if process.stdout is None:
        raise AssertionError("started without a pipe")
    return process.stdout.fileno()


def _has_ended(pid: int) -> bool:
    """Tell whether a child has ended, without reaping it: its number stays its own until then."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class _Limits:
    """Watches a step's readings against its budget."""

    def __init__(self, name: str, budget: Budget, started_s: float) -> None:
        self._name = name
        self._budget = budget
        self._started_s = started_s
        self._alive_s = started_s
        self._alive_cpu_s = 0.0

    def check(self, reading: Reading) -> None:
        """Raise what the step has to be ended for."""
        now, budget = time.monotonic(), self._budget
        if budget.memory_bytes is not None and reading.memory_bytes > budget.memory_bytes:
            raise StepMemoryError(
                f"{self._name}: took {_gib(reading.memory_bytes)} of memory;"
                f" expected at most {_gib(budget.memory_bytes)}",
                hint="free memory: jetllm unload MODEL; or build on a bigger machine:"
                " jetllm build MODEL --for BOARD, then jetllm bundle",
                details={"memory_bytes": reading.memory_bytes, "budget_bytes": budget.memory_bytes},
            )
        if abs(reading.cpu_s - self._alive_cpu_s) >= _ALIVE_CPU_S:  # it falls when a member is not reaped
            self._alive_s, self._alive_cpu_s = now, reading.cpu_s
        if now - self._alive_s > budget.stall_s:
            self._too_long(f"used no processor for {now - self._alive_s:.0f} s", budget.stall_s)
        if now - self._started_s > budget.time_s:
            self._too_long(f"still runs after {now - self._started_s:.0f} s", budget.time_s)

    def _too_long(self, what: str, limit_s: float) -> NoReturn:
        raise StepStalledError(
            f"{self._name}: {what}; expected at most {limit_s:.0f} s",
            hint="see the build's log for how far it came, and try again",
            details={"limit_s": limit_s},
        )


def _fail(name: str, code: int, usage: Usage, line: str | None) -> NoReturn:
    """Raise what a process that ended with *code* means."""
    after = f"after {usage.wall_s:.1f} s{': ' + line if line else ''}"
    details = {"wall_s": usage.wall_s, "peak_bytes": usage.peak_bytes}
    if code > 0:
        starved = line is not None and _STARVED.search(line)
        raise (StepStarvedError if starved else StepFailedError)(
            f"{name}: ended with exit code {code} {after}",
            hint="see the build's log",
            details={**details, "exit_code": code},
        )
    hint = "see the build's log"
    if code == -signal.SIGKILL:
        hint = "usually the kernel's OOM killer; check: journalctl -k | grep -i oom"
    raise StepKilledError(
        f"{name}: was killed by {_signal_name(-code)} {after}",
        hint=hint,
        details={**details, "signal": -code},
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
