"""Memory: how much a model takes, whether that grows with use, and whether it comes back."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from typing import Any

from phase3 import growth
from phase3.case import Case, Points
from phase3.checks.soaking import soak
from phase3.data import fixed
from phase3.outcome import Outcome, at_least, at_most, skipped, unfit
from phase3.report.words import quantity
from phase3.target import Memory, TargetError
from phase3.watch import SYSTEM, WORKER, highest, highest_settled, note, readings, settled_used_bytes

__all__ = ["cycles", "leak_cycles", "leak_generations", "memory", "soak", "unload"]

DECLARED_SHARE = 1.10
"""Of the declared requirement that a model may take; from the gates of the harness."""
GUIDE_LIMIT_BYTES = 6 * 10**9
"""The limit of the original model-support guide, made for boards of 8 GB."""
# SmolLM2's worker, 8 short tokens a time, on two busy cores: over 200 generations its own memory grew by
# 0.42 kB for each (0.01 to 0.83), one step of 88 kB and a page now and then; over 100 others by none. A
# limit of forty times that leaves a leak of 100 kB, which has to be found, six times above it.
LEAK_BYTES_PER_GENERATION = 16_000
# The same machine, of what loaded and unloaded SmolLM2: this process over 20 cycles 2.9 kB for each (1.9
# to 3.9), a daemon that was asked six times a cycle how it is, over 12 cycles, 11.5 kB (10.3 to 12.7).
LEAK_BYTES_PER_CYCLE = 100_000
# The machine's own figure is for what no process holds, such as a GPU's memory that a driver keeps. It
# moves by megabytes on a calm machine, and by 1.3 GB where tests run beside.
LEAK_SYSTEM_BYTES_PER_CYCLE = 1_000_000
WARM_UP_GENERATIONS = 20
"""In which buffers fill; the first of them cost SmolLM2's worker 94 kB."""
WARM_UP_CYCLES = 3
SHORT_TOKENS = 8
RETURNED_PERCENT = 90.0
"""Of what the model cost that its unloading has to give back; from the gates of the harness."""
# JetLLM kills a worker that has not ended 10 s after it was asked to. One that needs half of that is
# about to be killed on a busier machine; SmolLM2's took 0.13 to 0.27 s on two busy cores.
SLOWEST_UNLOAD_S = 5.0
_FULL_RUN = "in the full run: --full"


def memory(case: Case) -> Outcome:
    """Compare the peak so far with what was declared and with what the board may give."""
    note(case, case.target.memory())
    peak, source = _peak(case)
    if peak is None:
        return unfit(
            "neither the worker's memory nor the machine's is known", "run the harness on the machine"
        )
    limit, why = _limit(case)
    return at_most(
        peak,
        limit,
        "bytes",
        f"{source}; the limit is {why}",
        "Declare more in models.json (memory_requirement, in MB), or use a shorter context, fewer slots"
        " or a smaller quantization.",
    )


def _peak(case: Case) -> tuple[float | None, str]:
    """The peak, and what it is of.

    The worker's share is exact and nobody else's. It lacks GPU memory, which on a Jetson is the
    machine's: there the larger of it and the machine's growth counts.
    """
    worker, grown = highest(case.series.get(WORKER, ())), _grown(case)
    share = "peak of the worker's proportional set size"
    if worker is not None and not case.before.is_jetson:
        return worker, f"{share}, which nobody else's memory disturbs"
    if worker is not None and (grown is None or worker > grown):
        return worker, f"{share}, as the machine's use grew by less"
    why = "the worker's is unknown" if worker is None else "the GPU's memory is in no process's share"
    return grown, f"peak growth of the machine's use (medians of 5 s) since before the load, as {why}"


def _grown(case: Case) -> float | None:
    system = highest_settled(case.series.get(SYSTEM, ()))
    if system is None or case.used_before_bytes is None:
        return None
    return max(0.0, system - case.used_before_bytes)


def _limit(case: Case) -> tuple[float, str]:
    """The least of the limits that hold.

    The guide's 6 GB were for its small models on 8 GB boards. A model that declares more is made for a
    bigger board: then that board's memory is the limit.
    """
    declared, total = case.target.registered().memory_requirement_bytes, case.before.memory_total_bytes
    limits: list[tuple[float, str]] = []
    if declared is not None:
        limits.append((declared * DECLARED_SHARE, f"the declared {quantity(declared, 'bytes')} and a tenth"))
    if declared is None or declared <= GUIDE_LIMIT_BYTES:
        limits.append((GUIDE_LIMIT_BYTES, "6 GB"))
    if total is not None:
        limits.append((total, "the machine's memory"))
    return min(limits)


def leak_generations(case: Case) -> Outcome:
    """Repeat one short greedy generation and see whether memory grows with each."""
    wanted = case.plan.generations
    if not wanted:
        return skipped(_FULL_RUN)
    found: dict[str, Points] = defaultdict(list)
    for done in range(-WARM_UP_GENERATIONS, wanted):
        case.target.generate(**short(case))
        if done >= 0:
            for figure, used in growth.figures(case, case.target.memory()).items():
                found[figure].append((done + 1.0, used))
        case.progress((done + WARM_UP_GENERATIONS + 1) / (wanted + WARM_UP_GENERATIONS))
    case.series |= {growth.series(figure, "generations"): points for figure, points in found.items()}
    trends = [
        growth.Trend(figure, "generation", points, LEAK_BYTES_PER_GENERATION)
        for figure, points in found.items()
    ]
    return growth.judge(trends, growth.LEAKS)


