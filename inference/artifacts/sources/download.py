"""The download: one file into a directory of its own, resumed after a cut, also by another process.

``data`` holds the first bytes of one version of the file, ``origin.json`` which: the address' hash,
the server's validator (a strong ETag, else Last-Modified) and the length. Without a validator, or when
the server has another version now, a download begins again: versions are never spliced.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from inference.artifacts import files
from inference.artifacts.sources.blob import not_the_file
from inference.artifacts.sources.progress import Meter, Report
from inference.artifacts.sources.web import BLOCK_BYTES, Interrupted, Limits, Refused, Response, get, shown

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE_S = 30.0
_LONGEST_RETRY_AFTER_S = 60.0
_SLICE_S = 0.2
_PAGE = re.compile(rb"\s*<(!doctype\s+html|html|head|body|script|meta)\b", re.IGNORECASE)
_PORTAL = "if this network asks for a sign-in, open any web page in a browser here, then pull again"


@dataclass(frozen=True)
class Patience:
    """How often a download is tried, and how long is waited between.

    Args:
        sleep: takes seconds, at most 0.2 at once.
        jitter: a number from 0 to 1, so that many appliances do not come back together.
    """

    tries: int = 6
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def pause_s(self, failures: int, retry_after_s: float) -> float:
        """Return the pause after so many failures: 1, 2, 4, ... s, halved at most by the jitter."""
        usual = min(2.0 ** (failures - 1), _LONGEST_PAUSE_S) * (0.5 + self.jitter() / 2)
        return max(usual, min(retry_after_s, _LONGEST_RETRY_AFTER_S))


@dataclass(frozen=True)
class Origin:
    """Which version of which file the bytes at hand are."""

    url_sha256: str
    validator: str
    total_bytes: int


T = TypeVar("T")


def repeated(attempt: Callable[[], T], patience: Patience, limits: Limits) -> T:
    """Return what *attempt* gives, which is made again, after a pause, when it was interrupted.

    Raises:
        Interrupted: at the last try.
        CancelledError: in a pause, too.
    """
    for failures in range(1, patience.tries):
        try:
            return attempt()
        except Interrupted as error:
            _pause(patience.pause_s(failures, error.retry_after_s), patience, limits)
    return attempt()


def _pause(seconds: float, patience: Patience, limits: Limits) -> None:
    while seconds > 0:
        limits.look()
        patience.sleep(min(seconds, _SLICE_S))
        seconds -= _SLICE_S
    limits.look()


class Download:
    """The download of *url* into *directory*.

    Args:
        headers: sent with the request.
        total_bytes: the file's declared size, if there is one.
        room: called with the bytes still missing before any is written; it may refuse.
        report: gets the progress.
    """

    def __init__(
        self,
        url: str,
        directory: Path,
        *,
        total_bytes: int | None,
        limits: Limits,
        patience: Patience,
        room: Callable[[int], None],
        report: Report,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url = url
        self._headers = dict(headers or {})
        self._url_sha256 = hashlib.sha256(url.encode()).hexdigest()
        self._declared_bytes = total_bytes
        self._limits = limits
        self._patience = patience
        self._room = room
        self._report = report
        self._data = directory / "data"
        self._record = directory / "origin.json"

    @property
    def done_bytes(self) -> int:
        """Bytes at hand."""
        return self._data.stat().st_size if self._data.is_file() else 0

    @property
    def total_bytes(self) -> int | None:
        """The file's size, as declared or as the server said."""
        origin = self._origin()
        return self._declared_bytes or (origin.total_bytes if origin else None)

    def run(self) -> Path:
        """Bring the whole file; return where it is. Its content is the caller's to check.

        Raises:
            Interrupted: at the last try; what came stays for the next call.
            Refused: trying again would not help.
            UnsafeArtifactError: the server has a file of another length.
            CancelledError: what came stays.
        """
        return repeated(self._try, self._patience, self._limits)

    def _try(self) -> Path:
        origin = self._origin()
        offset = self.done_bytes if origin else 0
        if origin and offset == origin.total_bytes:
            return self._data
        headers = {"Range": f"bytes={offset}-", "If-Range": origin.validator} if origin and offset else {}
        with get(self._url, {**self._headers, **headers}, self._limits) as answer:
            if origin and headers and answer.status == 206:
                total = self._continued(answer, origin, offset)
            else:
                total, offset = self._begun(answer), 0
            self._room(total - offset)
            with self._data.open("ab") as file:
                self._receive(answer, file, offset, total)
        return self._data

    def _origin(self) -> Origin | None:
        """Return what the bytes at hand are; ``None`` if nobody can say, so that they are of no use."""
        with suppress(OSError, ValueError, TypeError):
            origin = Origin(**json.loads(self._record.read_bytes()))
            is_this_file = origin.url_sha256 == self._url_sha256 and bool(origin.validator)
            is_this_long = self._declared_bytes in (None, origin.total_bytes)
            if is_this_file and is_this_long and self.done_bytes <= origin.total_bytes:
                return origin
        return None

    def _continued(self, answer: Response, origin: Origin, offset: int) -> int:
        """Return the length, if the answer goes on exactly where the bytes at hand end."""
        said = _RANGE.fullmatch(answer.headers.get("content-range", ""))
        wanted = (offset, origin.total_bytes - 1, origin.total_bytes)
        if said is None or tuple(map(int, said.groups())) != wanted:
            self.discard()
            raise Interrupted("the server sent another part of the file than was asked for")
        if _validator(answer) not in ("", origin.validator):
            self.discard()
            raise Interrupted("the file changed on the server")
        return origin.total_bytes

    def _begun(self, answer: Response) -> int:
        """Take the head of a whole file; return its length."""
        if answer.status == 416:
            self.discard()
            raise Interrupted("the server has fewer bytes than were asked for")
        judge(answer, self._url)
        length = answer.headers.get("content-length", "")
        said = int(length) if length.isdecimal() else None
        total = self._declared_bytes or said
        if total is None:
            raise Refused("the server does not say how long the file is", 'give the source its "bytes"')
        if said not in (None, total):
            raise not_the_file(f"{shown(self._url)}: expected {total:,} bytes, the server has {said:,}")
        self.discard()
        self._data.parent.mkdir(parents=True, exist_ok=True)
        origin = Origin(self._url_sha256, _validator(answer), total)
        files.write_atomic(self._record, json.dumps(asdict(origin)).encode())
        return total

    def _receive(self, answer: Response, file: BinaryIO, offset: int, total: int) -> None:
        meter = Meter(self._report, "download", total, offset)
        while meter.done_bytes < total:
            block = answer.read(min(BLOCK_BYTES, total - meter.done_bytes))
            if not block:
                raise Interrupted("the server closed the connection too early")
            if meter.done_bytes == 0 and _PAGE.match(block):
                raise Refused("a web page came instead of the file", _PORTAL)
            file.write(block)
            meter.add(len(block))
            self._limits.look()

    def discard(self) -> None:
        """Forget what came."""
        files.remove(self._data)
        files.remove(self._record)


def judge(answer: Response, url: str) -> None:
    """Accept the head of a whole, plain file.

    Raises:
        Interrupted: the server is busy or broken.
        Refused: it has no such file, or gives something else.
    """
    if answer.status == 511:
        raise Refused("this network asks for a sign-in (HTTP 511)", _PORTAL)
    if answer.status in _PASSING:
        after = answer.headers.get("retry-after", "")
        raise Interrupted(
            f"the server answers HTTP {answer.status}",
            retry_after_s=float(after) if after.isdecimal() else 0.0,
        )
    if answer.status != 200:
        reason = f"{shown(url)}: the server answers HTTP {answer.status}, not with the file"
        raise Refused(reason, status=answer.status)
    if answer.headers.get("content-type", "").strip().lower().startswith("text/html"):
        raise Refused("a web page came instead of the file", _PORTAL)
    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refused("the server compresses the file, though it was asked not to")


def _validator(answer: Response) -> str:
    """Return what tells one version from another, fit for If-Range; nothing if there is none."""
    tag = answer.headers.get("etag", "")
    return tag if tag.startswith('"') else answer.headers.get("last-modified", "")
