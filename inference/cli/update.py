"""`jetllm update` and `jetllm rollback`: which release an appliance serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from inference.cli.common import json_flag
from inference.console import print_json, print_note

if TYPE_CHECKING:
    from inference.appliance.installation import Installation


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path), metavar="FILE|DIR")
@click.option("--again", is_flag=True, help="Take a bundle that is marked bad.")
@json_flag
def update(path: Path, again: bool, as_json: bool) -> None:
    """Bring the release in a bundle into service, on an appliance's host.

    It is kept if it becomes ready and gives the tokens that its bundle promises; else the release before
    serves again, and the bundle is marked bad.

    \b
    Examples:
      sudo jetllm update jetllm-1.1.0.tar
      sudo jetllm update --again jetllm-1.1.0.tar
    """
    from inference.appliance import update as updating

    release = updating.update(_installation(), path, again=again)
    if as_json:
        print_json({"version": release.version, "bundle": release.bundle, "image": release.image})


@click.command()
@json_flag
def rollback(as_json: bool) -> None:
    """Go back to the release before, on an appliance's host, and mark the current one as bad.

    \b
    Example:
      sudo jetllm rollback
    """
    from inference.appliance import update as updating

    releases = updating.rollback(_installation())
    if as_json and releases is not None:
        print_json(releases.to_dict())


def _installation() -> Installation:
    from inference.appliance.config import load_config
    from inference.appliance.installation import Installation
    from inference.appliance.layout import Layout

    layout = Layout()
    return Installation(layout, load_config(layout.config), print_note)
