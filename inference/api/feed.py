"""The feed: long work in a thread of its own, told as server-sent events until it is done."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response, g

from inference.api.body import client_left
from inference.api.context import Context
from inference.api.errors import body_of, public
from inference.api.shapes import event

_FIRST_S = 1.0  # what fails so soon is still a real HTTP status
_QUIET_S = 10.0  # a comment as often, or what lies between takes the connection for dead

Tell = Callable[[Any], None]
Cancelled = Callable[[], bool]
_Item = tuple[str, Any]
_QUIET: _Item = ("", None)


def feed(context: Context, work: Callable[[Tell, Cancelled], Any]) -> Response:
    """Answer with ``progress`` events and, at the end, one that is ``done`` or ``error``.

    The work is cancelled when the client leaves or the daemon stops.

    Args:
        work: gets a function that tells a frozen value, and one that says whether to stop.
    """
    left, closed = client_left(), threading.Event()
    items: queue.SimpleQueue[_Item] = queue.SimpleQueue()

    def cancelled() -> bool:
        return closed.is_set() or left() or context.stopping.is_set()

    def run() -> None:
        try:
            items.put(("done", work(lambda value: items.put(("progress", value)), cancelled)))
        except Exception as error:
            items.put(("error", context.cause_of(error)))

    thread = threading.Thread(target=run, name="feed", daemon=True)
    thread.start()
    try:
        first = _next(items, _FIRST_S)
        if first is not None and first[0] == "error":
            raise first[1]
    except BaseException:
        closed.set()
        raise
    response = Response(_events(first, items, g.request_id), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(closed.set)
    return response


def _next(items: queue.SimpleQueue[_Item], timeout_s: float) -> _Item | None:
    try:
        return items.get(timeout=timeout_s)
    except queue.Empty:
        return None


def _events(item: _Item | None, items: queue.SimpleQueue[_Item], request_id: str) -> Iterator[bytes]:
    while True:
        kind, value = item or _QUIET
        if kind == "progress":
            yield _event(kind, dataclasses.asdict(value))
        elif kind == "error":
            yield _event(kind, body_of(public(value, request_id), request_id))
            return
        elif kind == "done":
            yield _event(kind, value)
            return
        else:
            yield b": nothing new\n\n"
        item = _next(items, _QUIET_S)


def _event(kind: str, value: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + event(value)
