"""`jetllm build` and `jetllm bundle`: make what MLC runs of a checkpoint, and carry it to another board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.bring import built, pulled
from inference.cli.common import (
    complete_variants,
    daemon_or_service,
    json_flag,
    model_argument,
    variant_option,
)
from inference.client import Client, path_of
from inference.console import download_bar, print_json, print_note
from inference.errors import ModelNotBuiltError, ModelNotPulledError


@click.command()
@model_argument
@click.option(
    "--variant",
    shell_complete=complete_variants,
    help="One of the model's variants for MLC; by default the first.",
)
@click.option("--force", is_flag=True, help="Build anew what stands, and try again what failed.")
@click.option("--for", "board", help="Build for another board, such as orin-nano-8gb.", metavar="BOARD")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Where MLC computes; not in the daemon.")
@json_flag
@click.pass_obj
def build(
    config: Path | None,
    model: str,
    variant: str | None,
    force: bool,
    board: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Convert and compile MODEL for this machine's MLC; its checkpoint is pulled first if it is not here.

    What is built stays, and is not built again. Of the quantizations the first that builds, loads and
    speaks is kept; why others did not is shown. The daemon builds when one runs, unless --for or
    --device is given.

    \b
    Examples:
      jetllm build smollm2-135m-instruct
      jetllm build smollm2-135m-instruct --variant mlc-q4f16_1 --device cpu
      jetllm build qwen2.5-0.5b-instruct --for orin-nano-8gb
    """
    # An empty choice is one too: it makes the service this process's own.
    flags = {"mlc_device": device} if device or board else None
    with daemon_or_service(config, flags) as (client, service):
        row = _built(client, service, model, variant, force, board)
    if as_json:
        print_json(row)
        return
    for failure in row["failures"]:
        print_note(f"{failure['quantization']} did not hold: {failure['step']}: {failure['reason']}")
    took_s = sum(step["wall_s"] for step in row["steps"])
    size = f"{row['parameters_bytes'] / 1e6:.0f} MB"
    what = "converted, to be compiled on the board" if row.get("portable") else "built"
    quantization = row["recipe"]["quantization"]
    print_note(f"{row['model']}/{row['variant']}: {what}: {quantization}, {size}, in {took_s:.0f} s")


def _built(
    client: Client | None, service: Any, model: str, variant: str | None, force: bool, board: str | None
) -> dict[str, Any]:
    try:
        return built(client, service, model, variant, force=force, board=board)
    except ModelNotBuiltError:
        raise
    except ModelNotPulledError:
        pulled(client, service, model, variant or _mlc_variant(client, service, model))
        return built(client, service, model, variant, force=force, board=board)


def _mlc_variant(client: Client | None, service: Any, model: str) -> str | None:
    """Return the variant that is built when none is named."""
    if client is None:
        return str(service.building.mlc_variant(model))
    variants = client.get(path_of(model))["variants"]
    return next((name for name, each in variants.items() if each["backend"] == "mlc"), None)


@click.group()
def bundle() -> None:
    """Carry a built model from one machine to another in one file.

    \b
    Examples:
      jetllm bundle export smollm2-135m-instruct
      jetllm bundle import smollm2-135m-instruct.jetllm.tar
    """


@bundle.command("export")
@model_argument
@variant_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The file; by default MODEL.jetllm.tar."
)
@json_flag
@click.pass_obj
def export_bundle(
    config: Path | None, model: str, variant: str | None, output: Path | None, as_json: bool
) -> None:
    """Write the build of MODEL, with the sum of every file, into one file; by default the first that stands.

    \b
    Example:
      jetllm bundle export smollm2-135m-instruct --output smollm2.jetllm.tar
    """
    with daemon_or_service(config, {"offline": True}) as (_, service), download_bar(model) as progress:
        row = service.building.export(model, variant, output, progress)
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}/{row['variant']}: {row['bytes'] / 1e6:.0f} MB in {row['path']}")


@bundle.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--weights-only", "leave_library", is_flag=True, help="Leave a library of another machine behind."
)
@json_flag
@click.pass_obj
def import_bundle(config: Path | None, file: Path, leave_library: bool, as_json: bool) -> None:
    """Take a build from FILE, once everything in it has been checked; also its GPU and its engine.

    \b
    Example:
      jetllm bundle import smollm2-135m-instruct.jetllm.tar
    """
    with daemon_or_service(config, {"offline": True}) as (_, service), download_bar(file.name) as progress:
        row = service.building.take(file, leave_library=leave_library, progress=progress).to_dict()
    if as_json:
        print_json(row)
        return
    name = f"{row['model']}/{row['variant']}"
    print_note(f"{name}: here" + (f"; now: jetllm build {row['model']}" if row["portable"] else ""))
