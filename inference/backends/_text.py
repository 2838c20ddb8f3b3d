"""Text that comes token by token: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable

# What a decoder writes for a character of which some bytes are still to come.
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class StoppingText:
    """The text of a growing list of tokens: whole characters only, and none of a stop string.

    *whole_chars* counts characters decoded, *shown_chars* those given out.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: tuple[str, ...]) -> None:
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        # Tokens before _done are in the text; those from _context on are decoded again with the
        # new one, because the text of a token can depend on the one before.
        self._context = self._done = 0
        self._held = ""
        self.whole_chars = self.shown_chars = 0
        self.stopped = False

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
        if self.stopped:
            return shown
        self.shown_chars += len(self._held)
        return shown + self._held

    def _undecoded(self) -> str:
        known = self._decode(self._tokens[self._context : self._done])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _show(self, text: str) -> str:
        self.whole_chars += len(text)
        self._held += text
        length, self.stopped = cut_at_stop(self._held, self._stop)
        shown, self._held = self._held[:length], self._held[length:]
        self.shown_chars += length
        return shown


def cut_at_stop(text: str, stop: tuple[str, ...]) -> tuple[int, bool]:
    """Return how many characters of *text* may be shown, and whether a stop string follows them."""
    found = [at for word in stop if (at := text.find(word)) >= 0]
    if found:
        return min(found), True
    begun = [size for word in stop for size in range(1, len(word)) if text.endswith(word[:size])]
    return len(text) - max(begun, default=0), False
