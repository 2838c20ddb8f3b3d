"""`jetllm build`: make what MLC runs of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.bring import built, pulled
from inference.cli.common import complete_variants, daemon_or_service, json_flag, model_argument
from inference.client import Client, path_of
from inference.console import print_json, print_note
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
