"""`inference.runtime.policy`: who leaves when room is needed."""

from __future__ import annotations

from inference.runtime.policy import Eviction, Tenant, make_room, relieve


def tenant(
    name: str,
    *,
    size: int = 10,
    leases: int = 0,
    pinned: bool = False,
    used: float = 0.0,
    movable: float = 0.0,
    leaving: bool = False,
) -> Tenant:
    return Tenant((name, "v"), size, leases, pinned, used, movable, leaving)


def room(*tenants: Tenant, need: int = 10, free: int = 0, most: int = 9, now: float = 100.0) -> Eviction:
    return make_room(tenants, need_bytes=need, free_bytes=free, max_tenants=most, now_s=now)


def test_fits_when_there_is_room() -> None:
    """Nobody leaves for a newcomer that fits."""
    assert room(tenant("a"), need=10, free=10) == Eviction(fits=True)


def test_evicts_least_recently_used_first() -> None:
    """Among the idle, the one used longest ago leaves."""
    assert room(tenant("a", used=2), tenant("b", used=1)).victims == (("b", "v"),)


def test_evicts_the_idle_before_the_busy() -> None:
    """A tenant with requests leaves only when the idle ones do not suffice."""
    assert room(tenant("a", used=1, leases=1), tenant("b", used=2)).victims == (("b", "v"),)


def test_evicts_no_more_than_needed() -> None:
    """Victims stop as soon as there is room."""
    assert len(room(tenant("a"), tenant("b"), tenant("c"), need=15, free=0).victims) == 2


def test_the_pinned_stay() -> None:
    """With only pinned tenants in the way there is nothing to do."""
    assert room(tenant("a", pinned=True)) == Eviction()


def test_the_number_of_tenants_is_limited_too() -> None:
    """Room in memory alone does not admit one tenant too many."""
    assert room(tenant("a"), free=100, most=1).victims == (("a", "v"),)


def test_waits_for_those_who_are_leaving() -> None:
    """Memory that is about to come back is waited for; nobody else has to go."""
    assert room(tenant("a", leaving=True), tenant("b")) == Eviction()


def test_minimum_residency_is_kept() -> None:
    """A newcomer waits until its victim may be moved."""
    assert room(tenant("a", movable=130)).wait_until_s == 130


def test_relief_takes_the_idle_least_recently_used_first() -> None:
    """As many idle tenants leave as make up for what is missing, the longest unused first."""
    tenants = [tenant("a", used=3), tenant("b", used=1), tenant("c", used=2)]
    assert relieve(tenants, 10) == (("b", "v"),)
    assert relieve(tenants, 11) == (("b", "v"), ("c", "v"))


def test_relief_spares_the_pinned_and_the_busy() -> None:
    """Neither a pinned tenant nor one with requests is told to go, however much is missing."""
    assert relieve([tenant("a", pinned=True), tenant("b", leases=1), tenant("c")], 99) == (("c", "v"),)


def test_relief_waits_for_those_who_are_leaving() -> None:
    """Memory that is about to come back counts; nobody else has to go for it."""
    assert relieve([tenant("a", leaving=True), tenant("b")], 10) == ()


def test_relief_ignores_the_minimum_residency() -> None:
    """Memory that is not there cannot wait."""
    assert relieve([tenant("a", movable=1e9)], 1) == (("a", "v"),)