def short(case: Case) -> dict[str, Any]:
    """The request that is repeated: always the same work, whatever the model says."""
    asked: dict[str, Any] = {"max_tokens": SHORT_TOKENS, "ignore_eos": True}
    if case.is_chat:
        return {**asked, "messages": [{"role": "user", "content": fixed.prompts().chat[0]}]}
    return {**asked, "prompt": fixed.prompts().base[0]}


def unload(case: Case) -> Outcome:
    """Unload, and see how fast that is and how much of what the model cost is there again.

    JetLLM's own figure is shown and not judged: it is what the machine gained in that instant, and of
    five unloadings of one model, with other work beside, it was 0 to 434 MB.
    """
    before, used_loaded = case.target.memory(), settled_used_bytes(case)
    started_s = time.monotonic()
    told = case.target.unload()
    took_s = time.monotonic() - started_s
    after, used_after = case.target.memory(), settled_used_bytes(case)
    returned = {
        "of the worker's memory": _returned_by_worker(before, after),
        "of the machine's": _returned_to_machine(case, used_loaded, used_after),
    }
    known = {name: percent for name, percent in returned.items() if percent is not None}
    detail = ", ".join(f"{percent:.0f} % {name}" for name, percent in known.items())
    detail = f"{detail or 'nothing known of what came back'}, in {quantity(took_s, 's')}"
    detail += "" if told is None else f"; JetLLM itself says {quantity(told, 'bytes')}"
    if took_s > SLOWEST_UNLOAD_S:
        hint = "The worker does not end when it is asked to: see its log for what it waits for."
        return at_most(took_s, SLOWEST_UNLOAD_S, "s", detail, hint)
    if not known:
        return unfit(
            f"others move the machine's memory more than the model does: {detail}", "stop other programs"
        )
    hint = (
        "Something of it still runs or holds memory: jetllm ps, ps aux, ls /dev/shm; a reboot frees the rest."
    )
    return at_least(min(known.values()), RETURNED_PERCENT, "%", detail, hint)


def _returned_by_worker(before: Memory, after: Memory) -> float | None:
    if not before.worker_bytes:
        return None
    return 100 * (1 - (after.worker_bytes or 0) / before.worker_bytes)


def _returned_to_machine(case: Case, used_loaded: int | None, used_after: int | None) -> float | None:
    """Percent of the machine's growth since before the load that is gone, in favour of the model.

    What others took meanwhile is not the model's. By how much their use moved while the model was
    loaded is known from the watch, and so much may be missing. None: it cannot be told from that noise.
    """
    if used_loaded is None or used_after is None or case.used_before_bytes is None:
        return None
    cost, noise = used_loaded - case.used_before_bytes, _noise_bytes(case)
    if cost <= 3 * noise or cost <= 0:
        return None
    missing = max(0.0, used_after - case.used_before_bytes - noise)
    return max(0.0, 100 * (1 - missing / cost))


def _noise_bytes(case: Case) -> float:
    """How far the memory in use by others ranged while the model was loaded."""
    worker = dict(case.series.get(WORKER, ()))
    since_s = case.loaded_s or 0.0
    others = [y - worker.get(x, 0.0) for x, y in case.series.get(SYSTEM, ()) if x >= since_s]
    return max(others) - min(others) if others else 0.0


def cycles(case: Case) -> Outcome:
    """Load, generate and unload again and again; an error ends it."""
    wanted = case.plan.cycles
    if not wanted:
        return skipped(_FULL_RUN)
    for survived in range(wanted):
        try:
            _cycle(case, survived + 1)
        except TargetError as error:
            return at_least(survived, wanted, "cycles", error.message, error.hint)
        case.progress((survived + 1) / wanted)
    return at_least(wanted, wanted, "cycles")


def _cycle(case: Case, number: int) -> None:
    case.target.load()
    case.target.generate(**short(case))
    case.target.memory()  # only one who saw the worker knows its parent
    case.target.unload()
    found: dict[str, list[float]] = defaultdict(list)
    for memory in readings(case):
        for figure, used in growth.service_figures(case, memory).items():
            found[figure].append(used)
    for figure, values in found.items():
        case.point(growth.series(figure, "cycles"), number, statistics.median(values))


def leak_cycles(case: Case) -> Outcome:
    """See whether memory grew with each cycle of `cycles`, which ran just before."""
    limits = {growth.SERVICE: LEAK_BYTES_PER_CYCLE, growth.SYSTEM: LEAK_SYSTEM_BYTES_PER_CYCLE}
    found = {figure: case.series.get(growth.series(figure, "cycles"), []) for figure in limits}
    if not any(found.values()):
        return skipped(_FULL_RUN if not case.plan.cycles else "no cycle came to its end")
    trends = [
        growth.Trend(figure, "cycle", points[WARM_UP_CYCLES:], limits[figure])
        for figure, points in found.items()
        if points
    ]
    return growth.judge(
        trends,
        "Something stays behind after unloading: report it, and restart the service now and then. The"
        " machine's figure may also be another program's: stop what else runs and repeat.",
    )
