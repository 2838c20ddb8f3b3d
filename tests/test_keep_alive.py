"""keep_alive of one request: how it is read, what it does to a worker, and that every dialect takes it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from inference.api import create_app
from inference.api.fields import Strict, read
from inference.api.keep_alive import MAX_S, KeepAlive, seconds_of
from inference.errors import InvalidRequestError, WorkerCrashedError
from inference.generation import GenerateRequest
from inference.runtime.entry import Entry, Lease
from inference.runtime.plan import Plan
from inference.runtime.supervisor import Supervisor
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.conftest import DEADLINE_S, Scripted, wait_until
from tests.scripted_service import MODEL, scripted_backend, scripted_registry

Make = Callable[..., Supervisor]


class Body(Strict):
    """A body with nothing else."""

    keep_alive: KeepAlive = None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("100ms", 0.1),
        ("3us", 3e-6),
        ("+2m", 120),
        ("300", 300),
        ("0", 0),
        ("-1", -1),
        ("-5m", -1),
        (0, 0),
        (-1, -1),
        (-3.5, -1),
        (12.5, 12.5),
        (MAX_S, MAX_S),
        (MAX_S + 1, -1),
        ("9000h", -1),
        (None, None),
    ],
)
def test_durations_are_read_as_ollama_writes_them(value: Any, seconds: float | None) -> None:
    """Units add up, a bare number is seconds, less than nothing and more than a year are for ever."""
    assert read(Body, {"keep_alive": value}).keep_alive == (
        None if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    "value", ["", "soon", "5x", "1e3", "5 m", "m", "--5m", "1h-5m", True, [], {}, "9" * 99]
)
def test_what_is_no_duration_is_refused(value: Any) -> None:
    """With the field's name and an example."""
    with pytest.raises(InvalidRequestError, match='keep_alive: expected seconds, or a duration such as "5m"'):
        read(Body, {"keep_alive": value})


