"""The HTTP server against real sockets: clients that leave, stall, lie or flood, and the drain."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from waitress import wasyncore

from inference.api import HttpServer, Limits, create_app, serve
from inference.errors import AddressInUseError, SettingsError, UnsafeBindError, WorkerCrashedError
from inference.generation import Chunk
from tests.fake_service import MODEL, FakeService, Gate, end, settings_with
from tests.raw_http import RawClient, request_bytes, wait_until

FAST = Limits(request_s=0.3, stall_s=0.4, idle_s=0.5, linger_s=0.5, farewell_s=1.0, tick_s=0.05)
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
COMPLETION = {"prompt": "hi"}
LEFT_WITHIN_S = 0.5
ANYWHERE = "0.0.0.0"  # noqa: S104


class Running:
    """A server in a thread."""

    def __init__(self, service: FakeService, limits: Limits) -> None:
        self.service = service
        self.server = HttpServer(create_app(service, limits=limits), service.settings)
        self.address = self.server.address
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def connect(self, **options: Any) -> RawClient:
        """Open a connection."""
        return RawClient(self.address, **options)

    def is_live(self) -> bool:
        """Whether /livez answers on a new connection."""
        with self.connect() as client:
            return client.get("/livez")[0] == 200

    def stop(self) -> None:
        """End it at once."""
        self.server.shutdown()
        self.server.shutdown()
        self.thread.join(10)
        assert not self.thread.is_alive()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    before = set(threading.enumerate())
    running: list[Running] = []

    def go(service: FakeService | None = None, limits: Limits = FAST) -> Running:
        running.append(Running(service or FakeService(), limits))
        return running[-1]

    yield go
    for one in running:
        one.stop()
    assert wait_until(lambda: set(threading.enumerate()) <= before), threading.enumerate()


def code_of(body: bytes) -> str:
    """The error code of a JSON body."""
    return str(json.loads(body)["error"]["code"])


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


# Listening


def test_answers_and_ends_without_leaving_a_port_open(start: Start) -> None:
    """After `shutdown`, `run` returns and the port can be taken again."""
    running = start()
    assert running.is_live()
    running.server.shutdown()
    running.thread.join(5)
    assert not running.thread.is_alive()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(running.address)


def test_port_in_use_is_one_line(start: Start) -> None:
    """A port that another program holds is named, with the flag that chooses another."""
    host, port = start().address
    service = FakeService(settings=settings_with(port=port))
    with pytest.raises(AddressInUseError) as caught:
        HttpServer(create_app(service), service.settings)
    assert caught.value.message == f"port {port} on {host} is in use by another program"
    assert "--port" in str(caught.value.hint)


@pytest.mark.parametrize("host", [ANYWHERE, "::", "192.0.2.1"])
@pytest.mark.parametrize("key", [None, ""])
def test_refuses_to_listen_beyond_loopback_without_key(host: str, key: str | None) -> None:
    """Another address than loopback needs an API key, and the error says how to set one."""
    service = FakeService(settings=settings_with(host=host, api_key=key))
    with pytest.raises(UnsafeBindError, match="API key") as caught:
        HttpServer(create_app(service), service.settings)
    assert "JETLLM_API_KEY" in str(caught.value.hint)


def test_listens_beyond_loopback_with_key(start: Start) -> None:
    """With a key the wildcard address is fine, and requests need the key."""
    running = start(FakeService(settings=settings_with(host=ANYWHERE, api_key="k" * 32)))
    with RawClient(("127.0.0.1", running.address[1])) as client:
        assert client.get("/livez")[0] == 200
        assert client.get("/v1/models")[0] == 401


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1"])
def test_address_that_is_not_ours_is_a_settings_error(host: str) -> None:
    """An address that cannot be listened on is an error with a hint, not a traceback."""
    service = FakeService(settings=settings_with(host=host, api_key="k" * 32))
    with pytest.raises(SettingsError) as caught:
        HttpServer(create_app(service), service.settings)
    assert caught.value.hint


def test_serve_drains_on_sigterm_and_restores_handlers() -> None:
    """`serve` reports its address, ends on SIGTERM, and leaves the handlers as they were."""
    before = signal.getsignal(signal.SIGTERM)
    service = FakeService()
    statuses: list[int] = []

    def ask_then_kill(host: str, port: int) -> None:
        with RawClient((host, port)) as client:
            statuses.append(client.get("/readyz")[0])
        os.kill(os.getpid(), signal.SIGTERM)

    def on_listening(host: str, port: int) -> None:
        threading.Thread(target=ask_then_kill, args=(host, port)).start()

    serve(create_app(service, limits=FAST), service.settings, on_listening=on_listening)
    assert (statuses, service.draining) == ([200], True)
    assert signal.getsignal(signal.SIGTERM) is before


# Streams


def test_status_line_is_unsent_until_the_first_text(start: Start) -> None:
    """While a model loads or reads the prompt nothing is sent, so an error can still be a status."""
    gate = Gate()
    running = start(FakeService(before=(gate,)))
    with running.connect() as client:
        client.post("/v1/chat/completions", STREAM)
        assert gate.entered.wait(5)
        assert client.is_silent(0.15)
        gate.opened.set()
        assert client.read_until(b"data: [DONE]\n\n").startswith(b"HTTP/1.1 200 OK\r\n")


def test_every_chunk_is_sent_when_it_is_there(start: Start) -> None:
    """A token is not held back until the next one comes."""
    gate = Gate()
    running = start(FakeService(script=(Chunk("one"), gate, Chunk("two"), end())))
    with running.connect() as client:
        client.post("/v1/chat/completions", STREAM)
        client.read_until(b'"content":"one"')
        assert gate.entered.wait(5) and not gate.opened.is_set()
        gate.opened.set()
        client.read_until(b'"content":"two"')


def test_small_writes_are_not_delayed_by_the_kernel(start: Start) -> None:
    """TCP_NODELAY is on for accepted connections."""
    gate = Gate()
    running = start(FakeService(before=(gate,)))
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        assert gate.entered.wait(5)
        (channel,) = running.server._listener._connections()
        assert channel.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        gate.opened.set()
        assert client.answer()[0] == 200


def test_connection_serves_several_requests(start: Start) -> None:
    """Answers of known length keep the connection open."""
    running = start()
    with running.connect() as client:
        for _ in range(3):
            client.post("/v1/chat/completions", CHAT)
            assert client.answer()[0] == 200


def test_large_answer_arrives_whole(start: Start) -> None:
    """A body beyond what is buffered for a client is sent in pieces, without loss."""
    text = "0123456789" * 100_000
    running = start(FakeService(script=(Chunk(text), end())))
    with running.connect() as client:
        client.post("/v1/chat/completions", CHAT)
        _, _, body = client.answer()
    assert json.loads(body)["choices"][0]["message"]["content"] == text


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


# Clients that stall, lie or flood


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


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 3\r\nTransfer-Encoding: ",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\nContent-Length: 3",
        "Content-Length: 3, 4",
        "Content-Length: -3",
        "Content-Length: +3",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding : chunked",
        "Bare: a\nContent-Length: 3",
    ],
)
def test_ambiguous_length_is_refused(start: Start, head: str) -> None:
    """A request whose end two readers could see differently is a JSON 400, then the end."""
    running = start()
    with running.connect() as client:
        client.send(f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n0\r\n\r\n".encode())
        status, headers, body = client.answer()
        assert (status, code_of(body)) == (400, "invalid_http")
        assert headers["content-type"] == "application/json" and headers["x-request-id"].startswith("req_")
        assert client.is_closed()
    assert running.service.requests == []


def test_transfer_encoding_in_http_1_0_is_refused(start: Start) -> None:
    """HTTP/1.0 has no chunks."""
    running = start()
    with running.connect() as client:
        client.send(b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert client.answer()[0] == 400


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"get / HTTP/1.1\r\n\r\n"])
def test_bytes_that_are_not_http_get_a_json_400(start: Start, junk: bytes) -> None:
    """TLS hellos and malformed request lines are answered in JSON."""
    running = start()
    with running.connect() as client:
        client.send(junk)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (400, "invalid_http")


def test_chunked_body_is_accepted(start: Start) -> None:
    """A chunked request, well formed, is as good as one with a length."""
    running = start()
    body = json.dumps(COMPLETION).encode()
    with running.connect() as client:
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        assert client.answer()[0] == 200


def test_huge_header_is_refused(start: Start) -> None:
    """More than 32 KiB of header is a JSON 431."""
    running = start()
    with running.connect() as client:
        client.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000)
        status, _, body = client.answer()
        assert (status, code_of(body)) == (431, "headers_too_large")


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_huge_body_is_refused_where_the_client_can_read_it(start: Start, expect: tuple[str, ...]) -> None:
    """A client that is still sending gets the 413, not a reset, and is never told to go on."""
    running = start()
    body = b'"' + b"x" * 5_000_000
    with running.connect() as client:
        client.send(request_bytes("/v1/completions", body, *expect))
        head = client.read_until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 ")
        assert code_of(client.read_all()) == "body_too_large"


def test_body_of_exactly_the_limit_is_read(start: Start) -> None:
    """1 MiB is allowed; one byte more is not."""
    limit = FAST.body_bytes
    for size, status in ((limit, 200), (limit + 1, 413)):
        running = start()
        body = json.dumps({**COMPLETION, "pad": ""}).encode()
        body = body[:-2] + b"x" * (size - len(body)) + b'"}'
        assert len(body) == size
        with running.connect() as client:
            client.send(request_bytes("/v1/completions", body))
            assert client.answer()[0] == status


def test_expected_body_is_asked_for(start: Start) -> None:
    """Expect: 100-continue is answered when the header is acceptable."""
    running = start()
    body = json.dumps(COMPLETION).encode()
    with running.connect() as client:
        client.send(request_bytes("/v1/completions", body, "Expect: 100-continue")[: -len(body)])
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        assert client.answer()[0] == 200


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


def test_failing_accept_pauses_and_recovers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, the server does not spin, and accepts again a little later."""
    running = start()
    failures: list[float] = []
    real = wasyncore.dispatcher.accept

    def accept(self: wasyncore.dispatcher) -> Any:
        if len(failures) < 3:
            failures.append(time.monotonic())
            raise OSError(errno.EMFILE, "Too many open files")
        return real(self)

    monkeypatch.setattr(wasyncore.dispatcher, "accept", accept)
    assert running.is_live()
    assert len(failures) == 3 and failures[2] - failures[0] >= FAST.tick_s


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


