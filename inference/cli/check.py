"""`jetllm check`: the compatibility suite, as phase3/test_comprehensive.py runs it."""

from __future__ import annotations

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
    short_help="Prove a model on this machine.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def check(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Prove a model on this machine: does it load, fit, make sense, keep its promises, and how fast.

    \b
    Example:
      jetllm check --model smollm2-135m-instruct --quick
    """
    from phase3.command import main

    ctx.exit(main(arguments, prog="jetllm check"))
