"""`jetllm run` and `jetllm select`: answer a prompt, or only say what would answer it and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.common import client_of, daemon_or_service, json_flag
from inference.client import Client
from inference.console import build_bar, download_bar, gib, print_json, print_line, print_table
from inference.errors import JetLLMError
from inference.settings import Settings, load_settings


@click.command()
@click.argument("prompt")
@click.option("--model", help="Model name or alias; by default the selector chooses.")
@click.option("--variant", help="One of the model's variants.")
@click.option("--task", help="Task to choose for, instead of guessing it from the prompt.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "quality"]), help="Speed priority.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Where MLC computes; not in the daemon.")
@json_flag
@click.pass_obj
def run(config: Path | None, /, prompt: str, device: str | None, as_json: bool, **options: Any) -> None:
    """Answer PROMPT, streaming; through the daemon when one runs, else in this process.

    Example: jetllm run "Why is the sky blue?" --max-tokens 100
    """
    given = {name: value for name, value in options.items() if value is not None}
    with daemon_or_service(config, {"mlc_device": device} if device else None) as (client, service):
        if client is not None:
            _run_through_daemon(client, prompt, given, as_json)
        else:
            _run_here(service, prompt, given, as_json)


def _run_through_daemon(client: Client, prompt: str, given: dict[str, Any], as_json: bool) -> None:
    body = {**given, "messages": [{"role": "user", "content": prompt}]}
    if as_json:
        print_json(client.post("/v1/chat/completions", body))
        return
    for chunk in client.chat(body):
        for choice in chunk["choices"]:
            print_line(choice["delta"].get("content") or "", end="")
    print_line()


def _run_here(service: Any, prompt: str, given: dict[str, Any], as_json: bool) -> None:
    from inference.generation import GenerateRequest, Message
    from inference.inference_engine import as_dict

    request = GenerateRequest(messages=(Message("user", prompt),), **given)
    stream = _started(service, request)
    with stream:
        for chunk in stream:
            if not as_json:
                print_line(chunk.text, end="")
    if as_json:
        print_json(as_dict(stream.result))
    else:
        print_line()


def _started(service: Any, request: Any) -> Any:
    """Start generating; what a named model lacks is brought and built first."""
    from inference.provision import provided

    if request.model is None:
        return service.generate(request)
    return provided(
        lambda: service.generate(request),
        service,
        request.model,
        request.variant,
        pulling=lambda: download_bar(request.model),
        building=lambda: build_bar(request.model),
    )


@click.command()
@click.option("--task", help="Task to choose for, instead of guessing it from the prompt.")
@click.option("--prompt", help="Prompt whose task is guessed.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "quality"]), help="Speed priority.")
@click.option("--model", help="Choose among the variants of this model only.")
@click.option("--variant", help="One of the model's variants.")
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

    Examples: jetllm select --prompt "Translate to French: good night" --speed quality,
    jetllm select --task code --root /mnt/other-board, jetllm select --task code --available-mb 4000
    """
    from inference.decisions import replay_all

    settings = load_settings(config=config)
    if replay is not None:
        _show_replays(replay_all(replay, settings), as_json)
        return
    given = {name: value for name, value in options.items() if value is not None}
    try:
        decision = _decide(settings, given)
    except JetLLMError as error:
        if not as_json:
            raise
        print_json({"error": error.to_dict()})
        raise SystemExit(1) from None
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
