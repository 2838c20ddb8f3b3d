"""`jetllm build` and `jetllm bundle`: make what MLC runs of a checkpoint, and carry it to another board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.common import daemon_or_service, json_flag
from inference.console import build_bar, download_bar, print_json, print_note
from inference.errors import ModelNotBuiltError, ModelNotPulledError


@click.command()
@click.argument("model")
@click.option("--variant", help="One of the model's variants for MLC; by default the first.")
@click.option("--force", is_flag=True, help="Build anew what stands, and try again what failed.")
@click.option("--for", "board", help="Build for another board, such as orin-nano-8gb.", metavar="BOARD")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Where MLC computes.")
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
    speaks is kept; why others did not is shown.

    Example: jetllm build smollm2-135m-instruct --variant mlc-q4f16_1 --device cpu
    """
    with daemon_or_service(config, {"mlc_device": device}) as (_, service):
        row = _built(service, model, variant, force, board)
    if as_json:
        print_json(row)
        return
    for failure in row["failures"]:
        print_note(f"{failure['quantization']} did not hold: {failure['step']}: {failure['reason']}")
    took_s = sum(step["wall_s"] for step in row["steps"])
    size = f"{row['parameters_bytes'] / 1e6:.0f} MB"
    what = "converted, to be compiled on the board" if row["portable"] else "built"
    quantization = row["recipe"]["quantization"]
    print_note(f"{row['model']}/{row['variant']}: {what}: {quantization}, {size}, in {took_s:.0f} s")


def _built(service: Any, model: str, variant: str | None, force: bool, board: str | None) -> dict[str, Any]:
    def attempt() -> dict[str, Any]:
        with build_bar(model) as progress:
            row: dict[str, Any] = service.build(
                model, variant=variant, force=force, board=board, progress=progress
            )
        return row

    try:
        return attempt()
    except ModelNotBuiltError:
        raise
    except ModelNotPulledError:
        with download_bar(model) as bar:
            service.pull(model, variant=variant or service.building.mlc_variant(model), progress=bar)
        return attempt()


@click.group()
def bundle() -> None:
    """Carry a built model from one machine to another in one file."""


@bundle.command("export")
@click.argument("model")
@click.option("--variant", help="One of the model's variants for MLC; by default the first that is built.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The file; by default MODEL.jetllm.tar."
)
@json_flag
@click.pass_obj
def export_bundle(
    config: Path | None, model: str, variant: str | None, output: Path | None, as_json: bool
) -> None:
    """Write the build of MODEL, with the sum of every file, into one file."""
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
    """Take a build from FILE, once everything in it has been checked; also its GPU and its engine."""
    with daemon_or_service(config, {"offline": True}) as (_, service), download_bar(file.name) as progress:
        row = service.building.take(file, leave_library=leave_library, progress=progress).to_dict()
    if as_json:
        print_json(row)
        return
    name = f"{row['model']}/{row['variant']}"
    print_note(f"{name}: here" + (f"; now: jetllm build {row['model']}" if row["portable"] else ""))
