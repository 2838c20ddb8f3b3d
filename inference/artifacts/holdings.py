"""The holdings: what the store's disk is used for, and what of it is in use.

Use is a shared flock on the weights themselves, a file or a directory: it needs no right to write,
counts any number of users in any number of processes, and falls with them. When it began is the time
of change of a mark below used/: the weights' own time of access moves when anything reads them, or not
at all, as the mount has it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from inference.artifacts import files
from inference.errors import InsufficientStorageError, ModelNotPulledError

WEIGHTS = "weights"
LEFTOVER = "leftover"
REMOVED = "removed-"
"""Begins the name of what is on its way off the disk, in the staging directory."""
BUILDS = "builds"
USED = "used"
RESERVED = ".reserved"

_DEPTHS = {"blobs": 1, BUILDS: 1, "hub": 2}  # how far below it a directory has what is there as one thing
_LOOKS = 3
_LOOK_S = 0.005


@dataclass(frozen=True)
class Holding:
    """Something on the store's disk that is there or gone as one thing.

    Args:
        kind: "weights", or "leftover": quarantined, or the part of a file that nobody fetches now.
        last_used_s: when it was loaded last, or came (Unix time).
        in_use: whether somebody loaded or fetches it, in any process.
    """

    path: Path
    kind: str
    bytes: int
    last_used_s: float
    in_use: bool


class Hold:
    """The use of weights, until it is closed.

    Args:
        path: the weights, or a file of them.
        root: the store that they are in.
    """

    def __init__(self, root: Path, path: Path) -> None:
        """Wait for a removal under way, then hold what is at *path*.

        Raises:
            FileNotFoundError: it is not there, or went while it was waited for.
        """
        path = unit_of(root, path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(self._descriptor), path.stat()):
                raise FileNotFoundError(path)
        except BaseException:
            os.close(self._descriptor)
            raise
        _mark_used(_mark_path(root, path))

    def close(self) -> None:
        """End the use; a second time does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hold(root: Path, path: Path) -> Hold:
    """Use the weights or the build at *path*, in the store at *root*, until the hold is closed.

    Raises:
        ModelNotPulledError: they were removed meanwhile.
    """
    try:
        return Hold(root, path.absolute())
    except FileNotFoundError:
        raise ModelNotPulledError(
            f"{path.name}: the weights were removed", hint="pull them again: jetllm pull MODEL"
        ) from None


def unit_of(root: Path, path: Path) -> Path:
    """Return what of the store at *root* is there or gone as one thing: the directory around a file of it."""
    if not path.is_relative_to(root):
        return path
    parts = path.relative_to(root).parts
    return root.joinpath(*parts[: 1 + _DEPTHS.get(parts[0], len(parts))]) if parts else path


