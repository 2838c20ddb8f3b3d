"""One daemon per state directory: a lock that the kernel drops when its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from inference.errors import AlreadyRunningError, SettingsError

_FILE = "daemon.lock"


class InstanceLock:
    """Holds *state_dir* from construction to `close` or the end of the process.

    Raises:
        AlreadyRunningError: another process holds it.
        SettingsError: it cannot be written.
    """

    def __init__(self, state_dir: Path) -> None:
        try:
            state_dir.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(state_dir / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(
                f"state_dir: {state_dir} cannot be written: {error.strerror}",
                hint="name another directory: --state-dir or JETLLM_STATE_DIR",
            ) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            url = running_daemon(state_dir)
            raise AlreadyRunningError(
                f"a daemon already runs with this state directory{f', at {url}' if url else ''}",
                hint="use it, stop it, or name another state_dir",
            ) from None

    def publish(self, url: str) -> None:
        """Tell `running_daemon` where this daemon listens."""
        data = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._fd, data, 0)
        os.ftruncate(self._fd, len(data))

    def close(self) -> None:
        """Give the directory up."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def running_daemon(state_dir: Path) -> str | None:
    """Return the URL of the daemon that holds *state_dir*, or ``None``."""
    url = _published(state_dir).get("url")
    return None if url is None else str(url)


def running_pid(state_dir: Path) -> int | None:
    """Return the process of the daemon that holds *state_dir*, or ``None``."""
    pid = _published(state_dir).get("pid")
    return pid if isinstance(pid, int) else None


def _published(state_dir: Path) -> dict[str, Any]:
    """Return what the holder of *state_dir* tells; nothing where none holds it, or does not tell yet."""
    try:
        fd = os.open(state_dir / _FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 4096, 0)
        with suppress(ValueError):
            data = json.loads(text)
            return data if isinstance(data, dict) else {}
    finally:
        os.close(fd)
    return {}
