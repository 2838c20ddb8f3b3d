"""`jetllm bench`: how fast a model is on this machine at this moment, beside what was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.bench import (
    MAX_CONCURRENCY,
    MAX_PROMPT_TOKENS,
    MAX_RUNS,
    MAX_TOKENS,
    BenchProgress,
    Course,
    measure,
)
from inference.cli.common import daemon_or_service, json_flag, model_argument, variant_option
from inference.client import Client
from inference.console import (
    bench_bar,
    build_bar,
    download_bar,
    print_json,
    print_line,
    print_note,
    print_table,
)
from inference.errors import InvalidRequestError


@click.command()
@model_argument
@variant_option
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1, MAX_PROMPT_TOKENS),
    default=Course.prompt_tokens,
    show_default=True,
    help="About how long each prompt is.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2, MAX_TOKENS),
    default=Course.max_tokens,
    show_default=True,
    help="How long each answer is.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, MAX_CONCURRENCY),
    default=Course.concurrency,
    show_default=True,
    help="Requests at once.",
)
@click.option(
    "--runs", type=click.IntRange(1, MAX_RUNS), default=Course.runs, show_default=True, help="Rounds of them."
)
@json_flag
@click.pass_obj
def bench(config: Path | None, /, as_json: bool, **course: Any) -> None:
    """Measure MODEL as its client would see it: time to the first text, tokens per second.

    It is loaded first, in the daemon when one runs. Ctrl-C stops it. The proof of a model is another
    thing: jetllm check.

    \b
    Examples:
      jetllm bench smollm2-135m-instruct
      jetllm bench smollm2-135m-instruct --prompt-tokens 512 --concurrency 4 --json
    """
    asked = Course(**course)
    with daemon_or_service(config) as (client, service):
        figures = _by_daemon(client, asked, course) if client is not None else _here(service, asked)
    if as_json:
        print_json(figures)
    else:
        _show(figures)


def _by_daemon(client: Client, asked: Course, course: dict[str, Any]) -> dict[str, Any]:
    body = {name: value for name, value in course.items() if value is not None}
    figures: dict[str, Any] = {}
    job = None
    try:
        with bench_bar(asked.model, asked.runs) as show:
            for event, value in client.feed("/jetllm/v1/bench", body):
                if event == "job":
                    job = value["id"]
                elif event == "progress":
                    show(BenchProgress(**value))
                elif event == "done":
                    figures = value
    except KeyboardInterrupt:
        if job is not None:
            client.delete(f"/jetllm/v1/jobs/{job}")
            print_note("stopped")
        raise
    return figures


def _here(service: Any, asked: Course) -> dict[str, Any]:
    from inference.provision import provided

    slots = service.settings.slots
    if asked.concurrency > slots:
        raise InvalidRequestError(
            f"--concurrency: expected at most {slots}, the setting slots, got {asked.concurrency}"
        )
    provided(
        lambda: service.load(asked.model, variant=asked.variant),
        service,
        asked.model,
        asked.variant,
        pulling=lambda: download_bar(asked.model),
        building=lambda: build_bar(asked.model),
    )
    with bench_bar(asked.model, asked.runs) as show:
        return measure(service.generate, asked, progress=show, cancelled=lambda: False)


def _show(figures: dict[str, Any]) -> None:
    print_line(f"{figures['model']}/{figures['variant']}, {figures['engine']}")
    print_line(
        f"{figures['runs']} rounds of {figures['concurrency']} at once, {figures['prompt_tokens']:.0f} "
        f"tokens read and {figures['completion_tokens']:.0f} written by each"
    )
    print_line()
    rows = (
        ("first text after, ms", figures["ttft_s"], 1000),
        ("tokens/s of each", figures["decode_tokens_per_s"], 1),
        ("prompt tokens/s", figures["prefill_tokens_per_s"], 1),
    )
    print_table(
        ("WHAT", "MEDIAN", "LEAST", "MOST"),
        (
            (name, *(_number(spread[key] * factor) for key in ("median", "min", "max")))
            for name, spread, factor in rows
            if spread is not None
        ),
    )
    predicted = figures["predicted"]
    print_line()
    print_line(f"tokens/s of all together: {_number(figures['all_tokens_per_s'])}")
    print_line(f"predicted for one: {_number(predicted['decode_tokens_per_s'])} (by {predicted['source']})")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
