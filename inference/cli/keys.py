"""`jetllm keys`: who may ask this machine over the network."""

from __future__ import annotations

from pathlib import Path

import click

from inference.cli.common import json_flag
from inference.console import print_json, print_line, print_note, print_table
from inference.keys import FILE, Keys
from inference.settings import load_settings


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of this machine; a running daemon follows at once.

    \b
    Examples:
      jetllm keys add laptop
      jetllm keys list
      jetllm keys revoke laptop
    """


@keys.command()
@click.argument("name")
@json_flag
@click.pass_obj
def add(config: Path | None, name: str, as_json: bool) -> None:
    """Make a key called NAME and show it, once; only its hash is kept.

    From the first key on every request needs one, those of these commands too: JETLLM_API_KEY.

    \b
    Example:
      jetllm keys add laptop
    """
    key = _keys(config).add(name)
    if as_json:
        print_json({"name": name, "key": key})
        return
    print_line(key)
    print_note("it is shown only now; requests carry it as: Authorization: Bearer KEY")


@keys.command("list")
@json_flag
@click.pass_obj
def list_(config: Path | None, as_json: bool) -> None:
    """List the names of the keys, and when each was made and last used.

    \b
    Example:
      jetllm keys list --json
    """
    rows = _keys(config).rows()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "MADE", "LAST USED"), ((row["name"], row["created"], row["last_used"]) for row in rows)
    )


@keys.command()
@click.argument("name")
@json_flag
@click.pass_obj
def revoke(config: Path | None, name: str, as_json: bool) -> None:
    """Take the key called NAME back; requests with it are refused from now on.

    With the last one nobody passes any more, until another is made: a revoked key opens no door.

    \b
    Example:
      jetllm keys revoke laptop
    """
    _keys(config).revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        print_note(f"{name}: revoked")


def _keys(config: Path | None) -> Keys:
    return Keys(load_settings(config=config).state_path / FILE)
