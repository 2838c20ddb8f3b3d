"""What JetLLM's own descriptions of machine, worker and model say to the harness; pure but for /proc."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phase3.target import Environment, Registered

Row = Mapping[str, Any]
_MB = 10**6
_PROC = Path("/proc")


def environment_of(*, device: Row, status: Row, model: Row, variant: str, worker: Row | None) -> Environment:
    """Join the answers of a daemon or an engine; what one does not have is ``None``.

    Args:
        device: what ``/jetllm/v1/device`` shows.
        status: what ``/jetllm/v1/status`` shows.
        model: the model's entry in ``/jetllm/v1/models``.
        worker: its row in *status*, while it is loaded.
    """
    static, live = device.get("static") or {}, device.get("live") or {}
    telemetry = live.get("telemetry") or {}
    gpu, clocks, thermal = (telemetry.get(name) or {} for name in ("gpu", "clocks", "thermal"))
    described = (model.get("variants") or {}).get(variant) or {}
    return Environment(
        version=status.get("version"),
        board=static.get("board"),
        soc=static.get("soc"),
        l4t=static.get("l4t"),
        jetpack=static.get("jetpack"),
        image=static.get("image"),
        in_container=static.get("in_container"),
        arch=static.get("arch"),
        cpu_model=static.get("cpu_model"),
        cpu_cores=static.get("cpu_cores"),
        memory_total_bytes=static.get("memory_total_bytes"),
        memory_available_bytes=(live.get("memory") or {}).get("available_bytes"),
        swap_used_bytes=_sum(telemetry.get("swap"), "zram_used_bytes", "file_used_bytes", "other_used_bytes"),
        load_average_1m=(telemetry.get("load") or {}).get("average_1m"),
        power_mode=static.get("power_mode"),
        power_watts=(telemetry.get("power") or {}).get("total_watts"),
        gpu_clock_hz=gpu.get("clock_hz"),
        gpu_clock_max_hz=gpu.get("clock_max_hz"),
        memory_clock_hz=clocks.get("memory_hz"),
        memory_clock_max_hz=clocks.get("memory_max_hz"),
        hottest_celsius=thermal.get("hottest_celsius"),
        throttled=thermal.get("throttled"),
        throttled_by=tuple(thermal.get("throttled_by") or ()),
        over_current_events=_sum(
            telemetry.get("over_current"),
            "under_voltage_events",
            "average_events",
            "instantaneous_events",
        ),
        model=str(model.get("id")),
        variant=variant,
        backend=described.get("backend"),
        engine=(worker or {}).get("packages"),
        quantization=described.get("quantization"),
        weights_sha256=described.get("weights_sha256"),
        context_tokens=(worker or {}).get("context_tokens"),
        slots=(worker or {}).get("slots"),
        memory_bandwidth_bytes_per_s=static.get("bandwidth_bytes_per_s"),
    )


def registered_of(model: Row, selection: Row) -> Registered:
    """Join the model's entry and the explained choice of it."""
    variant: Row = (model.get("variants") or {}).get(selection.get("variant"), {})
    megabytes, chat = variant.get("memory_requirement", model.get("memory_requirement")), model.get("chat")
    chosen: Row = next((c for c in selection["candidates"] if c["verdict"] == "chosen"), {})
    return Registered(
        status=model.get("status"),
        is_chat=None if chat is None else chat != "none",
        context_length_tokens=model.get("context_length"),
        memory_requirement_bytes=None if megabytes is None else round(megabytes * _MB),
        predicted_memory_bytes=selection.get("memory_bytes"),
        predicted_decode_tokens_per_s=chosen.get("predicted_tokens_per_s"),
        predicted_source=chosen.get("tokens_per_s_source"),
        bytes_per_token=chosen.get("bytes_per_token"),
        flop_per_token=chosen.get("flop_per_token"),
        container=model.get("container"),
    )


@dataclass(frozen=True)
class Share:
    """The memory of one process.

    Args:
        bytes: its proportional set size, or what is resident where the kernel does not tell.
        own_bytes: the part of it that is no file's; ``None`` where the kernel does not tell.
    """

    bytes: int
    own_bytes: int | None


def worker_share(worker_pid: int, parent_pid: int, proc: Path = _PROC) -> Share | None:
    """Return the memory of a worker on this machine; ``None`` when the kernel shows no such process.

    A number that a daemon in another PID namespace gave may be a stranger's here: only a child of
    *parent_pid* that runs a worker counts.
    """
    directory = proc / str(worker_pid)
    try:
        parent = _field((directory / "status").read_text(), "PPid")
        is_worker = b"worker" in (directory / "cmdline").read_bytes()
    except OSError:
        return None
    return process_share(worker_pid, proc) if is_worker and parent == parent_pid else None


def process_share(pid: int, proc: Path = _PROC) -> Share | None:
    """Return the memory of a process on this machine; ``None`` when it has none: it has ended."""
    directory = proc / str(pid)
    try:
        status = (directory / "status").read_text()
    except OSError:
        return None
    try:
        rollup = (directory / "smaps_rollup").read_text()
    except OSError:
        rollup = ""
    used = _kib(rollup, "Pss") if rollup else _kib(status, "VmRSS")
    names = ("Pss_Anon", "Pss_Shmem") if "Pss_Anon" in rollup else ("RssAnon", "RssShmem")
    own = [_kib(rollup if "Pss_Anon" in rollup else status, name) for name in names]
    return None if used is None else Share(used, None if None in own else sum(filter(None, own)))


def _kib(text: str, name: str) -> int | None:
    kib = _field(text, name)
    return None if kib is None else kib * 1024


def _field(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return None if found is None else int(found.group(1))


def _sum(row: Row | None, *names: str) -> int | None:
    """Add what is known; nothing known is unknown."""
    known = [row[name] for name in names if row.get(name) is not None] if row else []
    return sum(known) if known else None
