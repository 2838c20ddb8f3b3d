"""A model of bytes: every byte is a token, and the next one follows from those before by arithmetic."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

END = 256
BEGIN = 257
SPECIAL = {"<|im_end|>": END, "<|im_start|>": BEGIN}
VOCABULARY_TOKENS = 260
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz ")
_PARTS = re.compile("|".join(map(re.escape, SPECIAL)))


class Tokenizer:
    """Bytes, and two special tokens whose text is decoded as it stands."""

    def encode(self, text: str) -> list[int]:
        """Return one id per byte, and one per special token."""
        ids: list[int] = []
        at = 0
        for found in _PARTS.finditer(text):
            ids += [*text[at : found.start()].encode(), SPECIAL[found[0]]]
            at = found.end()
        return [*ids, *text[at:].encode()]

    def decode(self, token_ids: list[int]) -> str:
        """Return the text; bytes that are no text become replacement characters."""
        names = {number: name.encode() for name, number in SPECIAL.items()}
        return b"".join(names.get(t, bytes([t % 256])) for t in token_ids).decode(errors="replace")


def next_token(prompt: list[int], answer: list[int], config: Mapping[str, Any], rng: random.Random) -> int:
    """Choose the token that follows."""
    scores = logits(prompt, answer)
    for token, bias in (config["logit_bias"] or {}).items():
        scores[int(token)] += bias
    for token, count in Counter(answer).items():
        scores[token] -= (config["frequency_penalty"] or 0) * count + (config["presence_penalty"] or 0)
    temperature = 1.0 if config["temperature"] is None else config["temperature"]
    if temperature == 0:
        return max(range(len(scores)), key=scores.__getitem__)
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    weights = [math.exp((scores[token] - scores[order[0]]) / temperature) for token in order]
    top_p = 1.0 if config["top_p"] is None else config["top_p"]
    reached = itertools.accumulate(weights)
    kept = 1 + sum(1 for mass in reached if mass < top_p * sum(weights))
    return rng.choices(order[:kept], weights[:kept])[0]


def logits(prompt: list[int], answer: list[int]) -> list[float]:
    """Letters get a score between 0 and 10, everything else is unlikely."""
    state = sum((at + 1) * token for at, token in enumerate([*prompt[-8:], *answer[-8:]]))
    return [
        (token * 7919 + state * 104_729) % 1000 / 100 if token in _LETTERS else -20.0
        for token in range(VOCABULARY_TOKENS)
    ]


def logprobs(scores: list[float]) -> list[float]:
    """Return natural-log probabilities."""
    total = math.log(sum(math.exp(score) for score in scores))
    return [score - total for score in scores]


def instance_of(schema: Any) -> Any:
    """Return the simplest value that the grammar engine leaves; what it dies of raises.

    It looks at nothing beside ``enum``, ``const`` and ``anyOf``, and passes over lengths and ranges.
    """
    if schema is True:
        return None
    if any(key in schema for key in ("$ref", "enum", "const", "anyOf")):
        return _alternative(schema)
    kind = schema.get("type")
    if not isinstance(kind, str | None):
        raise RuntimeError("Check failed: type mismatch! call is<type>() before get<type>()")
    if kind == "object":
        given = schema.get("properties", {})
        if any('"' in name for name in given):
            raise RuntimeError("Check failed: EBNF parse error")
        return {name: instance_of(given[name]) for name in given if name in schema.get("required", ())}
    if kind == "array":
        return [instance_of(one) for one in schema.get("prefixItems", ())]
    return {"string": "x", "integer": 1, "number": 1.5, "boolean": True, "null": None, None: None}[kind]


def _alternative(schema: Mapping[str, Any]) -> Any:
    if "$ref" in schema:
        raise RecursionError("it follows references, and this one may be to itself")
    if "const" in schema:
        return schema["const"]
    return schema["enum"][0] if "enum" in schema else instance_of(schema["anyOf"][0])


def constrained_text(response_format: Mapping[str, Any]) -> str:
    """Return the text that a response format leaves; a schema that is none raises."""
    return json.dumps(instance_of(json.loads(response_format.get("schema") or "{}")))
