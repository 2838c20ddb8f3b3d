"""`jetllm select`: which model would answer, and why the others would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.common import client_of, complete_models, json_flag, variant_option
from inference.console import gib, print_json, print_line, print_table
from inference.settings import Settings, load_settings


@click.command()
@click.option("--task", help="Task to choose for, instead of guessing it from the prompt.")
@click.option("--prompt", help="Prompt whose task is guessed.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "quality"]), help="Speed priority.")
@click.option("--model", shell_complete=complete_models, help="Choose among the variants of this model only.")
@variant_option
@click.option("--context", type=click.IntRange(min=1), help="Tokens of context that are needed.")
@click.option(
    "--available-mb",
    type=click.FloatRange(min=0, min_open=True),
    help="Choose as if so many MB were available and nothing loaded.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Choose for the machine whose file system is at DIR.",
)
@click.option(
    "--record", type=click.Path(dir_okay=False, path_type=Path), help="Write all that decided to a file."
)
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Repeat recorded decisions; exit code 1 when one comes out differently.",
)
@json_flag
@click.pass_obj
def select(config: Path | None, /, as_json: bool, replay: Path | None, **options: Any) -> None:
    """Say which model would serve a request, and why every other one would not.

    \b
    Examples:
      jetllm select --prompt "Translate to French: good night" --speed quality
      jetllm select --task code --root /mnt/other-board
      jetllm select --task code --available-mb 4000
    """
    from inference.decisions import replay_all

    settings = load_settings(config=config)
    if replay is not None:
        _show_replays(replay_all(replay, settings), as_json)
        return
    given = {name: value for name, value in options.items() if value is not None}
    decision = _decide(settings, given)
    if as_json:
        print_json(decision)
    else:
        _show(decision)


def _decide(settings: Settings, given: dict[str, Any]) -> dict[str, Any]:
    """Choose here, or as told: for another machine, or for another memory."""
    elsewhere = {name: given.pop(name) for name in ("root", "available_mb", "record") if name in given}
    if "context" in given:
        given["context_tokens"] = given.pop("context")
    client = None if elsewhere else client_of(settings)
    if client is not None:
        decision: dict[str, Any] = client.post("/jetllm/v1/select", given)
        return decision
    from inference.decisions import decide

    return decide(settings, given, **elsewhere)


def _show(decision: dict[str, Any]) -> None:
    print_line(decision["reason"])
    print_line()
    headers = ("CANDIDATE", "CONTEXT", "MEMORY", "TOKENS/S", "HERE", "VERDICT", "WHY")
    print_table(headers, map(_cells, decision["candidates"]))


def _cells(candidate: dict[str, Any]) -> tuple[Any, ...]:
    speed, here = candidate["tokens_per_s"], {True: "yes", False: "no", None: None}[candidate["pulled"]]
    return (
        f"{candidate['model']}/{candidate['variant']}",
        candidate["context_tokens"],
        gib(candidate["memory_bytes"]),
        None if speed is None else f"{speed:.0f}",
        "loaded" if candidate["resident"] else here,
        candidate["verdict"],
        candidate["reason"],
    )


def _show_replays(results: list[dict[str, Any]], as_json: bool) -> None:
    different = [result for result in results if not result["same"]]
    if as_json:
        print_json(results)
    else:
        for result in results:
            outcome = "same" if result["same"] else f"DIFFERENT: now {result['now']}"
            print_line(f"line {result['line']}: {result['recorded']}: {outcome}")
    if different or not results:
        raise SystemExit(1)
