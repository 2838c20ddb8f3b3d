"""The order: which model is to be built from which checkpoint, how and for what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build.recipe import MAX_CHUNK_TOKENS, Recipe, Target, conversation_of, rungs
from inference.artifacts.build.records import HASHES, keep_json, read_json
from inference.artifacts.lint.checkpoint import BUILD_CONFIG, CONFIG, read_checkpoint
from inference.artifacts.store import Store
from inference.errors import BuildFailedError
from inference.registry import ModelSpec
from inference.registry.spec import Variant

DEFAULT_CONTEXT_TOKENS = 4096
LEAST_SEQUENCES = 8


class NotACheckpointError(BuildFailedError):
    """What was pulled is neither a checkpoint nor weights that MLC converted."""

    cached = True


@dataclass(frozen=True)
class Order:
    """What is asked of the builder.

    Args:
        model, variant: the registry's names.
        checkpoint: the directory of the checkpoint, which is only read.
        content: the SHA-256 of its files.
        converted: the quantization of weights that MLC converted elsewhere; ``None`` for a checkpoint.
        device: mlc_llm's own word, for the child.
    """

    model: str
    variant: str
    checkpoint: Path
    content: str
    preferred: str | None
    converted: str | None
    context_tokens: int
    chunk_tokens: int
    sequences: int
    conversation: str
    chats: bool
    target: Target
    device: str
    options: tuple[str, ...] = ()

    @property
    def rungs(self) -> tuple[str, ...]:
        """The quantizations to try, best first."""
        return rungs(self.preferred, self.converted)

    def recipe(self, quantization: str, engine: str) -> Recipe:
        """Return the recipe of one rung with one engine."""
        return Recipe(
            checkpoint=self.content,
            quantization=quantization,
            context_tokens=self.context_tokens,
            chunk_tokens=self.chunk_tokens,
            sequences=self.sequences,
            conversation=self.conversation,
            engine=engine,
            target=self.target,
            options=self.options,
        )


def order_for(
    store: Store,
    model: str,
    spec: ModelSpec,
    variant_name: str,
    variant: Variant,
    *,
    checkpoint: Path,
    slots: int,
    target: Target,
    device: str,
) -> Order:
    """Return the order for a pulled variant; a few small files are read, and hashes that nobody knows.

    Raises:
        NotACheckpointError: *checkpoint* has neither config.json nor mlc-chat-config.json.
    """
    config, converted = _configuration(checkpoint, model)
    limit = variant.context or spec.context_length or _count(config, "max_position_embeddings", "n_positions")
    context = limit or DEFAULT_CONTEXT_TOKENS
    return Order(
        model=model,
        variant=variant_name,
        checkpoint=checkpoint,
        content=content_of(store, variant, checkpoint),
        preferred=variant.quantization,
        converted=converted,
        context_tokens=context,
        chunk_tokens=min(MAX_CHUNK_TOKENS, context),
        sequences=max(slots, LEAST_SEQUENCES),
        conversation=conversation_of(str(config.get("model_type")), spec.chat),
        chats=spec.chat != "none",
        target=target,
        device=device,
    )


def _configuration(checkpoint: Path, model: str) -> tuple[Mapping[str, Any], str | None]:
    """Return the checkpoint's configuration, and the quantization where it is converted already."""
    found = read_checkpoint(checkpoint)
    problem = found.problem or found.unread.get(CONFIG) or found.unread.get(BUILD_CONFIG)
    if problem or not found.config:
        raise NotACheckpointError(
            f"{model}: {checkpoint.name}: {problem or f'expected {CONFIG} or {BUILD_CONFIG}; found neither'}",
            hint=f"see what is wrong with it: jetllm lint {model}",
        )
    if not found.is_build:
        return found.config, None
    quantization = found.config.get("quantization")
    if not isinstance(quantization, str) or not quantization:
        raise NotACheckpointError(f"{model}: {BUILD_CONFIG}: expected a quantization, got {quantization!a}")
    return found.config, quantization


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if type(value) is int and value > 0), None)


def content_of(store: Store, variant: Variant, checkpoint: Path) -> str:
    """Return one SHA-256 for all files of a checkpoint: of its lines "<sha256>  <name>", sorted.

    What the first pull recorded is believed, as long as sizes have not changed; a user's own directory is
    read, once, and again when a file in it changes.
    """
    known = {name: each.get("sha256") for name, each in (store.snapshot_record(variant)).items()}
    paths = {path.relative_to(checkpoint).as_posix(): path for path in _files(checkpoint)}
    unknown = {name: path for name, path in paths.items() if not known.get(name)}
    hashes = {name: str(known[name]) for name in paths if name not in unknown}
    hashes |= _read(store, checkpoint, unknown)
    lines = (f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files(checkpoint: Path) -> list[Path]:
    return [
        path
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(checkpoint).parts)
    ]


def _read(store: Store, checkpoint: Path, paths: Mapping[str, Path]) -> dict[str, str]:
    if not paths:
        return {}
    record = store.root / HASHES / f"{hashlib.sha256(str(checkpoint).encode()).hexdigest()}.json"
    marks = {name: json.dumps(files.signature(path), sort_keys=True) for name, path in paths.items()}
    known = read_json(record)
    hashes = {}
    for name, path in paths.items():
        before = known.get(name)
        same = isinstance(before, list) and len(before) == 2 and before[0] == marks[name]
        hashes[name] = str(before[1]) if same and isinstance(before, list) else files.sha256_of(path)
    fresh = {name: [marks[name], hashes[name]] for name in paths}
    if fresh != known:
        keep_json(record, fresh)
    return hashes
