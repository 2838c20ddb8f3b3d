"""Asking: a request in several forms, and whether their answers truly differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from phase3.case import Case
from phase3.target import Reply

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for bytes that are no character."""

Request = Mapping[str, Any]
"""Arguments of `Target.generate`."""

Agreement = Literal["same", "different", "unsettled"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """The first answers to two requests, and how they compare.

    "unsettled": they differ, but so do the answers to one and the same request.
    """

    left: Reply
    right: Reply
    agreement: Agreement


def request(case: Case, text: str, **options: Any) -> Request:
    """Return a request with *text* as a turn for a chat model, as a text to continue for others."""
    if case.is_chat:
        return {"messages": ({"role": "user", "content": text},), **options}
    return {"prompt": text, **options}


def compare(
    case: Case,
    left: Request,
    right: Request,
    agree: Callable[[Reply, Reply], bool],
    known: Reply | None = None,
) -> Comparison:
    """Ask *left*, of which an answer may be *known*, and *right*; what does not agree is asked twice more.

    An engine that answers one request in several ways is not to be taken for one that treats two
    requests differently. The order lets nothing that comes by turns look like a difference.
    """
    ask = case.target.generate
    first = ask(**left) if known is None else known
    second = ask(**right)
    if agree(first, second):
        return Comparison(first, second, "same")
    rights, lefts = [said(second), said(ask(**right))], [said(first), said(ask(**left))]
    lefts.append(said(ask(**left)))
    rights.append(said(ask(**right)))
    steady = len(set(lefts)) == len(set(rights)) == 1
    return Comparison(first, second, "different" if steady else "unsettled")


def said(reply: Reply) -> tuple[str, str, int, int]:
    """Return what does not depend on the clock or the cache."""
    return reply.text, reply.finish_reason, reply.prompt_tokens, reply.completion_tokens


def each(case: Case, items: Sequence[_T]) -> Iterator[_T]:
    """Yield *items* and tell the case how far they have been gone through."""
    for done, item in enumerate(items):
        case.progress(done / len(items))
        yield item


def parting(left: str, right: str) -> str:
    """Say where two texts part, for people."""
    pairs = enumerate(zip(left, right, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
    begin = max(0, at - 10)
    return f"from character {at + 1}: {left[begin : at + 20]!r} and {right[begin : at + 20]!r}"
