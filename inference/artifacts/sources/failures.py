"""Failures of a download, as errors that say what is here and what remains to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from inference.artifacts.sources.web import Interrupted, Refused
from inference.errors import DownloadError, InsufficientStorageError, OfflineError

FULL = (errno.ENOSPC, errno.EDQUOT)


class Unavailable(Protocol):
    """Makes the error for weights that cannot be had for a reason."""

    def __call__(self, reason: str, hint: str | None = None, *, done_bytes: int = 0) -> DownloadError:
        """Return it; without *hint* with the source's own way out."""


@contextmanager
def explained(
    name: str, counted: Callable[[], tuple[int, int | None]], unavailable: Unavailable
) -> Iterator[None]:
    """Turn what interrupts a download of *name* into an error that a user can answer.

    Args:
        counted: gives the bytes that are here, and those of the whole if they are known.
    """
    try:
        yield
    except Refused as error:
        raise unavailable(str(error), error.hint) from error
    except Interrupted as error:
        done, total = counted()
        hint = f"pull again, it goes on from there: jetllm pull {name}"
        raise unavailable(f"{error}; {_have(done, total)}", hint, done_bytes=done) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise _full(name, *counted()) from error


def _have(done: int, total: int | None) -> str:
    return f"{done:,}{f' of {total:,}' if total is not None else ''} bytes are here"


def _full(name: str, done: int, total: int | None) -> InsufficientStorageError:
    return InsufficientStorageError(
        f"{name}: the disk filled up; {_have(done, total)}",
        hint=f"free some space, then pull again, it goes on from there: jetllm pull {name}",
        details={"done_bytes": done, "missing_bytes": None if total is None else total - done},
    )


def forbidden(error: DownloadError) -> OfflineError:
    """Return *error* as one that the settings are the cause of."""
    return OfflineError(error.message, hint=error.hint, details=error.details)
