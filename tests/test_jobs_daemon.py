"""Jobs of a real daemon: a download that its client leaves, one that is cancelled, one that SIGTERM ends."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.api import create_app
from inference.service import build_service
from inference.settings import load_settings
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.lying_server import Lie, LyingServer
from tests.synthetic_gguf import make
from tests.test_api_pull import events

PATH = "/model.gguf"
PULL = "/jetllm/v1/models/tiny/pull"
WEIGHTS = make() + bytes(300_000)


@pytest.fixture
def server() -> Iterator[LyingServer]:
    """The place where the weights come from."""
    with LyingServer({PATH: WEIGHTS}) as started:
        yield started


@pytest.fixture
def registry(server: LyingServer, tmp_path: Path) -> Path:
    """A registry whose one model is there."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    source = {"type": "url", "url": server.url(PATH), "sha256": digest, "bytes": len(WEIGHTS), "local": True}
    entry = {
        "name": "Tiny",
        "parameters": "1M",
        "memory_requirement": 100,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation"],
        "variants": {"q4": {"backend": "llamacpp", "source": source}},
    }
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": {"tiny": entry}}))
    return path


@contextmanager
def daemon(registry: Path) -> Iterator[DaemonProcess]:
    """A daemon with a store of its own."""
    directory = registry.parent
    with DaemonProcess(directory / "state", registry=registry, cache_dir=directory / "store") as started:
        yield started


def leave_a_pull(daemon: DaemonProcess) -> str:
    """Begin a pull, see that it streams, and leave; return the job's id."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request("POST", PULL, b"{}", {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Type"].split(";")[0]) == (200, "text/event-stream")
    response.close()
    connection.close()
    return str(response.headers["X-JetLLM-Job"])


def job(daemon: DaemonProcess, job_id: str, method: str = "GET") -> dict[str, Any]:
    """What the daemon says of a job."""
    status, found = daemon.ask(method, f"/jetllm/v1/jobs/{job_id}")
    assert status == 200
    row: dict[str, Any] = found
    return row


def here(registry: Path) -> int:
    """The bytes of a download that is not whole."""
    return sum(
        path.stat().st_size for path in registry.parent.glob("store/staging/*/partial/*") if path.is_file()
    )


def goes_on(server: LyingServer) -> bool:
    """Whether the second request asked for the rest alone."""
    first, second = server.ranges()
    assert first is None and second is not None, (first, second)
    return 0 < int(second.removeprefix("bytes=").rstrip("-")) <= 200_000


def test_a_download_outlives_the_client_that_asked_for_it(server: LyingServer, registry: Path) -> None:
    """It stalls, the client leaves, it goes on, and the weights are there; a second asker shares it."""
    server.lies = [Lie(stall_at=200_000)]
    with daemon(registry) as started:
        left = leave_a_pull(started)
        assert server.stalled.wait(20) and job(started, left)["state"] == "running"
        status, joined = started.ask("POST", PULL, {"stream": False})
        assert (status, joined["id"]) == (202, left)
        server.release.set()
        told = events(
            started.ask("GET", f"/jetllm/v1/jobs/{left}", headers={"Accept": "text/event-stream"})[1]
        )
        assert told[-1] == ("done", {"model": "tiny", "variant": "q4"})
        assert started.ask("GET", "/jetllm/v1/models/tiny")[1]["pulled"] is True
    assert len(server.requests) == 1


def test_a_cancelled_download_goes_on_where_it_was(server: LyingServer, registry: Path) -> None:
    """Within a second it has ended; asked for again it fetches the rest alone."""
    server.lies = [Lie(stall_at=200_000)]
    with daemon(registry) as started:
        left = leave_a_pull(started)
        assert server.stalled.wait(20)
        wait_until(lambda: here(registry) > 0, "the first bytes")
        assert job(started, left, "DELETE")["state"] == "cancelled"
        server.release.set()
        told = events(started.ask("POST", PULL, {})[1])
        assert told[-1][0] == "done", told
    assert goes_on(server)


def test_a_daemon_that_ends_leaves_what_the_next_goes_on_from(server: LyingServer, registry: Path) -> None:
    """SIGTERM ends a job that nobody watches at once, in good order, and nothing of it is lost."""
    server.lies = [Lie(stall_at=200_000)]
    with daemon(registry) as started:
        leave_a_pull(started)
        assert server.stalled.wait(20)
        wait_until(lambda: here(registry) > 0, "the first bytes")
        assert started.stop(timeout_s=10) == 0
    server.release.set()
    with daemon(registry) as started:
        assert started.ask("GET", "/jetllm/v1/jobs")[1] == {"jobs": []}
        assert events(started.ask("POST", PULL, {})[1])[-1][0] == "done"
    assert goes_on(server)


def test_a_load_tells_how_far_it_is(smollm2_path: Path) -> None:
    """A real engine's load: its progress rises, and the end is the worker's row."""
    service = build_service(load_settings({"context_tokens": 256}))
    try:
        client = create_app(service).test_client()
        answer = client.post("/jetllm/v1/models/load", json={"model": MODEL, "stream": True})
        told = events(answer.get_data(as_text=True))
    finally:
        service.close()
    assert [kind for kind, _ in told[:-1]] == ["progress"] * (len(told) - 1) and len(told) > 1
    fractions = [data["fraction"] for _, data in told[:-1] if data["fraction"] is not None]
    assert all(data["phase"] == "load" for _, data in told[:-1]) and fractions == sorted(fractions)
    kind, row = told[-1]
    assert (kind, row["model"], row["state"]) == ("done", MODEL, "ready")
