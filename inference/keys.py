"""The API keys of this machine: who may ask over the network, each key with a name, kept as its hash.

The file is JSON, ``{"version": 1, "keys": [{"name", "sha256", "created_s", "last_used_s"}]}``, readable by
its owner alone. A key is 256 random bits, so that a plain SHA-256 of it can neither be guessed nor be
turned back, and is checked at every request at no cost.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.errors import InvalidRequestError, SettingsError

FILE = "keys.json"
"""In the state directory."""

PREFIX = "jetllm_"
_SECRET_BYTES = 32
_MAX_KEYS = 1000
_WRITE_S = 60.0
_DAY_S = 86_400
_LAST_S = 253_402_300_800  # the year 10000, which has no date
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HINT = "list them: jetllm keys list"
_Mark = tuple[int, int, int] | None
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Key:
    """One line of the file; the times are Unix times, *last_used_s* no finer than a day."""

    name: str
    sha256: str
    created_s: int
    last_used_s: int | None = None


class Keys:
    """The keys in the file at *path*, which need not exist; another process's changes count at once.

    Args:
        clock: Unix time.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._read_mark: _Mark = None
        self._keys: tuple[_Key, ...] = ()
        self._written_s = -_WRITE_S

    def add(self, name: str) -> str:
        """Make a key and return it; it is nowhere to be found again.

        Raises:
            InvalidRequestError: *name* is no name, or is taken.
            SettingsError: the file cannot be written, or is damaged.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"name: expected 1 to 64 letters, digits, '.', '_' or '-', got {name[:64]!r}", param="name"
            )
        key = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        with self._changing() as keys:
            if any(each.name == name for each in keys):
                raise InvalidRequestError(
                    f"there is a key named {name!r} already",
                    hint=f"choose another name, or revoke it: jetllm keys revoke {name}",
                    param="name",
                )
            if len(keys) >= _MAX_KEYS:
                raise InvalidRequestError(f"there are {_MAX_KEYS} keys already", hint="revoke some of them")
            keys.append(_Key(name, _sha256(key), int(self._clock())))
        return key

    def rows(self) -> list[dict[str, Any]]:
        """Return *name*, *created* (ISO 8601, UTC) and *last_used* (a date, or ``None``) of each key."""
        return [
            {
                "name": each.name,
                "created": _utc(each.created_s).isoformat().replace("+00:00", "Z"),
                "last_used": None if each.last_used_s is None else _utc(each.last_used_s).date().isoformat(),
            }
            for each in self._read()
        ]

    def revoke(self, name: str) -> None:
        """Take a key back; a running daemon refuses it from its next request on.

        Raises:
            InvalidRequestError: there is none of that name.
            SettingsError: the file cannot be written, or is damaged.
        """
        with self._changing() as keys:
            if all(each.name != name for each in keys):
                raise InvalidRequestError(f"there is no key named {name[:64]!r}", hint=_HINT, param="name")
            keys[:] = [each for each in keys if each.name != name]

    def accepts(self, key: str) -> str | None:
        """Return the name of *key*, if it is one; as slow for a key that is nearly right as for any other.

        A damaged file accepts nobody, and says so in the log.
        """
        digest, found = _sha256(key), None
        for each in self._known():
            if hmac.compare_digest(each.sha256, digest):
                found = each
        if found is None:
            return None
        self._note_use(found)
        return found.name

    def exist(self) -> bool:
        """Whether there is a file of keys, if only an empty or a damaged one.

        Then a key is asked for: to revoke the last one must not open the door to everybody.
        """
        return _mark(self._path) is not None

    def _known(self) -> tuple[_Key, ...]:
        """Return the keys; the file is read again when it has changed."""
        with self._lock:
            mark = _mark(self._path)
            if mark != self._read_mark:
                self._read_mark = mark
                try:
                    self._keys = self._read()
                except SettingsError as error:
                    logger.error("%s: no key of it is accepted", error.message)
                    self._keys = ()
            return self._keys

    def _note_use(self, key: _Key) -> None:
        """Write down the day, once; where the file cannot be written, it is not known."""
        now_s = self._clock()
        today_s = int(now_s // _DAY_S) * _DAY_S
        if key.last_used_s == today_s or 0 <= now_s - self._written_s < _WRITE_S:
            return
        self._written_s = now_s
        try:
            with self._changing() as keys:
                same = (each for each in enumerate(keys) if each[1].sha256 == key.sha256)
                for index, each in list(same):
                    keys[index] = replace(each, last_used_s=today_s)
        except (SettingsError, OSError) as error:
            logger.warning("the last use of a key was not written: %s", type(error).__name__)

    @contextmanager
    def _changing(self) -> Iterator[list[_Key]]:
        """Give the keys to be changed, to one process at a time, and write what became of them."""
        try:
            files.make_directory(self._path.parent)
            with files.lock_file(self._path.with_suffix(".lock")) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                keys = list(self._read())
                before = tuple(keys)
                yield keys
                if tuple(keys) != before:
                    data = {"version": 1, "keys": [asdict(each) for each in keys]}
                    files.write_atomic(self._path, (json.dumps(data, indent=1) + "\n").encode())
        except OSError as error:
            raise SettingsError(
                f"{self._path.name} cannot be written: {error.strerror}",
                hint="it lies in the state directory; is the disk full or read-only?",
            ) from None

    def _read(self) -> tuple[_Key, ...]:
        try:
            data = json.loads(self._path.read_bytes())
            keys = tuple(_Key(**each) for each in data["keys"])
            if data["version"] != 1 or not all(map(_is_sound, keys)):
                raise ValueError
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise SettingsError(f"{self._path.name} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError):
            raise SettingsError(
                f"{self._path.name} in the state directory is damaged",
                hint="remove it, and make the keys anew: jetllm keys add NAME",
            ) from None
        return keys


def _is_sound(key: _Key) -> bool:
    texts = (key.name, _NAME), (key.sha256, _DIGEST)
    times = (key.created_s, 0 if key.last_used_s is None else key.last_used_s)
    return all(isinstance(text, str) and pattern.fullmatch(text) for text, pattern in texts) and all(
        type(time_s) is int and 0 <= time_s < _LAST_S for time_s in times
    )


def _mark(path: Path) -> _Mark:
    """Return what changes whenever the file does: a write puts a new file in its place."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _utc(unix_s: int) -> datetime:
    return datetime.fromtimestamp(unix_s, timezone.utc)
