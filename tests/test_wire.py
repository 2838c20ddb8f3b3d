"""`inference.runtime.wire`: frames survive cuts, and what is not a frame is refused."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from inference.runtime.wire import MAX_FRAME_BYTES, Connection, WireError


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_frames_arrive_in_order_and_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    """What is sent comes out, also when many frames share a packet or one needs many."""
    left, right = pair
    sent = [{"id": n, "text": "ü" * n * 1000} for n in range(20)]

    def send() -> None:
        connection = Connection(left)
        for frame in sent:
            assert connection.send(frame)
        left.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    assert list(Connection(right).frames()) == sent
    thread.join()


def test_a_frame_cut_at_any_byte_is_put_together(pair: tuple[socket.socket, socket.socket]) -> None:
    """The reader does not depend on how the kernel cuts the stream."""
    left, right = pair
    body = b'{"a":1}'
    raw = struct.pack("!I", len(body)) + body
    for byte in raw * 3:
        left.sendall(bytes([byte]))
    left.shutdown(socket.SHUT_WR)
    assert list(Connection(right).frames()) == [{"a": 1}] * 3


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("!I", MAX_FRAME_BYTES + 1),
        struct.pack("!I", 3) + b"nil",
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 200_000) + b"[" * 200_000,
        struct.pack("!I", 2) + b"\xff\xfe",
    ],
)
def test_garbage_is_refused(pair: tuple[socket.socket, socket.socket], raw: bytes) -> None:
    """Oversized, unparsable and non-object frames are `WireError`, nothing else."""
    left, right = pair

    def send() -> None:
        left.sendall(raw)
        left.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(WireError):
        list(Connection(right).frames())
    thread.join()


def test_a_half_frame_at_the_end_is_dropped(pair: tuple[socket.socket, socket.socket]) -> None:
    """A sender that dies in mid-frame leaves the frames before it."""
    left, right = pair
    left.sendall(struct.pack("!I", 7) + b'{"a":1}' + struct.pack("!I", 7) + b'{"a"')
    left.shutdown(socket.SHUT_WR)
    assert list(Connection(right).frames()) == [{"a": 1}]


def test_sending_to_one_who_has_gone_says_so(pair: tuple[socket.socket, socket.socket]) -> None:
    """A closed other side is an answer, not an exception."""
    left, right = pair
    right.close()
    assert Connection(left).send({"op": "stop"}) is False


def test_sending_to_one_who_does_not_read_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    """A full socket breaks the connection after the time limit instead of blocking for ever."""
    left, _ = pair
    connection = Connection(left, send_timeout_s=0.05)
    assert connection.send({"text": "x" * 8_000_000}) is False


def test_a_frame_left_at_the_last_moment_is_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    """A thread that leaves its frame just as the sender stops is not forgotten."""
    left, right = pair
    connection = Connection(left)

    late = [b'\x00\x00\x00\x07{"b":2}']

    class Lock:
        """Lets another thread's frame in after the flush, before the release."""

        def acquire(self, blocking: bool = True) -> bool:
            """Always free."""
            return True

        def release(self) -> None:
            """The other thread was here."""
            if late:
                connection._outbox.append(late.pop())

    connection._sending = Lock()  # type: ignore[assignment]
    assert connection.send({"a": 1})
    left.shutdown(socket.SHUT_WR)
    assert list(Connection(right).frames()) == [{"a": 1}, {"b": 2}]


def test_a_frame_over_the_limit_is_not_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    """The sender refuses what the receiver would."""
    with pytest.raises(WireError):
        Connection(pair[0]).send({"text": "x" * (MAX_FRAME_BYTES + 1)})
