"""The HTTP server against real sockets: where it listens, how it streams, what a client library reads."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from waitress import wasyncore

from inference.api import HttpServer, create_app, serve
from inference.errors import AddressInUseError, SettingsError, UnsafeBindError, WorkerCrashedError
from inference.generation import Chunk
from tests.fake_service import MODEL, FakeService, Gate, end, settings_with
from tests.http_server import CHAT, FAST, STREAM, Start, servers
from tests.raw_http import RawClient

ANYWHERE = "0.0.0.0"  # noqa: S104 - that it is refused is what is tested


@pytest.fixture
def start() -> Iterator[Start]:
    """Start servers that are stopped, with every thread of theirs, at the end of the test."""
    with servers() as go:
        yield go


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
