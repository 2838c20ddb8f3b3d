"""Loading: whether the model comes up, and how long each step of that takes."""

from __future__ import annotations

from phase3.case import Case
from phase3.outcome import Outcome, passed
from phase3.report.words import quantity
from phase3.target import LoadTimes, Target, TargetError
from phase3.watch import note, settled_used_bytes


def load(case: Case) -> Outcome:
    """Load from nothing and generate a token; an error on the way is the failure.

    There is no limit: how long it may take is said by whoever waits, and what it took is in the report.
    """
    ensure_unloaded(case.target)
    case.used_before_bytes = settled_used_bytes(case)
    times = case.target.load()
    case.loaded = case.target.environment()
    case.loaded_s = case.elapsed_s()
    memory = case.target.memory()
    case.idle_worker_bytes = memory.worker_bytes
    note(case, memory)
    return passed(_detail(case, times), (times.load_s or 0.0) + times.first_token_s, "s")


def ensure_unloaded(target: Target) -> None:
    """Unload, which a target that has nothing loaded may refuse."""
    try:
        target.unload()
    except TargetError:
        if target.environment().engine is not None:
            raise


def _detail(case: Case, times: LoadTimes) -> str:
    steps = {
        "fetched": times.pull_s,
        "built": times.build_s,
        "loaded": times.load_s,
        "first token": times.first_token_s,
    }
    told = ", ".join(
        f"{name} in {quantity(value, 's')}" for name, value in steps.items() if value is not None
    )
    if times.load_s is None:
        told += "; somebody else loaded it meanwhile, so the load was not timed"
    if case.idle_worker_bytes is not None:
        told += f"; the worker holds {quantity(case.idle_worker_bytes, 'bytes')}"
    if case.used_before_bytes is not None:
        others = quantity(case.used_before_bytes, "bytes")
        told += f"; {others} were in use before, by other models and programs"
    return told
