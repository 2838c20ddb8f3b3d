"""Decisions without a daemon: choose here, for another memory or for another machine, and repeat choices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.catalog import Catalog
from inference.choice import arguments, with_available, world_elsewhere
from inference.decision_log import DecisionLog
from inference.decision_log import replay_all as _replay_all
from inference.device.detect import detect
from inference.generation import GenerateRequest
from inference.registry import load_registry
from inference.selection.selector import World, select
from inference.settings import Settings

_MB = 10**6


def decide(
    settings: Settings,
    given: Mapping[str, Any],
    *,
    root: Path | None = None,
    available_mb: float | None = None,
    record: Path | None = None,
) -> dict[str, Any]:
    """Choose with nothing loaded and return `Selection.to_dict`.

    Args:
        given: *model*, *variant*, *task*, *speed*, *prompt* and *context_tokens*, as far as they are asked.
        root: the file system of the machine to choose for; this one by default.
        available_mb: available memory in MB to assume instead of what is read.
        record: a file that gets the decision with all that led to it.

    Raises:
        JetLLMError: the registry is not readable, or nothing can be chosen; its hint says what would help.
    """
    asked = dict(given)
    context_tokens = asked.pop("context_tokens", None)
    wanted = arguments(GenerateRequest(**asked), settings.speed, context_tokens)
    world = _world(settings, root)
    if available_mb is not None:
        world = with_available(world, round(available_mb * _MB), settings)
    selection = select(world, **wanted)
    DecisionLog(record).append(world, wanted, selection)
    return selection.to_dict()


def replay_all(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """Repeat every decision in *path*; see `inference.decision_log.replay_all`."""
    return list(_replay_all(path, load_registry(settings.registry_path)))


def _world(settings: Settings, root: Path | None) -> World:
    registry = load_registry(settings.registry_path)
    if root is not None:
        return world_elsewhere(settings, registry, root)
    return Catalog(settings, registry, detect()).world(())
