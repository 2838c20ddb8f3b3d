"""The registry watch: notices that models.json was changed, or that somebody asks to read it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

_LOOK_S = 0.5
_Signature = tuple[int, int, int] | None


class RegistryWatch:
    """Looks at one file from its construction on; `start` it to be told, `close` it to end its thread.

    A change is told once the file has rested between two looks, so that an editor that is still
    writing is not read. The file's removal is told too.
    """

    def __init__(self, path: Path, *, look_s: float = _LOOK_S) -> None:
        self._path = path
        self._look_s = look_s
        self._told = self._signature()
        self._asked = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, changed: Callable[[], object]) -> None:
        """Call *changed*, in a thread of its own, after every change and every `ask`."""
        self._thread = threading.Thread(target=self._run, args=(changed,), name="registry-watch", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Have the file read again although it did not change; a signal handler may call this."""
        self._asked = True

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, changed: Callable[[], object]) -> None:
        before = self._told
        while not self._ended.wait(self._look_s):
            now = self._signature()
            rested, before = now == before, now
            if self._asked or (rested and now != self._told):
                self._asked, self._told = False, now
                changed()

    def _signature(self) -> _Signature:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
