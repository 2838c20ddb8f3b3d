"""The token ids in a build's conversation template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build.conversation import use_own_tokens

LM = {"name": "LM", "system_prefix_token_ids": [1], "stop_token_ids": [2], "stop_str": []}
BEGIN = {"SpecialToken": {"id": "<s>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def processing(*pieces: dict[str, Any]) -> dict[str, Any]:
    ids = {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": list(pieces), "special_tokens": ids}


def own_tokens(path: Path, processor: Any, tokenizer_config: Any = None, **config: Any) -> dict[str, Any]:
    tree = {"conv_template": dict(LM), "bos_token_id": 7, "eos_token_id": 9, **config}
    (path / "mlc-chat-config.json").write_text(json.dumps(tree))
    (path / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config or {}))
    use_own_tokens(path)
    template: dict[str, Any] = json.loads((path / "mlc-chat-config.json").read_text())["conv_template"]
    return template


@pytest.mark.parametrize(
    ("processor", "tokenizer_config", "wanted"),
    [
        (None, {}, None),
        ({"type": "ByteLevel"}, {}, None),
        (processing(BEGIN, TEXT), {}, [7]),
        (processing(TEXT, BEGIN), {}, None),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, processing(BEGIN, TEXT)]}, {}, [7]),
        (None, {"add_bos_token": True}, [7]),
        (processing(TEXT), {"add_bos_token": True}, None),
        ({"type": "TemplateProcessing", "single": [3], "special_tokens": None}, {}, None),
    ],
)
def test_a_text_begins_as_the_models_tokenizer_begins_it(
    tmp_path: Path, processor: Any, tokenizer_config: Any, wanted: list[int] | None
) -> None:
    """Llama 2's begin of text is some other word in another vocabulary."""
    assert own_tokens(tmp_path, processor, tokenizer_config)["system_prefix_token_ids"] == wanted


@pytest.mark.parametrize(("ends", "wanted"), [(9, [9]), ([9, 11], [9, 11]), (None, [2]), ("x", [2])])
def test_a_text_ends_at_the_models_own_tokens(tmp_path: Path, ends: Any, wanted: list[int]) -> None:
    """Where the model names none, the template's stay."""
    assert own_tokens(tmp_path, None, eos_token_id=ends)["stop_token_ids"] == wanted
