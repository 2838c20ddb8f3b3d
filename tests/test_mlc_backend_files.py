"""`inference.backends._mlc_files`: what is looked at before an engine sees a model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.backends._mlc_files import RECORD, open_model
from inference.errors import LoadFailedError
from tests.fake_mlc.mlc_llm.library import library
from tests.mlc_model import CONFIG, END, make_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny")


def opened(weights: Path) -> Path:
    run = weights.parent / "run"
    run.mkdir(exist_ok=True)
    return open_model(weights, run).directory


def test_the_view_has_both_names_and_the_weights_are_untouched(weights: Path) -> None:
    """Links in the worker's private directory; what was built stays as it is, but for our record."""
    before = {path.name for path in weights.iterdir()}
    view = opened(weights)
    assert (view / "ndarray-cache.json").read_bytes() == (weights / "tensor-cache.json").read_bytes()
    assert (view / "params_shard_0.bin").resolve() == weights / "params_shard_0.bin"
    assert {path.name for path in weights.iterdir()} - before == {RECORD}


def test_the_view_ends_texts_at_the_models_own_tokens(weights: Path) -> None:
    """mlc_llm looks at its conversation template only; the file itself is not changed."""
    config = json.loads((opened(weights) / "mlc-chat-config.json").read_text())
    assert config["conv_template"]["stop_token_ids"] == [END]
    assert json.loads((weights / "mlc-chat-config.json").read_text()) == CONFIG


def test_opening_twice_is_the_same(weights: Path) -> None:
    """A worker that is started again finds its links in place."""
    assert opened(weights) == opened(weights)


def cut_shard(weights: Path) -> None:
    (weights / "params_shard_0.bin").write_bytes(b"short")


def flip_a_bit(weights: Path) -> None:
    data = bytearray((weights / "params_shard_0.bin").read_bytes())
    data[100] ^= 1
    (weights / "params_shard_0.bin").write_bytes(data)


def escape(weights: Path) -> None:
    (weights / "tensor-cache.json").write_text('{"records": [{"dataPath": "../x", "nbytes": 1}]}')


def remove(name: str) -> Callable[[Path], None]:
    return lambda weights: (weights / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda weights: (weights / name).write_bytes(data)


def other_machine(weights: Path) -> None:
    data = bytearray((weights / "lib.so").read_bytes())
    struct.pack_into("<H", data, 18, 40)  # 32-bit ARM
    (weights / "lib.so").write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (cut_shard, "params_shard_0.bin: expected 4096 bytes, got 5"),
        (flip_a_bit, "params_shard_0.bin: the file has changed; its MD5 sum"),
        (escape, "expected the name of a file beside it"),
        (remove("params_shard_0.bin"), "expected a shard of 4096 bytes; there is none"),
        (remove("tensor-cache.json"), "expected tensor-cache.json or ndarray-cache.json; found neither"),
        (remove("mlc-chat-config.json"), "expected mlc-chat-config.json; there is none"),
        (remove("lib.so"), "expected one compiled library, lib.so; found none"),
        (write("tensor-cache.json", b"{"), "tensor-cache.json: not JSON"),
        (write("tensor-cache.json", b"[]"), "expected a JSON object, got a list"),
        (write("tensor-cache.json", b"{}"), "records: expected a list of shards"),
        (write("mlc-chat-config.json", b"{}"), "vocab_size: expected a number"),
        (write("lib.so", b"garbage"), "lib.so: expected a 64-bit shared library"),
        (write("lib.so", library()[:-20]), "lib.so: cut off after"),
        (other_machine, "lib.so: made for ELF machine 40"),
    ],
)
def test_what_would_hang_or_kill_the_engine_is_named(
    weights: Path, harm: Callable[[Path], object], words: str
) -> None:
    """The engine checks lengths only, late, and then waits for ever."""
    harm(weights)
    with pytest.raises(LoadFailedError, match=words) as caught:
        opened(weights)
    assert str(weights.parent) not in caught.value.message
    assert caught.value.hint == "build or pull the model again"


def test_a_library_of_another_name_is_taken_when_it_is_the_only_one(weights: Path) -> None:
    """Models that others compiled call it after themselves."""
    (weights / "lib.so").rename(weights / "tiny-cpu.so")
    run = weights.parent / "run"
    run.mkdir()
    assert open_model(weights, run).library.name == "tiny-cpu.so"


def test_sums_are_computed_once_and_again_after_a_change(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 GB take seconds to read; the record says that it was done, as long as nobody wrote to a shard."""
    opened(weights)
    counted: list[Path] = []
    import inference.backends._mlc_files as files

    sum_of = files._md5

    def count(path: Path) -> str:
        counted.append(path)
        return sum_of(path)

    monkeypatch.setattr(files, "_md5", count)
    opened(weights)
    assert counted == []
    flip_a_bit(weights)
    with pytest.raises(LoadFailedError, match="MD5"):
        opened(weights)
    assert len(counted) == 1


def test_a_read_only_store_is_served(weights: Path) -> None:
    """Without a place for the record the sums are computed each time."""
    (weights / RECORD).mkdir()  # what cannot be written, also by root
    assert opened(weights).is_dir()
    assert opened(weights).is_dir()
