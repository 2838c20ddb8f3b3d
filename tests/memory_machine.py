"""A machine whose memory is exactly known, with a model on it that behaves, or does not in one way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from phase3 import watch
from phase3.case import Case
from phase3.measured import Ask
from phase3.plan import FULL
from phase3.target import LoadTimes, Memory, Registered, Reply, TargetError
from tests.fake_target import ENVIRONMENT, REGISTERED, FakeTarget, case_of, healthy

MIB = 2**20
PAGE = 4096
TOTAL = ENVIRONMENT.memory_total_bytes or 0


@dataclass
class Machine:
    """A machine with a model on it, in bytes; what is not said is well.

    Noise is as of SmolLM2's worker over 200 generations, with a full load beside it: its own memory
    stayed where it was but for a page now and then and one step of 22; its proportional set size ranged
    over 29 MB, and the machine's memory over 1.3 GB, as others came and went.

    Args:
        leaks: a request leaves so much.
        keeps: unloading leaves so much of the machine's memory taken, *keeps_worker* of the worker's.
        service_leaks: a cycle leaves so much in the service.
        others: what other programs use, by reading.
        sees_worker: False for another machine's daemon.
        unload_s: on the clock that the test moves.
    """

    seed: int = 0
    leaks: int = 0
    keeps: int = 0
    keeps_worker: int = 0
    service_leaks: int = 0
    cost: int = 400 * MIB
    steps: int = 1
    sees_worker: bool = True
    others: Callable[[random.Random], float] = lambda _: 0.0
    unload_s: float = 0.1
    unloads_until_stuck: int = 10**9
    clock: list[float] = field(default_factory=lambda: [0.0])
    held: int = 0
    stuck: int = 0
    requests: int = 0
    cycles: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)  # noqa: S311 - no secret
        self._steps = [self._chance.randrange(20, 220) for _ in range(self.steps)]

    def target(self, registered: Registered = REGISTERED, **environment: Any) -> FakeTarget:
        """The target that sees it."""
        return FakeTarget(
            self._answer,
            environment=replace(ENVIRONMENT, **environment),
            registered=registered,
            memory=self.memory,
            load=self._load,
            unload=self._unload,
        )

    def case(self, **options: Any) -> Case:
        """A case of it, loaded, in a full run."""
        case = case_of(self.target(**options), FULL)
        case.used_before_bytes = watch.settled_used_bytes(case)
        case.target.load()
        return case

    def memory(self) -> Memory:
        """A reading, with its noise."""
        grown = self.requests * self.leaks
        stepped = 22 * PAGE * sum(self.requests > step for step in self._steps)
        own = self.held + (grown + stepped + PAGE * self._chance.randrange(2) if self.held else 0)
        files = self._chance.randrange(60, 89) * MIB
        system = 10**9 + own + self.stuck + self.others(self._chance)
        return Memory(
            available_bytes=int(TOTAL - system),
            worker_bytes=own + files if self.sees_worker and own else None,
            worker_own_bytes=own if self.sees_worker and own else None,
            service_bytes=35 * MIB + self._service() if self.sees_worker else None,
        )

    def _service(self) -> int:
        return self.cycles * self.service_leaks + self._chance.randrange(3) * PAGE

    def _answer(self, ask: Ask) -> Reply:
        self.requests += 1
        return healthy(ask)

    def _load(self) -> LoadTimes:
        if self.cycles >= self.unloads_until_stuck:
            raise TargetError("the worker was killed by SIGKILL", hint="journalctl -k")
        self.held = self.cost
        return LoadTimes(None, None, 1.5, 0.1)

    def _unload(self) -> int:
        self.clock[0] += self.unload_s
        self.cycles += 1
        self.held, self.requests = self.keeps_worker, 0
        self.stuck += self.keeps
        return self.cost
