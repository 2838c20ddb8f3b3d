"""Each rule of the linter on a checkpoint that breaks it, and on a sound one that does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.lint import RULES, Finding, Report, lint, rule_name
from tests.checkpoints import make_checkpoint, shapes_of, write_safetensors

OLD, NOW, NEWEST = "nano_llm:r36.2.0", "dustynv/mlc:r36.4.0", "dustynv/mlc:0.20.0-r36.4.0"
SOUND: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 128}
INDEX = "model.safetensors.index.json"

Break = Callable[[Path], object]


def change(**changes: Any) -> Break:
    """Change keys of config.json; ``None`` removes one."""

    def do(path: Path) -> None:
        config = {**json.loads((path / "config.json").read_text()), **changes}
        kept = {key: value for key, value in config.items() if value is not None}
        (path / "config.json").write_text(json.dumps(kept))

    return do


def write(name: str, content: object) -> Break:
    """Write a file, of JSON unless it is a text."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda path: (path / name).write_text(text)


def remove(*names: str) -> Break:
    def do(path: Path) -> None:
        for name in names:
            (path / name).unlink()

    return do


def both(*breaks: Break) -> Break:
    return lambda path: [each(path) for each in breaks]


def dangle(name: str) -> Break:
    def do(path: Path) -> None:
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to(path / "blobs" / "gone")

    return do


def cut(name: str, size_bytes: int) -> Break:
    return lambda path: os.truncate(path / name, size_bytes)


def rename(name: str, to: str) -> Break:
    return lambda path: (path / name).rename(path / to)


def index_of(path: Path, file: str = "model.safetensors", **more: str) -> None:
    names = shapes_of(json.loads((path / "config.json").read_text()))
    weight_map = {**dict.fromkeys(names, file), **more}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def half_shards(path: Path) -> None:
    """Write two of a model's shards, whole, and the index."""
    shapes = shapes_of(json.loads((path / "config.json").read_text()))
    names = sorted(shapes)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_safetensors(path / first, {name: shapes[name] for name in names[:100]}, "BF16")
    weight_map = {**dict.fromkeys(names, second), **dict.fromkeys(names[:100], first)}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (path / "model.safetensors").unlink()


def build(cache: str = "ndarray-cache.json", *, shard_bytes: int = 16, **changes: Any) -> Break:
    """Add a build of MLC: its configuration, one shard, and the list of them."""

    def do(path: Path) -> None:
        said = {"model_type": "llama", "quantization": "q4f16_1", "context_window_size": 2048, **changes}
        (path / "mlc-chat-config.json").write_text(json.dumps(said))
        record = {"dataPath": "params_shard_0.bin", "nbytes": 16}
        (path / cache).write_text(json.dumps({"metadata": {}, "records": [record]}))
        (path / "params_shard_0.bin").write_bytes(b"0" * shard_bytes)

    return do


def alone(do: Break) -> Break:
    """Only a build, without the checkpoint."""
    return both(remove("config.json", "model.safetensors"), do)


