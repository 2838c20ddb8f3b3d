"""Limits: what one client may cost the daemon in seconds, bytes and connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Every bound of the HTTP layer; tests shorten the deadlines.

    Args:
        request_s: from the first byte of a request to its last, header and body together.
        stall_s: how long a client may leave sent bytes unread.
        idle_s: how long a connection may stay open between requests.
        linger_s: how long the rest of a refused body is read and thrown away, so that the client
            gets to see the refusal instead of a reset.
        farewell_s: what remaining streams get, after the drain, to send their last event.
        tick_s: how often deadlines are looked at.
        buffered_bytes: unsent bytes held for one client before its thread waits; the worker computes on,
            to at most the request's own max_tokens.
        connections: open connections in all.
        connections_per_address: of one client address; *connections_per_loopback* on this machine.
        spare_threads: threads beyond computing and queued requests, for health and administration.
    """

    request_s: float = 10.0
    stall_s: float = 15.0
    idle_s: float = 120.0
    linger_s: float = 2.0
    farewell_s: float = 1.0
    tick_s: float = 1.0
    header_bytes: int = 32 * 1024
    body_bytes: int = 2**20
    buffered_bytes: int = 64 * 1024
    connections: int = 1000
    connections_per_address: int = 64
    connections_per_loopback: int = 512
    spare_threads: int = 16
