"""The feed: a job told as server-sent events until it ends or whoever watches it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, g

from inference.api.body import client_left
from inference.api.context import Context
from inference.api.errors import body_of, public
from inference.api.shapes import event
from inference.errors import DrainingError
from inference.jobs import ERROR, PROGRESS, Cancelled, Event, Job, Tell

_FIRST_S = 1.0  # what fails so soon is still a real HTTP status
_QUIET_S = 10.0  # a comment as often, or what lies between takes the connection for dead
_LOOK_S = 0.5

Work = Callable[[Tell, Cancelled], dict[str, Any]]


def begin(
    context: Context, kind: str, name: str, variant: str | None, work: Work, *, wish: object = None
) -> tuple[Job, bool]:
    """Return the job that does this for a model, begun now if there was none; and whether it was.

    The job goes on when the client leaves; it ends when it is asked to, or the daemon stops.

    Args:
        work: gets a function that tells a frozen value, and one that says whether to stop.
        wish: what must be equal, too, for a job to be this one.

    Raises:
        ModelNotFoundError: there is no such model.
        DrainingError, QueueFullError: as `Jobs.start`.
    """
    if context.service.status()["state"] == "draining":
        raise DrainingError("the daemon is stopping", retry_after_s=context.settings.drain_timeout_s)
    request_id = g.request_id

    def run(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        try:
            return work(lambda value: tell(dataclasses.asdict(value)), cancelled)
        except Exception as error:
            raise public(context.cause_of(error), request_id) from None

    return context.jobs.start(kind, context.service.model(name)["id"], variant, run, wish=wish)


def feed(context: Context, job: Job, *, started: bool) -> Response:
    """Answer with ``progress`` events and, at the end, one that is ``done`` or ``error``.

    Args:
        started: whether the job began with this request; if not, its last progress is told first.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(context.permit())
        first = job.next(0, _FIRST_S) if started else None
        if first is not None and first.kind == ERROR:
            raise first.value
        after = 0 if started or job.progress is None else job.progress.number - 1
        events = _events(job, after, client_left(), g.request_id)
        response = Response(events, mimetype="text/event-stream")
        response.call_on_close(held.pop_all().close)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.headers["X-JetLLM-Job"] = job.id
    return response


def row_of(job: Job, request_id: str) -> dict[str, Any]:
    """Return what is shown of a job."""
    last, progress = job.last, job.progress
    error = last.value if last is not None and last.kind == ERROR else None
    return {
        "id": job.id,
        "kind": job.kind,
        "model": job.model,
        "variant": job.variant,
        "state": job.state,
        "progress": None if progress is None else progress.value,
        "result": last.value if job.state == "done" and last is not None else None,
        "error": None if error is None else body_of(error, request_id)["error"],
        "created": int(job.created_s),
        "ended": None if job.ended_s is None else int(job.ended_s),
    }


def _events(job: Job, after: int, gone: Callable[[], bool], request_id: str) -> Iterator[bytes]:
    yield f": {job.id}\n\n".encode()  # so that the client gets its header now
    quiet_s = 0.0
    while not gone():
        item = job.next(after, _LOOK_S)
        if item is None:
            quiet_s += _LOOK_S
            if quiet_s >= _QUIET_S:
                quiet_s = 0.0
                yield b": nothing new\n\n"
            continue
        after, quiet_s = item.number, 0.0
        yield _event(item, request_id)
        if item.kind != PROGRESS:
            return


def _event(item: Event, request_id: str) -> bytes:
    value = body_of(item.value, request_id) if item.kind == ERROR else item.value
    return b"event: " + item.kind.encode() + b"\n" + event(value)
