"""The HTTP server against clients that leave, stall or flood."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from inference.api import Limits
from inference.generation import Chunk
from tests.fake_service import MODEL, FakeService, Gate, end, settings_with
from tests.http_server import CHAT, FAST, STREAM, Start, code_of, servers
from tests.raw_http import RawClient, request_bytes, wait_until

LEFT_WITHIN_S = 0.5


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


def leave(client: RawClient, how: str) -> float:
    """Leave in one of the ways a client can; return when."""
    if how == "half-close":
        client.sock.shutdown(socket.SHUT_WR)
    elif how == "reset":
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sock.close()
    else:
        client.sock.close()
    return time.monotonic()


# Clients that leave


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["streaming", "whole"])
def test_leaving_in_silent_prefill_stops_the_work(start: Start, body: dict[str, Any], how: str) -> None:
    """A client that leaves before the first token is noticed within 0.5 s, half-close included."""
    gate = Gate()
    running = start(FakeService(before=(gate,)), Limits())
    with running.connect() as client:
        client.post("/v1/chat/completions", body)
        assert gate.entered.wait(5)
        left_s = leave(client, how)
        assert gate.left.wait(5)
    assert gate.cancelled_s is not None and gate.cancelled_s - left_s < LEFT_WITHIN_S


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["streaming", "whole"])
def test_leaving_between_tokens_stops_the_work(start: Start, body: dict[str, Any], how: str) -> None:
    """A client that leaves while tokens come is noticed within 0.5 s and the stream is closed."""
    gate = Gate()
    service = FakeService(script=(Chunk("one"), gate, Chunk("two"), end()))
    running = start(service, Limits())
    with running.connect() as client:
        client.post("/v1/chat/completions", body)
        assert gate.entered.wait(5)
        left_s = leave(client, how)
        assert gate.left.wait(5)
        assert service.streams[0].closed.wait(5)
    assert gate.cancelled_s is not None and gate.cancelled_s - left_s < LEFT_WITHIN_S


def test_leaving_is_noticed_behind_a_pipelined_request(start: Start) -> None:
    """Requests sent ahead fill the pipe; the client's end is still seen behind them."""
    gate = Gate()
    running = start(FakeService(before=(gate,)), Limits())
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        assert gate.entered.wait(5)
        for _ in range(3):
            client.post("/v1/chat/completions", CHAT)
        assert wait_until(lambda: len(running.server._listener._connections()[0].requests) > 1)
        left_s = leave(client, "close")
        assert gate.left.wait(5)
    assert gate.cancelled_s is not None and gate.cancelled_s - left_s < LEFT_WITHIN_S


def test_leaving_while_a_model_loads_stops_the_wait(start: Start) -> None:
    """The load endpoint too stops waiting when its client is gone."""
    gate = Gate()
    running = start(FakeService(load_gate=gate), Limits())
    with running.connect() as client:
        client.post("/jetllm/v1/models/load", {"model": MODEL})
        assert gate.entered.wait(5)
        client.sock.close()
        assert gate.left.wait(LEFT_WITHIN_S)


def test_aborted_streams_free_their_places(start: Start) -> None:
    """After many aborts nothing counts as running and the next request is served."""
    service = FakeService(script=(Chunk("x" * 2000),) * 50 + (end(),))
    running = start(service)
    for _ in range(30):
        with running.connect() as client:
            client.post("/v1/chat/completions", STREAM)
            client.read_until(b"data: ")
    assert wait_until(lambda: service.running == 0)
    with running.connect() as client:
        client.post("/v1/chat/completions", STREAM)
        client.read_until(b"[DONE]")


# Clients that stall or flood


