"""`jetllm status`: the daemon, its models, memory, queue and machine on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from inference.cli.common import daemon, json_flag
from inference.client import NoDaemonError
from inference.console import duration, gib, print_json, print_line, print_table


@click.command()
@json_flag
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show the running daemon, its models, queue, memory and machine; exit code 3 when none runs.

    On an appliance also the release that serves, the one before it, and those that were gone back from.

    \b
    Examples:
      jetllm status
      jetllm status --json
    """
    from inference.appliance.layout import Layout
    from inference.appliance.picture import releases_lines, releases_shown

    layout = Layout()
    try:
        client = daemon(config)
    except NoDaemonError:
        for name, text in [] if as_json else releases_lines(layout):
            print_line(f"{name:<8} {text}")
        raise
    ready, readiness = client.readiness()
    picture = client.get("/jetllm/v1/status") | {"url": client.url, "ready": ready, "readiness": readiness}
    picture["device"] = client.get("/jetllm/v1/device")
    if (releases := releases_shown(layout)) is not None:
        picture["releases"] = releases
    if as_json:
        print_json(picture)
        return
    for name, text in [*_lines(picture), *releases_lines(layout)]:
        print_line(f"{name:<8} {text}")
    if picture["workers"]:
        print_line()
        print_workers(picture["workers"])


def print_workers(workers: list[dict[str, Any]]) -> None:
    """Print what is loaded, as `jetllm ps` does."""
    print_table(
        ("MODEL", "VARIANT", "STATE", "PID", "MEMORY", "REQUESTS", "LEASES", "UNLOADS IN", "PINNED"),
        (
            (
                w["model"],
                w["variant"],
                w["state"],
                w["pid"],
                gib(w["memory_observed_bytes"]),
                w["requests_total"],
                w["leases"],
                None if w["expires_in_s"] is None else f"{w['expires_in_s']:.0f} s",
                "yes" if w["pinned"] else "no",
            )
            for w in workers
        ),
    )


def _lines(picture: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory, queue = picture["memory"], picture["queue"]
    yield (
        "daemon",
        f"{_state(picture)}; jetllm {picture['version']}, pid {picture['pid']}, at {picture['url']}",
    )
    yield "uptime", duration(picture["uptime_s"])
    yield "queue", f"{queue['running']} running, {queue['waiting']} waiting"
    yield (
        "memory",
        ", ".join(
            f"{gib(memory[f'{key}_bytes']) or 'unknown'} {words}"
            for key, words in (("budget", "for models"), ("available", "available"), ("total", "in all"))
        ),
    )
    yield "device", ", ".join(_device(picture["device"])) or "unknown"
    registry = picture["registry"]
    error = f"; the file as it is now is refused:\n{registry['error']}" if registry["error"] else ""
    yield "registry", f"{registry['models']} models{error}"
    if not picture["workers"]:
        yield "models", "none is loaded; the first request loads one, and so does: jetllm load MODEL"


def _state(picture: dict[str, Any]) -> str:
    told = picture["readiness"]
    if picture["ready"]:
        return "ready"
    notes = (told.get("phase"), told.get("reason"), _percent(told.get("percent")))
    return f"{picture['state']}, not ready: " + ", ".join(
        [str(told.get("status")), *(note for note in notes if note)]
    )


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f} %"


def _device(device: dict[str, Any]) -> Iterator[str]:
    """Yield what is known of the machine, most telling first."""
    static, live = device["static"], device["live"].get("telemetry") or {}
    yield static["board"] or static["cpu_model"] or static["arch"] or "unknown machine"
    if static["l4t"]:
        yield f"L4T {static['l4t']}"
    if static["power_mode"]:
        yield f"power mode {static['power_mode']}"
    thermal = live.get("thermal") or {}
    if thermal.get("hottest_celsius") is not None:
        yield f"{thermal['hottest_celsius']:.0f} °C"
    if thermal.get("throttled"):
        yield f"throttled by {', '.join(thermal['throttled_by'])}"
    watts = (live.get("power") or {}).get("total_watts")
    if watts is not None:
        yield f"{watts:.1f} W"
    load = (live.get("gpu") or {}).get("load_percent")
    if load is not None:
        yield f"GPU {load:.0f} % busy"
