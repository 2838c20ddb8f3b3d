"""A series: the generations of one request, one after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from inference.api.context import Service, Stream
from inference.errors import InternalError
from inference.generation import GenerateRequest, Generation, Timings, Usage


class Series:
    """Generates for each of *requests* in turn, the first at once, the others when their turn comes.

    Exhaust each stream before the next is asked for: then no two are under way together, each waits in the
    queue with everybody else's requests, and a worker of one slot need not serve two. What the first was
    served by serves all. `close` ends it.
    """

    def __init__(
        self, service: Service, requests: Sequence[GenerateRequest], cancelled: Callable[[], bool]
    ) -> None:
        self._service = service
        self._cancelled = cancelled
        # A model that is to leave at once leaves after the last, or each of them would load it again.
        staying = [dataclasses.replace(request, keep_alive_s=None) for request in requests[:-1]]
        first, *self._rest = (*staying, requests[-1])
        self.first = self._current = service.generate(first, cancelled)

    def __iter__(self) -> Iterator[Stream]:
        yield self.first
        for request in self._rest:
            same = dataclasses.replace(request, model=self.first.model, variant=self.first.variant)
            self._current = self._service.generate(same, self._cancelled)
            yield self._current

    def close(self) -> None:
        """Stop what is under way; a second call does nothing."""
        self._current.close()


class Tally:
    """What the generations of a series come to."""

    def __init__(self) -> None:
        self._results: list[Generation] = []

    def add(self, stream: Stream) -> Generation:
        """Count a stream that was exhausted, and return its result."""
        if stream.result is None:
            raise InternalError("the stream ended without a reason")
        self._results.append(stream.result)
        return stream.result

    @property
    def usage(self) -> Usage:
        """The tokens of all; a prompt counts as often as it was read."""
        counts = [dataclasses.astuple(result.usage) for result in self._results]
        return Usage(*map(sum, zip(*counts, strict=True)))

    @property
    def timings(self) -> Timings | None:
        """The seconds of all; ``None`` when an engine kept no time."""
        clocks = [dataclasses.astuple(r.timings) for r in self._results if r.timings is not None]
        if not clocks or len(clocks) < len(self._results):
            return None
        return Timings(*map(sum, zip(*clocks, strict=True)))