@pytest.mark.parametrize("sent", [b"GET /livez HTT", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"])
def test_unfinished_header_is_answered_408(start: Start, sent: bytes) -> None:
    """A header that is not complete in time ends in a JSON 408 and a closed connection."""
    running = start()
    with running.connect() as client:
        client.send(sent)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (408, "request_timeout")
        assert client.is_closed()


def test_dripping_body_does_not_extend_the_deadline(start: Start) -> None:
    """The deadline is for the whole request: sending a byte now and then does not move it."""
    running = start()
    with running.connect() as client:
        client.send(request_bytes("/v1/completions", b"x" * 1000)[:-999])
        started_s = time.monotonic()
        while client.is_silent(0.04):
            client.send(b"x")
            assert time.monotonic() - started_s < 5
        assert client.answer()[0] == 408
        assert time.monotonic() - started_s >= FAST.request_s * 0.8


def test_slow_work_is_not_an_unfinished_request(start: Start) -> None:
    """The deadline for sending a request is over once it is complete."""
    gate = Gate()
    running = start(FakeService(before=(gate,)))
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        assert client.is_silent(FAST.request_s + FAST.idle_s + 0.2)
        gate.opened.set()
        assert client.answer()[0] == 200


def test_idle_connection_is_closed(start: Start) -> None:
    """A connection without a request is closed after a while."""
    running = start()
    with running.connect() as client:
        assert client.get("/livez")[0] == 200
        assert client.is_closed(5)


def test_stalled_reader_is_dropped_and_costs_little(start: Start) -> None:
    """Who asks for a stream and does not read is dropped, with little buffered until then."""
    taken: list[int] = []

    def endless() -> Iterator[Any]:
        taken.append(1)
        yield Chunk("x" * 1000)
        yield endless

    service = FakeService(script=(endless,))
    running = start(service)
    with running.connect(receive_buffer_bytes=4096) as client:
        client.post("/v1/chat/completions", STREAM)
        started_s = time.monotonic()
        assert wait_until(lambda: bool(service.streams))
        assert service.streams[0].closed.wait(5)
        elapsed_s = time.monotonic() - started_s
    assert FAST.stall_s * 0.8 <= elapsed_s < FAST.stall_s + 1
    # 64 KiB of ours, twice 64 KiB in the kernel, and what the client's own kernel took.
    assert len(taken) * 1000 < 400_000


def test_large_answer_is_not_buffered_whole(start: Start) -> None:
    """What a client does not read yet waits in its thread, not in the send buffer."""
    running = start(FakeService(script=(Chunk("x" * 3_000_000), end())), Limits())
    with running.connect(receive_buffer_bytes=4096) as client:
        client.post("/v1/chat/completions", CHAT)
        assert wait_until(lambda: bool(running.service.streams))
        (channel,) = running.server._listener._connections()
        assert wait_until(lambda: channel.total_outbufs_len > Limits().buffered_bytes)
        assert channel.total_outbufs_len <= Limits().buffered_bytes + 16 * 1024
        assert len(client.answer()[2]) > 3_000_000


def test_slow_reader_is_not_dropped(start: Start) -> None:
    """Progress within the stall limit keeps a connection."""
    service = FakeService(script=(Chunk("x" * 1000),) * 1500 + (end(),))
    running = start(service)
    started_s = time.monotonic()
    got = b""
    with running.connect(receive_buffer_bytes=4096) as client:
        client.post("/v1/chat/completions", STREAM)
        while b"[DONE]" not in got[-40:]:
            if time.monotonic() - started_s < 2 * FAST.stall_s:
                wait_until(lambda: False, 0.05)
            data = client.sock.recv(65536)
            assert data, "dropped"
            got += data
    assert time.monotonic() - started_s > 2 * FAST.stall_s


def test_half_sent_requests_do_not_block_health(start: Start) -> None:
    """100 unfinished headers and 100 unfinished bodies cost no thread; /livez answers within 1 s."""
    running = start(limits=Limits())
    half_header, half_body = (
        b"POST /v1/completions HTTP/1.1\r\nHos",
        request_bytes("/v1/completions", b"{}")[:-1],
    )
    clients = [running.connect() for _ in range(200)]
    for number, client in enumerate(clients):
        client.send(half_header if number % 2 else half_body)
    started_s = time.monotonic()
    assert running.is_live()
    assert time.monotonic() - started_s < 1
    for client in clients:
        client.sock.close()


def test_working_requests_do_not_block_health(start: Start) -> None:
    """Requests that hold every permit leave threads for health; one more is told to come back."""
    gate = Gate()
    settings = settings_with(max_loaded_models=1, slots=1, max_queue=0)
    running = start(FakeService(before=(gate,), settings=settings), Limits(spare_threads=4))
    with running.connect() as first, running.connect() as second, running.connect() as third:
        for client in (first, second, third):
            client.post("/v1/chat/completions", CHAT)
        assert wait_until(lambda: len(running.service.requests) == 3)
        with running.connect() as fourth:
            started_s = time.monotonic()
            fourth.post("/v1/chat/completions", CHAT)
            status, headers, body = fourth.answer()
            assert (status, code_of(body), headers["retry-after"]) == (429, "queue_full", "1")
            assert time.monotonic() - started_s < 0.5
        assert running.is_live()
        gate.opened.set()
        assert [client.answer()[0] for client in (first, second, third)] == [200] * 3
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        assert client.answer()[0] == 200


@pytest.mark.parametrize("limits", [Limits(connections_per_loopback=3), Limits(connections=3)])
def test_new_connection_takes_the_place_of_an_idle_one(start: Start, limits: Limits) -> None:
    """At the cap, of an address or in all, an idle connection makes room: health is reachable."""
    running = start(limits=limits)
    idle = [running.connect() for _ in range(3)]
    assert wait_until(lambda: len(running.server._listener._connections()) == 3)
    assert running.is_live()
    assert sum(not client.is_silent(0.05) for client in idle) == 1
    for client in idle:
        client.sock.close()


def test_working_connections_are_not_pushed_out(start: Start) -> None:
    """Where every connection works, a new one is closed, and the work goes on."""
    gate = Gate()
    running = start(FakeService(before=(gate,)), Limits(connections_per_loopback=2))
    with running.connect() as first, running.connect() as second:
        for client in (first, second):
            client.post("/v1/chat/completions", CHAT)
        assert wait_until(lambda: len(running.service.requests) == 2)
        with running.connect() as third:
            assert third.is_closed(5)
        gate.opened.set()
        assert [client.answer()[0] for client in (first, second)] == [200, 200]


def test_wall_clock_jump_changes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines run on the monotonic clock: ten years pass on the other, and nobody is dropped."""
    running = start(limits=Limits(tick_s=0.02))
    real = time.time
    with running.connect() as idle:
        assert idle.get("/livez")[0] == 200
        for years in (10, -10):
            monkeypatch.setattr(time, "time", lambda years=years: real() + years * 31_536_000)
            wait_until(lambda: False, 0.1)
            assert running.is_live()
            assert idle.get("/livez")[0] == 200
