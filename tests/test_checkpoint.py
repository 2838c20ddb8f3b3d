"""Checkpoints that the transformers backend must refuse, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.backends import open_backend
from inference.errors import LoadFailedError, UnsafeArtifactError
from tests.tiny_gpt2 import load_options, make_tiny_gpt2

EXTRA = "needs the extra 'transformers': make test-transformers"
pytest.importorskip("torch", reason=EXTRA)
pytest.importorskip("transformers", reason=EXTRA)
pytestmark = pytest.mark.transformers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gpt2(tmp_path_factory.mktemp("tiny-gpt2"))


def copy_checkpoint(source: Path, target: Path) -> None:
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    """A path that is not there is a failed load, told without its directory."""
    with pytest.raises(LoadFailedError, match=r"^absent: no such file"):
        open_backend("transformers", load_options(tmp_path / "absent"))


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    """A directory that holds no weights says what was expected."""
    with pytest.raises(LoadFailedError, match=r"expected a GGUF file or a directory with \*\.safetensors"):
        open_backend("transformers", load_options(tmp_path))


def test_pickled_weights_are_never_opened(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint with pickled weights only is refused before anything reads them."""
    copy_checkpoint(checkpoint, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(UnsafeArtifactError, match=r"pytorch_model\.bin: pickled weights"):
        open_backend("transformers", load_options(tmp_path))
    with pytest.raises(UnsafeArtifactError):
        open_backend("transformers", load_options(tmp_path / "pytorch_model.bin"))


def test_garbage_safetensors_fail_with_a_reason(checkpoint: Path, tmp_path: Path) -> None:
    """Garbage is a failed load with the parser's reason, and without the path."""
    copy_checkpoint(checkpoint, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 4096)
    with pytest.raises(LoadFailedError, match="transformers cannot load it: SafetensorError") as caught:
        open_backend("transformers", load_options(tmp_path))
    assert str(tmp_path.parent) not in str(caught.value)


def test_truncated_gguf_fails_with_a_reason(tmp_path: Path) -> None:
    """A GGUF file that ends after its magic is a failed load."""
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(LoadFailedError, match=r"^cut\.gguf: transformers cannot load it: "):
        open_backend("transformers", load_options(tmp_path / "cut.gguf"))


def test_checkpoint_that_lacks_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """The library would fill missing weights with random numbers; that is never served."""
    from safetensors.torch import load_file, save_file

    copy_checkpoint(checkpoint, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    save_file(
        {key: value for key, value in tensors.items() if key != name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(LoadFailedError, match=r"lacks 1 weights of its model, .*h\.1\.mlp\.c_fc\.weight"):
        open_backend("transformers", load_options(tmp_path))


def test_code_in_a_checkpoint_is_never_run(checkpoint: Path, tmp_path: Path) -> None:
    """A config that points at code of its own does not get it run, whether or not it then loads."""
    copy_checkpoint(checkpoint, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(LoadFailedError, match="transformers cannot load it"):
        open_backend("transformers", load_options(tmp_path))
    assert not (tmp_path / "ran").exists()
