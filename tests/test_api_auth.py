"""Who may ask: names, origins and keys, one by one."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from inference.api.auth import FAILURES_PER_MINUTE, HostGuard, KeyGuard, check_bind, is_loopback
from inference.api.errors import (
    HostNotAllowedError,
    InvalidApiKeyError,
    InvalidHTTPError,
    OriginNotAllowedError,
    RateLimitedError,
)
from tests.fake_service import settings_with

ANYWHERE = "0.0.0.0"  # noqa: S104 - that it is refused is what is tested
KEY = "0123456789abcdef"


def admits(host: str, bound: str = "127.0.0.1", *, allowed: tuple[str, ...] = ()) -> bool:
    """Whether a Host header passes on a bind."""
    guard = HostGuard(settings_with(host=bound, allowed_hosts=allowed), hostname=lambda: "Board.lan")
    try:
        guard.check(host, None, "HTTP/1.1")
    except HostNotAllowedError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.9.9.9",
        "[::1]",
        "[::1]:80",
    ],
)
def test_loopback_names_pass_on_every_bind(host: str) -> None:
    """The names of this machine to itself always pass, with and without a port."""
    assert admits(host) and admits(host, ANYWHERE) and admits(host, "192.0.2.1")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "board.lan",
        "board.local",
        "192.0.2.1",
        "[::2]",
        "localhost@evil.example",
        "localhost, evil.example",
        "a b",
        "[::1",
        "[::1]x",
        "[::1]:80:80",
        "127.0.0.1:8080:8080",
        ":8080",
    ],
)
def test_other_names_do_not_pass_on_loopback(host: str) -> None:
    """A name that an attacker can point at us is refused."""
    assert not admits(host)


def test_machine_names_pass_beyond_loopback() -> None:
    """On the network the machine has its own name, also with .local, and the bound address."""
    for host in ("board.lan", "board", "board.local:8080"):
        assert admits(host, ANYWHERE) and admits(host, "192.0.2.1")
    assert admits("192.0.2.1:8080", "192.0.2.1") and not admits("192.0.2.2", "192.0.2.1")
    assert not admits("evil.example", ANYWHERE)


def test_address_literals_pass_on_a_wildcard_bind() -> None:
    """Behind a port mapping the address is not ours, and a literal cannot be rebound."""
    assert admits("198.51.100.7:8080", ANYWHERE) and admits("[2001:db8::1]", "::")


def test_allowed_hosts_are_added() -> None:
    """The setting adds names and addresses."""
    assert admits("llm.example:443", allowed=("LLM.example",)) and admits("192.0.2.9", allowed=("192.0.2.9",))


def test_missing_host_is_an_error_in_http_1_1_only() -> None:
    """Load balancers probe with HTTP/1.0 and no Host."""
    guard = HostGuard(settings_with())
    guard.check(None, None, "HTTP/1.0")
    with pytest.raises(InvalidHTTPError):
        guard.check(None, None, "HTTP/1.1")
    with pytest.raises(OriginNotAllowedError):
        guard.check(None, "null", "HTTP/1.0")


@pytest.mark.parametrize(("host", "expected"), [
    ("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True),
    (ANYWHERE, False), ("::", False), ("192.0.2.1", False), ("example", False),
])  # fmt: skip
def test_loopback_is_recognised(host: str, expected: bool) -> None:
    """Only addresses that no other machine reaches count as loopback."""
    assert is_loopback(host) is expected


def test_bind_beyond_loopback_is_allowed_with_a_key() -> None:
    """The key is what makes it safe."""
    check_bind(settings_with(host=ANYWHERE, api_key=KEY))


class Clock:
    """A clock that a test moves."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


def test_right_key_passes_and_nothing_else() -> None:
    """Scheme and key must both be right; letter case matters in the key alone."""
    guard = KeyGuard(SecretStr(KEY))
    guard.check(f"Bearer {KEY}", "a")
    guard.check(f"bearer  {KEY}", "a")
    changed = [f"Basic {KEY}", f"Bearer {KEY.upper()}", f"Bearer {KEY}0", f"Bearer {KEY[:-1]}"]
    for wrong in (None, "", KEY, "Bearer", "Bearer ", "Bearer \udcff", *changed):
        with pytest.raises(InvalidApiKeyError):
            guard.check(wrong, "a")


def test_no_key_means_no_check() -> None:
    """Without the setting, and with an empty one, everybody passes."""
    KeyGuard(None).check(None, "a")
    KeyGuard(SecretStr("")).check(None, "a")


def spend(guard: KeyGuard, address: str) -> None:
    """Use up an address's failures."""
    for _ in range(FAILURES_PER_MINUTE):
        with pytest.raises(InvalidApiKeyError):
            guard.check("Bearer no", address)


def test_guessing_stops_for_a_minute() -> None:
    """Past its failures an address cannot even learn that a guess was right, for a minute."""
    clock = Clock()
    guard = KeyGuard(SecretStr(KEY), clock=clock)
    spend(guard, "a")
    with pytest.raises(RateLimitedError) as caught:
        guard.check(f"Bearer {KEY}", "a")
    assert caught.value.retry_after_s == 60
    guard.check(f"Bearer {KEY}", "b")
    clock.now_s += 60
    guard.check(f"Bearer {KEY}", "a")


def test_proven_address_is_not_locked_out() -> None:
    """One wrong client does not lock out the others behind the same proxy."""
    guard = KeyGuard(SecretStr(KEY), clock=Clock())
    guard.check(f"Bearer {KEY}", "proxy")
    spend(guard, "proxy")
    guard.check(f"Bearer {KEY}", "proxy")
    with pytest.raises(RateLimitedError):
        guard.check("Bearer no", "proxy")


def test_many_addresses_do_not_cost_memory() -> None:
    """What is remembered of addresses is bounded."""
    guard = KeyGuard(SecretStr(KEY), clock=Clock())
    for number in range(5000):
        with pytest.raises(InvalidApiKeyError):
            guard.check(None, str(number))
    assert len(guard._failures) == 4096
