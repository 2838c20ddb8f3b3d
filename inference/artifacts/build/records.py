"""Records: what is written down of a build that stands, and of one that failed.

Layout, below the store's root::

    builds/<key>/             a build: what the engine loads, and build.json
    failed/<key>.json         why these inputs make no build; forgotten with ``--force``
    logs/<key>.log            what mlc_llm said, of the last try
    hashes/                   of files that are large or not ours, so that they are read once
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build.recipe import Recipe

BUILDS, FAILED, LOGS, HASHES = "builds", "failed", "logs", "hashes"
RECORD = "build.json"
LIBRARY = "lib.so"
SCHEMA = 1


@dataclass(frozen=True)
class Step:
    """What one step took.

    Args:
        peak_bytes: the most memory of its processes together; 0 for a step of ours.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Failure:
    """Why one recipe made no build.

    Args:
        final: whether the same inputs would fail again.
    """

    quantization: str
    step: str
    reason: str
    hint: str | None
    final: bool
    failed_at_s: float

    def __str__(self) -> str:
        return f"{self.quantization}: {self.step}: {self.reason}"


@dataclass(frozen=True)
class Build:
    """A build that stands.

    Args:
        path: its directory.
        parameters_bytes: of the shards.
        portable: made for another machine, without a library that was tried.
        text: what it said when it was tried.
        failures: the rungs above it that did not hold.
    """

    path: Path
    model: str
    variant: str
    recipe: Recipe
    parameters_bytes: int
    portable: bool
    steps: tuple[Step, ...]
    changes: tuple[str, ...]
    text: str
    failures: tuple[Failure, ...]
    created_s: float

    @property
    def key(self) -> str:
        """The recipe's."""
        return self.recipe.key

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path) -> Build:
        """Rebuild it from its record.

        Raises:
            TypeError, KeyError, ValueError: it is none, or one of another schema.
        """
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema: expected {SCHEMA}")
        return cls(
            path=path,
            model=str(data["model"]),
            variant=str(data["variant"]),
            recipe=Recipe.from_dict(data["recipe"]),
            parameters_bytes=int(data["parameters_bytes"]),
            portable=bool(data["portable"]),
            steps=tuple(Step(**step) for step in data["steps"]),
            changes=tuple(str(change) for change in data["changes"]),
            text=str(data["text"]),
            failures=tuple(Failure(**failure) for failure in data["failures"]),
            created_s=float(data["created_s"]),
        )

    @property
    def is_whole(self) -> bool:
        """Whether it can be loaded: it has a library that was tried."""
        return not self.portable

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which is the record too."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "model": self.model,
            "variant": self.variant,
            "recipe": self.recipe.to_dict(),
            "parameters_bytes": self.parameters_bytes,
            "portable": self.portable,
            "steps": [asdict(step) for step in self.steps],
            "changes": list(self.changes),
            "text": self.text,
            "failures": [asdict(failure) for failure in self.failures],
            "created_s": self.created_s,
        }


class Builds:
    """The builds of one store, as they stand on its disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def directory(self) -> Path:
        """Where the builds are."""
        return self._root / BUILDS

    def path(self, key: str) -> Path:
        """Return where the build of that key is or will be."""
        return self._root / BUILDS / key

    def log_path(self, key: str) -> Path:
        """Return where the log of that key's last try is or will be."""
        return self._root / LOGS / f"{key}.log"

    def find(self, key: str) -> Build | None:
        """Return a build; ``None`` where there is none, or none that its record describes."""
        path = self.path(key)
        build = read_build(path)
        return build if build is not None and build.key == key else None

    def all(self) -> Iterator[Build]:
        """Return every build, in no order that means anything."""
        for path in files.entries(self._root / BUILDS):
            build = self.find(path.name)
            if build is not None:
                yield build

    def failure(self, key: str) -> Failure | None:
        """Return why that recipe makes no build, if it is known that it never will."""
        data = read_json(self._failure_path(key))
        with suppress(TypeError):
            return Failure(**data)
        return None

    def note_failure(self, key: str, failure: Failure) -> None:
        """Remember a failure, if it is final; a store that cannot be written forgets it."""
        if failure.final:
            keep_json(self._failure_path(key), asdict(failure))

    def forget_failure(self, key: str) -> None:
        """Let that recipe be tried again."""
        with suppress(OSError):
            files.remove(self._failure_path(key))

    def _failure_path(self, key: str) -> Path:
        return self._root / FAILED / f"{key}.json"


def read_build(path: Path) -> Build | None:
    """Return what a build's record says; ``None`` where there is no record, or it is damaged."""
    with suppress(TypeError, KeyError, ValueError):
        return Build.from_dict(read_json(path / RECORD), path)
    return None


def failure_now(quantization: str, step: str, reason: str, hint: str | None, *, final: bool) -> Failure:
    """Return a failure of this moment; the reason in one line."""
    return Failure(quantization, step, " ".join(reason.split())[:300], hint, final, time.time())


def read_json(path: Path) -> dict[str, Any]:
    """Return an object; what is missing, damaged or something else is an empty one."""
    with suppress(OSError, ValueError, RecursionError):
        data = json.loads(path.read_bytes())
        return data if isinstance(data, dict) else {}
    return {}


def keep_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write an object durably, where that is possible: a store may be another user's, or full."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps(data).encode())