class Room:
    """What the store at *root* takes, and how it is given up; `inference.artifacts.store` has the layout."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._staging = root / "staging"

    def usage(self) -> list[Holding]:
        """Return all holdings: leftovers first, then weights, each kind by its last use."""
        with self._alone():
            return self._usage()

    def _usage(self) -> list[Holding]:
        quarantined = files.entries(self._root / "quarantine")
        leftovers = [self._holding(path, LEFTOVER, in_use=False) for path in quarantined]
        for path in files.entries(self._staging):
            in_use = _is_used(self._lock_path(path.name))
            found = self._holding(path, LEFTOVER, in_use=in_use)
            leftovers.append(replace(found, bytes=max(found.bytes, _reserved_bytes(path) if in_use else 0)))
        weights = [self._holding(path, WEIGHTS, in_use=_is_used(path)) for path in self._units()]
        return sorted(leftovers, key=_age) + sorted(weights, key=_age)

    def make(self, wanted_bytes: int, kept: set[Path]) -> list[Path]:
        """Remove holdings in the order of `usage`, none of *kept*, until *wanted_bytes* are freed."""
        with self._alone():
            return self._make(wanted_bytes, kept)

    def reserve(self, staging: Path | None, missing_bytes: int, quota_bytes: int, kept: set[Path]) -> None:
        """Make room within a quota for what the holder of *staging*'s lock will write there.

        Until the lock is free again it counts as written, so that fetches at the same time do not
        count on the same room.
        """
        with self._alone():
            if staging is not None:
                files.remove(staging / RESERVED)
            used = sum(each.bytes for each in self._usage())
            if (over := used + missing_bytes - quota_bytes) > 0:
                self._make(over, kept)
            if staging is not None:
                staging.mkdir(parents=True, exist_ok=True)
                (staging / RESERVED).write_text(str(_size_bytes(staging) + missing_bytes))

    def _make(self, wanted_bytes: int, kept: set[Path]) -> list[Path]:
        may_go = [each for each in self._usage() if not each.in_use and each.path not in kept]
        if (available := sum(each.bytes for each in may_go)) < wanted_bytes:
            raise InsufficientStorageError(
                f"the store would have to give up {wanted_bytes:,} bytes; {available:,} are neither in use "
                "nor pinned",
                hint="unload a model (jetllm ps shows them), unpin one, or raise the store's quota",
                details={"wanted_bytes": wanted_bytes, "available_bytes": available},
            )
        removed: list[Path] = []
        for each in may_go:
            if wanted_bytes <= 0:
                break
            if self.remove(each.path):
                wanted_bytes -= each.bytes
                removed.append(each.path)
        return removed

    def remove(self, path: Path) -> bool:
        """Remove what nobody uses: out of sight in one step, then off the disk."""
        if path.parent == self._staging:
            with files.lock_file(self._lock_path(path.name)) as descriptor:
                if is_free := files.try_lock(descriptor):
                    files.remove(path)
            return is_free
        aside = self._staging / f"{REMOVED}{path.name}"
        with files.lock_file(self._lock_path(aside.name)) as descriptor:
            if not files.try_lock(descriptor):
                return False
            with _exclusive(path) as is_free:
                if is_free:
                    self._staging.mkdir(parents=True, exist_ok=True)
                    files.remove(aside)
                    path.replace(aside)
                    files.remove(_mark_path(self._root, path))
            files.remove(aside)
        return is_free

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from looking meanwhile: a look at a lock takes it, and would be seen as use."""
        if not self._root.is_dir():
            yield
            return
        with ExitStack() as held:
            with suppress(OSError):  # another user's store, or a disk that refuses: nobody removes there
                descriptor = held.enter_context(files.lock_file(self._lock_path("room")))
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    def _units(self) -> list[Path]:
        repositories = files.entries(self._root / "hub")
        snapshots = [path for each in repositories for path in files.entries(each) if path.is_dir()]
        builds = [path for path in files.entries(self._root / BUILDS) if path.is_dir()]
        return files.entries(self._root / "blobs") + builds + snapshots

    def _holding(self, path: Path, kind: str, *, in_use: bool) -> Holding:
        return Holding(path, kind, _size_bytes(path), self._last_used_s(path), in_use)

    def _last_used_s(self, path: Path) -> float:
        """Return when *path* was held last; when it came, if never."""
        for each in (_mark_path(self._root, path), path):
            with suppress(OSError):
                return each.stat().st_mtime
        return 0.0

    def _lock_path(self, key: str) -> Path:
        return self._root / "locks" / f"{key}.lock"


def _age(holding: Holding) -> float:
    return holding.last_used_s


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Keep new users of *path* waiting; gives whether it has none now (and is there)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        yield _is_ours(descriptor)
    finally:
        os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_used(path: Path) -> bool:
    """Tell whether anybody holds *path* now; another's look, which is over at once, is no use."""
    for _ in range(_LOOKS):
        with _exclusive(path) as is_free:
            if is_free or not path.exists():
                return False
        time.sleep(_LOOK_S)
    return True


def _size_bytes(path: Path) -> int:
    """Return the length of a file, or of all files of a tree; what goes meanwhile counts nothing.

    Links count nothing: what they name is another's, such as the checkpoint that a build reads.
    """
    total = 0
    for each in files.below(path) if path.is_dir() else (path,):
        with suppress(OSError):
            status = each.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) and each.name != RESERVED else 0
    return total


def _reserved_bytes(staging: Path) -> int:
    with suppress(OSError, ValueError):
        return int((staging / RESERVED).read_text())
    return 0


def _mark_path(root: Path, unit: Path) -> Path:
    return root / USED / "--".join(unit.relative_to(root).parts)


def _mark_used(mark: Path) -> None:
    with suppress(OSError):  # another user's store, or a read-only disk: nobody removes there by age
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