# The drain


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


# A client library


@pytest.fixture
def client(start: Start) -> Iterator[openai.OpenAI]:
    """The openai package against a running server."""
    host, port = start().address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_package_chats(client: openai.OpenAI) -> None:
    """The openai package reads a chat's text, reason and usage."""
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "Hello wörld"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens == 13
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_openai_package_streams_chats(client: openai.OpenAI) -> None:
    """The openai package reads a stream's deltas, and its usage in the last chunk."""
    stream = client.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello wörld"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None


def test_openai_package_completes(client: openai.OpenAI) -> None:
    """The openai package reads completions, streamed and not."""
    assert client.completions.create(model=MODEL, prompt="hi").choices[0].text == "Hello wörld"
    stream = client.completions.create(model=MODEL, prompt="hi", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello wörld"


def test_openai_package_raises_on_unknown_models(client: openai.OpenAI) -> None:
    """An unknown model is the package's NotFoundError, with our hint in its body."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found" and isinstance(caught.value.body, dict)
    assert "did you mean" in caught.value.body["hint"]


def test_openai_package_raises_on_errors_inside_a_stream(start: Start) -> None:
    """An error after the first token reaches the caller as an exception, never as a normal end."""
    service = FakeService(script=(Chunk("one"), WorkerCrashedError("the worker was killed by SIGSEGV")))
    host, port = start(service).address
    with openai.OpenAI(base_url=f"http://{host}:{port}/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="SIGSEGV"):
            list(stream)
