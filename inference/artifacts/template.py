"""The chat template that weights bring along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.artifacts.gguf import check_gguf

MAX_BYTES = 2**20
_FILE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"


def chat_template(weights: Path) -> str | None:
    """Return the Jinja template of a GGUF file, or of a directory of tensors; ``None`` where there is none.

    Raises:
        UnsafeArtifactError: a GGUF file that is malformed.
    """
    if weights.is_file():
        value = check_gguf(weights).metadata.get("tokenizer.chat_template")
        return value if isinstance(value, str) else None
    return _read(weights / _FILE) or _configured(_read(weights / _CONFIG))


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) <= MAX_BYTES else None


def _configured(config: str | None) -> str | None:
    """Return the template of a tokenizer's configuration; of several it is the default one."""
    try:
        found: Any = json.loads(config or "{}")
    except ValueError:
        return None
    value = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
