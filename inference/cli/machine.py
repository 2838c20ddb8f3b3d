"""The commands about this machine and the daemon on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import inference
from inference.cli.common import client_of, daemon, json_flag
from inference.console import gib, print_json, print_line, print_table
from inference.settings import load_settings


@click.command()
@json_flag
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show the running daemon's state, queue and memory."""
    picture = daemon(config).get("/jetllm/v1/status")
    if as_json:
        print_json(picture)
        return
    memory, queue = picture["memory"], picture["queue"]
    print_table(
        ("STATE", "VERSION", "PID", "UPTIME", "RUNNING", "WAITING", "WORKERS", "MEMORY FOR MODELS"),
        [
            (
                picture["state"],
                picture["version"],
                picture["pid"],
                f"{picture['uptime_s']:.0f} s",
                queue["running"],
                queue["waiting"],
                len(picture["workers"]),
                gib(memory["budget_bytes"]),
            )
        ],
    )


@click.command()
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Look at the machine whose file system is at DIR.",
)
@json_flag
@click.pass_obj
def device(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Show what this machine is, and how it is now."""
    from inference.device import describe

    client = client_of(load_settings(config=config)) if root is None else None
    picture = client.get("/jetllm/v1/device") if client is not None else describe(root or Path("/"))
    if as_json:
        print_json(picture)
        return
    print_table(("FACT", "VALUE"), picture["static"].items())
    print_line()
    print_table(("NOW", "VALUE"), _flat(picture["live"]))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a reading's leaves with the path to each; what is unknown stays in sight."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, None if value in ({}, []) else value


@click.command()
def version() -> None:
    """Print the version."""
    print_line(f"jetllm {inference.__version__}")
