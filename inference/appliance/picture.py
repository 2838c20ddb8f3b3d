"""The picture: an appliance at one moment, for `jetllm status`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from inference.appliance.config import Config
from inference.appliance.health import Daemon
from inference.appliance.layout import Layout
from inference.appliance.releases import DamagedReleasesError, load_releases
from inference.appliance.unit import Unit
from inference.device.files import read_text
from inference.errors import JetLLMError

STATUS_FILE = "firstboot.json"
"""In `Layout.run`: how far this boot came."""


def picture(layout: Layout, config: Config) -> dict[str, Any]:
    """Return what is known now; what cannot be looked at is ``None``."""
    _, daemon = Daemon(config.host, config.port).ready()  # which needs no key
    try:
        unit: str | None = Unit().state()
    except JetLLMError:
        unit = None
    return {
        "unit": unit,
        "daemon": daemon,
        "firstboot": _firstboot(layout),
        "releases": releases_shown(layout),
    }


def releases_shown(layout: Layout) -> dict[str, Any] | None:
    """Return the releases' JSON form; ``None`` where this machine is no appliance."""
    if not layout.releases.exists():
        return None
    try:
        return load_releases(layout.releases).to_dict()
    except DamagedReleasesError as error:
        return {"error": error.message}


def releases_lines(layout: Layout) -> list[tuple[str, str]]:
    """Return the releases in words: a name, and the text beside it; nothing where this is no appliance."""
    if not layout.releases.exists():
        return []
    try:
        return load_releases(layout.releases).lines()
    except DamagedReleasesError as error:
        return [("releases", f"{error}")]


def picture_lines(layout: Layout, shown: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what `picture` has returned in words."""
    yield "service", shown["unit"] or "unknown: there is no systemd"
    daemon = shown["daemon"]
    notes = (daemon.get("phase"), daemon.get("reason"))
    yield "daemon", ": ".join(str(each) for each in (daemon.get("status"), *notes) if each)
    boot = shown["firstboot"]
    if boot is not None and boot.get("failed"):
        hint = f"; {boot['hint']}" if boot.get("hint") else ""
        yield "boot", f"stopped at {boot.get('step')}: {boot.get('message')}{hint}"
    yield from releases_lines(layout) or [("current", "none")]


def _firstboot(layout: Layout) -> dict[str, Any] | None:
    try:
        told = json.loads(read_text(layout.run / STATUS_FILE) or "null")
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
