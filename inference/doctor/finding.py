"""The finding: one thing that is well or not, and the way to mend it; and the scene that is looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from inference.errors import SettingsError
from inference.settings import Settings, load_settings, settings_file


class Verdict(str, Enum):
    """How it is. Only `FAIL` makes the installation a broken one."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """What was seen.

    Args:
        detail: what was found, with its numbers.
        fix: the next thing to do, a command where there is one; always there with `WARN` and `FAIL`.
    """

    verdict: Verdict
    detail: str
    fix: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"verdict": self.verdict.value, "detail": self.detail, "fix": self.fix}


def ok(detail: str) -> Finding:
    """Return that it is well."""
    return Finding(Verdict.OK, detail)


def warn(detail: str, fix: str) -> Finding:
    """Return that it works, and could be better or soon will not."""
    return Finding(Verdict.WARN, detail, fix)


def fail(detail: str, fix: str) -> Finding:
    """Return that something of JetLLM does not work."""
    return Finding(Verdict.FAIL, detail, fix)


def unknown(detail: str, fix: str | None = None) -> Finding:
    """Return that it could not be seen."""
    return Finding(Verdict.UNKNOWN, detail, fix)


def _defaults() -> Settings:
    return Settings.model_validate({})


@dataclass(frozen=True)
class Scene:
    """What is looked at.

    Args:
        root: the file system of the machine; another one than "/" is looked at from outside.
        settings: those in force; the defaults where they cannot be read.
        settings_error: why they cannot be read.
        settings_file: where some of them are written; ``None`` where no file is.
        deep: hash all weights, however long that takes.
        online: ask the network.
        uid, groups: whose rights count; "user" of a fix.
        now_s: Unix time.
        progress: told what is being hashed, and how many bytes of how many are done.
    """

    root: Path = Path("/")
    settings: Settings = field(default_factory=_defaults)
    settings_error: SettingsError | None = None
    settings_file: Path | None = None
    deep: bool = False
    online: bool = False
    uid: int = field(default_factory=os.geteuid)
    groups: frozenset[int] = field(default_factory=lambda: frozenset({os.getegid(), *os.getgroups()}))
    now_s: float = field(default_factory=time.time)
    progress: Callable[[str, int, int], None] = lambda name, done_bytes, total_bytes: None

    @property
    def here(self) -> bool:
        """Whether it is the machine that this process runs on."""
        return self.root == Path("/")


class Check(Protocol):
    """One question."""

    def __call__(self, scene: Scene) -> Iterator[Finding]:
        """Yield what is seen; nothing where the question makes no sense."""


def scene_of(config: Path | None, **given: Any) -> Scene:
    """Return the scene with the settings in force, or with the reason why there are none."""
    try:
        settings, error = load_settings(config=config), None
    except SettingsError as wrong:
        settings, error = _defaults(), wrong
    return Scene(settings=settings, settings_error=error, settings_file=settings_file(config), **given)