@given(hours=st.integers(0, 23), minutes=st.integers(0, 59), seconds=st.integers(0, 59))
def test_parts_of_a_duration_add_up(hours: int, minutes: int, seconds: int) -> None:
    """Hours, minutes and seconds in any combination."""
    assert seconds_of(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


def test_a_worker_stays_as_long_as_it_was_told(scripted: Scripted) -> None:
    """Counted from its last use, on whatever clock; not while it works, is pinned, or is kept for ever."""
    entry = Entry(scripted.plan(), 100.0, keep_alive_s=30.0)
    assert [entry.stays_s(now_s) for now_s in (100.0, 120.0, 130.0, 999.0)] == [30.0, 10.0, 0.0, 0.0]
    entry.keep_alive_s = 0.0
    assert entry.stays_s(100.0) == 0.0
    entry.keep_alive_s = -1.0
    assert entry.stays_s(1e9) == float("inf")
    entry.keep_alive_s, entry.pinned = 30.0, True
    assert entry.stays_s(1e9) == float("inf")
    entry.pinned = False
    lease = Lease(entry, lambda _: None)
    entry.admit(lease)
    assert entry.stays_s(1e9) == float("inf")
    entry.release(lease, 500.0)
    assert entry.stays_s(505.0) == 25.0


def test_the_status_says_what_is_left(scripted: Scripted) -> None:
    """`expires_in_s` counts down from the request's own value; null while nothing will end it."""
    entry = Entry(scripted.plan(), 100.0, keep_alive_s=30.0)
    info = {"slots": 4, "capabilities": ["chat"]}
    entry.worker = SimpleNamespace(  # type: ignore[assignment]
        ready=True, exited=False, info=info, pid=1, requests_total=0
    )
    entry.loaded_s = 100.0
    shown = entry.status(110.0)
    assert (shown.keep_alive_s, shown.idle_s, shown.expires_in_s) == (30.0, 10.0, 20.0)
    assert shown.capabilities == ("chat",)
    for kept, pinned in ((-1.0, False), (30.0, True)):
        entry.keep_alive_s, entry.pinned = kept, pinned
        assert entry.status(110.0).expires_in_s is None
    entry.pinned = False
    lease = Lease(entry, lambda _: None)
    entry.admit(lease)
    busy = entry.status(110.0)
    assert (busy.idle_s, busy.expires_in_s, busy.leases) == (None, None, 1)


def lease_of(supervisor: Supervisor, plan: Plan, keep_alive_s: float | None = None) -> Lease:
    """A lease of a worker that is ready."""
    lease = supervisor.apply(plan, keep_alive_s)
    supervisor.wait(lease, lambda: False, time.monotonic() + DEADLINE_S)
    return lease


def kept(supervisor: Supervisor) -> list[float]:
    return [worker.keep_alive_s for worker in supervisor.snapshot()]


def test_a_lease_says_how_long_its_worker_stays(make_supervisor: Make, scripted: Scripted) -> None:
    """From then on, until another says otherwise; one that says nothing leaves it."""
    supervisor, plan = make_supervisor(keep_alive_s=300), scripted.plan()
    for told, stays in ((None, 300), (60, 60), (None, 60), (-1, -1), (None, -1)):
        lease_of(supervisor, plan, told).release()
        assert kept(supervisor) == [stays]
    lease_of(supervisor, plan, 0).release()
    wait_until(lambda: supervisor.snapshot() == (), "the unloading")
    lease_of(supervisor, plan).release()
    assert kept(supervisor) == [300]  # a new worker begins as the setting has it


def test_a_worker_leaves_only_when_its_last_request_ended(make_supervisor: Make, scripted: Scripted) -> None:
    """keep_alive 0 of one does not end another that still runs; and what that says holds."""
    supervisor, plan = make_supervisor(), scripted.plan()
    long, short = lease_of(supervisor, plan, -1), lease_of(supervisor, plan, 0)
    short.release()
    lease_of(supervisor, plan).release()  # makes the supervisor look
    assert [worker.leases for worker in supervisor.snapshot()] == [1]
    pid = supervisor.snapshot()[0].pid
    long.release()
    wait_until(lambda: pid not in [worker.pid for worker in supervisor.snapshot()], "the unloading")


def test_a_successor_stays_as_long(make_supervisor: Make, scripted: Scripted) -> None:
    """What was said of a worker that crashed holds of the one that serves who waits."""
    supervisor, plan = make_supervisor(), scripted.plan(slots=1)
    first = supervisor.apply(plan, 60)
    worker = supervisor.wait(first, lambda: False, time.monotonic() + DEADLINE_S)
    waiting = supervisor.apply(plan)
    with pytest.raises(WorkerCrashedError):
        list(worker.generate(GenerateRequest(prompt="segv"), lambda: False))
    first.release()
    supervisor.wait(waiting, lambda: False, time.monotonic() + DEADLINE_S)
    waiting.release()
    assert kept(supervisor) == [60]


def test_each_worker_leaves_in_its_own_time(make_supervisor: Make, scripted: Scripted) -> None:
    """One that is kept for ever does not keep the supervisor from seeing another's end."""
    supervisor = make_supervisor()
    lease_of(supervisor, scripted.plan("stays"), -1).release()
    lease_of(supervisor, scripted.plan("leaves"), 0.2).release()
    wait_until(lambda: [w.model for w in supervisor.snapshot()] == ["stays"], "the unloading")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A whole service with a scripted model."""
    registry = scripted_registry(tmp_path)
    settings = load_settings({"registry": registry, "keep_alive_s": 300, "min_residency_s": 0, "port": 0})
    with scripted_backend():
        service = build_service(settings)
        try:
            yield service
        finally:
            service.close()


def stays(client: FlaskClient) -> list[float]:
    """How long each loaded model stays, as the status has it."""
    rows = (client.get("/jetllm/v1/status").json or {})["workers"]
    return [row["keep_alive_s"] for row in rows]


def test_every_dialect_takes_it(service: Service) -> None:
    """Loading, Ollama's and OpenAI's requests: the worker stays as the last that spoke of it said."""
    client = create_app(service).test_client()

    def ask(path: str, **body: Any) -> None:
        response = client.post(path, json={"model": MODEL, **body})
        assert response.status_code == 200, response.get_data(as_text=True)
        response.close()

    messages = [{"role": "user", "content": "say:hi"}]
    ask("/jetllm/v1/models/load", keep_alive="2m")
    assert stays(client) == [120]
    ask("/v1/completions", prompt="say:hi", keep_alive=-1)
    assert stays(client) == [-1]
    ask("/v1/chat/completions", messages=messages)
    assert stays(client) == [-1]
    ask("/api/chat", messages=messages, keep_alive="1h", stream=False)
    assert stays(client) == [3600]
    ask("/api/generate", prompt="say:hi", keep_alive=90, stream=False)
    assert stays(client) == [90]
    ask("/api/generate", keep_alive="10m")
    (row,) = (client.get("/api/ps").json or {})["models"]
    assert stays(client) == [600] and row["name"] == f"{MODEL}:latest"
    ask("/api/chat", keep_alive=0)
    assert stays(client) == []
    ask("/v1/completions", prompt="say:hi", keep_alive=0)
    wait_until(lambda: stays(client) == [], "the unloading")
    assert json.loads(client.get("/api/ps").get_data()) == {"models": []}
