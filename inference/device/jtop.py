"""jetson-stats as a second source of telemetry, read in a child process; off unless asked for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_CLOSE_S = 0.8
_MOST_LINE_BYTES = 2**20


class JtopSource:
    """Keeps the latest reading of a child that reads jetson-stats, and the child alive.

    Start it on the host only: jtop's socket in a container gives that container root on the host. A
    child that ends, talks nonsense or says nothing is replaced, after a pause that grows.

    Args:
        environment: the whole environment of the child.
        stale_s: a reading older than this is no reading.
        hang_s: a child that has said nothing for so long is killed.
        pause_s: the first pause before a new child; it doubles up to *longest_pause_s*.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        interval_s: float = 1.0,
        stale_s: float = 5.0,
        hang_s: float = 30.0,
        pause_s: float = 2.0,
        longest_pause_s: float = 300.0,
    ) -> None:
        self._environment = environment
        self._interval_s = interval_s
        self._stale_s = stale_s
        self._hang_s = hang_s
        self._pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._closing = threading.Event()
        self._reading: tuple[float, dict[str, Any]] | None = None
        self._reason: str | None = "not started"
        self._thread: threading.Thread | None = None
        self.pid: int | None = None

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._reason = "no reading yet"
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="jtop", daemon=True)
        self._thread.start()

    def latest(self) -> dict[str, Any] | None:
        """Return the latest reading in the form of `jtop_main.reading`; never blocks."""
        reading = self._reading
        if reading is None or time.monotonic() - reading[0] > self._stale_s:
            return None
        return reading[1]

    @property
    def reason(self) -> str | None:
        """Why `latest` is ``None``; ``None`` when it is not."""
        if self.latest() is not None:
            return None
        return self._reason or f"jetson-stats: no reading for {self._stale_s:g} s"

    def close(self) -> None:
        """End the child and the thread, within a second."""
        if self._thread is None or self._closing.is_set():
            return
        self._closing.set()
        os.close(self._wake_write)
        self._thread.join(_CLOSE_S)
        self._reading, self._reason = None, "closed"

    def _run(self) -> None:
        # This thread starts every child: the kernel kills a child when the thread that started it ends.
        pauses_s = growing(self._pause_s, self._longest_pause_s)
        while not self._closing.is_set():
            if self._live_through_one_child():
                pauses_s = growing(self._pause_s, self._longest_pause_s)
            self._closing.wait(next(pauses_s))
        os.close(self._wake_read)

    def _live_through_one_child(self) -> bool:
        """Return whether it gave a reading."""
        before = self._reading
        try:
            with _Child(self._environment, self._interval_s) as child:
                self.pid = child.pid
                self._reason = self._listen(child)
        except OSError as error:
            self._reason = f"jetson-stats: no process for it: {error.strerror}"
        self._reading, gave = None, self._reading is not before
        self.pid = None
        return gave

    def _listen(self, child: _Child) -> str:
        """Take readings until there are no more; return why."""
        while not self._closing.is_set():
            lines = child.lines(self._wake_read, self._hang_s)
            if lines is None:
                return f"jetson-stats: no reading for {self._hang_s:g} s"
            for line in lines:
                if (ended := self._take(line)) is not None:
                    return ended
            if child.ended:
                return "jetson-stats: its reader has ended"
        return "closed"

    def _take(self, line: bytes) -> str | None:
        """Keep a reading; return why there will be no more, if *line* says so."""
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            return "jetson-stats: its reader says nothing that can be understood"
        if "reason" in message:
            return str(message["reason"])
        self._reading, self._reason = (time.monotonic(), message), None
        return None


def growing(first_s: float, longest_s: float) -> Iterator[float]:
    """Yield pauses, each twice the one before it, up to *longest_s*."""
    while True:
        yield first_s
        first_s = min(first_s * 2, longest_s)


class _Child:
    """One child process and our ends of its pipes; left, it is dead and reaped."""

    def __init__(self, environment: Mapping[str, str], interval_s: float) -> None:
        self.ended = False
        self._begun = b""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            self._wire, wire = _pipe(reader=ours, writer=theirs)
            lifeline, _ = _pipe(reader=theirs, writer=ours)
            self._process = _spawn(wire, lifeline, interval_s, environment)
            self._ours = ours.pop_all()
        self.pid = self._process.pid

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        self._ours.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel will not let go of it
            self._process.wait(_CLOSE_S)

    def lines(self, wake_fd: int, limit_s: float) -> list[bytes] | None:
        """Wait for whole lines; ``None`` when nothing came in *limit_s*, none when *wake_fd* woke us."""
        poll = select.poll()
        poll.register(self._wire, select.POLLIN)
        poll.register(wake_fd, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(limit_s * 1000)]
        if not ready:
            return None
        if self._wire not in ready:
            return []
        block = os.read(self._wire, 65536)
        self.ended = not block
        *lines, self._begun = (self._begun + block).split(b"\n")
        return [*lines, self._begun] if len(self._begun) > _MOST_LINE_BYTES else lines


def _pipe(*, reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    read_fd, write_fd = os.pipe()
    reader.callback(os.close, read_fd)
    writer.callback(os.close, write_fd)
    return read_fd, write_fd


def _spawn(
    wire_fd: int, lifeline_fd: int, interval_s: float, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    arguments = (wire_fd, lifeline_fd, os.getpid(), interval_s)
    paths = (str(_PACKAGE_PARENT), environment.get("PYTHONPATH", ""))
    return subprocess.Popen(  # noqa: S603 - the argv is written here
        [sys.executable, "-m", "inference.device.jtop_main", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(wire_fd, lifeline_fd),
        start_new_session=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        cwd=_PACKAGE_PARENT,
    )
