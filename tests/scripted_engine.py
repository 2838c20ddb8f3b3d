"""A container engine that runs one scripted daemon: what `docker` is for the tests of the supervisor.

It is put on PATH under the engine's name, and understands the commands that the appliance uses. What it
shall do is in files of its directory, so that a test can change it while it runs:

    IMAGE.json        an image's labels
    daemon.json       {"ready": bool, "detail": {...}, "token": bool, "exit": null | code}
    calls.txt         every command that was given, in order, parted by tabs
    asked.txt         every request that the daemon got, a line each
    body.json         what was posted last
    environment.json  the daemon's
    container.pid     the daemon that runs
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import stat
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STARTING = {
    "ready": False,
    "detail": {"status": "loading", "phase": None, "percent": None, "reason": None},
    "token": False,
    "exit": None,
}
TOKEN = {
    "choices": [{"message": {"content": "Yes"}}],
    "usage": {"completion_tokens": 1},
}
_LOOK_S = 0.01

# A shell starts in a hundredth of the time that Python takes. A zombie, whose parent has yet to look, has
# ended, though kill -0 says that it is there.
_PROGRAM = r"""
( printf '%s' "$1"; shift; for each; do printf '\t%s' "$each"; done; echo ) >> "$PLACE/calls.txt"
pid=$(cat "$PLACE/container.pid" 2>/dev/null || echo none)
lives() { read -r state < "/proc/$pid/stat" && case "$state" in *") Z"*) false ;; esac; } 2>/dev/null
absent() { echo "Error response from daemon: No such $1" >&2; exit 1; }
case "$1" in
image)
    test -e "$PLACE/$5.json" || absent "image: $5"
    case "$4" in *.Id*) echo sha256:1111 ;; *) cat "$PLACE/$5.json" ;; esac ;;
run) exec "$PYTHON" -I "$DAEMON" "$PLACE" "$@" ;;
stop)
    lives || absent "container: $4"
    kill -TERM "$pid"; rounds=$(( $3 * 50 ))
    while lives; do
        sleep 0.02; rounds=$(( rounds - 1 )); test "$rounds" -gt 0 || kill -KILL "$pid"
    done ;;
rm) lives || absent "container: $4"; kill -KILL "$pid"; while lives; do sleep 0.02; done ;;
*) echo "unknown command: $*" >&2; exit 1 ;;
esac
"""


class ScriptedEngine:
    """The test's side: installs the engine into *directory* and steers it."""

    def __init__(self, directory: Path, name: str = "docker") -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        program = self.bin / name
        names = {"PLACE": str(directory), "PYTHON": sys.executable, "DAEMON": str(Path(__file__).resolve())}
        lines = [f"{name}={shlex.quote(text)}" for name, text in names.items()]
        program.write_text("\n".join(["#!/bin/sh", *lines, _PROGRAM]))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.image("jetllm:current")
        self.daemon()

    def image(self, name: str, **labels: str) -> None:
        """Have an image with these labels, in which a point is written as two underscores."""
        written = {label.replace("__", "."): text for label, text in labels.items()}
        self._write(f"{name}.json", written)

    def no_image(self, name: str) -> None:
        """Have no such image."""
        (self.directory / f"{name}.json").unlink()

    def daemon(self, **changes: Any) -> None:
        """Let the daemon behave so from now on."""
        self._write("daemon.json", {**STARTING, **changes})

    def serving(self) -> None:
        """Let the daemon be ready and give tokens."""
        self.daemon(ready=True, detail={"status": "ready"}, token=True)

    def calls(self, *command: str) -> list[list[str]]:
        """Return the commands that began so."""
        path = self.directory / "calls.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for line in lines if (call := line.split("\t"))[: len(command)] == list(command)]

    def asked(self, request: str) -> int:
        """Return how often the daemon was asked for *request*."""
        path = self.directory / "asked.txt"
        return path.read_text().splitlines().count(request) if path.exists() else 0

    def pid(self) -> int | None:
        """Return the process of the container that runs."""
        return _pid(self.directory)

    def _write(self, name: str, value: Any) -> None:
        temporary = self.directory / f".{name}"
        temporary.write_text(json.dumps(value))
        temporary.replace(self.directory / name)


def _pid(place: Path) -> int | None:
    """Return the daemon's process while it lives; a zombie, whose parent has yet to look, does not."""
    try:
        pid = int((place / "container.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else pid


def _run(place: Path, arguments: list[str]) -> None:
    host, port, _ = arguments[arguments.index("--publish") + 1].split(":")
    (place / "environment.json").write_text(json.dumps(dict(os.environ)))
    (place / "container.pid").write_text(str(os.getpid()))
    daemon = _Daemon((host, int(port)), place)
    signal.signal(signal.SIGTERM, lambda *_: daemon.draining.set())
    threading.Thread(target=daemon.serve_forever, daemon=True).start()
    while not (daemon.draining.is_set() and daemon.running == 0):
        code = daemon.script()["exit"]
        if code is not None:
            os._exit(code)
        threading.Event().wait(_LOOK_S)
    os._exit(0)


class _Daemon(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], place: Path) -> None:
        super().__init__(address, _Handler)
        self.place = place
        self.draining = threading.Event()
        self.running = 0

    def script(self) -> dict[str, Any]:
        """What it is to do now."""
        found: dict[str, Any] = json.loads((self.place / "daemon.json").read_text())
        return found


class _Handler(BaseHTTPRequestHandler):
    server: _Daemon

    def do_GET(self) -> None:
        """Answer /readyz."""
        self._note()
        script = self.server.script()
        if self.server.draining.is_set():
            self._answer(503, {"status": "draining"})
        else:
            self._answer(200 if script["ready"] else 503, script["detail"])

    def do_POST(self) -> None:
        """Give a token, once the script does."""
        self.server.running += 1
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        (self.server.place / "body.json").write_bytes(body)
        while not self.server.script()["token"]:
            threading.Event().wait(_LOOK_S)
        self._answer(200, TOKEN)
        self.server.running -= 1

    def _note(self) -> None:
        with (self.server.place / "asked.txt").open("a") as asked:
            asked.write(f"{self.command} {self.path}\n")

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    _run(Path(sys.argv[1]), sys.argv[2:])
