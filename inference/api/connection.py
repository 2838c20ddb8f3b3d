"""One client's connection: waitress' channel with deadlines, bounds and JSON refusals."""

from __future__ import annotations

import logging
import select
import socket
import time
import uuid
from typing import Any

from waitress.channel import HTTPChannel
from waitress.task import ErrorTask

from inference.api.errors import bytes_of, headers_of
from inference.api.limits import Limits
from inference.api.request_parser import RequestParser, refusal_of

logger = logging.getLogger(__name__)

_PIECE_BYTES = 16 * 1024
_PROBE_S = 0.05
_MAX_DISCARDED_BYTES = 64 * 2**20


class Refusal(ErrorTask):  # type: ignore[misc] # waitress is untyped
    """Answers a request that never reached the application, in the application's words."""

    def execute(self) -> None:
        """Write the response and end the connection."""
        limits = self.channel.limits
        error = refusal_of(self.request.error, limits.body_bytes, limits.request_s)
        request_id = f"req_{uuid.uuid4().hex}"
        body = bytes_of(error, request_id)
        code = 400 if self.request.error.code == 501 else self.request.error.code
        self.status = f"{code} {self.request.error.reason}"
        self.response_headers.extend(headers_of(error, request_id).items())
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Connection(HTTPChannel):  # type: ignore[misc] # waitress is untyped
    """Owns one accepted socket; the loop's thread calls everything but `write_soon` and `service`.

    Its stage (receiving, working, sending, idle, lingering) is computed from waitress' own state, and
    the time in it is counted by the loop on the monotonic clock, so serving a token costs nothing.
    """

    request: RequestParser | None = None
    parser_class = RequestParser
    error_task_class = Refusal

    def __init__(self, server: Any, sock: socket.socket, addr: Any, adj: Any, map: Any = None) -> None:
        self.limits: Limits = server.limits
        self._stage_seen: tuple[str, object] = ("new", None)
        self._since_s = 0.0
        self._refused = False
        self._lingering = False
        self._probe_s = 0.0
        self._discarded_bytes = 0
        super().__init__(server, sock, addr, adj, map=map)

    @property
    def is_quiet(self) -> bool:
        """Whether no request is being answered here and no answer waits to be read."""
        return not self.requests and not self.total_outbufs_len

    @property
    def is_idle(self) -> bool:
        """Whether closing it now would cost nobody an answer."""
        return self.is_quiet and self.request is None

    @property
    def since_s(self) -> float:
        """When it entered its stage."""
        return self._since_s

    def check_client_disconnected(self) -> bool:
        """Ask the socket itself, now and then: behind a second request the loop does not read it.

        Not at every token: a system call gives up the interpreter's lock, and taking it back among
        the threads of four streams costs more than the token does.
        """
        now_s = time.monotonic()
        if self.connected and now_s < self._probe_s:
            return False
        self._probe_s = now_s + _PROBE_S
        return not self.connected or _peer_left(self.socket)

    def look_after(self, now_s: float) -> None:
        """Act on a deadline that has passed in the present stage."""
        stage = self._stage()
        if stage != self._stage_seen:
            self._stage_seen, self._since_s = stage, now_s
            return
        name, elapsed_s = stage[0], now_s - self._since_s
        if name == "receiving" and elapsed_s >= self.limits.request_s:
            self._expire()
        elif name == "sending" and elapsed_s >= self.limits.stall_s:
            logger.info("client dropped: it read nothing for %g s", self.limits.stall_s)
            self.handle_close()
        elif (name == "idle" and elapsed_s >= self.limits.idle_s) or (
            name == "lingering" and elapsed_s >= self.limits.linger_s
        ):
            self.handle_close()

    def _stage(self) -> tuple[str, object]:
        """Return the stage and a mark that changes with progress; marks are compared, never counted."""
        if self._lingering:
            return "lingering", None
        if self.total_outbufs_len:
            return "sending", self.last_activity
        if self.requests:
            return "working", None
        if self.request is not None:
            return "receiving", self.request
        return "idle", self.last_activity

    def _expire(self) -> None:
        with self.requests_lock:
            request = self.request
            if request is None:
                return
            self.request = None
            request.expire()
            self.requests.append(request)
        self.server.add_task(self)

    def write_soon(self, data: Any) -> int:
        """Queue *data* in pieces, waiting for the client between them when it reads too slowly."""
        if len(data) <= _PIECE_BYTES:
            return int(super().write_soon(data))
        pieces = (data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES))
        return sum(super(Connection, self).write_soon(piece) for piece in pieces)

    def service(self) -> None:
        """Answer the next request, on a thread of its own."""
        self._refused = bool(self.requests and self.requests[0].error)
        super().service()

    def readable(self) -> bool:
        """Whether the loop should read."""
        return self._lingering or bool(super().readable())

    def writable(self) -> bool:
        """Whether the loop should write."""
        return not self._lingering and bool(super().writable())

    def handle_read(self) -> None:
        """Take bytes; after a refusal, throw them away."""
        if not self._lingering:
            super().handle_read()
            return
        self._discarded_bytes += len(self.recv(64 * 1024))
        if self._discarded_bytes > _MAX_DISCARDED_BYTES:
            self.handle_close()

    def handle_write(self) -> None:
        """Send what is queued, then close; after a refusal, linger first."""
        if not (self._refused and self.close_when_flushed):
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if not self.total_outbufs_len:
            self._linger()

    def _linger(self) -> None:
        """Read on for a while: closing on unread bytes resets the connection and loses the answer."""
        self.close_when_flushed = False
        self._lingering = True
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()


def _peer_left(sock: socket.socket | None) -> bool:
    """Whether the client closed its side, be it half or reset."""
    descriptor = -1 if sock is None else sock.fileno()
    if descriptor < 0:
        return True
    probe = select.poll()
    probe.register(descriptor, select.POLLRDHUP)
    return bool(probe.poll(0))
