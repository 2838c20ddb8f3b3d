"""Work that is killed at each of its steps on the disk, one run after the other."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

STEPS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"})


def killed_at_each_step(work: Callable[[Callable[[], None]], object], root: Path) -> Iterator[int]:
    """Run *work* in a process that is killed at its first step below *root*, then at its second, and so on.

    A step is what opens, renames, makes or removes something there, and each call of what *work* is
    given. Yields the number of the step after each kill, until a run ends by itself.
    """
    step = 0
    while True:
        step += 1
        pid = os.fork()
        if pid == 0:
            _run(work, str(root), step)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0, f"it failed at step {step}"
            return
        yield step


def _run(work: Callable[[Callable[[], None]], object], root: str, last: int) -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in STEPS and str(arguments[0]).startswith(root):
            step()

    code = 1
    try:
        sys.addaudithook(hook)
        work(step)
        code = 0
    finally:
        os._exit(code)
