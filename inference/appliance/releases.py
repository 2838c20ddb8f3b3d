"""The releases: which image runs, which ran before it, which one is tried, and which are bad.

They are the truth about an appliance: the engine's tags are made to say what this file says, never the
other way round. Each change is one atomic write, so that a power cut leaves the state before or after.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inference.appliance.errors import NoReleaseError
from inference.appliance.manifest import Golden
from inference.artifacts import files
from inference.errors import JetLLMError

SCHEMA = 1
RELEASES_MODE = 0o644
"""The supervisor and `jetllm status` read them, whose users are others than root."""

_MOST_BAD = 50
_HASH = re.compile(r"(?:[0-9a-f]{64})?")


class DamagedReleasesError(JetLLMError):
    """The file does not say what it should; whoever may change it builds it anew of the engine's tags."""

    code = "damaged_releases"


@dataclass(frozen=True)
class Release:
    """One image with what its bundle promises.

    Args:
        bundle: the SHA-256 of its manifest; "" where it is not known any more.
        image: what the engine calls it by.
        golden: what it must answer.
    """

    version: str
    bundle: str
    image: str
    golden: tuple[Golden, ...]
    installed_unix_s: int


@dataclass(frozen=True)
class BadRelease:
    """A release that was gone back from, and why; it is not taken again unless somebody insists."""

    release: Release
    reason: str
    at_unix_s: int


@dataclass(frozen=True)
class Releases:
    """The state of an appliance; each method returns the state that follows.

    Args:
        next: what an update that is under way, or was cut off, brings.
    """

    current: Release | None = None
    previous: Release | None = None
    next: Release | None = None
    bad: tuple[BadRelease, ...] = ()

    def trying(self, release: Release) -> Releases:
        """An update to *release* has begun."""
        return replace(self, next=release)

    def promoted(self) -> Releases:
        """What was tried is current now, and no longer bad if it was."""
        if self.next is None:
            raise NoReleaseError("there is no release to promote", hint="jetllm update FILE")
        taken = tuple(each for each in self.bad if each.release.bundle != self.next.bundle)
        return Releases(current=self.next, previous=self.current, bad=taken)

    def undone(self) -> Releases:
        """What was tried is forgotten, as if the update had never begun."""
        return replace(self, next=None)

    def failed(self, reason: str, at_unix_s: int) -> Releases:
        """What was tried is bad; what was current still is."""
        if self.next is None:
            return self
        return replace(self, next=None, bad=self._with_bad(self.next, reason, at_unix_s))

    def reverted(self, reason: str, at_unix_s: int) -> Releases:
        """What was current is bad, and the one before it is current.

        Raises:
            NoReleaseError: there is none before it.
        """
        if self.previous is None or self.current is None:
            raise NoReleaseError(
                "there is no previous release to go back to; nothing was changed",
                hint="bring one: jetllm update FILE; what the daemon said: journalctl -u jetllm.service",
            )
        bad = self._with_bad(self.current, reason, at_unix_s)
        return Releases(current=self.previous, previous=None, next=None, bad=bad)

    def is_bad(self, bundle: str) -> BadRelease | None:
        """Return the mark on the release of that bundle, if there is one."""
        return next((each for each in self.bad if each.release.bundle == bundle and bundle), None)

    def images(self) -> set[str]:
        """The images that are kept."""
        return {each.image for each in (self.current, self.previous, self.next) if each is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        bad = [{**asdict(b.release), "reason": b.reason, "at_unix_s": b.at_unix_s} for b in self.bad]
        kept = {"current": self.current, "previous": self.previous, "next": self.next}
        return {
            "schema": SCHEMA,
            **{name: None if each is None else asdict(each) for name, each in kept.items()},
            "bad": bad,
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return what `jetllm status` shows: a name, and the text beside it."""
        shown = [("current", "none" if self.current is None else _words(self.current))]
        shown.append(("previous", "none" if self.previous is None else _words(self.previous)))
        if self.next is not None:
            shown.append(("next", f"{_words(self.next)}; its update is under way, or was cut off"))
        return shown + [("bad", f"{_words(each.release)}: {each.reason}") for each in self.bad]

    def _with_bad(self, release: Release, reason: str, at_unix_s: int) -> tuple[BadRelease, ...]:
        others = [each for each in self.bad if each.release.bundle != release.bundle or not release.bundle]
        return (*others, BadRelease(release, reason, at_unix_s))[-_MOST_BAD:]


def load_releases(path: Path) -> Releases:
    """Read *path*; where there is no file there is no release.

    Raises:
        DamagedReleasesError: it is not such a file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Releases()
    try:
        tree = json.loads(data)
        if tree["schema"] != SCHEMA:
            raise ValueError("schema")
        current, previous, tried = (_release(tree[name]) for name in ("current", "previous", "next"))
        return Releases(current, previous, tried, tuple(map(_bad, tree["bad"])))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedReleasesError(
            f"{path}: it is damaged: {type(error).__name__}",
            hint="it is built anew, of the engine's tags, by: sudo jetllm firstboot",
        ) from None


def save_releases(path: Path, releases: Releases) -> None:
    """Write *releases*: whoever reads, whenever, finds the state before or this one."""
    files.make_directory(path.parent)
    files.write_atomic(path, json.dumps(releases.to_dict(), indent=1).encode() + b"\n")
    path.chmod(RELEASES_MODE)


def _words(release: Release) -> str:
    bundle = f"bundle {release.bundle[:12]}" if release.bundle else "bundle unknown"
    return f"{release.version}, {bundle}, image {release.image.removeprefix('sha256:')[:12]}"


def _release(tree: Any) -> Release | None:
    return None if tree is None else _known(tree)


def _known(tree: Mapping[str, Any]) -> Release:
    texts = {name: tree[name] for name in ("version", "bundle", "image")}
    installed_unix_s = tree["installed_unix_s"]
    if not all(isinstance(text, str) for text in texts.values()) or type(installed_unix_s) is not int:
        raise TypeError("a release")
    if not texts["image"] or not _HASH.fullmatch(texts["bundle"]):
        raise ValueError("image or bundle")
    return Release(golden=tuple(map(_golden, tree["golden"])), installed_unix_s=installed_unix_s, **texts)


def _golden(tree: Mapping[str, Any]) -> Golden:
    golden = Golden(**{**tree, "tokens": tuple(tree["tokens"])})
    texts = (golden.model, golden.variant, golden.prompt, golden.text)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("golden")
    if not all(type(token) is int for token in golden.tokens):
        raise TypeError("golden.tokens")
    return golden


def _bad(tree: Mapping[str, Any]) -> BadRelease:
    if not isinstance(tree["reason"], str) or type(tree["at_unix_s"]) is not int:
        raise TypeError("bad")
    return BadRelease(_known(tree), tree["reason"], tree["at_unix_s"])
