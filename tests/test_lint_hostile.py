"""The linter on directories that are filled so as to hang, or to exhaust, who reads them."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.lint import checkpoint
from tests.checkpoints import MODELS, make_checkpoint
from tests.test_lint_garbage import FILES, MOST_S, ask


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint to be spoilt."""
    return make_checkpoint(MODELS[3], tmp_path / "spoilt")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "directory", "loop", "dangling", "endless"])
def test_what_is_no_file_is_not_waited_for(path: Path, name: str, kind: str) -> None:
    """Nothing is read from a pipe, a socket, a device or a link to one, wherever a file is expected."""
    target = path / name
    target.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            here = Path.cwd()
            os.chdir(path)  # the name of a socket has at most 107 bytes
            try:
                server.bind(name)
            finally:
                os.chdir(here)
    elif kind == "directory":
        target.mkdir()
    else:
        to = {"device": "/dev/zero", "loop": name, "dangling": "gone", "endless": "/proc/self/pagemap"}[kind]
        target.symlink_to(to)
    report = ask(path)
    if name == "config.json":
        assert not report.takes


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_pipe_that_takes_the_place_of_a_file(path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was a file when the directory was listed may be a pipe when it is opened."""
    listed = checkpoint._listing(path)
    (path / name).unlink()
    os.mkfifo(path / name)
    monkeypatch.setattr(checkpoint, "_listing", lambda _: listed)
    with deadline():
        assert "expected a file" in str(ask(path).errors)


@contextmanager
def deadline() -> Iterator[None]:
    """Fail what waits for a pipe."""

    def fail(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(int(MOST_S))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_is_no_file_is_named_as_such(path: Path) -> None:
    """A pipe in the place of config.json is not called absent."""
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")
    assert "found what is no file" in str(ask(path).errors)


def test_json_of_many_megabytes_is_told(path: Path) -> None:
    """JSON that is too long is a finding, even if it is sound."""
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text + " " * 5 * 2**20)
    assert "expected at most 4,194,304 bytes" in str(ask(path).errors)


@pytest.mark.parametrize("key", ["model_type", "quantization_config", "rope_scaling"])
def test_long_values_are_cut_short(path: Path, key: str) -> None:
    """A message shows the begin of a value, not a megabyte of it."""
    long = "x" * 100_000
    value: Any = long if key == "model_type" else {"quant_method": long, "rope_type": long}
    config = {**json.loads((path / "config.json").read_text()), key: value}
    (path / "config.json").write_text(json.dumps(config))
    assert not ask(path).takes


def test_directory_that_loops(path: Path) -> None:
    """A link to the directory itself, also as params/, is not followed without end."""
    (path / "params").symlink_to(".")
    (path / "self").symlink_to(path)
    ask(path)
    (path / "params").unlink()
    (path / "params").symlink_to("params")
    assert "params" in str(ask(path).findings)


@pytest.mark.parametrize("name", FILES)
def test_huge_file_is_not_read_whole(path: Path, name: str) -> None:
    """A file of a terabyte costs no more than a small one."""
    (path / name).touch()
    os.truncate(path / name, 2**40)
    ask(path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 10_000 + "}", '{"weight_map": ' + "[" * 200_000],
    ids=["brackets", "braces", "digits", "map"],
)
def test_deep_json_is_told(path: Path, name: str, content: str) -> None:
    """JSON that is nested without end, or a number without end, is a finding."""
    (path / name).write_text(content)
    assert name.removesuffix(".json") in str(ask(path).findings)


def test_header_of_brackets_is_told(path: Path) -> None:
    """A header nested without end is a finding."""
    raw = b'{"a":' + b"[" * 100_000
    (path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert "nested" in str(ask(path).errors)


def test_headers_are_read_up_to_a_sum(path: Path) -> None:
    """Many weights files with large headers cost no more than a few."""
    raw = json.dumps({"__metadata__": {"x": " " * (4 * 2**20 - 100)}}).encode()
    (path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    for number in range(40):
        os.link(path / "a.safetensors", path / f"b{number:02}.safetensors")
    assert "in all files" in str(ask(path).errors)


def test_directory_of_too_many_files_is_told(path: Path) -> None:
    """What has ten thousand files is no model."""
    for number in range(10_001):
        os.link(path / "config.json", path / f"{number}.json")
    [finding] = ask(path).errors
    assert finding.rule == "directory"
    assert "10,000" in finding.message


@pytest.mark.parametrize("given", ["", "/dev/null", "gone", "a\0b", "x" * 5000, "/proc/self/mem", "/"])
def test_path_of_anything(given: str) -> None:
    """Any text may be given as a path."""
    assert not ask(given).takes


def test_file_that_may_not_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of somebody else's is a finding, with the system's own reason."""
    opened = os.open

    def refuse(target: Any, *arguments: Any, **options: Any) -> int:
        if str(target).endswith(("/config.json", ".safetensors", "tokenizer.json")):
            raise PermissionError(13, "Permission denied", str(target))
        return opened(target, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    report = ask(path)
    assert {finding.rule for finding in report.errors} == {"config", "weights", "tokenizer"}
    assert all("Permission denied" in finding.message for finding in report.errors)


def test_file_that_has_nothing_to_say_yet(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files of the kernel are files by their type, and read as None where one would wait."""

    class Silent(io.BytesIO):
        def read(self, size: int | None = -1, /) -> Any:
            return None

        def fileno(self) -> int:
            return descriptor

    descriptor = os.open(path / "config.json", os.O_RDONLY)
    monkeypatch.setattr(os, "fdopen", lambda *_: Silent())
    try:
        report = ask(path)
    finally:
        os.close(descriptor)
    assert {finding.rule for finding in report.errors} == {"config", "weights", "tokenizer", "chat-template"}


def test_nothing_is_written(path: Path) -> None:
    """The directory is the same after as before."""
    before = {each.name: each.stat().st_mtime_ns for each in (path, *path.iterdir())}
    ask(path)
    assert {each.name: each.stat().st_mtime_ns for each in (path, *path.iterdir())} == before
