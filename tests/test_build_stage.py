"""The staged checkpoint: what is linked, what is put right, what is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build import safetensors
from inference.artifacts.build.safetensors import block_of, into_shards, pieces_of
from inference.artifacts.build.stage import Staged, UnbuildableError, fix, stage, staging_bytes
from inference.artifacts.lint import lint
from inference.errors import CancelledError, InsufficientStorageError, UnsafeArtifactError
from tests.mlc_checkpoints import (
    break_checkpoint,
    make_gpt2,
    make_llama,
    make_qwen2,
    read_safetensors,
    write_safetensors,
)
from tests.mlc_tokenizer import END_OF_TEXT, IM_END

IMAGE = "dustynv/mlc:r36.4.0"
INDEX = "model.safetensors.index.json"


def prepare(source: Path, target: Path, shard_bytes: int | None = None) -> Staged:
    """Stage and fix without being disturbed; the source stays as it was, and the disk bytes as foretold."""
    before, foretold = state(source), staging_bytes(source, shard_bytes=shard_bytes)
    written: list[int] = []
    staged = stage(source, target, cancelled=lambda: False, advance=written.append)
    staged = fix(staged, shard_bytes=shard_bytes, cancelled=lambda: False, advance=written.append)
    assert state(source) == before
    files = [path for path in target.iterdir() if not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) == foretold
    assert sum(written) >= foretold  # an index may be written for the old names and for the new
    return staged


def state(directory: Path) -> dict[str, tuple[int, str]]:
    return {
        path.name: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.iterdir()
        if path.is_file()
    }


def change(directory: Path, name: str = "config.json", **changes: Any) -> Path:
    path = directory / name
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))
    return directory


def config_of(staged: Staged) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((staged.directory / "config.json").read_text())
    return tree


def tensors_of(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors, read through the index as MLC reads them."""
    weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
    files = {file: read_safetensors(directory / file) for file in set(weight_map.values())}
    assert {name for tensors in files.values() for name in tensors} == set(weight_map)
    return {name: files[file][name] for name, file in weight_map.items()}


def gpt2_names_that_mlc_wants(layers: int) -> set[str]:
    """Written down from python/mlc_llm/model/gpt2/gpt2_loader.py, mlc-ai/mlc-llm@79d603f."""
    names = {"wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"}
    for layer in range(layers):
        for module in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            names |= {f"h.{layer}.{module}.weight", f"h.{layer}.{module}.bias"}
    return names


def test_links_what_a_build_reads(tmp_path: Path) -> None:
    """A sound checkpoint is staged as links and an index; nothing of it is copied."""
    source = make_llama(tmp_path / "source")
    staged = prepare(source, tmp_path / "target")
    links = {path.name for path in staged.directory.iterdir() if path.is_symlink()}
    assert links == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in staged.directory.iterdir()} - links == {INDEX}
    assert all(Path(os.readlink(staged.directory / name)).is_absolute() for name in links)
    assert staged.changes == (f"{INDEX}: written anew from the headers of the weights",)


