"""The drain of the HTTP server: accepted work ends, new work is refused, and both have a limit."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from inference.generation import Chunk
from tests.fake_service import FakeService, Gate, end, settings_with
from tests.http_server import CHAT, STREAM, Start, code_of, servers
from tests.raw_http import wait_until


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


def test_drain_lets_accepted_work_finish(start: Start) -> None:
    """While draining: the stream goes on, new work is a 503 with Retry-After, health answers."""
    gate = Gate()
    running = start(FakeService(script=(Chunk("one"), gate, Chunk("two"), end())))
    with running.connect() as client, running.connect() as other:
        client.post("/v1/chat/completions", STREAM)
        assert gate.entered.wait(5)
        running.server.shutdown()
        assert wait_until(lambda: running.service.draining)
        assert (other.get("/livez")[0], other.get("/readyz")[0]) == (200, 503)
        other.post("/v1/chat/completions", CHAT)
        status, headers, body = other.answer()
        assert (status, code_of(body), headers["retry-after"]) == (503, "draining", "7")
        assert running.thread.is_alive()
        gate.opened.set()
        client.read_until(b"data: [DONE]\n\n")
    running.thread.join(5)
    assert not running.thread.is_alive()


def test_drain_that_takes_too_long_says_so(start: Start) -> None:
    """Streams that outlast the drain end in an explicit error event, whole answers in a 503."""
    gate = Gate()
    settings = settings_with(drain_timeout_s=0.2)
    running = start(FakeService(script=(Chunk("one"), gate, end()), settings=settings))
    with running.connect() as streaming, running.connect() as whole:
        streaming.post("/v1/chat/completions", STREAM)
        whole.post("/v1/chat/completions", CHAT)
        assert wait_until(lambda: len(running.service.streams) == 2)
        streaming.read_until(b'"content":"one"')
        running.server.shutdown()
        events = streaming.read_all()
        status, _, body = whole.answer()
    running.thread.join(5)
    assert b'"code":"shutting_down"' in events
    assert b"[DONE]" not in events and b'"finish_reason":"stop"' not in events
    assert (status, code_of(body)) == (503, "shutting_down")
    assert not running.thread.is_alive()


def test_second_shutdown_is_immediate(start: Start) -> None:
    """Asked twice, the server does not wait for accepted work."""
    gate = Gate()
    running = start(FakeService(before=(gate,)))
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        assert gate.entered.wait(5)
        running.server.shutdown()
        assert wait_until(lambda: running.service.draining)
        started_s = time.monotonic()
        running.server.shutdown()
        running.thread.join(5)
        assert time.monotonic() - started_s < 1
        assert client.is_closed()
    assert gate.left.wait(5)
