"""The record of one generation: when its first text was there, how it ended, why its model was chosen."""

from __future__ import annotations

import time
from dataclasses import dataclass

from inference.api.context import Context, Stream
from inference.api.errors import public, status_of
from inference.errors import JetLLMError
from inference.generation import Usage

_CLIENT_LEFT = 499


@dataclass(frozen=True)
class Clock:
    """When a request arrived and when its first text was there, on the monotonic clock."""

    started_s: float
    first_text_s: float

    def observe(self, context: Context, model: str, usage: Usage) -> None:
        """Tell the metrics of a generation that ended now."""
        context.metrics.observe(
            model,
            ttft_s=self.first_text_s - self.started_s,
            total_s=time.monotonic() - self.started_s,
            usage=usage,
        )


class Record:
    """How a stream ended, for the metrics: until it says otherwise, its client left."""

    def __init__(self, context: Context, model: str, route: str, clock: Clock) -> None:
        self._context, self._model, self._route, self._clock = context, model, route, clock
        self._code = _CLIENT_LEFT

    def done(self, usage: Usage) -> None:
        """Note that all was said."""
        self._code = 200
        self._clock.observe(self._context, self._model, usage)

    def failed(self, error: Exception, request_id: str) -> JetLLMError:
        """Note an error after the headers, and return what the client may see of it."""
        shown = public(self._context.cause_of(error), request_id)
        self._code = status_of(shown)
        return shown

    def close(self) -> None:
        """Count it."""
        self._context.metrics.count(self._model, self._route, self._code)


def reason_of(stream: Stream) -> str:
    """Say for a header what was chosen and why; header values are Latin-1 without line ends."""
    reason = " ".join(str(stream.selection.reason).split())
    return (
        "".join(c if c.isprintable() else "?" for c in reason[:500])
        .encode("latin-1", "replace")
        .decode("latin-1")
    )
