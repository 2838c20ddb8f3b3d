"""The commands about models: list them, load and unload them, see what is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from inference.cli.common import daemon, daemon_or_service, json_flag, model_argument, variant_option
from inference.cli.status import print_workers
from inference.console import gib, loading_bar, print_json, print_line, print_note, print_table


@click.group(invoke_without_command=True)
@json_flag
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the registered models and what is known of them here.

    \b
    Examples:
      jetllm models
      jetllm models --json
      jetllm models schema
    """
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, as_json)


@models.command()
def schema() -> None:
    """Print the JSON schema of models.json.

    \b
    Example:
      jetllm models schema > models.schema.json
    """
    from inference.registry import registry_schema

    print_line(json.dumps(registry_schema(), indent=2))


def _list(config: Path | None, as_json: bool) -> None:
    with daemon_or_service(config) as (client, service):
        rows = client.get("/jetllm/v1/models")["models"] if client else service.models()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("MODEL", "PARAMETERS", "STATUS", "PULLED", "STATE", "TASKS"),
        (
            (
                r["id"],
                r["parameters"],
                r["status"],
                "yes" if r["pulled"] else "no",
                r["state"],
                ", ".join(r["use_cases"]),
            )
            for r in rows
        ),
    )
    measured = [
        (r["id"], name, v["status"], *_figures(v))
        for r in rows
        for name, v in r["variants"].items()
        if v["measured"] is not None or v["lapsed"] is not None
    ]
    if measured:
        print_line()
        print_table(("MEASURED HERE", "VARIANT", "STATUS", "TOKENS/S", "MEMORY", "WHEN", "NOTE"), measured)


def _figures(variant: dict[str, Any]) -> tuple[str | None, ...]:
    """Return what was measured of a variant and counts, or why nothing does."""
    found = variant["measured"]
    if found is None:
        return None, None, None, "lapsed: " + "; ".join(variant["lapsed"])
    speed = found["decode_tokens_per_s"]
    shown = None if speed is None else f"{speed:.3g}"
    return shown, gib(found["memory_bytes"]), found["measured_at"], found["issue"]


@click.command()
@model_argument
@variant_option
@click.option("--pin/--no-pin", default=None, help="Never unload it for being idle or in the way.")
@json_flag
@click.pass_obj
def load(config: Path | None, model: str, variant: str | None, pin: bool | None, as_json: bool) -> None:
    """Load MODEL in the running daemon and wait until it can generate.

    Ctrl-C stops the load, if nobody else waits for it.

    \b
    Examples:
      jetllm load smollm2-135m-instruct --pin
      jetllm load qwen2.5-0.5b-instruct --variant q4_k_m
    """
    client = daemon(config)
    body = {"model": model, "variant": variant, "pin": pin}

    def fraction() -> float | None:
        workers = client.get("/jetllm/v1/status")["workers"]
        return next((w["progress"] for w in workers if w["progress"] is not None), None)

    with loading_bar(model, fraction):
        row = client.post("/jetllm/v1/models/load", {k: v for k, v in body.items() if v is not None})
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}/{row['variant']}: {row['state']}")


@click.command()
@model_argument
@json_flag
@click.pass_obj
def unload(config: Path | None, model: str, as_json: bool) -> None:
    """Unload MODEL from the running daemon once it has finished its requests.

    \b
    Example:
      jetllm unload smollm2-135m-instruct
    """
    row = daemon(config).post("/jetllm/v1/models/unload", {"model": model})
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}: unloaded {', '.join(row['variants']) or 'nothing: it was not loaded'}")


@click.command()
@json_flag
@click.pass_obj
def ps(config: Path | None, as_json: bool) -> None:
    """List the running daemon's workers: what is loaded, and what it takes.

    \b
    Examples:
      jetllm ps
      jetllm ps --json
    """
    workers = daemon(config).get("/jetllm/v1/status")["workers"]
    if as_json:
        print_json(workers)
        return
    print_workers(workers)
