"""The HTTP server: waitress in this process, with bounds on every client and an end by draining."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer

from inference.api.auth import check_bind
from inference.api.connection import Connection
from inference.api.context import EXTENSION, Context, work_places
from inference.api.limits import Limits
from inference.api.task_threads import TaskThreads
from inference.errors import AddressInUseError, SettingsError
from inference.settings import Settings

logger = logging.getLogger(__name__)

_STOP_S = 2.0
# Sockets, pipes and files that are not clients: workers, logs, weights being fetched.
_OTHER_DESCRIPTORS = 128
_SEND_BUFFER_BYTES = 64 * 1024
_VANISHED_MS = 30_000


class HttpServer:
    """Listens from construction on, serves while `run` runs.

    Raises:
        UnsafeBindError, AddressInUseError, SettingsError: it cannot listen there; nothing is open.
    """

    def __init__(self, app: Flask, settings: Settings) -> None:
        check_bind(settings)
        self._context: Context = app.extensions[EXTENSION]
        self._settings = settings
        limits = self._context.limits
        self._threads = TaskThreads(work_places(settings) + limits.spare_threads)
        self._listener = Listener(app, listen(settings.host, settings.port), self._threads, limits)
        self._tick_s = limits.tick_s
        self._asked_to_stop = 0
        self._closed = False

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that it listens on."""
        return self._listener.effective_host, int(self._listener.effective_port)

    def run(self) -> None:
        """Serve until `shutdown`, then drain; everything is closed when it returns."""
        try:
            self._turn(lambda: self._asked_to_stop > 0)
            if self._asked_to_stop == 1:
                self._drain()
        finally:
            self.close()

    def shutdown(self) -> None:
        """Ask `run` to drain and return; asked again, to return at once.

        Safe in signal handlers and from any thread: it takes no lock.
        """
        self._asked_to_stop += 1
        if not self._closed:
            with contextlib.suppress(OSError):  # closed at this very moment
                self._listener.pull_trigger()

    def close(self) -> None:
        """Close every connection and end every thread; harmless when done before."""
        if self._closed:
            return
        self._closed = True
        self._context.stopping.set()
        self._listener.close_connections()
        self._context.jobs.close(self._settings.stop_timeout_s)
        ended = self._threads.shutdown(_STOP_S)
        self._listener.close_last(with_trigger=ended)

    def _drain(self) -> None:
        """Let accepted work finish, then tell what is left that this is the end."""
        self._context.service.begin_drain()
        done = self._turn(self._is_over, self._settings.drain_timeout_s)
        self._context.stopping.set()
        if not done:
            self._turn(self._is_over, self._context.limits.farewell_s)

    def _is_over(self) -> bool:
        return self._asked_to_stop > 1 or self._listener.is_quiet()

    def _turn(self, is_over: Callable[[], bool], timeout_s: float = float("inf")) -> bool:
        """Turn the loop until *is_over* or the time is up; return whether it is over."""
        end_s = time.monotonic() + timeout_s
        while not is_over():
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            wasyncore.poll2(min(self._tick_s, left_s), self._listener.channels)
            self._listener.look_after(time.monotonic())
        return True


