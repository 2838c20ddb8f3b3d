"""The sliding window: which turns of a chat are dropped so that the rest fits the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from inference.generation import Message

_Turns = tuple[Message, ...]


def reserved_tokens(max_tokens: int | None, context_tokens: int) -> int:
    """Return the room that the answer is to have: *max_tokens*, by default a quarter, half at the most."""
    return min(context_tokens // 4 if max_tokens is None else max_tokens, context_tokens // 2)


def slide(turns: Sequence[Message], room_tokens: int, count: Callable[[_Turns], int]) -> _Turns:
    """Return *turns* without as many of the oldest as keeps them within *room_tokens*.

    What a user said goes together with what followed, so that roles still take turns; then, of the last
    exchange, calls of tools with their results. Never a system message, what the user said last or what
    came last; if that is too long it is returned as it is.

    Args:
        count: tells the tokens of a chat; it is asked once where everything fits, else about log2 of the
            number of exchanges.
    """
    units = _units(turns)
    fewest, most = 0, len(units)  # how many go; *most* is taken where none is enough
    while fewest < most:
        # The whole first: mostly it fits, and then nothing else need be counted.
        tried = 0 if fewest == 0 and most == len(units) else (fewest + most) // 2
        if count(_without(turns, units[:tried])) <= room_tokens:
            most = tried
        else:
            fewest = tried + 1
    return _without(turns, units[:most])


def _units(turns: Sequence[Message]) -> list[range]:
    """Return the runs of turns that may go, oldest first; each goes whole."""
    starts = [at for at, turn in enumerate(turns) if turn.role == "user"]
    spoken = [at for at, turn in enumerate(turns) if turn.role != "system"]
    if not starts or not spoken:
        return []
    bounds = sorted({spoken[0], *starts})
    exchanges = [range(a, b) for a, b in pairwise(bounds)]
    answers = [at for at in range(starts[-1] + 1, len(turns)) if turns[at].role == "assistant"]
    return [*exchanges, *(range(a, b) for a, b in pairwise(answers))]


def _without(turns: Sequence[Message], units: Sequence[range]) -> _Turns:
    gone = {at for unit in units for at in unit if turns[at].role != "system"}
    return tuple(turn for at, turn in enumerate(turns) if at not in gone)
