"""Long work as jobs: begun once, watched by many, ended when asked to or with the daemon."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference import errors
from inference.api import Limits, create_app
from inference.artifacts.sources import Progress
from inference.jobs import DONE, ERROR, PROGRESS, Cancelled, Job, Jobs, Tell
from tests.fake_service import MODEL, FakeService, Gate, settings_with
from tests.http_server import Start, servers
from tests.test_api_pull import SSE, events

PULL = f"/jetllm/v1/models/{MODEL}/pull"
JOBS = "/jetllm/v1/jobs"
HALF = Progress("download", 50, 100, 10.0, 5.0)
WAIT_S = 5.0


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


class Held:
    """Work that tells what it is told to, and ends when it may."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ran = 0

    def __call__(self, tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        """Tell of one step, wait, and be done."""
        self.ran += 1
        tell({"step": 1})
        self.begun.set()
        while not self.may_end.wait(0.01):
            if cancelled():
                raise errors.CancelledError("asked to stop")
        return {"answer": 42}


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    """The daemon's end, which ends what a test leaves running."""
    event = threading.Event()
    yield event
    event.set()


def test_the_same_work_is_done_once(stopping: threading.Event) -> None:
    """One job per kind, model, variant and wish; another variant is another job, and so is the next time."""
    jobs, work = Jobs(stopping), Held()
    job, started = jobs.start("pull", "m", "q4", work)
    again, started_again = jobs.start("pull", "m", "q4", work)
    assert (started, started_again, again) == (True, False, job)
    keys = (("pull", "m", None), ("build", "m", "q4"), ("pull", "n", "q4"))
    others = [jobs.start(kind, model, variant, work)[0] for kind, model, variant in keys]
    others.append(jobs.start("pull", "m", "q4", work, wish="another")[0])
    assert len({each.id for each in (job, *others)}) == 5
    work.may_end.set()
    assert job.wait(WAIT_S) and work.ran == 5
    assert jobs.start("pull", "m", "q4", work)[1] is True
    assert all(each.wait(WAIT_S) for each in jobs.all())


def test_whoever_joins_sees_the_last_progress_and_the_end(stopping: threading.Event) -> None:
    """Two who watch see the same events, each at its own pace."""
    jobs, work = Jobs(stopping), Held()
    job, _ = jobs.start("pull", "m", None, work)
    first = job.next(0, WAIT_S)
    assert first is not None and (first.kind, first.value) == (PROGRESS, {"step": 1})
    assert job.next(first.number, 0.01) is None and job.state == "running"
    work.may_end.set()
    last = job.next(first.number, WAIT_S)
    assert last is not None and (last.kind, last.value) == (DONE, {"answer": 42})
    assert job.progress == first and job.next(0, 0) == first and job.state == "done"
    assert job.ended_s is not None and job.ended_s >= job.created_s


def test_a_cancelled_job_is_no_failure(stopping: threading.Event) -> None:
    """It ended because somebody asked; who asks for the work again meanwhile gets a new job."""
    jobs, work = Jobs(stopping), Held()
    job, _ = jobs.start("pull", "m", None, work)
    assert work.begun.wait(WAIT_S)
    job.asked_to_end.set()
    other, started = jobs.start("pull", "m", None, work)
    assert started and other is not job
    assert job.wait(WAIT_S) and job.state == "cancelled" and other.state == "running"


def test_the_end_of_the_daemon_ends_every_job(stopping: threading.Event) -> None:
    """Within the time that it is given; nothing begins after that."""
    jobs, work = Jobs(stopping), Held()
    made = [jobs.start("pull", name, None, work)[0] for name in ("a", "b")]
    stopping.set()
    assert jobs.close(WAIT_S) and [job.state for job in made] == ["cancelled", "cancelled"]
    with pytest.raises(errors.DrainingError):
        jobs.start("pull", "c", None, work)


def test_what_is_kept_is_bounded(stopping: threading.Event) -> None:
    """So many run at once, so many that ended are known, and so much of what each told."""
    jobs, work = Jobs(stopping, max_running=2), Held()
    running = [jobs.start("pull", name, None, work)[0] for name in ("a", "b")]
    with pytest.raises(errors.QueueFullError):
        jobs.start("pull", "c", None, work)
    work.may_end.set()
    assert all(job.wait(WAIT_S) for job in running)

    def chatty(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        for step in range(1000):
            tell({"step": step})
        return {}

    for number in range(100):
        assert jobs.start("pull", str(number), None, chatty)[0].wait(WAIT_S)
    kept = jobs.all()
    assert len(kept) <= 66 and kept[0].model == "99"
    first = kept[0].next(0, 0)
    assert first is not None and first.number > 700
    with pytest.raises(errors.JobNotFoundError):
        jobs.get(running[0].id)


def test_a_defect_ends_the_job_and_tells_nothing_of_itself(
    stopping: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message may quote what is nobody's business."""

    def broken(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        raise KeyError("secret")

    job, _ = Jobs(stopping).start("pull", "m", None, broken)
    assert job.wait(WAIT_S) and job.state == "failed"
    assert job.last is not None and job.last.kind == ERROR
    assert "secret" not in str(job.last.value) + caplog.text and "KeyError" in caplog.text


# -------------------------------------------------------------------------------------------- over HTTP


def begun(*pulling: Any) -> tuple[FlaskClient, str]:
    """A client of a service that pulls so, and the pull's job."""
    client = create_app(FakeService(pulling=pulling)).test_client()
    answer = client.post(PULL, json={"variant": "q4", "stream": False})
    assert answer.status_code == 202
    assert answer.headers["X-JetLLM-Job"] == answer.get_json()["id"]
    return client, f"{JOBS}/{answer.get_json()['id']}"


def test_a_job_can_be_begun_without_watching_it() -> None:
    """`stream: false` answers 202 with the job, which JSON and events tell of alike."""
    gate = Gate()
    client, path = begun(HALF, gate)
    assert gate.entered.wait(WAIT_S)
    row = client.get(path).get_json()
    progress = {
        "phase": "download",
        "done_bytes": 50,
        "total_bytes": 100,
        "rate_bytes_per_s": 10.0,
        "eta_s": 5.0,
    }
    assert (row["kind"], row["model"], row["variant"], row["state"]) == ("pull", MODEL, "q4", "running")
    assert (row["progress"], row["result"], row["error"], row["ended"]) == (progress, None, None, None)
    assert client.get(JOBS).get_json()["jobs"] == [row]
    assert client.get("/jetllm/v1/status").get_json()["jobs"] == 1
    gate.opened.set()
    told = events(client.get(path, headers=SSE).get_data(as_text=True))
    assert told == [("progress", progress), ("done", {"model": MODEL, "variant": "q4"})]
    row = client.get(path).get_json()
    assert (row["state"], row["result"]) == ("done", {"model": MODEL, "variant": "q4"})
    assert row["ended"] >= row["created"] and client.get("/jetllm/v1/status").get_json()["jobs"] == 0


def test_a_second_request_joins_the_first() -> None:
    """Two askers, one download: the second sees how far it is, and both see the end."""
    gate = Gate()
    service = FakeService(pulling=(Progress("wait", 0, None, None, None), HALF, gate))
    client = create_app(service).test_client()
    first = client.post(PULL, json={}, buffered=False)
    assert gate.entered.wait(WAIT_S)
    second = client.post(PULL, json={}, buffered=False)
    assert second.headers["X-JetLLM-Job"] == first.headers["X-JetLLM-Job"]
    gate.opened.set()
    told = [[kind for kind, _ in events(each.get_data(as_text=True))] for each in (first, second)]
    assert told == [["progress", "progress", "done"], ["progress", "done"]]
    assert len(service.calls) == 1


def test_a_job_is_cancelled_by_deleting_it() -> None:
    """Within a second; who watches is told, and a second time changes nothing."""
    gate = Gate()
    client, path = begun(HALF, gate)
    assert gate.entered.wait(WAIT_S)
    row = client.delete(path).get_json()
    assert (row["state"], row["error"]["code"]) == ("cancelled", "cancelled")
    assert gate.left.is_set() and client.delete(path).get_json() == row
    ((_, _), (kind, told)) = events(client.get(path, headers=SSE).get_data(as_text=True))
    assert (kind, told["error"]["code"]) == ("error", "cancelled")
    for method in (client.get, client.delete):
        assert method(f"{JOBS}/job_none").status_code == 404


def test_what_fails_is_kept_with_its_reason() -> None:
    """As an answer would have had it; no path of this machine."""
    client, path = begun(HALF, errors.DownloadError("/secret/place/m.gguf was cut", hint="again"))
    events(client.get(path, headers=SSE).get_data(as_text=True))
    row = client.get(path).get_json()
    assert row["state"] == "failed" and row["error"]["code"] == "download_failed"
    assert row["error"]["message"] == "m.gguf was cut"


def test_a_load_tells_its_progress_when_it_is_asked_to() -> None:
    """The events are those of a pull; what fails at once is still a status."""
    client = create_app(FakeService()).test_client()
    body = {"model": MODEL, "variant": "q4", "pin": True, "stream": True}
    answer = client.post("/jetllm/v1/models/load", json=body)
    assert answer.mimetype == "text/event-stream"
    assert events(answer.get_data(as_text=True)) == [("done", {"model": MODEL, "state": "ready"})]
    failing = create_app(FakeService(load_error=errors.DoesNotFitError("too large"))).test_client()
    assert failing.post("/jetllm/v1/models/load", json=body).status_code == 422
    assert failing.post("/jetllm/v1/models/load", json={**body, "model": "none"}).status_code == 404


def test_a_stopping_daemon_begins_nothing() -> None:
    """503 with Retry-After, as for other work."""
    service = FakeService(draining=True)
    answer = create_app(service).test_client().post(PULL, json={})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "draining")
    assert "Retry-After" in answer.headers and not service.calls


def test_a_job_that_nobody_watches_ends_with_the_daemon(start: Start) -> None:
    """The drain does not wait for it, and its thread is gone when the server is."""
    gate = Gate()
    running = start(FakeService(pulling=(HALF, gate), settings=settings_with(drain_timeout_s=5.0)), Limits())
    with running.connect() as client:
        client.post(PULL, {"stream": False})
        status, _, body = client.answer()
        assert status == 202 and gate.entered.wait(WAIT_S)
    running.server.shutdown()
    running.thread.join(WAIT_S)
    assert gate.left.is_set() and not running.thread.is_alive()
    job: Job = running.context.jobs.get(json.loads(body)["id"])
    assert job.last is not None and job.last.value.code == "shutting_down"
