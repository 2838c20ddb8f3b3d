"""Frames between the daemon and a worker: a 4-byte length, then a JSON object, over a socketpair.

To the worker: ``{"op": "load" | "generate" | "cancel" | "tokenize" | "stop", "id": n, ...}``.
From it: ``{"event": "ready" | "failed" | "chunk" | "value" | "end" | "error", "id": n, ...}``.
Every generate and tokenize is answered by exactly one ``end``, ``value`` or ``error`` of its id.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

MAX_FRAME_BYTES = 32 * 2**20
_HEADER = struct.Struct("!I")
_READ_BYTES = 65536

Frame = dict[str, Any]


class WireError(Exception):
    """The other side sent something that is not a frame."""


class Connection:
    """One end of the socketpair. Sending is thread-safe; one thread receives.

    A send that the other side does not take within *send_timeout_s* breaks the connection:
    a half-written frame cannot be repaired.
    """

    def __init__(self, sock: socket.socket, *, send_timeout_s: float | None = None) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        if send_timeout_s is not None:
            seconds = int(send_timeout_s)
            timeval = struct.pack("ll", seconds, int((send_timeout_s - seconds) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, frame: Frame) -> bool:
        """Send *frame*; return False when the other side is gone or does not read."""
        body = json.dumps(frame, separators=(",", ":")).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise WireError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
        with self._lock:
            try:
                self._sock.sendall(_HEADER.pack(len(body)) + body)
            except OSError:
                self.shutdown()
                return False
        return True

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the other side closes.

        Raises:
            WireError: what arrived is not a frame.
        """
        buffer = bytearray()
        while True:
            try:
                data = self._sock.recv(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            buffer += data
            yield from _cut(buffer)

    def shutdown(self) -> None:
        """Break the connection; the receiving thread sees its end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # already broken

    def close(self) -> None:
        """Close the descriptor; only after the receiving thread has ended."""
        self._sock.close()


def _cut(buffer: bytearray) -> Iterator[Frame]:
    while len(buffer) >= _HEADER.size:
        (length,) = _HEADER.unpack_from(buffer)
        if length > MAX_FRAME_BYTES:
            raise WireError(f"a frame announces {length} bytes; at most {MAX_FRAME_BYTES}")
        end = _HEADER.size + length
        if len(buffer) < end:
            return
        body = bytes(buffer[_HEADER.size : end])
        del buffer[:end]
        yield _parse(body)


def _parse(body: bytes) -> Frame:
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a frame is not JSON: {error}") from None
    if not isinstance(frame, dict):
        raise WireError(f"a frame is a {type(frame).__name__}, not an object")
    return frame
