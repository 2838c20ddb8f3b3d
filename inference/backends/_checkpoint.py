"""A checkpoint on disk: what of it is opened, what never is, and why it was refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference.errors import LoadFailedError, UnsafeArtifactError

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})


def find_checkpoint(weights: Path) -> dict[str, str]:
    """Return from_pretrained's arguments that name *weights*; raise for what is never opened."""
    if not weights.exists():
        raise LoadFailedError(f"{weights.name}: no such file or directory", hint="pull the model again")
    files = [weights] if weights.is_file() else sorted(weights.iterdir())
    if weights.is_file() and _is_gguf(weights):
        return {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    if weights.is_dir() and any(path.suffix == ".safetensors" for path in files):
        return {"pretrained_model_name_or_path": str(weights)}
    pickled = [path.name for path in files if path.suffix in _PICKLES]
    if pickled:
        raise UnsafeArtifactError(
            f"{pickled[0]}: pickled weights can run code when they are read; expected safetensors or GGUF",
            hint="take a revision of the model that has model.safetensors",
        )
    raise LoadFailedError(f"{weights.name}: expected a GGUF file or a directory with *.safetensors")


def check_complete(report: Mapping[str, Any], *, unused: str = "") -> None:
    """Refuse a checkpoint that lacks weights, which the library would fill with random numbers.

    Nothing is computed with those whose names begin with *unused*.
    """
    named = (str(key) for name in ("missing_keys", "mismatched_keys") for key in report.get(name) or ())
    wrong = sorted(key for key in named if not (unused and key.startswith(unused)))
    if wrong:
        raise LoadFailedError(
            f"the checkpoint lacks {len(wrong)} weights of its model, {wrong[0]} among them",
            hint="pull the model again; the files do not belong together",
        )


def refusal(weights: Path, error: Exception) -> LoadFailedError:
    """Return *error* as ours, in a line that shows the file's name and no other part of its path."""
    text = first_line(error).replace(str(weights), weights.name).replace(f"{weights.parent}/", "")
    return LoadFailedError(f"{weights.name}: transformers cannot load it: {type(error).__name__}: {text}")


def first_line(error: Exception) -> str:
    """Return what *error* says, without the advice that follows below."""
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"
