"""Admission: 10,000 random lives of a simulated machine never promise more memory than there is."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

from inference.errors import MemoryPressureError
from inference.runtime.ledger import Ledger
from inference.runtime.policy import Tenant, make_room, relieve

SEQUENCES = 10_000
TOTAL_BYTES = 1000
MOST_TENANTS = 4
NAMES = "abcdef"


@dataclass
class Machine:
    """Workers that are nothing but numbers; the ledger and the policy are the real ones."""

    chance: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    tenants: dict[str, Tenant] = field(default_factory=dict)
    others_bytes: int = 0
    now_s: float = 0.0
    done: Counter[str] = field(default_factory=Counter)

    @property
    def budget_bytes(self) -> int:
        """What all models together may hold."""
        return TOTAL_BYTES - self.others_bytes

    def step(self) -> None:
        """Do one random thing, then check what must always hold."""
        self.now_s += 1
        if self.chance.random() < 0.2:
            self.others_bytes = self.chance.randrange(0, TOTAL_BYTES // 2)
        before = self.promised_bytes()
        action = self.chance.choice((self.load, self.load, self.unload, self.grow, self.fail, self.observe))
        action(self.chance.choice(NAMES))
        self.settle()
        self.check(before)

    def load(self, name: str) -> None:
        """Ask the policy for room, evict whom it names, and reserve; what finds no room changes nothing."""
        size = self.chance.randrange(1, self.chance.choice((200, TOTAL_BYTES)))
        pinned = self.chance.random() < 0.1
        others = {key: tenant for key, tenant in self.tenants.items() if key != name}
        if name in self.tenants:
            self.release(name)
        plan = make_room(
            list(others.values()),
            need_bytes=size,
            free_bytes=self.budget_bytes - self.ledger.held_bytes,
            max_tenants=MOST_TENANTS,
            now_s=self.now_s,
        )
        for model, _ in plan.victims:
            assert not self.tenants[model].pinned
            self.release(model)
        if plan.fits or plan.victims:
            self.ledger.reserve(name, size, self.budget_bytes)
            assert self.ledger.held_bytes <= self.budget_bytes
            leases = self.chance.choice((0, 0, 1))
            self.tenants[name] = Tenant((name, "v"), size, leases, pinned, self.now_s, 0.0)
            self.done["loaded"] += 1
        elif len(others) < MOST_TENANTS:
            assert self.refused(lambda: self.ledger.reserve(name, size, self.budget_bytes))

    def unload(self, name: str) -> None:
        """A worker ends; its bytes come back."""
        self.release(name)

    def fail(self, name: str) -> None:
        """A worker dies, or its load fails: the same bytes come back."""
        self.release(name)

    def grow(self, name: str) -> None:
        """A worker asks for more, which is granted whole or not at all."""
        if name not in self.tenants:
            return
        extra = self.chance.randrange(0, 200)
        before = self.held(name)
        if not self.refused(lambda: self.ledger.grow(name, extra, self.budget_bytes)):
            assert self.ledger.held_bytes <= self.budget_bytes
            assert self.held(name) <= before + extra
            self.remember(name)
            self.done["grown"] += 1

    def observe(self, name: str) -> None:
        """A worker is seen to hold anything from half to nearly twice its promise."""
        if name in self.tenants:
            size = round(self.held(name) * self.chance.uniform(0.5, 1.8))
            self.ledger.observe(name, size)
            assert self.held(name) == size
            self.remember(name)

    def settle(self) -> None:
        """As the supervisor does: grant an excess where it fits, else let idle workers leave."""
        for key, excess in self.ledger.excesses().items():
            if not self.refused(
                lambda key=key, excess=excess: self.ledger.grow(key, excess, self.budget_bytes)
            ):
                self.done["settled"] += 1
                continue
            short = self.ledger.held_bytes - self.budget_bytes
            for model, _ in relieve(list(self.tenants.values()), short):
                assert not self.tenants[model].pinned and not self.tenants[model].leases
                self.release(model)
                self.done["evicted"] += 1

    def check(self, promised_before: int) -> None:
        """The sum of the promises is within the budget, or has not grown since others took it away."""
        assert self.promised_bytes() <= max(self.budget_bytes, promised_before)
        assert set(self.ledger.snapshot()) == set(self.tenants)
        if self.ledger.held_bytes > self.budget_bytes:
            self.done["overrun"] += 1
            assert self.refused(lambda: self.ledger.reserve("probe", 0, self.budget_bytes))
            for name in self.tenants:
                assert self.refused(lambda name=name: self.ledger.grow(name, 0, self.budget_bytes))

    def refused(self, ask: object) -> bool:
        """Whether *ask* is refused; then nothing has changed."""
        before = self.ledger.snapshot()
        assert callable(ask)
        try:
            ask()
        except MemoryPressureError:
            assert self.ledger.snapshot() == before
            self.done["refused"] += 1
            return True
        return False

    def release(self, name: str) -> None:
        """Release a worker, checking that exactly what it held comes back."""
        held, before = self.held(name), self.ledger.held_bytes
        assert self.ledger.release(name) == held == before - self.ledger.held_bytes
        self.tenants.pop(name, None)

    def held(self, name: str) -> int:
        """What the ledger counts for *name*."""
        entry = self.ledger.snapshot().get(name)
        return entry.held_bytes if entry is not None else 0

    def remember(self, name: str) -> None:
        """Let the policy see what the ledger counts."""
        self.tenants[name] = replace(self.tenants[name], memory_bytes=self.held(name))

    def promised_bytes(self) -> int:
        """The sum of all promises."""
        return sum(entry.promised_bytes for entry in self.ledger.snapshot().values())


def test_promises_never_exceed_the_budget() -> None:
    """Whatever is loaded, unloaded, grown, observed or fails: no sequence promises what is not there."""
    done: Counter[str] = Counter()
    for seed in range(SEQUENCES):
        machine = Machine(random.Random(seed))  # noqa: S311 - sequences to repeat, not secrets
        for _ in range(machine.chance.randrange(5, 31)):
            machine.step()
        done += machine.done
    # Each kind of event did happen, and not by a handful.
    assert all(done[what] > 500 for what in ("loaded", "grown", "settled", "evicted", "overrun", "refused"))
