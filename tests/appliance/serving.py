"""A daemon in a container as the appliance runs it, and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.appliance.podman import Podman
from tests.conftest import wait_until

MODEL = "smollm2-135m-instruct"
USER = 10001
READY_S = 120.0

HARDENED = (
    *("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
    "--pids-limit=512",
)


@dataclass(frozen=True)
class Container:
    """A started container and how its daemon is asked."""

    engine: Podman
    identity: str
    port: int
    key: str

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send one request with the key; return the status and the answer, parsed when it is JSON."""
        connection = self.connection()
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return response.status, json.loads(raw) if is_json else raw.decode()

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to the published port."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}

    def is_ready(self) -> bool:
        """Whether /readyz says so now."""
        try:
            return self.ask("GET", "/readyz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def complete(self, prompt: str, tokens: int = 12) -> str:
        """Return the greedy continuation of *prompt*."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        status, answer = self.ask("POST", "/v1/completions", body)
        assert status == 200, answer
        text: str = answer["choices"][0]["text"]
        return text

    def logs(self) -> str:
        """Return what the daemon has written."""
        done = self.engine.try_run("logs", self.identity)
        return done.stdout + done.stderr


def state_of(directory: Path, user: int = USER) -> Path:
    """Make a state directory that *user* may write."""
    directory.mkdir(parents=True)
    os.chown(directory, user, user)
    return directory


def make_key(engine: Podman, image: str, state: Path, user: int = USER) -> str:
    """Make an API key as the first boot does: with the image's own command, in the state directory."""
    told = engine.run(
        *("run", "--rm", *HARDENED, f"--user={user}:{user}", f"--volume={state}:/var/lib/jetllm"),
        *("--network=none", image, "jetllm", "keys", "add", "test", "--json"),
    )
    key: str = json.loads(told)["key"]
    return key


@contextmanager
def serving(
    engine: Podman,
    image: str,
    weights: Path,
    state: Path,
    *options: str,
    user: int = USER,
    ready_s: float = READY_S,
) -> Iterator[Container]:
    """Run *image* as the appliance does; yield it once it is ready."""
    key, port = make_key(engine, image, state, user), free_port()
    flags = (
        *(*HARDENED, f"--user={user}:{user}", f"--publish=127.0.0.1:{port}:8080"),
        *(f"--volume={weights}:/var/cache/jetllm:ro", f"--volume={state}:/var/lib/jetllm"),
    )
    with engine.container(image, *flags, *options) as identity:
        container = Container(engine, identity, port, key)
        try:
            wait_until(container.is_ready, "ready", ready_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {container.logs()}") from None
        yield container


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
