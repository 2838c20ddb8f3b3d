"""What 200 idle SSE clients cost the daemon in memory.

200 streaming chats are asked for at once. Four compute, 196 wait their turn, and nobody reads: each holds
a connection, a parsed request and a thread. (A stream that has ended costs no connection: it is closed.)

The figure is what the daemon's own process grows by, against the same daemon after it has served one
stream and answered what it is asked here; the worker's memory is the model's and not the clients'.
"""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.daemon_process import MODEL, DaemonProcess

CLIENTS, SLOTS, ROUNDS = 200, 4, 3
LIMIT_MB = 40.0
WATCH_S = 5.0
_STEP_S = 0.1
_END_S = 120.0

Row = tuple[str, str, str, str]


def idle_clients(directory: Path) -> list[Row]:
    """Measure; return the rows for docs/bench-log.md."""
    label = "200 SSE clients, 4 computing and 196 waiting: the daemon's growth"
    return [_row(label, directory, _waiting)]


def _row(label: str, directory: Path, hold: Callable[[DaemonProcess], Any]) -> Row:
    grown = [_growth_mb(directory / f"{hold.__name__}{n}", hold) for n in range(ROUNDS)]
    worst = max(grown)
    found = f"{statistics.median(grown):.1f} MB, at most {worst:.1f} MB"
    return label, "< 40 MB", found, "met" if worst < LIMIT_MB else "**missed**"


def _growth_mb(state_dir: Path, hold: Callable[[DaemonProcess], Any]) -> float:
    """How much larger the daemon is while *hold* holds its clients, at its largest within 5 s."""
    settings = {"slots": SLOTS, "max_queue": CLIENTS, "keep_alive_s": -1, "context_tokens": 2048}
    with DaemonProcess(state_dir, "--preload", MODEL, **settings) as daemon:
        _wait(lambda: daemon.ask("GET", "/readyz")[0] == 200)
        with _opened(daemon, max_tokens=2) as connection:
            _read_to_end(connection)
        _waiting_now(daemon)
        process = psutil.Process(daemon.pid)
        before = process.memory_info().rss
        with hold(daemon):
            if process.num_fds() < CLIENTS:
                raise SystemExit("the daemon has closed connections that were to stay open")
            end_s = time.monotonic() + WATCH_S
            largest = before
            while time.monotonic() < end_s:
                largest = max(largest, process.memory_info().rss)
                time.sleep(_STEP_S)
    return (largest - before) / 1e6


@contextlib.contextmanager
def _waiting(daemon: DaemonProcess) -> Iterator[None]:
    """200 requests at once, all of them accepted: most of them wait in the queue."""
    with contextlib.ExitStack() as opened:
        for _ in range(CLIENTS):
            opened.enter_context(_opened(daemon, max_tokens=1900))
        _wait(lambda: _waiting_now(daemon) == CLIENTS - SLOTS)
        yield
        if _waiting_now(daemon) != CLIENTS - SLOTS:
            raise SystemExit("clients were served or dropped while they were to wait")


def _waiting_now(daemon: DaemonProcess) -> int:
    count: int = daemon.ask("GET", "/jetllm/v1/status")[1]["queue"]["waiting"]
    return count


def _opened(daemon: DaemonProcess, max_tokens: int) -> socket.socket:
    """Ask for a stream and read nothing of it."""
    body = json.dumps(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Write a long story."}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=_END_S)
    connection.sendall(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body))
    return connection


def _read_to_end(connection: socket.socket) -> None:
    tail = b""
    while b"data: [DONE]" not in tail:
        data = connection.recv(65536)
        if not data:
            raise SystemExit(f"a stream ended early: {tail[-200:]!r}")
        tail = tail[-64:] + data


def _wait(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + _END_S
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit("a step of the benchmark did not end in time")
        time.sleep(0.02)
