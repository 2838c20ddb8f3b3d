"""The GGUF header check: what is read from a sound file, and every way a file can be unsound."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.artifacts.gguf import GGUFHeader, check_gguf
from inference.errors import UnsafeArtifactError
from tests.synthetic_gguf import (
    ARRAY,
    BOOL,
    ENTRIES,
    STRING,
    TENSORS,
    Tensor,
    entry,
    make,
    number,
    strings,
    text,
)

Check = Callable[[bytes], GGUFHeader]
SOUND = make()
DATA_START = len(SOUND) - (1280 + 128 + 128)


@pytest.fixture(scope="session")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every example is written, in turn."""
    return tmp_path_factory.mktemp("gguf") / "model.gguf"


@pytest.fixture
def check(gguf_path: Path) -> Check:
    """`check_gguf` of bytes."""

    def check_bytes(data: bytes) -> GGUFHeader:
        gguf_path.write_bytes(data)
        return check_gguf(gguf_path)

    return check_bytes


def test_reads_the_shape_of_the_model(check: Check) -> None:
    """A sound header gives architecture, shape numbers and counts, arrays by their length only."""
    header = check(SOUND)
    assert (header.architecture, header.layers, header.context_length) == ("llama", 2, 512)
    assert (header.hidden_size, header.kv_heads, header.head_dim) == (64, 2, 16)
    assert (header.vocab_size, header.has_chat_template) == (5, True)
    assert header.array_lengths == {"tokenizer.ggml.tokens": 5, "tokenizer.ggml.scores": 5}
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.tensor_bytes == 1280 + 108 + 128
    assert header.file_bytes == len(SOUND)


def test_unknown_shape_numbers_are_none(check: Check) -> None:
    """What the file does not say, or says with the wrong type, is None and never a guess."""
    header = check(make([entry("general.architecture", BOOL, b"\x00")]))
    assert header.architecture is None
    assert (header.layers, header.kv_heads, header.head_dim, header.vocab_size) == (None, None, None, None)
    assert header.has_chat_template is False
    varied = [
        *(e for e in ENTRIES if b"head_count_kv" not in e),
        strings("llama.attention.head_count_kv", ["1"]),
    ]
    assert check(make(varied)).kv_heads is None


def test_version_2_is_read(check: Check) -> None:
    """Versions 2 and 3 have the same layout."""
    assert check(make(version=2)).version == 2


def test_the_padding_after_the_last_tensor_may_lack(check: Check) -> None:
    """A file may end with the last tensor's last byte."""
    tensors = (Tensor("a", (64,), 2, 36),)
    data = make(tensors=tensors)
    assert check(data[: len(data) - 28]).tensor_bytes == 36


def test_every_truncation_is_refused(gguf_path: Path) -> None:
    """No prefix of a sound file passes, wherever it is cut."""
    gguf_path.write_bytes(SOUND)
    for length in range(len(SOUND) - 1, -1, -1):
        os.truncate(gguf_path, length)
        with pytest.raises(UnsafeArtifactError):
            check_gguf(gguf_path)


