"""`jetllm logs`: what the daemon said."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import click

from inference.cli.common import json_flag
from inference.console import print_json, print_line, print_note
from inference.device.files import read_text
from inference.instance import running_pid
from inference.logs import FILE, entries, follow, last_lines
from inference.settings import load_settings

_LOOK_S = 0.2
_UNIT = re.compile(r"/(jetllm[\w@.-]*\.service)$", re.MULTILINE)


@click.command()
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on with what is written from now on.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many lines."
)
@json_flag
@click.pass_obj
def logs(config: Path | None, follows: bool, lines: int, as_json: bool) -> None:
    """Show the daemon's log, also of a daemon that has ended; never a prompt, an answer or a key is in it.

    It lies in the state directory. With --follow and --json each message is one line.

    \b
    Examples:
      jetllm logs -n 100
      jetllm logs --follow
      jetllm logs --json
    """
    state_dir = load_settings(config=config).state_path
    _point_to_the_journal(state_dir)
    found = last_lines(state_dir, lines)
    if not found and not follows:
        print_note(f"{state_dir / FILE}: nothing was logged; a daemon writes it: jetllm serve")
    if as_json and not follows:
        print_json([dataclasses.asdict(entry) for entry in entries(found)])
        return
    for line in found:
        _show(line, as_json)
    if follows:
        for line in follow(state_dir, _pause):
            _show(line, as_json)


def _show(line: str, as_json: bool) -> None:
    print_line(json.dumps(dataclasses.asdict(entries([line])[0])) if as_json else line)


def _pause() -> bool:
    time.sleep(_LOOK_S)
    return False


def _point_to_the_journal(state_dir: Path) -> None:
    """Say where systemd keeps what a daemon that it started wrote before it could open its log."""
    pid = running_pid(state_dir)
    unit = _UNIT.search(read_text(Path(f"/proc/{pid}/cgroup"))) if pid else None
    if unit:
        print_note(f"systemd runs the daemon; its journal has more: journalctl -u {unit.group(1)}")
