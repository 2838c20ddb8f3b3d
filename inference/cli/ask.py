"""`jetllm run`: answer one prompt, or hold a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from inference.cli.common import complete_models, daemon_or_service, json_flag, variant_option
from inference.cli.speaker import DaemonSpeaker, OwnSpeaker, Speaker
from inference.console import print_json, print_line
from inference.settings import load_settings


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--model", shell_complete=complete_models, help="Model name or alias; by default the selector chooses."
)
@variant_option
@click.option("--system", metavar="TEXT", help="What the model is told before everything else.")
@click.option("--task", help="Task to choose for, instead of guessing it from the prompt.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "quality"]), help="Speed priority.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="Where MLC computes; not in the daemon.")
@json_flag
@click.pass_obj
def run(
    config: Path | None,
    /,
    prompt: str | None,
    system: str | None,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer PROMPT, streaming; without one hold a conversation, in which /help lists the commands.

    PROMPT "-" is what standard input has; so is none where standard input is no terminal. The daemon
    answers when one runs, else this process. What a model that is named lacks is pulled first. Ctrl-C
    stops the answer.

    \b
    Examples:
      jetllm run "Why is the sky blue?" --max-tokens 100
      jetllm run --model smollm2-135m-instruct --system "Answer in one sentence."
      git diff | jetllm run - --system "Write a commit message for this diff."
    """
    given = {name: value for name, value in options.items() if value is not None}
    question = _question(prompt)
    if question is None and as_json:
        raise click.UsageError("--json goes with a PROMPT")
    with daemon_or_service(config, {"mlc_device": device} if device else None) as (client, service):
        speaker: Speaker = DaemonSpeaker(client) if client is not None else OwnSpeaker(service)
        if question is None:
            from inference.cli.chat import Chat

            history = load_settings(config=config).state_path / "chat_history"
            Chat(speaker, given, system, history).hold()
        else:
            _answer(speaker, question, system, given, as_json)


def _question(prompt: str | None) -> str | None:
    """Return what is asked; ``None`` for a conversation."""
    if prompt is None and sys.stdin.isatty():
        return None
    if prompt in (None, "-"):
        try:
            prompt = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"standard input: expected text in UTF-8: {error.reason}") from None
    if not prompt or not prompt.strip():
        raise click.UsageError("PROMPT is empty")
    return prompt


def _answer(
    speaker: Speaker, prompt: str, system: str | None, options: dict[str, Any], as_json: bool
) -> None:
    first = [{"role": "system", "content": system}] if system else []
    turns = [*first, {"role": "user", "content": prompt}]
    if as_json:
        print_json(speaker.whole(turns, options))
        return
    for text in speaker.say(turns, options):
        print_line(text, end="")
    print_line()
