"""The pull over HTTP: progress as events, and an end that says which."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference import errors
from inference.api import Limits, create_app
from inference.artifacts.sources import Progress
from tests.fake_service import MODEL, POLL_S, FakeService, Gate, settings_with
from tests.http_server import Start, servers
from tests.raw_http import wait_until
from tests.test_server_clients import leave

PATH = f"/jetllm/v1/models/{MODEL}/pull"
SSE = {"Accept": "text/event-stream"}
HALF = Progress("download", 50, 100, 10.0, 5.0)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


def client_of(*pulling: Any) -> FlaskClient:
    """A client of a service that pulls so."""
    return create_app(FakeService(pulling=pulling)).test_client()


def events(text: str) -> list[tuple[str, Any]]:
    """The events of a stream, comments left out."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block and not block.startswith(":")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_a_pull_tells_its_progress_and_its_end() -> None:
    """Bytes, rate and time left; unknown is null; no path of this machine."""
    service = FakeService(pulling=(Progress("wait", 0, None, None, None), HALF))
    response = create_app(service).test_client().post(PATH, json={"variant": "q4"})
    assert (response.status_code, response.mimetype) == (200, "text/event-stream")
    keys = ("phase", "done_bytes", "total_bytes", "rate_bytes_per_s", "eta_s")
    assert events(response.get_data(as_text=True)) == [
        ("progress", dict(zip(keys, ("wait", 0, None, None, None), strict=True))),
        ("progress", dict(zip(keys, ("download", 50, 100, 10.0, 5.0), strict=True))),
        ("done", {"model": MODEL, "variant": "q4"}),
    ]
    assert service.calls == [("pull", MODEL, "q4")]


def test_what_fails_at_once_has_its_status() -> None:
    """An unknown model is 404 and a full disk 507, as for every other route."""
    assert client_of().post("/jetllm/v1/models/org/none/pull", json={}).status_code == 404
    assert client_of(errors.InsufficientStorageError("x")).post(PATH, json={}).status_code == 507
    assert client_of().post(PATH, json={"variant": 7}).status_code == 400


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DownloadError("cut", details={"done_bytes": 5}), "download_failed"),
        (KeyError(), "internal_error"),
    ],
)
def test_what_fails_later_is_an_event(error: Exception, code: str) -> None:
    """The stream has begun: its last event is the error, as a body would have it."""
    told = events(client_of(HALF, error).post(PATH, json={}).get_data(as_text=True))
    assert [kind for kind, _ in told] == ["progress", "error"]
    assert told[1][1]["error"]["code"] == code
    assert told[1][1]["request_id"].startswith("req_")


def test_permits_of_pulls_are_given_back() -> None:
    """However a pull ends, its place is free for the next."""
    client = client_of(HALF, errors.DownloadError("cut"))
    assert {client.post(PATH, json={}).status_code for _ in range(200)} == {200}


def test_a_pull_goes_on_when_its_stream_is_closed() -> None:
    """Whoever closes it: a server that gave up on a slow reader, too."""
    gate = Gate()
    client = client_of(HALF, gate)
    response = client.post(PATH, json={}, buffered=False)
    assert gate.entered.wait(5)
    response.close()
    assert not gate.left.wait(10 * POLL_S), "it was asked to stop"
    (job,) = client.get("/jetllm/v1/jobs").get_json()["jobs"]
    assert (job["state"], job["id"]) == ("running", response.headers["X-JetLLM-Job"])
    gate.opened.set()
    told = events(client.get(f"/jetllm/v1/jobs/{job['id']}", headers=SSE).get_data(as_text=True))
    assert [kind for kind, _ in told] == ["progress", "done"]
    assert not gate.left.is_set()


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("before", [(), (HALF,)], ids=["silent", "streaming"])
def test_leaving_only_ends_the_watching(start: Start, how: str, before: tuple[Progress, ...]) -> None:
    """The thread and the permit of a client that left are free again; the pull goes on to its end."""
    gate = Gate()
    running = start(FakeService(pulling=(*before, gate)), Limits())
    with running.connect() as client:
        client.post(PATH, {})
        assert gate.entered.wait(5)
        client.read_until(b"\r\n\r\n")
        left_s = leave(client, how)
        assert wait_until(lambda: running.places == running.all_places, 5)
    assert time.monotonic() - left_s < 2.0
    assert not gate.left.wait(10 * POLL_S), "it was asked to stop"
    with running.connect() as client:
        status, _, body = client.get("/jetllm/v1/jobs")
        (job,) = json.loads(body)["jobs"]
        assert (status, job["state"]) == (200, "running")
        gate.opened.set()
        assert wait_until(lambda: running.context.jobs.all()[0].state == "done")
    assert not gate.left.is_set()


def test_a_daemon_that_stops_ends_its_pulls(start: Start) -> None:
    """The client is told; what came stays for the next pull."""
    gate = Gate()
    settings = settings_with(drain_timeout_s=0.2)
    running = start(FakeService(pulling=(HALF, gate), settings=settings), Limits())
    with running.connect() as client:
        client.post(PATH, {})
        client.read_until(b"eta_s")
        running.server.shutdown()
        told = client.read_all()
    running.thread.join(5)
    assert gate.left.is_set()
    assert b"event: error" in told
    assert b'"code":"shutting_down"' in told