@dataclass(frozen=True)
class Case:
    """What is done to a sound checkpoint, and what its rule then says."""

    rule: str
    do: Break
    severity: str
    says: str
    image: str = NOW
    fix: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("directory", lambda path: path.rename(path.with_name("moved")), "error", "No such file"),
    Case("image", lambda path: None, "warning", "not looked up", image="dustynv/mlc:9.9.9-r99.0.0"),
    Case("config", remove("config.json"), "error", "config.json: not found"),
    Case("config", write("config.json", "{"), "error", "not JSON"),
    Case("config", write("config.json", "[]"), "error", "expected an object"),
    Case("config", both(remove("config.json"), lambda p: os.mkfifo(p / "config.json")), "error", "no file"),
    Case("config", write("config.json", '{"model_type": "llama", "x": NaN}'), "error", "got NaN"),
    Case("dangling-links", dangle("tokenizer.json"), "error", "tokenizer.json"),
    Case("dangling-links", dangle("README.md"), "warning", "README.md"),
    Case("weights", remove("model.safetensors"), "error", "found none"),
    Case("weights", cut("model.safetensors", 4), "error", "not whole"),
    Case("weights", cut("model.safetensors", 100_000), "error", "not whole"),
    Case("weights", half_shards, "error", "model-00002-of-00002.safetensors"),
    Case("weights", rename("model.safetensors", "best.safetensors"), "error", "best", fix="stage"),
    Case("weights", lambda path: index_of(path, "gone.safetensors"), "error", "gone", fix="stage"),
    Case("weights", write(INDEX, {"weight_map": {"a": "../../etc/passwd"}}), "error", "map", fix="stage"),
    Case("stale-index", lambda p: index_of(p, ghost="model.safetensors"), "error", "ghost", fix="stage"),
    Case("pickles", write("pytorch_model.bin", ""), "warning", "pytorch_model.bin"),
    Case(
        "pickles",
        both(remove("model.safetensors"), write("pytorch_model.bin", "")),
        "error",
        "found only pickles",
    ),
    Case("remote-code", change(auto_map={"AutoModel": "modeling.X"}), "warning", "auto_map"),
    Case("tokenizer", remove("tokenizer.json"), "error", "found none"),
    Case("tokenizer", write("tokenizer.json", ""), "error", "found none"),
    Case("tokenizer", write("tokenizer.json", "version https://git-lfs"), "error", "git-lfs"),
    Case("tokenizer", write("tokenizer.json", '{"version": "1.0", "added'), "error", "ends with"),
    Case(
        "tokenizer",
        both(remove("tokenizer.json"), write("vocab.json", {}), write("merges.txt", "")),
        "error",
        "found none",
    ),
    Case(
        "tokenizer",
        both(remove("tokenizer.json"), write("vocab.json", {}), write("merges.txt", "#")),
        "error",
        "added_tokens.json",
    ),
    Case(
        "tokenizer",
        both(
            remove("tokenizer.json"),
            write("vocab.json", {"<|endoftext|>": 0, "a": 1}),
            write("merges.txt", "#version: 0.2\n"),
            write("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}),
        ),
        "error",
        "added_tokens.json",
        fix="tokenizer",
    ),
    Case("chat-template", write("tokenizer_config.json", {}), "note", "found none"),
    Case("chat-template", write("tokenizer_config.json", "{"), "error", "cannot be read"),
    Case("earlier-build", write("mlc-chat-config.json", {}), "error", "half-written", fix="stage"),
    Case("earlier-build", write("params_shard_0.bin", "x"), "error", "params_shard_0.bin", fix="stage"),
    Case("earlier-build", build(shard_bytes=15), "error", "found 15, expected 16", fix="stage"),
    Case("earlier-build", both(build(), remove("params_shard_0.bin")), "error", "no file", fix="stage"),
    Case("earlier-build", both(build(), remove("mlc-chat-config.json")), "error", "but no", fix="stage"),
    Case("earlier-build", both(build(), write("ndarray-cache.json", "{")), "error", "JSON", fix="stage"),
    Case("earlier-build", build(), "note", "complete"),
    Case("earlier-build", build(), "error", "already been compiled", image=OLD, fix="stage"),
    Case("earlier-build", alone(build(shard_bytes=15)), "error", "half-written"),
    Case("earlier-build", alone(build("tensor-cache.json")), "error", "ndarray-cache.json", fix="stage"),
    Case("earlier-build", alone(build()), "error", "makes its own build", image=OLD),
    Case("model-type", change(model_type="nemotron_h"), "error", "Unknown model type: nemotron_h"),
    Case("model-type", change(model_type="stablelm"), "warning", "stablelm_epoch", image=OLD),
    Case("tied-head", lambda path: None, "error", "bare AssertionError", image=OLD),
    Case("tied-head", index_of, "error", "KeyError", image=OLD),
    Case("tied-head", change(model_type="phi3"), "error", "extern parameters do not exist"),
    Case("tied-head", change(model_type="qwen2", tie_word_embeddings=None), "error", "tied", fix="config"),
    Case("tied-head", change(tie_word_embeddings=False), "error", "tie_word_embeddings is False"),
    Case("rope-theta", change(rope_theta=None, rope_parameters={"rope_theta": 5e5}), "error", "10000", NOW,
         "config"),
    Case("rope-theta", change(rope_theta=None, model_type="qwen3"), "error", "stops without it", NEWEST),
    Case("rope-theta", change(rope_theta=None, model_type="qwen2"), "error", "MLC stops without it"),
    Case("rope-theta", change(rope_theta=None, rope_parameters={"full": {"rope_theta": 5e5}}), "warning",
         "one set for each kind"),
    Case("rope-scaling", change(rope_scaling={"rope_type": "yarn"}), "error", "MLC asserts"),
    Case("rope-scaling", change(rope_scaling={"rope_type": "default"}), "error", "default", NOW, "config"),
    Case("rope-scaling", change(rope_scaling={"type": "linear"}), "warning", "does not read"),
    Case("rope-scaling", change(rope_parameters={"rope_type": "llama3"}), "error", "below", NOW, "config"),
    Case("rope-scaling", change(rope_parameters={"rope_type": "yarn"}), "error", "below"),
    Case("rope-scaling", change(model_type="phi3", rope_scaling={"type": "yarn"}), "error", "'longrope'"),
    Case("rope-scaling", change(model_type="qwen2", rope_scaling={"type": "yarn"}), "warning", "qwen2"),
    Case("rope-scaling", change(model_type="qwen2", rope_parameters={"type": "yarn"}), "warning", "yarn"),
    Case("head-dim", change(head_dim=64), "note", "head_dim: found 64, expected 128"),
    Case("head-dim", change(num_key_value_heads=2), "note", "found 2, expected 1, 4 or 8"),
    Case("head-dim", lambda path: None, "note", "float16", NEWEST, options={"quantization": "q4f32_1"}),
    Case("vocab-size", change(vocab_size=50260), "note", "leaves 4 over"),
    Case("vocab-size", change(vocab_size=50257), "note", "leaves 1 over"),
    Case("context", lambda path: None, "warning", "prefill chunk of 8192", options={"context_tokens": None}),
    Case("context", change(model_type="qwen3"), "warning", "prefill chunk of 2048", NEWEST,
         options={"context_tokens": None}),
    Case("context", lambda path: None, "warning", "--max-context-len", OLD, options={"context_tokens": None}),
    Case("context", lambda path: None, "warning", "at most 8192", options={"context_tokens": 8193}),
    Case("context", change(max_position_embeddings=None), "error", "Unable to determine"),
    Case("quantization", lambda path: None, "error", "'Q4_K_M'", options={"quantization": "Q4_K_M"}),
    Case("quantization", alone(build(quantization="q0f16")), "error", "found a build in 'q0f16'"),
    Case("quantization", change(model_type="qwen3"), "warning", "gibberish", NEWEST,
         options={"quantization": "q4f16_ft"}),
    Case("quantized-source", change(quantization_config={"quant_method": "gptq"}), "error", "'gptq'"),
    Case("quantized-source", lambda path: None, "error", "none", options={"quantization": "q4f16_autoawq"}),
    Case("group-size", lambda path: None, "error", "576", options={"quantization": "q4f16_autoawq"}),
    Case("group-size", change(intermediate_size=1500), "note", "1500"),
)  # fmt: skip


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A Llama against which no rule has anything to say."""
    return make_checkpoint("smollm2-135m-instruct", tmp_path / "sound", **SOUND)


def ask(path: Path, image: str = NOW, **options: Any) -> Report:
    return lint(path, image, **{"context_tokens": 2048, **options})


def test_sound_checkpoint_has_no_finding(sound: Path) -> None:
    """Nothing is said where nothing is to be said."""
    assert ask(sound).findings == ()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.rule}: {case.says}")
def test_broken_checkpoint_is_found(sound: Path, case: Case) -> None:
    """A rule that is broken says so, with its severity, the pass that helps, a hint and a source."""
    case.do(sound)
    found = [each for each in ask(sound, case.image, **case.options).findings if each.rule == case.rule]
    assert found, f"{case.rule} found nothing"
    finding = next((each for each in found if case.says in f"{each.message} {each.hint}"), None)
    assert finding is not None, found
    assert (finding.severity, finding.fix) == (case.severity, case.fix)
    assert finding.hint and finding.source


def test_path_with_a_slash_names_no_build_in_nano_llm(sound: Path) -> None:
    """NanoLLM names its build after what stands behind the last slash; later images do not."""
    [finding] = [each for each in ask_text(f"{sound}/", OLD) if each.rule == "path"]
    assert (finding.severity, finding.fix) == ("error", "stage")
    assert not [each for each in ask_text(str(sound), OLD) if each.rule == "path"]
    assert not [each for each in ask_text(f"{sound}/", NOW) if each.rule == "path"]


def ask_text(directory: str, image: str) -> tuple[Finding, ...]:
    return lint(directory, image, context_tokens=2048).findings


def test_prefixed_gpt2_is_found(tmp_path: Path) -> None:
    """Tensors named transformer.h.0... are renamed in a copy; names without the prefix need nothing."""
    prefixed = ask(make_checkpoint("distilgpt2", tmp_path / "distilgpt2"), context_tokens=1024)
    [finding] = prefixed.errors
    assert (finding.rule, finding.fix) == ("gpt2-names", "rename")
    assert "'transformer.h.0.attn.bias'" in finding.message
    assert "6 attn.masked_bias" in finding.message
    assert ask(make_checkpoint("gpt2", tmp_path / "gpt2"), context_tokens=1024).takes


def test_mask_alone_is_only_noted(tmp_path: Path) -> None:
    """attn.masked_bias without the prefix costs a warning of MLC's and stops nothing."""
    path = make_checkpoint("gpt2", tmp_path / "gpt2")
    shapes = shapes_of(json.loads((path / "config.json").read_text()))
    write_safetensors(path / "model.safetensors", {**shapes, "h.0.attn.masked_bias": ()})
    [finding] = [each for each in ask(path).findings if each.rule == "gpt2-names"]
    assert finding.severity == "note"


def test_two_whole_shards_pass(sound: Path) -> None:
    """Shards with an index that names them are as good as one file."""
    half_shards(sound)
    shapes = shapes_of(json.loads((sound / "config.json").read_text()))
    rest = {name: shapes[name] for name in sorted(shapes)[100:]}
    write_safetensors(sound / "model-00002-of-00002.safetensors", rest, "BF16")
    assert ask(sound).findings == ()


def test_links_are_as_good_as_files(sound: Path, tmp_path: Path) -> None:
    """The hub's cache, and a staged copy, are directories of links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in sound.iterdir():
        (linked / path.name).symlink_to(path)
    assert ask(linked).findings == ()


def test_build_of_its_own_passes(sound: Path) -> None:
    """A complete build of the wanted quantization is taken by a current image."""
    alone(build(num_attention_heads=4, num_key_value_heads=1, head_dim=128))(sound)
    assert ask(sound).findings == ()


def test_every_rule_is_broken_here() -> None:
    """There is no rule without a checkpoint that it finds."""
    apart = {"path", "gpt2-names"}
    assert {case.rule for case in CASES} | apart == {rule_name(rule) for rule in RULES}
