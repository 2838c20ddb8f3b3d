"""The linter on what is no checkpoint: whatever lies there, it ends soon, in a report that can be printed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.artifacts.lint import (
    RULES,
    Report,
    as_text,
    known_images,
    lint,
    lint_entry,
    rule_name,
)
from inference.registry import ModelSpec
from tests.checkpoints import MODELS, make_checkpoint

MOST_S = 20.0  # of a second, on a machine that has nothing else to do
CONFIG_KEYS = (
    "model_type", "architectures", "hidden_size", "n_embd", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "num_hidden_layers", "head_dim", "vocab_size", "max_position_embeddings",
    "n_positions", "context_window_size", "sliding_window", "rope_theta", "rope_scaling", "rope_parameters",
    "tie_word_embeddings", "quantization_config", "quantization", "auto_map", "text_config", "torch_dtype",
)  # fmt: skip
FILES = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json",
    "model.safetensors", "mlc-chat-config.json", "ndarray-cache.json", "tensor-cache.json", "vocab.json",
    "params_shard_0.bin", "chat_template.jinja", "x.safetensors",
)  # fmt: skip
WORDS = (
    "llama",
    "qwen2",
    "gpt2",
    "phi3",
    "gemma3",
    "yarn",
    "llama3",
    "default",
    "q4f16_1",
    "model.safetensors",
)

numbers = st.one_of(st.integers(-2, 300_000), st.integers(), st.floats(allow_nan=True))
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(WORDS))
keys = st.one_of(st.sampled_from((*CONFIG_KEYS, "rope_type", "type", "quant_method")), st.text(max_size=6))
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
configs = st.dictionaries(keys, trees, max_size=8)
tensors = st.one_of(
    trees,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(("F32", "BF16", "X", None)),
            "shape": st.lists(st.integers(-1, 2**60), max_size=9),
            "data_offsets": st.lists(st.integers(-1, 2**60), max_size=3),
        }
    ),
)
indices = st.fixed_dictionaries({"weight_map": st.one_of(trees, st.dictionaries(st.text(max_size=9), trees))})
caches = st.fixed_dictionaries(
    {"records": st.lists(st.one_of(trees, st.fixed_dictionaries({"dataPath": trees, "nbytes": trees})))}
)
contents = st.one_of(configs, indices, caches, trees).map(lambda tree: json.dumps(tree).encode())
asked = {
    "image": st.sampled_from([*known_images(), "dustynv/mlc:9.9.9-r99.0.0"]),
    "quantization": st.one_of(st.sampled_from(("q4f16_1", "q4f16_autoawq", "q3f16_1", "q0f32")), st.text()),
    "context_tokens": st.one_of(st.none(), st.integers(1, 2**31)),
}
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def masters() -> Iterator[Path]:
    """The guide's models without weights, to be copied and spoilt."""
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            make_checkpoint(model, Path(folder) / model)
        yield Path(folder)


def ask(path: str | os.PathLike[str], image: str = "dustynv/mlc:r36.4.0", **options: Any) -> Report:
    """Lint, and check what holds of every report."""
    began_s = time.monotonic()
    report = lint(str(path), image, **options)
    assert time.monotonic() - began_s < MOST_S
    check(report)
    return report


def check(report: Report) -> None:
    text = as_text(report)
    assert all(line.isprintable() for line in text.splitlines())
    text.encode("utf-8")
    json.dumps(report.to_dict(), allow_nan=False).encode("utf-8")
    assert report.takes <= report.takes_after_fixes
    assert report.takes == (not report.errors)
    names = {rule_name(rule) for rule in RULES}
    for finding in report.findings:
        assert finding.rule in names
        assert finding.message and finding.hint and finding.source
        assert len(finding.message) < 2000


def spoil(master: Path, name: str, content: bytes, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for each in master.iterdir():
            if each.name != name:
                (path / each.name).symlink_to(each)
        (path / name).write_bytes(content)
        ask(path, **options)


@fuzz
@given(model=st.sampled_from(MODELS), changes=configs, options=st.fixed_dictionaries(asked))
def test_configuration_of_anything(masters: Path, model: str, changes: Any, options: Any) -> None:
    """Any key of config.json may hold any value of JSON."""
    config = {**json.loads((masters / model / "config.json").read_text()), **changes}
    spoil(masters / model, "config.json", json.dumps(config).encode(), **options)


@fuzz
@given(
    model=st.sampled_from(MODELS),
    name=st.sampled_from(FILES),
    content=st.one_of(st.binary(max_size=200), contents),
    options=st.fixed_dictionaries(asked),
)
def test_file_of_anything(masters: Path, model: str, name: str, content: bytes, options: Any) -> None:
    """Any file may hold any bytes, or JSON of another file's kind."""
    spoil(masters / model, name, content, **options)


@fuzz
@given(
    model=st.sampled_from(MODELS),
    name=st.sampled_from(FILES[:5]),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4),
)
def test_file_cut_off_or_flipped(masters: Path, model: str, name: str, keep: float, flips: Any) -> None:
    """Any file may end anywhere, and any of its bytes may be wrong."""
    source = masters / model / name
    if not source.exists():
        return
    with source.open("rb") as file:
        raw = bytearray(file.read(60_000))
    raw = raw[: int(len(raw) * keep)]
    for place, mask in flips if raw else ():
        raw[int(place * len(raw))] ^= mask
    spoil(masters / model, name, bytes(raw))


@fuzz
@given(
    header=st.dictionaries(st.text(max_size=20), tensors, max_size=4),
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    rest=st.integers(0, 64),
)
def test_header_of_anything(masters: Path, header: Any, length: int | None, rest: int) -> None:
    """The header of a weights file may say anything about itself and its tensors."""
    raw = json.dumps(header).encode()
    said = len(raw) if length is None else length
    spoil(masters / MODELS[0], "model.safetensors", said.to_bytes(8, "little") + raw + b"\0" * rest)


@fuzz
@given(
    names=st.lists(
        st.one_of(
            st.sampled_from(FILES),
            st.binary(min_size=1, max_size=20).filter(lambda raw: b"/" not in raw and b"\0" not in raw),
        ),
        max_size=5,
    ),
    suffix=st.sampled_from((b"", b".safetensors", b".bin")),
)
def test_names_of_anything(names: list[str | bytes], suffix: bytes) -> None:
    """A directory may hold files of any name, and be called anything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(os.fsdecode(folder.encode() + b"/\xff\x1b[31m\n" + suffix))
        path.mkdir()
        for name in names:
            target = path / (os.fsdecode(name + suffix) if isinstance(name, bytes) else name)
            if target.name not in ("", ".", "..") and not target.exists():
                target.write_bytes(b"{}")
        ask(path)


@fuzz
@given(
    said=st.fixed_dictionaries(
        {},
        optional={
            "architecture": st.text(min_size=1, max_size=20),
            **dict.fromkeys(
                ("layers", "heads", "kv_heads", "head_dim", "hidden_size", "vocab_size"),
                st.integers(1, 2**53),
            ),
            "context_length": st.integers(1, 2**31),
        },
    ),
    options=st.fixed_dictionaries(asked),
)
def test_entry_of_anything(said: Any, options: Any) -> None:
    """An entry of models.json may say anything that its schema allows."""
    required = {"name": "X\n\x1b[31m", "parameters": "1B", "memory_requirement": 1, "container": None}
    entry = {**required, "status": "planned", "use_cases": ["conversation"], **said}
    spec = ModelSpec.model_validate_json(json.dumps(entry))
    check(lint_entry(spec.name, spec, **options))
