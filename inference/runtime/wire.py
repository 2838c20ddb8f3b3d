"""Frames between the daemon and a worker: a 4-byte length, then a JSON object, over a socketpair.

To the worker: ``{"op": "load" | "generate" | "cancel" | "stop" | ..., "id": n, ...}``.
From it: ``{"event": "ready" | "failed" | "chunk" | "value" | "end" | "error", "id": n, ...}``.
Every generate is answered by exactly one ``end`` or ``error`` of its id. These ops have one ``value``, or
an ``error``: ``tokenize`` (text: ids), ``detokenize`` (ids: text), ``prompt_tokens`` (request: ids) and
``embed`` (inputs: {"vectors": ..., "prompt_tokens": n}).
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

MAX_FRAME_BYTES = 32 * 2**20
_HEADER = struct.Struct("!I")
_READ_BYTES = 65536

Frame = dict[str, Any]


class WireError(Exception):
    """The other side sent something that is not a frame."""


class Connection:
    """One end of the socketpair. Any thread may send; one thread receives.

    A thread that finds another one sending leaves its frame to that one: the tokens of several
    streams that come out of one decoding step then share a system call and a wake-up.

    A send that the other side does not take within *send_timeout_s* breaks the connection:
    a half-written frame cannot be repaired.
    """

    def __init__(self, sock: socket.socket, *, send_timeout_s: float | None = None) -> None:
        self._sock = sock
        self._outbox: deque[bytes] = deque()
        self._sending = threading.Lock()
        self._broken = False
        if send_timeout_s is not None:
            seconds = int(send_timeout_s)
            timeval = struct.pack("ll", seconds, int((send_timeout_s - seconds) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    def send(self, frame: Frame) -> bool:
        """Send *frame*, or leave it to the thread that sends; False when the other side is gone."""
        body = json.dumps(frame, separators=(",", ":")).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise WireError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES}")
        self._outbox.append(_HEADER.pack(len(body)) + body)
        # Whoever holds the lock looks again after giving it back: no frame is left behind.
        while self._outbox and self._sending.acquire(blocking=False):
            try:
                self._flush()
            finally:
                self._sending.release()
        return not self._broken

    def _flush(self) -> None:
        frames = []
        while self._outbox:
            frames.append(self._outbox.popleft())
        if self._broken:
            return
        try:
            self._sock.sendall(b"".join(frames))
        except OSError:
            self._broken = True
            self.shutdown()

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
