"""`jetllm device` and `jetllm version`: what this machine is, and what runs on it."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import inference
from inference.cli.common import client_of, json_flag
from inference.console import print_json, print_line, print_table
from inference.settings import load_settings


@click.command()
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Look at the machine whose file system is at DIR.",
)
@json_flag
@click.pass_obj
def device(config: Path | None, root: Path | None, as_json: bool) -> None:
    """Show what this machine is, and how it is now.

    \b
    Examples:
      jetllm device
      jetllm device --root /mnt/other-board --json
    """
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
@json_flag
def version(as_json: bool) -> None:
    """Print the version; with --json those of Python and of the engines too.

    \b
    Examples:
      jetllm version
      jetllm version --json
    """
    if not as_json:
        print_line(f"jetllm {inference.__version__}")
        return
    from inference.backends import engine_versions

    python = platform.python_version()
    print_json({"jetllm": inference.__version__, "python": python, "engines": engine_versions()})
