"""Reports as a run writes them, made of a seeded generator: the same at every call."""

from __future__ import annotations

import random
from typing import Any

from phase3.result import Finding, Measured, Report, Roofline, Row, Series, measured

HOSTILE = "<script>alert(1)</script>|`x`\x00\ud800 & \"'"
_GRID = ((16, 128), (512, 128), (2048, 128))


def healthy() -> Report:
    """A model that passes on a board."""
    return _report(_findings(), random.Random(7), slow=1.0)  # noqa: S311


def broken() -> Report:
    """The same model, at a tenth of its speed, with a leak and on a board that throttled."""
    changed = {finding.check: finding for finding in _findings()}
    changed["speed"] = Finding(
        "speed", "Acceptable speed", "fail", 8.4, "tokens/s", 10.0, "at least",
        "10 % of the predicted 88.0 tokens/s", "Looks like a CPU fallback: check the engine's GPU.",
    )  # fmt: skip
    changed["leak_generations"] = Finding(
        "leak_generations", "No leak over generations", "fail", 101_300.0, "bytes/generation", 4_096.0,
        "at most", "95 % interval 98.7 kB to 104 kB over 200 generations", "Memory grows with every request.",
    )  # fmt: skip
    changed["environment"] = Finding(
        "environment", "Environment fit to judge", "unfit", 3.0, "throttle events", 0.0, "at most",
        "3 throttle events while measuring", "Let the board cool: jetllm status",
    )  # fmt: skip
    return _report(tuple(changed.values()), random.Random(11), slow=10.5, leak_bytes=101_300.0)  # noqa: S311


def hostile() -> Report:
    """Every text that others choose is an attack on the formats."""
    found = Finding(HOSTILE, HOSTILE, "fail", 1.0, HOSTILE, 2.0, "at least", HOSTILE, HOSTILE)
    environment: dict[str, Any] = {"device": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}, "image": (HOSTILE,)}
    series: dict[str, Series] = {f"{HOSTILE}_bytes_over_s": ((0.0, 1.0), (1.0, 2.0))}
    return Report(1, HOSTILE, HOSTILE, "2026-11-21T16:00:00Z", "quick", environment, (found,), series=series)


def minimal() -> Report:
    """A run that was stopped before it found anything."""
    return Report(1, "gpt2", "llamacpp", "2026-11-21T16:00:00Z", "quick", {}, partial=True)


def _report(
    found: tuple[Finding, ...], chance: random.Random, slow: float, leak_bytes: float = 0.0
) -> Report:
    rows = tuple(_row(chance, lengths, at_once, slow) for lengths in _GRID for at_once in (1, 2, 4, 8))
    return Report(
        1,
        "smollm2-135m-instruct",
        "llamacpp-q4_1",
        "2026-11-21T16:00:00Z",
        "full",
        _environment(),
        found,
        rows,
        _series(chance, leak_bytes),
        Roofline(102e9, 104.5e6, 269e6, 10e12, "published for the board's 15 W mode"),
        1_284.2,
    )


def _row(chance: random.Random, lengths: tuple[int, int], at_once: int, slow: float) -> Row:
    into, out = lengths
    runs = range(10)
    busy = 1 + 0.22 * (at_once - 1)
    prefill_s = (0.004 + into / 9_000) * busy * slow
    ttft = [prefill_s * chance.uniform(0.96, 1.06) + chance.expovariate(900) for _ in runs]
    itl = [0.0114 * slow * busy * (1 + into / 40_000) * chance.uniform(0.98, 1.03) for _ in runs]
    e2e = [first + gap * (out - 1) for first, gap in zip(ttft, itl, strict=True)]
    return Row(
        into,
        out,
        at_once,
        measured(ttft),
        measured(e2e),
        measured(itl),
        measured([into / first for first in ttft]),
        measured([1 / gap for gap in itl]),
        88.0 if at_once == 1 else None,
        _together(out, at_once, e2e),
    )


def _together(out: int, at_once: int, e2e: list[float]) -> Measured:
    return measured([out * at_once / seconds for seconds in e2e])


def _series(chance: random.Random, leak_bytes: float) -> dict[str, tuple[tuple[float, float], ...]]:
    def used(second: int) -> float:
        loaded = 12 <= second < 560 or 580 <= second < 1_240
        ramp = min(1.0, max(0.0, (second - 8) / 9)) if second < 30 else 1.0
        return (58e6 + 612e6 * ramp if loaded else 58e6) + chance.gauss(0, 1.5e6)

    worker = tuple((float(second), used(second)) for second in range(0, 1_280, 2))
    system = tuple((second, value + 41e6 + chance.gauss(0, 4e6)) for second, value in worker)
    after = tuple((float(n), 664e6 + leak_bytes * n + chance.gauss(0, 3e5)) for n in range(200))
    cycles = tuple((float(n), 58e6 + chance.gauss(0, 2e5)) for n in range(20))
    return {
        "worker_bytes_over_s": worker,
        "system_memory_bytes_over_s": system,
        "worker_bytes_over_generations": after,
        "worker_bytes_over_cycles": cycles,
    }


def _environment() -> dict[str, Any]:
    return {
        "board": "NVIDIA Jetson Orin Nano Super",
        "l4t": "36.4.0",
        "image": "dustynv/mlc:r36.4.0",
        "image_digest": "sha256:" + "4f" * 32,
        "engine": "xllamacpp 2026.10.11549",
        "jetllm_version": "0.1.0",
        "model_revision": None,
        "weights_sha256": "9d" * 32,
        "quantization": "Q4_1",
        "context_tokens": 8192,
        "power_mode": "15W",
        "clocks_hz": {"gpu": 612_000_000, "emc": 2_133_000_000},
        "temperatures_celsius": {"cpu": 51.5, "gpu": 50.9},
        "throttle_events": {"before": 0, "after": 0},
        "swap_used_bytes": 0,
        "available_bytes": 6_412_000_000,
        "load_average": (0.31, 0.28, 0.22),
    }


def _findings() -> tuple[Finding, ...]:
    return (
        Finding("environment", "Environment fit to judge", "pass", 0.0, "throttle events", 0.0, "at most"),
        Finding("load", "Loads without errors", "pass", 2.41, "s", detail="weights 1.9 s, first token 0.5 s"),
        Finding("memory", "Memory within limits", "pass", 672e6, "bytes", 880e6, "at most", "800 MB given"),
        Finding("coherence", "Coherent text", "pass", 1.04, "x reference", 1.15, "at most", "bits per byte"),
        Finding("speed", "Acceptable speed", "pass", 87.3, "tokens/s", 10.0, "at least", "99 % of predicted"),
        Finding(
            "leak_generations", "No leak over generations", "pass", -120.0, "bytes/generation", 4_096.0,
            "at most", "95 % interval -910 B to 670 B over 200 generations",
        ),
        Finding("leak_cycles", "No leak over load cycles", "pass", 1_900.0, "bytes/cycle", 1e6, "at most"),
        Finding("streaming", "Streaming equals non-streaming", "pass"),
        Finding("greedy", "Greedy runs repeat exactly", "pass", 5.0, "runs"),
        Finding("stop", "Stop strings, lengths and seeds honoured", "pass"),
        Finding("concurrency", "Concurrent requests", "pass", 8.0, "requests", 8.0, "at least"),
        Finding("cancel", "Cancel frees the slot", "pass", 0.083, "s", 1.0, "at most"),
        Finding("unload", "Unload gives the memory back", "pass", 99.1, "%", 90.0, "at least"),
        Finding("container", "Works in the named container", "skip", detail="not running in a container"),
    )  # fmt: skip
