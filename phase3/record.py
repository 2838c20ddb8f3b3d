"""The environment record of a report: what the measurements depend on, before, during and after."""

from __future__ import annotations

from phase3.result import Scalar
from phase3.target import Environment

Record = dict[str, Scalar | dict[str, Scalar] | tuple[Scalar, ...]]

# What a run itself or the machine's other work moves: shown as it was before and after.
_MOVING = (
    "memory_available_bytes",
    "swap_used_bytes",
    "load_average_1m",
    "hottest_celsius",
    "over_current_events",
    "gpu_clock_hz",
    "memory_clock_hz",
    "power_watts",
    "throttled",
)
# Without these nobody can repeat the run: a report that lacks one is not certified.
_NEEDED = (
    "version",
    "engine",
    "weights_sha256",
    "quantization",
    "context_tokens",
    "arch",
    "memory_total_bytes",
)
_NEEDED_ON_JETSON = ("board", "l4t", "power_mode", "image")


def record_of(before: Environment, loaded: Environment | None, after: Environment) -> Record:
    """Return the record; facts of the model come from *loaded*, while there is one."""
    steady = loaded or after
    record: Record = {"certified": not missing(steady), "not_known": tuple(missing(steady))}
    for name, value in vars(steady).items():
        if name in ("model", "variant"):
            continue
        record[name] = (
            {"before": getattr(before, name), "after": getattr(after, name)} if name in _MOVING else value
        )
    return record


def missing(environment: Environment) -> list[str]:
    """Return what is not known and has to be for the report to be certified."""
    needed = _NEEDED + (_NEEDED_ON_JETSON if environment.l4t or environment.jetpack else ())
    return [name for name in needed if getattr(environment, name) is None]