def test_works_from_a_relative_path_with_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The links hold wherever the step that reads them has its directory."""
    make_llama(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    stage(Path("source/"), Path("target"), cancelled=lambda: False)
    monkeypatch.chdir("/")
    assert (tmp_path / "target" / "model.safetensors").stat().st_size > 0


def test_leaves_out_what_is_not_for_a_build(tmp_path: Path) -> None:
    """Pickles, code, other weights, an earlier build's files, tiktoken files and dangling links stay out."""
    source = make_llama(tmp_path / "source", shards=2)
    for name in (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "modeling_x.py",
        "consolidated.safetensors",
        "mlc-chat-config.json",
        "params_shard_0.bin",
        "qwen.tiktoken",
    ):
        (source / name).write_bytes(b"x")
    (source / "merges.txt").symlink_to("nowhere")
    (source / "params").mkdir()
    staged = stage(source, tmp_path / "target", cancelled=lambda: False)
    names = {path.name for path in staged.directory.iterdir()}
    assert names == {
        "config.json",
        INDEX,
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (staged.directory / INDEX).is_symlink()
    assert "'consolidated.safetensors'" in staged.changes[0]
    assert "and 2 more" in staged.changes[0]


def test_follows_the_links_of_the_hubs_cache(tmp_path: Path) -> None:
    """A snapshot whose files are links to blobs is staged under the snapshot's names."""
    real = make_llama(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in real.iterdir():
        (snapshot / path.name).symlink_to(f"../blobs/{path.name}")
    staged = prepare(snapshot, tmp_path / "target")
    assert os.readlink(staged.directory / "model.safetensors") == str(real / "model.safetensors")


def test_target_must_be_new(tmp_path: Path) -> None:
    """Nothing that is there already is mixed with a staged checkpoint."""
    source = make_llama(tmp_path / "source")
    (tmp_path / "target").mkdir()
    with pytest.raises(FileExistsError):
        stage(source, tmp_path / "target", cancelled=lambda: False)


@pytest.mark.parametrize("how", ["stale index", "absent shard"])
def test_stale_index_is_replaced(tmp_path: Path, how: str) -> None:
    """An index that is not true of the weights is not linked; one from their headers takes its place."""
    source = break_checkpoint(make_llama(tmp_path / "source"), how)
    staged = prepare(source, tmp_path / "target")
    found = {name: value[2] for name, value in tensors_of(staged.directory).items()}
    assert found == {name: value[2] for name, value in read_safetensors(source / "model.safetensors").items()}


def test_one_file_of_any_name_is_taken(tmp_path: Path) -> None:
    """A single weights file needs no certain name, and shards that are all there no index."""
    source = make_llama(tmp_path / "source")
    (source / "model.safetensors").rename(source / "weights.safetensors")
    assert len(tensors_of(prepare(source, tmp_path / "one").directory)) == 20
    shards = make_llama(tmp_path / "shards", shards=3)
    (shards / INDEX).unlink()
    assert len(tensors_of(prepare(shards, tmp_path / "three").directory)) == 20


def cut_weights(directory: Path) -> None:
    break_checkpoint(directory, "cut")


def nan_in_config(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(path.read_text().replace("{", '{"eps": NaN,', 1))


def key_twice(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(path.read_text().replace("{", '{"vocab_size": 1,', 1))


def index_that_leaves(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "model.safetensors")
    (directory / INDEX).write_text('{"weight_map": {"x": "../model.safetensors"}}')


def pickle_called_model(directory: Path) -> None:
    (directory / "tokenizer.model").write_bytes(b"\x80\x04\x95\x10")


def zip_called_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_bytes(b"PK\x03\x04")


def old_pickle_called_text(directory: Path) -> None:
    (directory / "merges.txt").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")


def pickle_called_safetensors(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def pointer_called_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1")


def tensor_in_two_files(directory: Path) -> None:
    data = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").unlink()
    for part in (1, 2):
        (directory / f"model-0000{part}-of-00002.safetensors").write_bytes(data)


def directory_called_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()


def one_shard_of_two(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    (directory / "model-00001-of-00003.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_weights, "model.safetensors: header: the tensors take"),
        (nan_in_config, "config.json: eps: expected a finite number, got NaN"),
        (key_twice, "config.json: vocab_size: expected this key once"),
        (index_that_leaves, "weights: found none; expected model.safetensors"),
        (pickle_called_model, "tokenizer.model: found a pickle"),
        (zip_called_template, "chat_template.jinja: found a pickle"),
        (old_pickle_called_text, "merges.txt: found a pickle"),
        (pickle_called_safetensors, "model.safetensors: header"),
        (pointer_called_tokenizer, "tokenizer.json: "),
        (tensor_in_two_files, "found a tensor in two files"),
        (directory_called_weights, "weights: found none"),
        (one_shard_of_two, "weights: found 'model-00001-of-00002.safetensors', 'model-00001-of-00003"),
        (lambda path: break_checkpoint(path, "pickle only"), "weights: found none"),
        (lambda path: break_checkpoint(path, "no config"), "config.json: not found"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_refuses_what_is_not_sound(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    """Whatever is malformed, is a pickle by its content, or points elsewhere is refused by its name."""
    source = make_llama(tmp_path / "source")
    damage(source)
    with pytest.raises(UnsafeArtifactError, match=says.replace(".", r"\.")):
        stage(source, tmp_path / "target", cancelled=lambda: False)


def test_refuses_an_index_of_absent_shards(tmp_path: Path) -> None:
    """Shards of which one is not here are refused before MLC opens the others."""
    source = make_llama(tmp_path / "source", shards=3)
    (source / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        UnsafeArtifactError, match=r"names 'model-00002-of-00003\.safetensors', which are not"
    ):
        stage(source, tmp_path / "target", cancelled=lambda: False)


@pytest.mark.parametrize("prefixed", [True, False], ids=["as transformers saves", "as OpenAI's"])
def test_gpt2_ends_in_the_names_that_mlc_wants(tmp_path: Path, prefixed: bool) -> None:
    """Whatever the tensors are called, MLC finds each of its own; masks cost nothing but a warning."""
    source = make_gpt2(tmp_path / "source", prefixed=prefixed)
    staged = prepare(source, tmp_path / "target")
    found, given = tensors_of(staged.directory), read_safetensors(source / "model.safetensors")
    assert found.keys() == gpt2_names_that_mlc_wants(layers=2)
    prefix = "transformer." if prefixed else ""
    assert all(value == given[f"{prefix}{name}"] for name, value in found.items())
    assert (staged.directory / "model.safetensors").is_symlink() == (not prefixed)
    assert lint(staged.directory, IMAGE, context_tokens=128).takes


def test_gpt2_with_masks_and_without_prefix_is_left_alone(tmp_path: Path) -> None:
    """h.N.attn.bias is declared unused in MLC's loader, so that OpenAI's GPT-2 is converted as it is."""
    source = make_gpt2(tmp_path / "source")
    tensors = {name: (shape, data) for name, (_, shape, data) in weights_of(source).items()}
    tensors["h.0.attn.bias"] = ((1, 1, 2, 2), bytes(16))
    write_safetensors(source / "model.safetensors", tensors, "F32")
    staged = prepare(source, tmp_path / "target")
    assert (staged.directory / "model.safetensors").is_symlink()
    assert lint(staged.directory, IMAGE, context_tokens=128).takes


def weights_of(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return read_safetensors(directory / "model.safetensors")


def test_gpt2_head_that_is_tied_is_left_out(tmp_path: Path) -> None:
    """MLC makes the head of wte; one of its own is refused, for MLC would not use it."""
    source = make_gpt2(tmp_path / "source", prefixed=True)
    tensors = {name: (shape, data) for name, (_, shape, data) in weights_of(source).items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    write_safetensors(source / "model.safetensors", tensors, "F32")
    assert "lm_head.weight" not in tensors_of(prepare(source, tmp_path / "target").directory)
    change(source, tie_word_embeddings=False)
    with pytest.raises(UnbuildableError, match=r"lm_head\.weight: found weights of its own"):
        prepare(source, tmp_path / "other")


def test_gpt2_with_both_names_is_refused(tmp_path: Path) -> None:
    """A tensor that is there with and without the prefix has no certain meaning."""
    source = make_gpt2(tmp_path / "source", prefixed=True)
    tensors = {name: (shape, data) for name, (_, shape, data) in weights_of(source).items()}
    tensors["wte.weight"] = tensors["transformer.wte.weight"]
    write_safetensors(source / "model.safetensors", tensors, "F32")
    with pytest.raises(UnsafeArtifactError, match=r"'wte\.weight' with and without"):
        prepare(source, tmp_path / "target")


@pytest.mark.parametrize("make", [make_llama, make_qwen2])
def test_rope_theta_of_transformers_5_comes_to_the_top(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """Both kinds of model get the rope_theta that their own configuration has, and dtype's old name."""
    source = break_checkpoint(make(tmp_path / "source"), "rope_parameters")
    assert not lint(source, IMAGE, context_tokens=128).takes
    staged = prepare(source, tmp_path / "target")
    config = config_of(staged)
    assert (config["rope_theta"], config["torch_dtype"]) == (100000.0, "bfloat16")
    assert "dtype" not in config
    assert "rope_scaling" not in config  # of type default, which LlamaConfig's assertion refuses
    assert lint(staged.directory, IMAGE, context_tokens=128).takes


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            {"rope_parameters": {"rope_theta": 5.0, **LLAMA3}, "rope_theta": None},
            {"rope_theta": 5.0, "rope_scaling": LLAMA3},
        ),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0}, {"rope_theta": 7.0}),
        ({"rope_scaling": {"rope_type": "default"}}, {"rope_scaling": None}),
        ({"rope_scaling": LLAMA3}, {"rope_scaling": LLAMA3}),
        (
            {"rope_parameters": {"rope_theta": 5.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
            {"partial_rotary_factor": 0.5},
        ),
        (
            {
                "rope_theta": None,
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                },
            },
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        ),
        (
            {"text_config": {"rope_parameters": {"rope_theta": 3.0}, "_name_or_path": "a/b"}},
            {"text_config": {"rope_parameters": {"rope_theta": 3.0}, "rope_theta": 3.0}},
        ),
        ({"torch_dtype": None, "dtype": "float16"}, {"torch_dtype": "float16", "dtype": None}),
        ({"auto_map": {"AutoModel": "evil--x.Y"}, "_name_or_path": "/srv"}, {"auto_map": None}),
        ({"tie_word_embeddings": None}, {"tie_word_embeddings": True}),
        ({"tie_word_embeddings": False}, {"tie_word_embeddings": False}),
    ],
)
def test_config_is_what_mlc_reads(tmp_path: Path, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Keys come to where MLC's classes look for them; nothing that is there is overwritten."""
    source = change(make_llama(tmp_path / "source"), **given)
    config = config_of(prepare(source, tmp_path / "target"))
    assert {key: config.get(key) for key in wanted} == wanted
    assert not [key for key in config if key.startswith("_")]


def test_config_that_is_right_stays_a_link(tmp_path: Path) -> None:
    """Nothing is written where nothing is wrong."""
    staged = prepare(make_qwen2(tmp_path / "source"), tmp_path / "target")
    assert (staged.directory / "config.json").is_symlink()


def test_head_that_is_there_ties_nothing(tmp_path: Path) -> None:
    """tie_word_embeddings is set only where the head is missing."""
    source = change(make_llama(tmp_path / "source", tied=False), tie_word_embeddings=None)
    assert "tie_word_embeddings" not in config_of(prepare(source, tmp_path / "target"))


def test_tokenizer_settings_name_no_code_and_no_file(tmp_path: Path) -> None:
    """gen_config opens the tokenizer with transformers, which would look for what these keys name."""
    source = make_llama(tmp_path / "source")
    change(
        source,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil--x.Y", None]},
        vocab_file="/etc/passwd",
        name_or_path="a/b",
    )
    staged = prepare(source, tmp_path / "target")
    settings = json.loads((staged.directory / "tokenizer_config.json").read_text())
    assert not settings.keys() & {"auto_map", "vocab_file", "name_or_path"}
    assert settings["eos_token"] == IM_END
    assert "tokenizer_config.json: left auto_map, name_or_path, vocab_file out" in staged.changes


def test_tokenizer_json_is_written_from_its_parts(tmp_path: Path) -> None:
    """vocab.json and merges.txt alone, as DialoGPT has, become a tokenizer.json of the same tokens."""
    source = make_gpt2(tmp_path / "source", tokenizer="vocab")
    other = make_gpt2(tmp_path / "other")
    staged = prepare(source, tmp_path / "target")
    tree = json.loads((staged.directory / "tokenizer.json").read_text())
    wanted = json.loads((other / "tokenizer.json").read_text())
    assert tree["model"]["vocab"] == wanted["model"]["vocab"]
    assert tree["model"]["merges"] == wanted["model"]["merges"]
    assert tree["decoder"]["type"] == tree["pre_tokenizer"]["type"] == "ByteLevel"
    assert tree["pre_tokenizer"]["add_prefix_space"] is False
    end = tree["model"]["vocab"][END_OF_TEXT]
    assert [(each["id"], each["content"], each["special"]) for each in tree["added_tokens"]] == [
        (end, END_OF_TEXT, True)
    ]
    assert lint(staged.directory, IMAGE, context_tokens=128).takes


def test_added_tokens_come_behind_the_vocabulary(tmp_path: Path) -> None:
    """Tokens of added_tokens.json keep their numbers, and those with a role are special."""
    source = make_gpt2(tmp_path / "source", tokenizer="vocab")
    count = len(json.loads((source / "vocab.json").read_text()))
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": count + 1, "<x>": count}))
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<pad>"}}))
    tree = json.loads((prepare(source, tmp_path / "target").directory / "tokenizer.json").read_text())
    assert [(each["id"], each["content"], each["special"]) for each in tree["added_tokens"][1:]] == [
        (count, "<x>", False),
        (count + 1, "<pad>", True),
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("merges.txt", "#version: 0.2\nĠ t\nab cd\n", "line 3: expected two tokens"),
        ("merges.txt", "#version: 0.2\nt\n", "line 2: expected two tokens"),
        ("vocab.json", '{"a": 1, "b": 1}', "found a number twice"),
        ("vocab.json", '{"a": true}', "expected a number below"),
        ("vocab.json", '{"a": 1, "a": 2}', "expected this key once"),
        ("vocab.json", '["a"]', "expected an object"),
        ("vocab.json", '{"a": 1', "not JSON"),
        ("added_tokens.json", '{"<x>": 9999}', "without a gap"),
        ("added_tokens.json", '{"<|endoftext|>": 3}', "found another number in vocab.json"),
        ("tokenizer_config.json", '{"add_bos_token": true}', "add_bos_token"),
    ],
)
def test_unsound_parts_of_a_tokenizer_are_refused(tmp_path: Path, name: str, text: str, says: str) -> None:
    """What the engine's tokenizer would refuse, or number otherwise, is refused with its place."""
    source = make_gpt2(tmp_path / "source", tokenizer="vocab")
    (source / name).write_text(text)
    with pytest.raises(UnsafeArtifactError, match=says) as caught:
        prepare(source, tmp_path / "target")
    assert caught.value.message.startswith(name)


@pytest.mark.parametrize(
    "prepared", [lambda path: break_checkpoint(make_llama(path), "no tokenizer"),
                 lambda path: make_llama(path, tokenizer="vocab", model_type="novelty")],
)  # fmt: skip
def test_tokenizer_of_another_kind_is_not_guessed(tmp_path: Path, prepared: Callable[[Path], Path]) -> None:
    """Only GPT-2's tokenizer is made of its parts; another kind splits its text by other rules."""
    source = prepared(tmp_path / "source")
    change(source, "tokenizer_config.json", tokenizer_class="Qwen2Tokenizer")
    with pytest.raises(UnbuildableError, match=r"found no tokenizer\.json") as caught:
        prepare(source, tmp_path / "target")
    assert caught.value.cached


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_low_memory_mode_writes_small_shards(tmp_path: Path, make: Callable[..., Path]) -> None:
    """Every tensor is in one shard, the same as before; none is larger than asked but for one tensor."""
    source = make(tmp_path / "source", shards=2)
    limit = 100_000
    staged = prepare(source, tmp_path / "target", shard_bytes=limit)
    given: dict[str, Any] = {}
    for path in source.glob("*.safetensors"):
        given |= read_safetensors(path)
    assert tensors_of(staged.directory) == given
    sizes = [[len(data) for *_, data in read_safetensors(path).values()]
             for path in staged.directory.glob("*.safetensors")]  # fmt: skip
    assert all(sum(each) <= limit or len(each) == 1 for each in sizes)
    assert len(sizes) > 3
    assert {path.stat().st_nlink for path in staged.directory.iterdir()} == {1}


def test_low_memory_mode_drops_gpt2_masks(tmp_path: Path) -> None:
    """With the prefix and masks, both passes are one."""
    source = make_gpt2(tmp_path / "source", prefixed=True)
    staged = prepare(source, tmp_path / "target", shard_bytes=200_000)
    assert tensors_of(staged.directory).keys() == gpt2_names_that_mlc_wants(layers=2)


def test_parts_of_one_parameter_stay_together(tmp_path: Path) -> None:
    """MLC joins query, key and value, and gate and up: they share a shard where one can hold them."""
    pieces = pieces_of(make_llama(tmp_path / "source") / "model.safetensors")
    for shard_bytes in (200_000, 300_000):
        where = {
            piece.name: number
            for number, shard in enumerate(into_shards(pieces, shard_bytes))
            for piece in shard
        }
        for layer in (0, 1):
            for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                          ("mlp.gate_proj", "mlp.up_proj")):  # fmt: skip
                assert len({where[f"model.layers.{layer}.{name}.weight"] for name in group}) == 1


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn"),
        ("model.layers.12.mlp.experts.7.gate_proj.weight", "model.layers.12.mlp"),
        ("h.0.attn.c_attn.bias", "h.0.attn"),
        ("transformer.h.11.mlp.c_fc.weight", "transformer.h.11.mlp"),
        ("lm_head.weight", "lm_head.weight"),
        ("wte.weight", "wte.weight"),
    ],
)
def test_block_of_a_tensor(name: str, block: str) -> None:
    """A block is a layer's part; tensors outside layers are blocks of their own."""
    assert block_of(name) == block


def test_numbers_of_several_widths_are_aligned(tmp_path: Path) -> None:
    """Each tensor begins at a multiple of its number's width: PyTorch refuses to view others."""
    source = make_llama(tmp_path / "source")
    tensors = weights_of(source)
    tree = {"a.odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    header = json.dumps(tree).encode()
    (source / "extra.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    weight_map = {name: "model.safetensors" for name in tensors} | {"a.odd": "extra.safetensors"}
    (source / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    staged = prepare(source, tmp_path / "target", shard_bytes=10**9)
    (path,) = staged.directory.glob("*.safetensors")
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0
    for name, each in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__" and each["dtype"] == "BF16":
            assert each["data_offsets"][0] % 2 == 0
    assert tensors_of(staged.directory)["a.odd"] == ("U8", (3,), b"abc")


def test_is_cancelled_between_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of many gigabytes ends at its next block."""
    monkeypatch.setattr(safetensors, "BLOCK_BYTES", 1000)
    source = make_gpt2(tmp_path / "source", prefixed=True)
    staged = stage(source, tmp_path / "target", cancelled=lambda: False)
    stop, written = threading.Event(), []

    def advance(count: int) -> None:
        written.append(count)
        if sum(written) > 50_000:
            stop.set()

    with pytest.raises(CancelledError):
        fix(staged, shard_bytes=None, cancelled=stop.is_set, advance=advance)
    assert sum(written) < 60_000
    with pytest.raises(CancelledError):
        stage(source, tmp_path / "other", cancelled=lambda: True)


def test_full_disk_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while tensors are copied says so, with what is free."""
    source = make_gpt2(tmp_path / "source", prefixed=True)
    staged = stage(source, tmp_path / "target", cancelled=lambda: False)

    def full(count: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InsufficientStorageError, match="the disk filled up"):
        fix(staged, shard_bytes=None, cancelled=lambda: False, advance=full)


def test_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    """A source that is cut while it is read ends in an error, not in a shorter tensor."""
    source = make_gpt2(tmp_path / "source", prefixed=True)
    pieces = pieces_of(source / "model.safetensors")
    break_checkpoint(source, "cut")
    with pytest.raises(UnsafeArtifactError, match="became shorter"):
        safetensors.write(tmp_path / "out", pieces, cancelled=lambda: False, advance=lambda count: None)