BIG = 2**63
MALFORMED = {
    "empty": (b"", "the file is empty"),
    "a web page": (b"<!DOCTYPE html>", "not a GGUF file: it begins with b'<!DO'"),
    "version 1": (make(version=1), "version 1; expected 2 or 3"),
    "big-endian": (make(version=3 << 24), "(big-endian)"),
    "no tensors": (make(tensors=()), "declares 0 tensors"),
    "too many tensors": (make(tensor_count=100_001), "declares 100001 tensors"),
    "more tensors than there are": (make(tensor_count=50_000), "tensor"),
    "too many entries": (make(entry_count=BIG), "metadata entries"),
    "a repeated key": (make([*ENTRIES, ENTRIES[0]]), "'general.architecture' appears twice"),
    "an endless key": (make([struct.pack("<Q", BIG)]), "a metadata key of"),
    "an endless string": (make([entry("a", STRING, struct.pack("<Q", BIG))]), "a metadata string of"),
    "an unknown value type": (make([entry("a", 13, b"")]), "'a' has unknown type 13"),
    "a boolean of 2": (make([entry("a", BOOL, b"\x02")]), "expected a boolean, found byte 2"),
    "an endless array of strings": (make([entry("a", ARRAY, struct.pack("<IQ", STRING, BIG))]), "declares"),
    "an endless array": (make([entry("a", ARRAY, struct.pack("<IQ", 12, BIG))]), "truncated"),
    "a long string in an array": (
        make([entry("a", ARRAY, struct.pack("<IQQ", STRING, 1, BIG))]),
        f"of {BIG} bytes",
    ),
    "an array of arrays": (make([entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "unknown type 9"),
    "an odd alignment": (make([number("general.alignment", 48)]), "power of two, found 48"),
    "an alignment of 0": (make([number("general.alignment", 0)]), "power of two, found 0"),
    "a textual alignment": (make([entry("general.alignment", STRING, text("32"))]), "found '32'"),
    "a repeated tensor": (make(tensors=(TENSORS[0], TENSORS[0])), "'token_embd.weight' appears twice"),
    "a long tensor name": (make(tensors=(replace(TENSORS[0], name="x" * 257),)), "a tensor name of 257"),
    "no dimensions": (make(tensors=(replace(TENSORS[0], shape=()),)), "has 0 dimensions"),
    "five dimensions": (make(tensors=(replace(TENSORS[0], shape=(1,) * 5),)), "has 5 dimensions"),
    "an empty dimension": (make(tensors=(replace(TENSORS[0], shape=(64, 0)),)), "impossible shape"),
    "an overflow of dimensions": (
        make(tensors=(replace(TENSORS[0], shape=(2**32,) * 4),)),
        "impossible shape",
    ),
    "half a block": (make(tensors=(Tensor("a", (33,), 2, 64),)), "impossible shape [33]"),
    "an unknown tensor type": (make(tensors=(replace(TENSORS[0], code=99),)), "unknown type 99"),
    "a removed tensor type": (make(tensors=(replace(TENSORS[0], code=4),)), "unknown type 4"),
    "an offset beyond the file": (
        make(tensors=(TENSORS[0], replace(TENSORS[1], offset=2**62))),
        "expected 1280",
    ),
    "overlapping tensors": (make(tensors=(TENSORS[0], replace(TENSORS[1], offset=32))), "is at offset 32"),
    "a tensor longer than the file": (make(tensors=(Tensor("a", (64, 1000), 0, 64),)), "truncated"),
}


@pytest.mark.parametrize(("data", "reason"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused_with_the_reason(check: Check, data: bytes, reason: str) -> None:
    """Each defect has its own words, after the name of the file and before a hint."""
    with pytest.raises(UnsafeArtifactError) as caught:
        check(data)
    assert caught.value.message.startswith("model.gguf: ")
    assert reason in caught.value.message
    assert caught.value.hint


def test_the_subject_names_the_file(gguf_path: Path) -> None:
    """A file of the store is called by its model, not by its hash."""
    gguf_path.write_bytes(b"")
    with pytest.raises(UnsafeArtifactError, match=r"^smollm2: the file is empty"):
        check_gguf(gguf_path, subject="smollm2")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """A missing path, a directory and a pipe are refused and never waited for."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path / "absent", tmp_path, pipe):
        with pytest.raises(UnsafeArtifactError):
            check_gguf(path)


def test_arrays_longer_than_the_read_window_are_walked(check: Check) -> None:
    """Strings that lie across the window's edge, and arrays of many windows, are stepped over."""
    tokens = ["x" * (index % 7000) for index in range(1000)]
    header = check(make([*ENTRIES[:1], strings("tokens", tokens), *ENTRIES[1:]]))
    assert header.array_lengths["tokens"] == 1000
    assert header.layers == 2


def accepted_or_refused(path: Path, data: bytes) -> None:
    """Fail on any other outcome."""
    path.write_bytes(data)
    try:
        header = check_gguf(path)
    except UnsafeArtifactError:
        return
    assert header.tensor_bytes <= header.file_bytes


FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


@FUZZ
@given(st.binary(max_size=400))
def test_garbage_after_the_magic_is_refused_or_sound(gguf_path: Path, tail: bytes) -> None:
    """Random bytes raise nothing but UnsafeArtifactError."""
    accepted_or_refused(gguf_path, b"GGUF" + struct.pack("<I", 3) + tail)


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, DATA_START - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(SOUND)),
)
def test_mutations_are_refused_or_sound(gguf_path: Path, edits: list[tuple[int, int]], cut: int) -> None:
    """Changed bytes in the header, and a cut after them, raise nothing but UnsafeArtifactError."""
    data = bytearray(SOUND)
    for position, value in edits:
        data[position] = value
    accepted_or_refused(gguf_path, bytes(data))
    accepted_or_refused(gguf_path, bytes(data[:cut]))


@FUZZ
@given(st.integers(0, DATA_START - 8), st.sampled_from([0, 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1]))
def test_hostile_lengths_are_refused_or_sound(gguf_path: Path, position: int, value: int) -> None:
    """A huge number in place of any count, length or offset allocates nothing of that size."""
    data = bytearray(SOUND)
    data[position : position + 8] = struct.pack("<Q", value)
    accepted_or_refused(gguf_path, bytes(data))


def test_only_a_first_shard_may_hold_metadata_alone(tmp_path: Path) -> None:
    """Large models are often cut so that their first file has no tensors; any other file has some."""
    path = tmp_path / "a-00001-of-00002.gguf"
    path.write_bytes(make([*ENTRIES, number("split.no", 0)], []))
    assert check_gguf(path).tensor_count == 0
    for entries in (ENTRIES, [*ENTRIES, number("split.no", 1)]):
        path.write_bytes(make(entries, []))
        with pytest.raises(UnsafeArtifactError, match="declares 0 tensors"):
            check_gguf(path)
