"""Embeddings by transformers: what of a model's last layer becomes the vector of a text.

A checkpoint in the form of sentence-transformers says so in 1_Pooling/config.json; any other gets the
mean over its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from inference.backends._room import check_input
from inference.backends._tokens import check_ids, frame_of, framed
from inference.errors import CancelledError, InvalidRequestError, LoadFailedError

POOLER = "pooler."
"""Begins the names of weights that no vector is made with; not every checkpoint has them."""

_CONFIG = Path("1_Pooling", "config.json")
_MODE = "pooling_mode_"
_POOLINGS = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
_AT_ONCE_TOKENS = 4096  # of a batch, padding included


def read_pooling(weights: Path) -> str:
    """Return "mean", "cls" or "last".

    Raises:
        LoadFailedError: the checkpoint asks for another one.
    """
    path = weights / _CONFIG
    if not path.is_file():
        return "mean"
    config = json.loads(path.read_text(encoding="utf-8"))
    asked = [key.removeprefix(_MODE) for key, value in config.items() if key.startswith(_MODE) and value]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise LoadFailedError(
            f"{_CONFIG}: expected one of {', '.join(_POOLINGS)}, got {', '.join(asked) or 'none'}",
            hint="only these poolings are computed here",
        )
    return _POOLINGS[asked[0]]


class Embedder:
    """Makes vectors with *model*, a bare stack of layers, by *pooling*."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        tokenizer.padding_side = "right"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        own = tokenizer("a", add_special_tokens=False)["input_ids"]
        self._frame = frame_of(own, tokenizer("a")["input_ids"])

    def prompts(self, inputs: Sequence[str | Sequence[int]], context_tokens: int) -> list[list[int]]:
        """Return the tokens of each input, with what the model puts around a text.

        Raises:
            ContextLengthExceededError: an input is longer than *context_tokens*.
            InvalidRequestError: an input has no tokens, or some that the model has not.
        """
        prompts = [self._ids(item) for item in inputs]
        for number, ids in enumerate(prompts):
            check_input(number, len(ids), context_tokens)
        return prompts

    def vectors(self, prompts: Sequence[Sequence[int]], cancelled: Callable[[], bool]) -> list[list[float]]:
        """Return the vectors of *prompts*, each of length 1.

        Raises:
            CancelledError: the caller has left.
        """
        found: dict[int, list[float]] = {}
        for batch in _batches(prompts):
            if cancelled():
                raise CancelledError("the caller left")
            rows = self._computed([list(prompts[number]) for number in batch])
            found.update(zip(batch, rows, strict=True))
        return [found[number] for number in range(len(prompts))]

    def _ids(self, item: str | Sequence[int]) -> list[int]:
        if isinstance(item, str):
            ids = list(self._tokenizer(item)["input_ids"])
        else:
            ids = framed(check_ids(item, int(self._model.config.vocab_size), "input"), self._frame)
        if not ids:
            raise InvalidRequestError("input: expected text, got ''", param="input")
        return ids

    def _computed(self, prompts: list[list[int]]) -> list[list[float]]:
        padded = self._tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self._model.device)
        states = self._model(**padded).last_hidden_state.float()
        pooled = self._pooled(states, padded["attention_mask"])
        rows: list[list[float]] = (pooled / pooled.norm(dim=-1, keepdim=True)).tolist()
        return rows

    def _pooled(self, states: Any, mask: Any) -> Any:
        """Return of (texts, tokens, width) the vectors (texts, width); padding counts nothing."""
        if self._pooling == "cls":
            return states[:, 0]
        if self._pooling == "last":
            rows = mask.sum(dim=1) - 1
            return states[list(range(len(states))), rows]
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are computed at once: those of like length, within a bound."""
    batch: list[int] = []
    for number in sorted(range(len(prompts)), key=lambda n: len(prompts[n])):
        if batch and (len(batch) + 1) * len(prompts[number]) > _AT_ONCE_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
