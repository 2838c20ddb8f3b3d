"""`jetllm doctor`: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from inference.cli.common import json_flag
from inference.console import hashing_bar, print_json, print_line, styled

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "unknown": "cyan"}


@click.command()
@click.option("--deep", is_flag=True, help="Hash all weights, which takes a second per 0.5 GB or so.")
@click.option("--online", is_flag=True, help="Ask whether the package index can be reached.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Look at the board whose file system is at DIR, as far as its files tell.",
)
@json_flag
@click.pass_context
def doctor(ctx: click.Context, deep: bool, online: bool, root: Path | None, as_json: bool) -> None:
    """Look for everything that a broken installation could have wrong, and say how to mend it.

    Nothing is changed by it. The exit code is 0 when nothing fails, 1 when something does.

    \b
    Examples:
      jetllm doctor
      jetllm doctor --deep --online
      jetllm doctor --json > report.json
    """
    from inference.doctor import Verdict, examine
    from inference.doctor.finding import scene_of

    findings: list[dict[str, Any]] = []
    with _progress() as progress:
        scene = scene_of(ctx.obj, root=root or Path("/"), deep=deep, online=online, progress=progress)
        for name, finding in examine(scene):
            findings.append({"check": name, **finding.to_dict()})
            if not as_json:
                _show(name, findings[-1])
    failed = sum(finding["verdict"] == Verdict.FAIL.value for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": findings})
    else:
        warned = sum(finding["verdict"] == Verdict.WARN.value for finding in findings)
        print_line(f"\n{len(findings)} looked at: {failed} failed, {warned} to be warned of")
    if failed:
        ctx.exit(1)


@contextmanager
def _progress() -> Iterator[Any]:
    """Show a bar while weights are hashed, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda name, done_bytes, total_bytes: None
        return
    with hashing_bar() as show:
        yield show


def _show(name: str, finding: dict[str, Any]) -> None:
    verdict = finding["verdict"]
    first, *more = finding["detail"].splitlines() or [""]
    print_line(f"{styled(f'{verdict:<8}', _COLOURS[verdict])}{name:<12}{first}")
    for line in more:
        print_line(f"{'':<20}{line}")
    if finding["fix"]:
        print_line(f"{'':<20}fix: {finding['fix']}")
