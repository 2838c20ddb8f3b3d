"""A process group: what its members take, and the end of all of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = "JETLLM_BUILD_STEP"
"""The environment variable by which a process is known that left the group and the session."""

_PROC = Path("/proc")
_LOOK_AGAIN_S = 0.5
_KILL_S = 1.0
_PAUSE_S = 0.02
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """The group at one moment.

    Args:
        memory_bytes: resident pages of all members; what two of them share counts twice.
        peak_bytes: the most that was resident so far, as far as it was seen.
        cpu_s: time on all processors, of members that have ended, too, once they were waited for.
    """

    memory_bytes: int
    peak_bytes: int
    cpu_s: float


class Group:
    """The session of *leader*, and whoever has *mark* as its `MARK`."""

    def __init__(self, leader: int, mark: str) -> None:
        self._leader = leader
        self._mark = f"{MARK}={mark}".encode()
        self._members: list[int] = [leader]
        self._looked_s = 0.0
        self._peak_bytes = 0

    def look(self) -> Reading:
        """Read what the members take; a leader that has ended and was not waited for still counts."""
        now = time.monotonic()
        if now - self._looked_s > _LOOK_AGAIN_S:  # reading all of /proc ten times a second would show
            self._members, self._looked_s = self._session(), now
        found = [stat for pid in self._members if (stat := _stat(pid)) is not None]
        memory_bytes = sum(stat.memory_bytes for stat in found)
        self._peak_bytes = max(self._peak_bytes, memory_bytes, _own_peak_bytes(self._leader))
        return Reading(memory_bytes, self._peak_bytes, sum(stat.cpu_s for stat in found))

    def kill(self) -> None:
        """Kill every member, and wait a second for their end; call it while the leader is not reaped:
        until then nobody else can have its number."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._leader, signal.SIGKILL)
        end = time.monotonic() + _KILL_S
        while (left := list(self._marked())) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_PAUSE_S)

    def _session(self) -> list[int]:
        stats = ((pid, _stat(pid)) for pid in _pids())
        return [pid for pid, stat in stats if stat is not None and stat.session == self._leader]

    def _marked(self) -> Iterator[int]:
        for pid in _pids():
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if self._mark in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                    yield pid


@dataclass(frozen=True)
class _Stat:
    session: int
    memory_bytes: int
    cpu_s: float


def _stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat (proc(5)); its second field, a name in parentheses, may hold anything."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    ticks = sum(int(field) for field in fields[11:15])  # user and system time, and the reaped children's
    return _Stat(
        int(fields[3]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")
    )


def _own_peak_bytes(pid: int) -> int:
    """Return the most that was resident of one process; 0 where the kernel does not say."""
    try:
        found = _PEAK.search((_PROC / str(pid) / "status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdecimal()]
