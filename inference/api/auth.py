"""Who may ask: the Host and Origin checks, the API key, and the rule for listening."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TypeVar

from pydantic import SecretStr

from inference.api.errors import (
    HostNotAllowedError,
    InvalidApiKeyError,
    InvalidHTTPError,
    OriginNotAllowedError,
    RateLimitedError,
)
from inference.errors import UnsafeBindError
from inference.keys import FILE, Keys
from inference.settings import Settings

FAILURES_PER_MINUTE = 20
_WINDOW_S = 60.0
_MAX_ADDRESSES = 4096
_HOST = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\[\]:@,\s]+))(?::[0-9]*)?")
_Value = TypeVar("_Value")


def check_bind(settings: Settings) -> None:
    """Refuse to listen where other machines can connect without a key.

    Raises:
        UnsafeBindError: *host* is not a loopback address and there is neither *api_key* nor a key in
            the state directory.
    """
    if is_loopback(settings.host) or _has_key(settings.api_key) or keys_of(settings).rows():
        return
    raise UnsafeBindError(
        f"refusing to listen on {settings.host} without an API key: anybody on the network could use it",
        hint="make one: jetllm keys add NAME; or set JETLLM_API_KEY, or listen on 127.0.0.1",
    )


def keys_of(settings: Settings) -> Keys:
    """Return the named keys of this machine."""
    return Keys(settings.state_path / FILE)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to *host*."""
    if host.lower().rstrip(".") == "localhost":
        return True
    address = _ip(host)
    return address is not None and address.is_loopback


class HostGuard:
    """Knows the names of this daemon, against DNS rebinding and foreign web pages.

    Rebinding makes a browser send requests for the attacker's *name* to us, so a name must be ours.
    An address literal in the Host header cannot be rebound; on a wildcard bind any of them passes,
    because behind a container's port mapping the daemon does not know the machine's addresses.
    """

    def __init__(self, settings: Settings, hostname: Callable[[], str] = socket.gethostname) -> None:
        self._names = {"localhost", *(name.lower() for name in settings.allowed_hosts)}
        self._addresses = {_ip(settings.host), *(_ip(name) for name in settings.allowed_hosts)}
        bound = _ip(settings.host)
        self._wildcard = bound is not None and bound.is_unspecified
        if not is_loopback(settings.host):
            name = hostname().lower()
            self._names |= {settings.host.lower(), name, name.split(".")[0], f"{name.split('.')[0]}.local"}

    def check(self, host: str | None, origin: str | None, http_version: str) -> None:
        """Refuse a request that is meant for somebody else.

        Raises:
            InvalidHTTPError: HTTP/1.1 without Host; in 1.0, as health checks speak it, it is optional.
            HostNotAllowedError, OriginNotAllowedError: as their names say.
        """
        if not host and http_version != "HTTP/1.0":
            raise InvalidHTTPError("the Host header is missing")
        if host and not self._is_ours(_without_port(host)):
            raise HostNotAllowedError(
                "the Host header does not name this daemon",
                hint="use its address, or add the name to the setting allowed_hosts",
            )
        if origin is not None and (not host or origin.partition("://")[2].lower() != host.lower()):
            raise OriginNotAllowedError(
                "web pages of another origin may not use this API",
                hint="call it from a program, or serve the page from the same address",
            )

    def _is_ours(self, name: str) -> bool:
        address = _ip(name)
        if address is None:
            return name.lower().rstrip(".") in self._names
        return self._wildcard or address.is_loopback or address in self._addresses


class KeyGuard:
    """Knows the keys, the settings' own and the named ones, and limits how often an address may be wrong.

    Where there is none, everybody may ask, but only on loopback: beyond it a key is asked for even
    when the last one was revoked while the daemon ran.
    """

    def __init__(
        self,
        key: SecretStr | None,
        keys: Keys | None = None,
        *,
        always: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = _digest(key.get_secret_value()) if key is not None and _has_key(key) else None
        self._keys = keys
        self._always = always
        self._clock = clock
        self._lock = threading.Lock()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()
        self._proven: OrderedDict[str, None] = OrderedDict()

    @property
    def asks(self) -> bool:
        """Whether a key is needed now."""
        return self._always or self._digest is not None or (self._keys is not None and self._keys.exist())

    def check(self, authorization: str | None, address: str) -> None:
        """Let a request with the key pass.

        Once an address has spent its failures, not even the right key passes, or guessing would go
        on; unless it had shown the key before, so that one wrong client does not lock out the others
        behind the same proxy.

        Raises:
            InvalidApiKeyError: no key or the wrong one.
            RateLimitedError: wrong too often within a minute.
        """
        if not self.asks:
            return
        scheme, _, token = (authorization or "").partition(" ")
        right = scheme.lower() == "bearer" and self._accepts(token.strip())
        with self._lock:
            wait_s = self._wait_s(address)
            if right and (wait_s is None or address in self._proven):
                _remember(self._proven, address, None)
                return
            if wait_s is None:
                self._failures[address].append(self._clock())
        if wait_s is not None:
            raise RateLimitedError(
                f"more than {FAILURES_PER_MINUTE} requests with a wrong API key within a minute",
                retry_after_s=math.ceil(wait_s),
            )
        raise InvalidApiKeyError(
            "the API key is missing or wrong",
            hint="send the header Authorization: Bearer <key>; make a key: jetllm keys add NAME",
        )

    def _accepts(self, token: str) -> bool:
        if self._digest is not None and hmac.compare_digest(_digest(token), self._digest):
            return True
        return bool(token) and self._keys is not None and self._keys.accepts(token) is not None

    def _wait_s(self, address: str) -> float | None:
        """Return the seconds until the address may fail again; ``None`` when it may now."""
        now = self._clock()
        failures = _remember(self._failures, address, self._failures.get(address) or deque())
        while failures and failures[0] <= now - _WINDOW_S:
            failures.popleft()
        return None if len(failures) < FAILURES_PER_MINUTE else failures[0] + _WINDOW_S - now


def _remember(known: OrderedDict[str, _Value], key: str, value: _Value) -> _Value:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _MAX_ADDRESSES:
        known.popitem(last=False)
    return value


def _has_key(key: SecretStr | None) -> bool:
    return key is not None and bool(key.get_secret_value())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _without_port(host: str) -> str:
    """Return the name of a Host header; nothing when it is malformed."""
    found = _HOST.fullmatch(host)
    return (found["literal"] or found["name"]) if found else ""
