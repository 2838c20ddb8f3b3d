"""The aside: a call that cannot be interrupted, in a thread of its own, so that its caller can be."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def aside(call: Callable[[], T], name: str, *, poll_s: float, waiting: Callable[[], None]) -> T:
    """Return what *call* gives or raise what it raises; meanwhile call *waiting* every *poll_s*.

    When *waiting* raises, the thread is left behind and ends with the call.
    """
    answers: queue.SimpleQueue[tuple[T, None] | tuple[None, Exception]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name=name, daemon=True).start()
    while True:
        try:
            answer = answers.get(timeout=poll_s)
        except queue.Empty:
            waiting()
            continue
        if answer[1] is not None:
            raise answer[1]
        return answer[0]
