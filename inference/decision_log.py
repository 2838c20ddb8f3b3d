"""The decision log: every choice with all that led to it, a line each, so that it can be repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from inference.artifacts.files import write_atomic
from inference.errors import InvalidRequestError, JetLLMError, RegistryError
from inference.registry import Registry, load_registry
from inference.selection.decision import record, replay
from inference.selection.selector import Selection, World

_MAX_BYTES = 16 * 2**20  # then the file becomes the older one, and the one before is dropped
logger = logging.getLogger(__name__)


class DecisionLog:
    """Appends to one file, beside which it keeps a copy of each registry that its lines refer to.

    Threads may share it. A disk that is full or read-only costs the line, never the request.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else path.expanduser()
        self._lock = threading.Lock()
        self._kept: set[str] = set()

    def append(self, world: World, wanted: Mapping[str, Any], selection: Selection | None) -> None:
        """Write what was asked, what was seen and what was chosen (``None``: refused), if there is a log."""
        if self._path is None:
            return
        line = json.dumps(record(world, selection, **wanted), separators=(",", ":")) + "\n"
        with self._lock:
            try:
                self._write(self._path, world.registry, line.encode())
            except OSError as error:
                logger.warning("a decision could not be logged: %s", error.strerror)

    def _write(self, path: Path, registry: Registry, line: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size + len(line) > _MAX_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
        if registry.digest not in self._kept:
            self._keep(path, registry)
        with path.open("ab") as file:
            file.write(line)

    def _keep(self, path: Path, registry: Registry) -> None:
        content = registry.path.read_bytes()
        # A file that was changed meanwhile is put in force soon, and kept then.
        if hashlib.sha256(content).hexdigest() == registry.digest:
            write_atomic(_copy_path(path, registry.digest), content)
            self._kept.add(registry.digest)


def replay_all(path: Path, current: Registry) -> Iterator[dict[str, Any]]:
    """Repeat every decision of a log with the registry that it was made with.

    Yields:
        *line*, what was *recorded*, what comes out *now*, and whether both are the *same*.

    Raises:
        InvalidRequestError: a line is no record of a decision, or of another release.
    """
    registries = {current.digest: current}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            entry = _parsed(path, number, line)
            digest = str(entry.get("registry_digest"))
            with suppress(RegistryError):
                registries.setdefault(digest, load_registry(_copy_path(path, digest)))
            yield {"line": number, **_compared(entry, registries.get(digest))}


def _compared(entry: dict[str, Any], registry: Registry | None) -> dict[str, Any]:
    recorded = entry["selection"]
    if registry is None:
        return {"recorded": _named(recorded), "now": "unknown: its registry is not here", "same": False}
    try:
        now = json.loads(json.dumps(replay(entry, registry).to_dict()))
    except InvalidRequestError:
        raise
    except JetLLMError:
        now = None
    return {"recorded": _named(recorded), "now": _named(now), "same": now == recorded}


def _named(selection: dict[str, Any] | None) -> str:
    return "refused" if selection is None else f"{selection['model']}/{selection['variant']}"


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    chosen = entry.get("selection", "") if isinstance(entry, dict) else ""
    if not isinstance(entry, dict) or not (
        chosen is None or (isinstance(chosen, dict) and "model" in chosen)
    ):
        raise InvalidRequestError(
            f"{path.name}: line {number}: expected a recorded decision, got {line[:40]!r}",
            hint="record one: jetllm select --record FILE",
        )
    return entry


def _is_choice(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and {"model", "variant"} <= value.keys())


def _copy_path(path: Path, digest: str) -> Path:
    return path.with_name(f"{path.name.removesuffix('.1')}.registry-{digest[:16]}.json")
