"""Loading that always ends: the engine's constructor waits for ever when its thread has failed."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.errors import LoadFailedError

# Without work for so long it hangs: a load reads or computes all the time, even from a slow card.
STALLED_AFTER_S = 30.0
# A constructor that goes round in circles is the daemon's business (load_timeout_s).
_POLL_S = 0.05
_WORKS_S = 0.1  # of CPU time in the window above; waiting and looking cost less
_NOISE = re.compile(r"^(\s|\[bt\]|Stack trace|Traceback|File )|^\d+\.\s")


class ThreadFailures:
    """What has ended threads since this was made; the usual report on stderr is still written."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self._before = threading.excepthook
        threading.excepthook = self._note

    def _note(self, args: threading.ExceptHookArgs) -> None:
        self._before(args)
        if args.exc_value is not None:
            self.errors.append(args.exc_value)

    def reason(self) -> str:
        """Return what ended the last one, in a line."""
        return reason(self.errors[-1]) if self.errors else "no reason given"

    def close(self) -> None:
        """Note no more."""
        threading.excepthook = self._before


def load_watched(construct: Callable[[], Any], name: str, failures: ThreadFailures) -> Any:
    """Return what *construct* makes, or raise why it never will.

    It runs on a thread of its own, which is given up when a thread of the engine has failed or nothing
    happens any more. What is given up stays; only the end of the process frees it.

    Raises:
        LoadFailedError: the reason is the last line on stderr, which the daemon adds.
    """
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(construct())
        except BaseException as error:  # whatever it is, the waiting thread raises it
            failures.errors.append(error)

    thread = threading.Thread(target=run, name="mlc-load", daemon=True)
    thread.start()
    _wait(thread, failures.errors)
    if outcome:
        return outcome[0]
    if failures.errors:
        sys.stderr.write(f"error: {failures.reason()}\n")
        sys.stderr.flush()
        raise LoadFailedError(f"mlc_llm cannot load {name}") from failures.errors[0]
    waited = f"nothing happened for {STALLED_AFTER_S:g} s"
    raise LoadFailedError(f"mlc_llm does not finish loading {name}; {waited}")


def reason(error: BaseException) -> str:
    """Return the line of *error* that says what is wrong; TVM puts stack frames and advice around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not _NOISE.match(line)]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}"[:500]


def _wait(thread: threading.Thread, failed: list[BaseException]) -> None:
    """Wait until *thread* ends, a thread fails, or the process has not worked for a while."""
    since_s, work = time.monotonic(), _work()
    while thread.is_alive() and not failed:
        thread.join(_POLL_S)
        now = _work()
        if now[0] - work[0] > _WORKS_S or now[1] != work[1]:
            since_s, work = time.monotonic(), now
        elif time.monotonic() - since_s > STALLED_AFTER_S:
            return


def _work() -> tuple[float, int]:
    """CPU seconds of the process, and pages that it has read from disk."""
    pages = 0
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])
    return time.process_time(), pages
