"""Text that comes token by token: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable

# What a decoder writes for a character of which some bytes are still to come.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class HeldText:
    """Text that comes in pieces, shown as far as no stop string has begun in it.

    *stopped* tells that one came: it and what followed are in no text.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Add *text* and return what became certain."""
        if self.stopped:
            return ""
        self._held += text
        length, self.stopped = cut_at_stop(self._held, self._stop)
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def rest(self) -> str:
        """Return what was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return "" if self.stopped else held


class StoppingText:
    """The text of a growing list of tokens: whole characters only, and none of a stop string.

    *whole_chars* counts characters decoded, *shown_chars* those given out.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._held = HeldText(stop)
        self._tokens: list[int] = []
        # Tokens before _done are in the text; those from _context on are decoded again with the
        # new one, because the text of a token can depend on the one before.
        self._context = self._done = 0
        self.whole_chars = self.shown_chars = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string came."""
        return self._held.stopped

    def feed(self, token: int) -> str:
        """Add *token* and return the text that became certain."""
        self._tokens.append(token)
        text = self._undecoded()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._context, self._done = self._done, len(self._tokens)
        return self._show(text)

    def rest(self) -> str:
        """Return what was held back, now that no more tokens come."""
        if self.stopped:
            return ""
        shown = self._show(self._undecoded().rstrip(INCOMPLETE))
        held = self._held.rest()
        self.shown_chars += len(held)
        return shown + held

    def _undecoded(self) -> str:
        known = self._decode(self._tokens[self._context : self._done])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _show(self, text: str) -> str:
        self.whole_chars += len(text)
        shown = self._held.feed(text)
        self.shown_chars += len(shown)
        return shown


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[int, bool]:
    """Return how many characters of *text* may be shown, and whether a stop string follows them."""
    found = [at for word in stop if (at := text.find(word)) >= 0]
    if found:
        return min(found), True
    begun = [size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])]
    return len(text) - max(begun, default=0), False
