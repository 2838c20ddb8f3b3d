"""The echo: a prompt cut into its tokens, each of which goes into the answer with its probability."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace

from inference.generation import Chunk, FinishReason, Timings, TokenLogprob, Usage

_UTF8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True)
class Cut:
    """A prompt's tokens, and the bytes that each stands for; one that the model puts before it has none."""

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.pieces):
            raise ValueError(f"expected a piece for each token, got {len(self.pieces)} for {len(self.ids)}")


class Echo:
    """Makes chunks of a prompt's tokens; a character that is cut over tokens comes with the last of them."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._characters = _UTF8("replace")
        self.told = 0

    def tell(self, logprob: float | None, top: Sequence[TokenLogprob] = ()) -> Chunk:
        """Return the next token with its probability."""
        piece = self._cut.pieces[self.told]
        self.told += 1
        text = self._characters.decode(piece, final=self.told == len(self._cut.ids))
        item = TokenLogprob(piece.decode("utf-8", "replace"), logprob, tuple(piece), tuple(top))
        return Chunk(text, (item,))


def ending(prompt_tokens: int, prefill_s: float) -> Chunk:
    """Return the last chunk of an echo after which nothing is generated."""
    usage, timings = Usage(prompt_tokens, 0), Timings(prefill_s, 0.0)
    return Chunk(finish_reason=FinishReason.LENGTH, usage=usage, timings=timings)


def after_echo(chunk: Chunk, prefill_s: float) -> Chunk:
    """Return a chunk of what was generated after a scored echo, which had read the prompt before."""
    if chunk.usage is None or chunk.timings is None:
        return chunk
    timings = replace(chunk.timings, prefill_s=chunk.timings.prefill_s + prefill_s)
    return replace(chunk, usage=replace(chunk.usage, cached_tokens=0), timings=timings)


def to_bytes(tokens: Sequence[str], text: str) -> tuple[bytes, ...] | None:
    """Return the bytes of each of *tokens*, as a vocabulary writes them, if together they are *text*.

    Vocabularies of bytes have a printable character for each; SentencePiece marks spaces, and writes the
    bytes of rare characters as numbers. ``None``: it is neither.
    """
    for read in (_of_bytes, _of_pieces):
        found = [read(token) for token in tokens]
        if b"".join(found) == b" " + text.encode():  # SentencePiece writes a space before every text
            first = next(n for n, piece in enumerate(found) if piece)
            found[first] = found[first][1:]
        if b"".join(found) == text.encode():
            return tuple(found)
    return None


def _byte_characters() -> dict[str, int]:
    """Return GPT-2's character for each byte: printable ones stand for themselves, others are moved up."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    moved = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(moved)}


_BYTES = _byte_characters()


def _of_bytes(token: str) -> bytes:
    return b"".join(
        bytes([_BYTES[letter]]) if letter in _BYTES else letter.encode("utf-8", "replace") for letter in token
    )


def _of_pieces(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode("utf-8", "replace")
