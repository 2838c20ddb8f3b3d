"""A network cable: a daemon at its far end, which can be pulled out without anybody saying goodbye."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

FAR = "10.99.7.2"
"""The address at the far end; private, and gone with the cable."""

_NEAR = "10.99.7.1"
_CLONE_NEWNET = 0x40000000


class Cable:
    """A pair of network interfaces, the far one in a network name space of its own; wants root."""

    def __init__(self) -> None:
        self._names = [f"jl{os.getpid() % 100_000}{end}" for end in "ab"]
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Cable:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._check(self._libc.unshare(_CLONE_NEWNET))
        self._away = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._check(self._libc.setns(self._home, _CLONE_NEWNET))
        near, far = self._names
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", f"/proc/self/fd/{self._away}", keep=self._away)
        _ip("address", "add", f"{_NEAR}/30", "dev", near)
        _ip("link", "set", near, "up")
        with self.far_end():
            _ip("address", "add", f"{FAR}/30", "dev", far)
            _ip("link", "set", far, "up")
            _ip("link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "delete", self._names[0]], check=False)
        os.close(self._away)
        os.close(self._home)

    @contextmanager
    def far_end(self) -> Iterator[None]:
        """What this thread starts in the block is at the far end."""
        self._check(self._libc.setns(self._away, _CLONE_NEWNET))
        try:
            yield
        finally:
            self._check(self._libc.setns(self._home, _CLONE_NEWNET))

    def pull(self) -> None:
        """Pull it out: from now on nothing arrives at either end, and nobody is told."""
        with self.far_end():
            _ip("address", "flush", "dev", self._names[1])
            _ip("link", "set", self._names[1], "down")

    def _check(self, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), "the network's name space")


def why_no_cable() -> str | None:
    """Say why there can be none here; ``None`` where there can."""
    if os.geteuid() != 0:
        return "needs root: network interfaces"
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    try:
        with Cable():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network interfaces cannot be made here: {error}"


def _ip(*words: str, keep: int | None = None) -> None:
    fds = () if keep is None else (keep,)
    subprocess.run(["ip", *words], check=True, capture_output=True, pass_fds=fds)
