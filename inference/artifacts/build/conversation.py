"""The conversation of a build: MLC's template with the model's own token ids in it.

MLC's templates carry the ids of the model that they were written for: "LM" puts Llama 2's begin of text (1)
before every text, and ends it at Llama 2's end of text (2), whatever these are in another vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.artifacts.build.records import read_json
from inference.artifacts.lint.checkpoint import BUILD_CONFIG


def use_own_tokens(build: Path) -> None:
    """Write the model's own end tokens, and the begin token where its tokenizer adds one, into *build*."""
    config = read_json(build / BUILD_CONFIG)
    template = config.get("conv_template")
    if not isinstance(template, dict):
        return
    ends = _ids(config.get("eos_token_id"))
    if ends:
        template["stop_token_ids"] = ends
    template["system_prefix_token_ids"] = _begin(build, config) or None
    (build / BUILD_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [each for each in values if type(each) is int and each >= 0]


def _begin(build: Path, config: dict[str, Any]) -> list[int]:
    """Return the ids that the tokenizer puts before a text."""
    processor = read_json(build / "tokenizer.json").get("post_processor")
    processors = processor.get("processors") if isinstance(processor, dict) else None
    for each in processors if isinstance(processors, list) else [processor]:
        if isinstance(each, dict) and each.get("type") == "TemplateProcessing":
            return _first_of(each)
    if read_json(build / "tokenizer_config.json").get("add_bos_token") is True:
        return _ids(config.get("bos_token_id"))
    return []


def _first_of(processing: dict[str, Any]) -> list[int]:
    """Return the ids of the special tokens before the text, of tokenizers' TemplateProcessing."""
    pieces, specials = processing.get("single"), processing.get("special_tokens")
    found: list[int] = []
    for piece in pieces if isinstance(pieces, list) else []:
        special = piece.get("SpecialToken") if isinstance(piece, dict) else None
        if not isinstance(special, dict):
            break
        token = specials.get(special.get("id")) if isinstance(specials, dict) else None
        found += _ids(token.get("ids")) if isinstance(token, dict) else []
    return found
