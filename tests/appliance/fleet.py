"""A fleet of real daemons behind a real HAProxy, clients that load it, and what they get."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.appliance import haproxy
from tests.appliance.haproxy import HAProxy
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess

NAMES = ("jetson-1", "jetson-2")
HOST = "fleet.example"
ANSWER_S = 120
READY_S = 60


@dataclass(frozen=True)
class Answer:
    """What a client got: *end* is "whole", "refused", "told" (an error event), "cut" (the transfer broke off,
    and HTTP says so) or "silent" (it looks whole and is not)."""

    status: int
    end: str
    appliance: str | None
    seconds: float


class Appliance(DaemonProcess):
    """A daemon on a port of its own, with which it comes back after its death."""

    def __init__(self, directory: Path, weights: Path, **settings: object) -> None:
        self.at = haproxy.free_port()
        usual = {"cache_dir": weights.parents[1], "offline": True, "allowed_hosts": HOST, "keep_alive_s": -1}
        super().__init__(directory, "--preload", MODEL, **{**usual, "port": self.at, **settings})

    def running(self, key: str) -> int:
        """How many requests it computes now."""
        status = self.ask("GET", "/jetllm/v1/status", headers={"Authorization": f"Bearer {key}"})[1]
        return int(status["queue"]["running"])


class Fleet:
    """Two appliances, the balancer and the key of all of them."""

    def __init__(self, appliances: dict[str, Appliance], balancer: HAProxy, key: str) -> None:
        self.appliances = appliances
        self.balancer = balancer
        self.key = key

    def wait_until_up(self, *names: str) -> None:
        """Wait until HAProxy gives work to these."""
        wanted = set(names or NAMES)
        wait_until(
            lambda: {name for name in wanted if self.balancer.state(name) == "UP"} == wanted,
            f"{wanted} to be up",
            READY_S,
        )

    def wait_until_down(self, name: str) -> None:
        """Wait until HAProxy gives work to others only."""
        wait_until(lambda: self.balancer.state(name) == "DOWN", f"{name} to be down", READY_S)

    @contextlib.contextmanager
    def connection(self, source: str = "127.0.0.1") -> Iterator[http.client.HTTPConnection]:
        """A client's connection to the balancer."""
        made = http.client.HTTPConnection(
            "127.0.0.1", self.balancer.port, timeout=ANSWER_S, source_address=(source, 0)
        )
        try:
            yield made
        finally:
            made.close()

    def request(
        self, connection: http.client.HTTPConnection, body: dict[str, Any], key: str | None = None
    ) -> http.client.HTTPResponse:
        """Send a chat completion."""
        headers = {
            "Host": HOST,
            "Authorization": f"Bearer {key or self.key}",
            "Content-Type": "application/json",
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return connection.getresponse()

    def ask(self, tokens: int = 16, **options: Any) -> Answer:
        """Ask for *tokens* tokens and read the answer to its end."""
        started_s = time.monotonic()
        with self.connection() as connection:
            response = self.request(connection, chat(tokens, **options))
            end = rest_of(response) if options.get("stream") else end_of_whole(response, tokens)
            name = response.getheader("X-JetLLM-Appliance")
        return Answer(response.status, end, name, time.monotonic() - started_s)

    @contextlib.contextmanager
    def stream_on(self, name: str, tokens: int) -> Iterator[http.client.HTTPResponse]:
        """A stream that has begun on the appliance *name*."""
        for _ in range(20):
            with (
                self.connection() as connection,
                self.request(connection, chat(tokens, stream=True)) as response,
            ):
                assert response.status == 200
                assert b"content" in response.read1(65536)
                if response.getheader("X-JetLLM-Appliance") == name:
                    yield response
                    return
        raise AssertionError(f"no stream came to {name}")


def chat(tokens: int, **options: Any) -> dict[str, Any]:
    """A chat whose answer has exactly *tokens* tokens."""
    turns = [{"role": "user", "content": "Tell me about the sea."}]
    return {
        "model": MODEL,
        "messages": turns,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **options,
    }


def end_of_whole(response: http.client.HTTPResponse, tokens: int) -> str:
    """How an answer that is no stream ended."""
    try:
        read = response.read()
    except (http.client.IncompleteRead, ConnectionError):
        return "cut"
    if response.status != 200:
        return "refused"
    return "whole" if json.loads(read)["usage"]["completion_tokens"] == tokens else "silent"


def rest_of(response: http.client.HTTPResponse) -> str:
    """Read a stream to its end; how it ended."""
    if response.status != 200:
        response.read()
        return "refused"
    read = b""
    try:
        while part := response.read1(65536):
            read += part
    except (http.client.IncompleteRead, ConnectionError):
        return "cut"
    if b'"error"' in read:
        return "told"
    return "whole" if read.endswith(b"data: [DONE]\n\n") else "silent"


@contextlib.contextmanager
def started(directory: Path, weights: Path, **settings: object) -> Iterator[Fleet]:
    """Start a fleet that is ready; *settings* are those of its appliances."""
    with contextlib.ExitStack() as ending:
        places = {name: directory / name for name in NAMES}
        key = add_key(places["jetson-1"])
        # Only hashes are in it: whoever reads the copy on its way has no key.
        places["jetson-2"].mkdir()
        shutil.copy(places["jetson-1"] / "keys.json", places["jetson-2"])
        appliances = {name: Appliance(at, weights, **settings) for name, at in places.items()}
        for appliance in appliances.values():
            ending.enter_context(appliance)
        addresses = {name: f"127.0.0.1:{appliance.at}" for name, appliance in appliances.items()}
        fleet = Fleet(appliances, ending.enter_context(HAProxy(directory, addresses)), key)
        fleet.wait_until_up()
        yield fleet


def add_key(state_dir: Path) -> str:
    """Make a key, as on an appliance."""
    done = subprocess.run(
        [sys.executable, "-m", "inference", "keys", "add", "fleet", "--json"],
        env={**os.environ, "JETLLM_STATE_DIR": str(state_dir)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["key"])


class Load:
    """Clients that ask again and again, until the end of its block; *answers* has what they got."""

    def __init__(self, fleet: Fleet, whole: int = 6, streams: int = 2, tokens: int = 16) -> None:
        # A megabyte less a little: what is sent again must have been held whole.
        big = {"padding": "x" * 900_000}
        kinds: list[dict[str, Any]] = [{}] * (whole - 1) + [big] + [{"stream": True}] * streams
        self._fleet = fleet
        self._tokens = tokens
        self._stop = threading.Event()
        self.answers: list[tuple[bool, Answer]] = []
        self._threads = [threading.Thread(target=self._run, args=(kind,), name="client") for kind in kinds]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, kind: dict[str, Any]) -> None:
        while not self._stop.is_set():
            try:
                answer = self._fleet.ask(self._tokens, **kind)
            except OSError as error:
                answer = Answer(0, f"lost: {type(error).__name__}", None, 0.0)
            self.answers.append((bool(kind.get("stream")), answer))

    def wait_for(self, more: int) -> None:
        """Wait until so many more answers have come."""
        wanted = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= wanted, f"{more} more answers", ANSWER_S)

    def ends(self, *, streams: bool) -> list[tuple[int, str]]:
        """Status and end of each answer."""
        return [(answer.status, answer.end) for is_stream, answer in self.answers if is_stream == streams]
