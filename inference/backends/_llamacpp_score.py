"""The score of a text by llama.cpp, which tells the probabilities of what it generates only.

So it is made to generate the text, token by token: each is a request of its own that continues the one
before in the KV cache, with a bias that leaves no choice; the probabilities that it tells are those
before the bias. Of a token that ends within a character it tells nothing: such a one is looked up among
the alternatives to another at its place.

One request with a grammar of tokens would do too, but GBNF is tried on the whole vocabulary at every
step, which takes SmolLM2 as long as to compute it, and llguidance loses its way at Gemma's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from inference.backends._echo import Cut, Echo
from inference.backends._text import INCOMPLETE
from inference.errors import InternalError, InvalidRequestError
from inference.generation import Chunk, TokenLogprob

_LIKELIEST = 256
_ALL = 1_000_000  # more than any vocabulary has
_CERTAINLY = 1000.0  # logits are some tens

Raw = Mapping[str, Any]
Ask = Callable[[str, Raw], Any]
Send = Callable[[Raw, Callable[[Raw], None]], bool]


def read_prompt(ask: Ask, text: str) -> Cut:
    """Cut *text* with the server's own tokenizer."""
    own = ask("/tokenize", {"content": text, "add_special": False})["tokens"]
    whole = ask("/tokenize", {"content": text, "add_special": True, "with_pieces": True})["tokens"]
    ids = tuple(int(token["id"]) for token in whole)
    first = next((n for n in range(len(ids)) if list(ids[n : n + len(own)]) == own), 0)
    # What the model puts around a text, such as a begin-of-text token, is no part of it.
    pieces = [
        _bytes(token["piece"]) if first <= n < first + len(own) else b"" for n, token in enumerate(whole)
    ]
    if b"".join(pieces) == b" " + text.encode():  # SentencePiece writes a space before every text
        pieces[first] = pieces[first][1:]
    return Cut(ids, tuple(pieces))


def read_ids(ask: Ask, ids: Sequence[int]) -> Cut:
    """Find the bytes of each token of a prompt that came as tokens.

    Raises:
        InvalidRequestError: they are not cut as the model cuts a text, and one is a part of a character.
    """
    for text in _texts(ask, ids):
        cut = read_prompt(ask, text)
        for start in range(len(cut.ids) - len(ids) + 1):
            if cut.ids[start : start + len(ids)] == tuple(ids):
                return Cut(tuple(ids), cut.pieces[start : start + len(ids)])
    pieces = [ask("/detokenize", {"tokens": [token]})["content"] for token in ids]
    if any(INCOMPLETE in piece for piece in pieces):
        raise InvalidRequestError(
            "prompt: these tokens are parts of characters, and not those that the model makes of their text",
            hint="send the text, or leave out echo",
            param="prompt",
        )
    return Cut(tuple(ids), tuple(piece.encode() for piece in pieces))


def _texts(ask: Ask, ids: Sequence[int]) -> Iterator[str]:
    """Yield what *ids* may have been made of: a begin-of-text token and a first space may be added ones."""
    for start in (0, 1):
        text = str(ask("/detokenize", {"tokens": list(ids[start:])})["content"])
        yield text
        if text.startswith(" "):
            yield text[1:]


def _bytes(piece: str | list[int]) -> bytes:
    return piece.encode() if isinstance(piece, str) else bytes(piece)


def _is_broken(piece: bytes) -> bool:
    """Whether *piece* ends with the beginning of a character; what comes before does not matter."""
    for length in range(1, min(4, len(piece)) + 1):
        lead = piece[-length]
        if lead >= 0xC0:
            return length < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
    return False


class Scorer:
    """Scores one prompt, giving each token to *emit*.

    Args:
        send: posts a body to the server's completions and gives the chunks of the answer to the
            callable; false when the caller has left meanwhile.
        filler: any token that is whole characters.
    """

    def __init__(self, send: Send, filler: int, prompt: Cut, top: int, emit: Callable[[Chunk], None]) -> None:
        self._send = send
        self._filler = filler
        self._prompt = prompt
        self._top = top
        self._emit = emit
        self._echo = Echo(prompt)

    def run(self) -> bool:
        """Score every token; false when the caller has left before the end."""
        if self._prompt.ids:
            self._emit(self._echo.tell(None))
        for token, piece in list(zip(self._prompt.ids, self._prompt.pieces, strict=True))[1:]:
            found = self._looked_up(token) if _is_broken(piece) else self._made(token)
            if found is None:
                return False
            self._emit(found)
        return True

    def _made(self, token: int) -> Chunk | None:
        """Have the server generate *token* next."""
        items = self._told(token, max(1, self._top))
        if items is None:
            return None
        if [item["id"] for item in items] != [token]:
            raise InternalError("llama.cpp left the text that it was to score")
        return self._chunk(items[0]["logprob"], items[0]["top_logprobs"])

    def _looked_up(self, token: int) -> Chunk | None:
        """Find *token* among the alternatives to one that the server does tell of."""
        for limit in (_LIKELIEST, _ALL):
            items = self._told(self._filler, limit)
            if items is None:
                return None
            others = [other for item in items for other in item["top_logprobs"]]
            for other in others:
                if other["id"] == token:
                    return self._chunk(other["logprob"], others)
        raise InternalError("llama.cpp did not tell of a token that it was to score")

    def _chunk(self, logprob: float, others: list[Raw]) -> Chunk:
        return self._echo.tell(float(logprob), [logprob_of(other) for other in others[: self._top]])

    def _told(self, token: int, alternatives: int) -> list[Raw] | None:
        """Return what the server tells of *token*, which it is made to generate; None if the caller left."""
        body = {
            "prompt": list(self._prompt.ids[: self._echo.told]),
            "max_tokens": 1,
            "temperature": 0.0,
            "logit_bias": [[token, _CERTAINLY]],
            "logprobs": alternatives,
            "stream": True,
            "return_progress": True,
            "cache_prompt": True,
        }
        items: list[Raw] = []
        return items if self._send(body, lambda raw: items.extend(_items(raw))) else None


def _items(raw: Raw) -> Iterator[Raw]:
    for choice in raw.get("choices") or ():
        yield from (choice.get("logprobs") or {}).get("content") or ()


def logprob_of(item: Raw, top: Any = ()) -> TokenLogprob:
    """Return llama.cpp's form of a log-probability as ours."""
    raw = item.get("bytes")
    return TokenLogprob(
        item["token"],
        float(item["logprob"]),
        None if raw is None else tuple(raw),
        tuple(logprob_of(other) for other in top),
    )
