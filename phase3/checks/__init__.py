"""The checks, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phase3.case import Case
from phase3.checks import contract, loading, machine, memory, slots, soaking, text, unicode, window
from phase3.checks.speed import speed
from phase3.outcome import Outcome
from phase3.plan import Plan


@dataclass(frozen=True)
class Check:
    """One line of the checklist.

    Args:
        name: as reports and exit codes know it.
        run: measures and judges. `TargetError` is a failure of the model; any other exception is one
            of the harness.
        cost: how long it takes beside the others, for the time left.
    """

    name: str
    title: str
    run: Callable[[Case], Outcome]
    cost: Callable[[Plan], float] = lambda _: 1.0


def _benchmark_cost(plan: Plan) -> float:
    return 5.0 + sum(out * (plan.runs + 3) * 0.012 for _, out in (*plan.grid, *(plan.grid[0],) * 3))


CHECKS = (
    Check("container", "Works in the named container", machine.container, lambda _: 0.1),
    Check("load", "Loads without errors", loading.load),
    Check("chat_template", "Chat template is applied", text.chat_template, lambda _: 4.0),
    Check("coherence", "Coherent text", text.coherence, lambda _: 20.0),
    Check("streaming", "Streaming equals non-streaming", contract.streaming, lambda _: 3.0),
    Check("greedy", "Greedy runs repeat exactly", contract.greedy, lambda _: 2.0),
    Check("stop", "Stop strings are honoured", contract.stop, lambda _: 3.0),
    Check("length", "max_tokens is honoured", contract.length, lambda _: 1.0),
    Check("seed", "Seeds are honoured", contract.seed, lambda _: 2.0),
    Check("unicode", "Unicode passes whole", unicode.unicode, lambda _: 3.0),
    Check("context", "The full context is honoured", window.context, lambda _: 15.0),
    Check("cancel", "Cancel frees the slot", slots.cancel),
    Check("concurrency", "Concurrent requests keep apart", slots.concurrency, lambda _: 5.0),
    Check("speed", "Acceptable speed", speed, _benchmark_cost),
    Check(
        "leak_generations", "No leak over generations", memory.leak_generations, lambda p: 0.1 * p.generations
    ),
    Check("memory", "Memory within limits", memory.memory, lambda _: 0.1),
    Check("soak", "Survives a mixed load", soaking.soak, lambda p: p.soak_s),
    Check("unload", "Unload gives the memory back", memory.unload),
    Check("cycles", "Survives load/unload cycles", memory.cycles, lambda p: 1.0 * p.cycles),
    Check("leak_cycles", "No leak over load/unload cycles", memory.leak_cycles, lambda _: 0.1),
    Check("environment", "Machine fit to judge", machine.environment, lambda _: 0.1),
)
