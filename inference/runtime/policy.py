"""Who leaves when room is needed: pure, so that every case can be tested without a process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Key = tuple[str, str]  # (model, variant)


@dataclass(frozen=True)
class Tenant:
    """A worker as the policy sees it.

    *movable_at_s* is when its minimum residency ends; *leases* are requests that it serves or
    that wait for it; *leaving* means that it has been told to go and its memory will come back.
    """

    key: Key
    memory_bytes: int
    leases: int
    pinned: bool
    last_used_s: float
    movable_at_s: float
    leaving: bool = False


@dataclass(frozen=True)
class Eviction:
    """What to do for a newcomer.

    Exactly one holds: *fits* now; *victims* have to leave; wait until *wait_until_s*; or none of
    these, when what must stay leaves too little room.
    """

    fits: bool = False
    victims: tuple[Key, ...] = ()
    wait_until_s: float | None = None


def make_room(
    tenants: Sequence[Tenant], *, need_bytes: int, free_bytes: int, max_tenants: int, now_s: float
) -> Eviction:
    """Choose the fewest tenants whose leaving makes room, idle ones first, then least recently used.

    Args:
        need_bytes: what the newcomer takes.
        free_bytes: what can be given away now, beside all *tenants*.
        max_tenants: workers alive at once, the newcomer included.
    """
    if len(tenants) < max_tenants and need_bytes <= free_bytes:
        return Eviction(fits=True)
    free_bytes += sum(t.memory_bytes for t in tenants if t.leaving)
    staying = [t for t in tenants if not t.leaving]
    victims: list[Tenant] = []
    for tenant in sorted(staying, key=lambda t: (t.leases > 0, t.last_used_s, t.key)):
        if _enough(len(staying) - len(victims), free_bytes, need_bytes, max_tenants):
            break
        if not tenant.pinned:
            victims.append(tenant)
            free_bytes += tenant.memory_bytes
    if not _enough(len(staying) - len(victims), free_bytes, need_bytes, max_tenants):
        return Eviction()
    movable_at_s = max((t.movable_at_s for t in victims), default=now_s)
    if movable_at_s > now_s:
        return Eviction(wait_until_s=movable_at_s)
    return Eviction(victims=tuple(t.key for t in victims))


def relieve(tenants: Sequence[Tenant], short_bytes: int) -> tuple[Key, ...]:
    """Choose who leaves when living tenants need *short_bytes* more than there are.

    Only idle ones, the least recently used first, for what a busy one holds is in use; and as many as
    help, also when they do not suffice. Minimum residency is for swaps and does not count here.
    """
    short_bytes -= sum(t.memory_bytes for t in tenants if t.leaving)
    idle = [t for t in tenants if not (t.leaving or t.pinned or t.leases)]
    victims: list[Key] = []
    for tenant in sorted(idle, key=lambda t: (t.last_used_s, t.key)):
        if short_bytes <= 0:
            break
        victims.append(tenant.key)
        short_bytes -= tenant.memory_bytes
    return tuple(victims)


def _enough(staying: int, free_bytes: int, need_bytes: int, max_tenants: int) -> bool:
    return staying < max_tenants and need_bytes <= free_bytes