def serve(app: Flask, settings: Settings, *, on_listening: Callable[[str, int], None]) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return; a second signal ends the drain."""
    server = HttpServer(app, settings)
    before = {s: signal.signal(s, lambda *_: server.shutdown()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        on_listening(*server.address)
        server.run()
    finally:
        server.close()
        for number, handler in before.items():
            signal.signal(number, handler)


class Listener(TcpWSGIServer):  # type: ignore[misc] # waitress is untyped
    """The listening socket and the connections it accepted; used by the loop's thread alone."""

    channel_class = Connection

    def __init__(self, app: Flask, sock: socket.socket, threads: TaskThreads, limits: Limits) -> None:
        self.limits = limits
        self._max_connections = min(limits.connections, _descriptors(limits.connections + _OTHER_DESCRIPTORS))
        self._accept_after_s = 0.0
        self._looked_s = 0.0
        super().__init__(
            app, {}, _sock=sock, dispatcher=threads, adj=_adjustments(sock, limits), bind_socket=False,
            sockinfo=(sock.family, sock.type, sock.proto, sock.getsockname()),
        )  # fmt: skip

    @property
    def channels(self) -> dict[int, Any]:
        """What the loop polls, by descriptor."""
        channels: dict[int, Any] = self._map
        return channels

    def is_quiet(self) -> bool:
        """Whether no request is being answered."""
        return all(channel.is_quiet for channel in self._connections())

    def look_after(self, now_s: float) -> None:
        """Let every connection act on its deadlines, once per tick."""
        if now_s - self._looked_s >= self.limits.tick_s:
            self._looked_s = now_s
            for channel in self._connections():
                channel.look_after(now_s)

    def readable(self) -> bool:
        """Whether to accept; upstream's own housekeeping here runs on the wall clock."""
        return self.accepting and time.monotonic() >= self._accept_after_s

    def accept(self) -> tuple[socket.socket, Any] | None:
        """Accept a client, at the cost of an idle one where there are too many."""
        try:
            pair: tuple[socket.socket, Any] | None = super().accept()
        except OSError as error:
            logger.warning("cannot accept a connection: %s", error.strerror)
            self._accept_after_s = time.monotonic() + self.limits.tick_s
            return None
        if pair is not None and not self._has_room(pair[1][0]):
            pair[0].close()
            return None
        return pair

    def close_connections(self) -> None:
        """Stop listening and drop every client; their threads notice."""
        wasyncore.dispatcher.close(self)
        for channel in self._connections():
            channel.handle_close()

    def close_last(self, *, with_trigger: bool) -> None:
        """Close the trigger, unless a thread that is still alive could pull it: its number may by
        then belong to another file."""
        if with_trigger:
            self.trigger.close()

    def _connections(self) -> list[Connection]:
        return list(self.active_channels.values())

    def _has_room(self, address: str) -> bool:
        mates = [c for c in self._connections() if c.addr[0] == address]
        limit = self.limits.connections_per_address
        if _plain_ip(address).is_loopback:
            limit = self.limits.connections_per_loopback
        if len(mates) >= limit:
            return _close_one(mates)
        return len(self.active_channels) < self._max_connections or _close_one(self._connections())


def _close_one(connections: list[Connection]) -> bool:
    """Close the connection that is idle, or else half-sent, for longest; return whether there was one."""
    spare = [c for c in connections if c.is_quiet]
    if not spare:
        return False
    min(spare, key=lambda c: (not c.is_idle, c.since_s)).handle_close()
    return True


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        AddressInUseError: another program listens there.
        SettingsError: the address is not this machine's, or the port needs privileges.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(
            f"host: {host!r} is not an address", param="host", hint="use 127.0.0.1 or 0.0.0.0"
        ) from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    with contextlib.ExitStack() as on_error:
        sock = on_error.enter_context(socket.socket(family, kind, protocol))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        with _explained(host, port):
            sock.bind(address)
            sock.listen(1024)
        on_error.pop_all()
    return sock


@contextlib.contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUseError(
                f"port {port} on {host} is in use by another program",
                hint=f"choose another one: jetllm serve --port {port + 1 if port < 65535 else 8080}",
            ) from None
        raise SettingsError(
            f"cannot listen on port {port} of {host}: {error.strerror}",
            param="host",
            hint="use an address of this machine and a port above 1023",
        ) from None


def _adjustments(sock: socket.socket, limits: Limits) -> Adjustments:
    adjustments = Adjustments(
        sockets=[sock],
        channel_request_lookahead=1,
        outbuf_high_watermark=limits.buffered_bytes,
        max_request_header_size=limits.header_bytes,
        max_request_body_size=limits.body_bytes + 1,  # upstream refuses at the limit, not beyond it
        # Never spill to a temporary file: the root file system may be read-only.
        inbuf_overflow=2 * limits.body_bytes,
        outbuf_overflow=2**30,
        asyncore_use_poll=True,
        ident=None,
        expose_tracebacks=False,
        log_socket_errors=False,
    )
    adjustments.socket_options = [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        # A small kernel buffer, or a reader that stalled would go unnoticed for megabytes.
        (socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES),
        # A machine that vanished says no goodbye: these find out.
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _VANISHED_MS),
    ]
    return adjustments


def _descriptors(wanted: int) -> int:
    """Raise the soft limit of open files towards *wanted*; return how many clients that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(16, soft - _OTHER_DESCRIPTORS)


def _plain_ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed
