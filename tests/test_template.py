"""`inference.artifacts.template`: the chat template of weights, wherever they keep it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.artifacts.template import MAX_BYTES, chat_template
from inference.errors import UnsafeArtifactError


def test_a_gguf_file_has_it_in_its_header(smollm2_path: Path) -> None:
    """SmolLM2's is ChatML."""
    assert "<|im_start|>" in (chat_template(smollm2_path) or "")


def test_a_base_model_has_none(gemma_path: Path, tmp_path: Path) -> None:
    """Neither the header of its file says one, nor an empty directory."""
    assert chat_template(gemma_path) is None
    assert chat_template(tmp_path) is None


def test_a_directory_has_a_file_or_a_key(tmp_path: Path) -> None:
    """chat_template.jinja wins over the tokenizer's configuration, where a list has one called default."""
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "of the key"}))
    assert chat_template(tmp_path) == "of the key"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "of the list"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert chat_template(tmp_path) == "of the list"
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert chat_template(tmp_path) == "of the file"


@pytest.mark.parametrize(
    "config",
    [b"{", b"[]", b"\xff", b'{"chat_template": 7}', b'{"chat_template": [1]}', b" " * (MAX_BYTES + 1)],
)
def test_a_configuration_of_another_kind_has_none(tmp_path: Path, config: bytes) -> None:
    """What cannot be read says nothing."""
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    assert chat_template(tmp_path) is None


def test_a_malformed_gguf_file_is_refused(tmp_path: Path) -> None:
    """As everywhere."""
    broken = tmp_path / "m.gguf"
    broken.write_bytes(b"GGUF" + b"\xff" * 60)
    with pytest.raises(UnsafeArtifactError):
        chat_template(broken)
