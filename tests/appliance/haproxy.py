"""A real HAProxy with the configuration that we ship, in front of daemons of this machine."""

from __future__ import annotations

import csv
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.conftest import wait_until

CONFIGURATION = Path(__file__).resolve().parents[2] / "containers/fleet/haproxy.cfg"
_PLACES = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


def program() -> str | None:
    """Return the path of haproxy; Debian has it where a user's PATH does not look."""
    return shutil.which("haproxy") or shutil.which("haproxy", path=_PLACES)


def free_port() -> int:
    """Return a port that nobody listens on now, and that can be taken again after a death."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def configuration(directory: Path, port: int, appliances: Mapping[str, str]) -> Path:
    """Write the shipped file with our addresses in the place of its own; nothing else is changed."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    (options,) = set(re.findall(r"^    server \S+ \S+(.*)$", text, re.MULTILINE))
    servers = "".join(f"    server {name} {at}{options}\n" for name, at in appliances.items())
    text, binds = re.subn(r"^    bind :8080$", f"    bind 127.0.0.1:{port}", text, flags=re.MULTILINE)
    text, sockets = re.subn(r"/run/haproxy/admin\.sock", str(directory / "admin.sock"), text)
    text, lines = re.subn(r"(?:^    server .*\n)+", servers, text, flags=re.MULTILINE)
    assert (binds, sockets, lines) == (1, 1, 1)
    path = directory / "haproxy.cfg"
    path.write_text(text, encoding="utf-8")
    return path


class HAProxy:
    """Runs from the start of its block to its end; *log* has its lines.

    Args:
        appliances: the address, with its port, of each by its name.
    """

    def __init__(self, directory: Path, appliances: Mapping[str, str]) -> None:
        self.port = free_port()
        self.log: list[str] = []
        self._socket = directory / "admin.sock"
        self._path = configuration(directory, self.port, appliances)

    def __enter__(self) -> HAProxy:
        found = program()
        assert found is not None
        self.process = subprocess.Popen(
            [found, "-db", "-f", str(self._path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="haproxy-log")
        self._reader.start()
        wait_until(lambda: self._socket.exists() or self.process.poll() is not None, "HAProxy's socket")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(10)
        self._reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.log.extend(line.rstrip() for line in lines)

    def rows(self) -> dict[str, dict[str, str]]:
        """What it counts for each appliance and for BACKEND: "show stat" of its socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(self._socket))
            sock.sendall(b"show stat\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        found = csv.DictReader(text.lstrip("# ").splitlines())
        return {row["svname"]: row for row in found if row["pxname"] == "appliances"}

    def state(self, name: str) -> str:
        """UP or DOWN, as its checks see an appliance; "UP 1/2" is on its way."""
        return self.rows()[name]["status"]

    def count(self, what: str) -> int:
        """A counter of the backend: "wretr" are requests sent again, "wredis" those sent elsewhere."""
        return int(self.rows()["BACKEND"][what])
