"""The staged checkpoint: a directory of links to what a build reads, put right where MLC needs it.

The source is never written to. MLC itself writes into the directory that it converts, and takes a
pickle there before the safetensors beside it; hence a directory of its own with chosen files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from inference.artifacts.build.config import HEAD, normal_config, normal_tokenizer_config
from inference.artifacts.build.safetensors import (
    Piece,
    file_bytes,
    full_disk_named,
    index_of,
    into_shards,
    json_bytes,
    pieces_of,
    write,
)
from inference.artifacts.build.tokenizer_json import GPT2_TOKENIZERS, MERGES, VOCABULARY, tokenizer_json
from inference.artifacts.lint.checkpoint import CONFIG, INDEX, ONE_FILE, Checkpoint, read_checkpoint
from inference.errors import BuildFailedError, CancelledError, UnsafeArtifactError

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SMALL_FILES = (
    CONFIG, "generation_config.json", TOKENIZER, SETTINGS, "tokenizer.model", VOCABULARY, MERGES,
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What is staged beside the weights. Not *.tiktoken: MLC opens those with trust_remote_code
(python/mlc_llm/support/convert_tiktoken.py)."""

_PREFIX = "transformer."
_MASK = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PICKLE = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04|c[\w.]+\n[\w.]+\n|\([dl]p?0?\n")
_LONGEST_LIST = 6

Advance = Callable[[int], None]
Cancelled = Callable[[], bool]


class UnbuildableError(BuildFailedError):
    """MLC would make another model of this checkpoint, or none."""

    cached: ClassVar[bool] = True


@dataclass(frozen=True)
class Staged:
    """A staged checkpoint.

    Args:
        changes: what differs from the source, a sentence each, for the log and the record.
    """

    directory: Path
    changes: tuple[str, ...]


def staging_bytes(checkpoint: Path, *, shard_bytes: int | None) -> int:
    """Return the bytes that `stage` and `fix` will write to the disk; links count nothing.

    Raises:
        UnsafeArtifactError, UnbuildableError: as they do.
    """
    seen = _look(checkpoint)
    chosen = _choose(seen)
    weights = _weights(checkpoint, seen, chosen.weights, shard_bytes)
    written = sum(map(file_bytes, weights.files.values())) if weights.rewritten else 0
    index = 0 if chosen.index_is_sound and not weights.rewritten else len(_index(weights))
    return written + index + sum(len(data) for data in _small_files(checkpoint, seen)[0].values())


def stage(
    checkpoint: Path, target: Path, *, cancelled: Cancelled, advance: Advance = lambda count: None
) -> Staged:
    """Make the new directory *target* with links to what of *checkpoint* is for a build.

    Pickles, code, an earlier build's files and all else stay out. An index that does not say where the
    tensors are is replaced: MLC believes the one it finds, and without one loads the whole model only
    to write it.

    Args:
        advance: gets the bytes written, which are those of an index.

    Raises:
        UnsafeArtifactError: something that is needed is malformed, refused or not there.
        InsufficientStorageError: the disk is full.
        CancelledError: *cancelled* came true.
        FileExistsError: there is something at *target*.
    """
    seen = _look(checkpoint)
    chosen = _choose(seen)
    target.mkdir(mode=0o700)
    changes = list(chosen.changes)
    for name in chosen.names:
        if cancelled():
            raise CancelledError(f"{seen.name}: cancelled while it was staged")
        source = checkpoint.absolute() / name
        _refuse_pickle(source)
        (target / name).symlink_to(source.resolve(strict=True))
    if not chosen.index_is_sound:
        files = {name: pieces_of(target / name) for name in chosen.weights}
        _replace(target / INDEX, _index(_Weights(files)), advance)
        changes.append(f"{INDEX}: written anew from the headers of the weights")
    return Staged(target, tuple(changes))


def fix(
    staged: Staged, *, shard_bytes: int | None, cancelled: Cancelled, advance: Advance = lambda count: None
) -> Staged:
    """Put right what MLC does not take or would take for something else, in the staged directory alone.

    Args:
        shard_bytes: write the weights into files of at most so many bytes, a larger tensor alone, so
            that converting them takes less memory; ``None``: they stay as they are.
        advance: gets the bytes written.

    Raises:
        UnbuildableError: MLC would make another model of it.
        UnsafeArtifactError, InsufficientStorageError, CancelledError: as `stage`.
    """
    directory = staged.directory
    seen = _look(directory)
    weights = _weights(directory, seen, _choose(seen).weights, shard_bytes)
    small, changes = _small_files(directory, seen)
    if weights.rewritten:
        _rewrite(directory, weights, cancelled, advance)
    for name, data in small.items():
        _replace(directory / name, data, advance)
    return Staged(directory, (*staged.changes, *weights.changes, *changes))


@dataclass(frozen=True)
class _Chosen:
    """What of a directory is for a build."""

    weights: tuple[str, ...]
    names: tuple[str, ...]
    index_is_sound: bool
    changes: tuple[str, ...]


def _look(checkpoint: Path) -> Checkpoint:
    """Read the checkpoint's small files, and refuse one whose configuration is not what it should be."""
    seen = read_checkpoint(checkpoint)
    if seen.problem is not None:
        raise UnsafeArtifactError(f"{seen.name}: cannot be read: {seen.problem}; expected a directory")
    if CONFIG not in seen.sizes:
        raise UnsafeArtifactError(f"{seen.name}: {CONFIG}: not found", hint="fetch the checkpoint again")
    for name in (CONFIG, SETTINGS, TOKENIZER):
        if name in seen.unread:
            raise UnsafeArtifactError(f"{seen.name}: {name}: {seen.unread[name]}")
    for what in seen.odd:
        raise UnsafeArtifactError(f"{seen.name}: {CONFIG}: {what}")
    return seen


def _choose(seen: Checkpoint) -> _Chosen:
    weights = _choose_weights(seen)
    for name in weights:
        if name in seen.unread:
            raise UnsafeArtifactError(f"{seen.name}: {name}: {seen.unread[name]}")
    where = {tensor: file for file in weights for tensor in seen.headers[file]}
    if len(where) != sum(len(seen.headers[file]) for file in weights):
        raise UnsafeArtifactError(f"{seen.name}: weights: found a tensor in two files; expected it in one")
    small = tuple(name for name in SMALL_FILES if seen.sizes.get(name))
    sound = seen.weight_map == where
    names = (*weights, *small, *((INDEX,) if sound else ()))
    out = sorted(name for name in {*seen.sizes, *seen.dangling} - {*names, INDEX} if "/" not in name)
    shown = ", ".join(ascii(name[:60]) for name in out[:_LONGEST_LIST])
    more = f" and {len(out) - _LONGEST_LIST} more" if len(out) > _LONGEST_LIST else ""
    return _Chosen(weights, names, sound, (f"left out: {shown}{more}",) if out else ())


def _choose_weights(seen: Checkpoint) -> tuple[str, ...]:
    """Return the files of the weights: those of the index, else the one file, else a whole set of shards."""
    found = {name for name in seen.sizes if name.endswith(".safetensors") and "/" not in name}
    indexed = set((seen.weight_map or {}).values())
    if indexed and indexed <= found:
        return tuple(sorted(indexed))
    if ONE_FILE in found:
        return (ONE_FILE,)
    if indexed:
        raise UnsafeArtifactError(
            f"{seen.name}: {INDEX}: names {_few(indexed - found)}, which are not here; expected all shards",
            hint="fetch the checkpoint again",
        )
    shards = {name: int(match[2]) for name in found if (match := _SHARD.fullmatch(name))}
    if shards and all(count == len(shards) for count in shards.values()):
        return tuple(sorted(shards))
    if len(found) == 1:
        return tuple(found)
    raise UnsafeArtifactError(
        f"{seen.name}: weights: found {_few(found) or 'none'};"
        f" expected {ONE_FILE}, or {INDEX} beside its shards",
        hint="take a revision of the model that has safetensors; pickles are never opened",
    )


def _few(names: Iterable[str]) -> str:
    return ", ".join(ascii(name[:60]) for name in sorted(names)[:_LONGEST_LIST])


def _refuse_pickle(path: Path) -> None:
    """Refuse a file that is a pickle whatever it is called."""
    with path.open("rb") as file:
        begin = file.read(512)
    if _PICKLE.match(begin) and path.suffix != ".safetensors":  # those begin with a length of any bytes
        raise UnsafeArtifactError(
            f"{path.name}: found a pickle; expected {path.suffix.lstrip('.') or 'text'}",
            hint="reading a pickle can run code: take the model from its own repository",
        )


@dataclass(frozen=True)
class _Weights:
    """The files that the weights will be in."""

    files: Mapping[str, list[Piece]]
    rewritten: bool = False
    changes: tuple[str, ...] = ()
    old: tuple[str, ...] = field(default=())


def _weights(directory: Path, seen: Checkpoint, names: tuple[str, ...], shard_bytes: int | None) -> _Weights:
    files = {name: pieces_of(directory / name) for name in names}
    pieces = [piece for file in files.values() for piece in file]
    is_gpt2 = seen.model_type == "gpt2"
    if is_gpt2:
        _refuse_own_head(seen, {piece.name for piece in pieces})
    renamed = _gpt2_names(pieces) if is_gpt2 else pieces
    prefixed = is_gpt2 and any(piece.name.startswith(_PREFIX) for piece in pieces)
    if not prefixed and shard_bytes is None:
        return _Weights(files)
    changes = []
    if prefixed:
        changes.append(f"weights: left {_PREFIX!r} out of the tensors' names")
    if len(renamed) < len(pieces):
        changes.append(f"weights: left {len(pieces) - len(renamed)} tensors out that MLC has no use for")
    shards = [renamed] if shard_bytes is None else into_shards(renamed, shard_bytes)
    if shard_bytes is not None:
        changes.append(f"weights: written into {len(shards)} files of at most {shard_bytes:,} bytes")
    return _Weights(_named(shards), rewritten=True, changes=tuple(changes), old=names)


def _named(shards: list[list[Piece]]) -> dict[str, list[Piece]]:
    """Name new files; never as the old ones, which are read while these are written."""
    count = len(shards)
    return {f"weights-{number:05}-of-{count:05}.safetensors": each for number, each in enumerate(shards, 1)}


def _gpt2_names(pieces: list[Piece]) -> list[Piece]:
    """Return GPT-2's tensors as MLC's loader calls them (python/mlc_llm/model/gpt2/gpt2_loader.py).

    It wants h.0..., wte, wpe and ln_f, makes lm_head of wte, and has no use for the attention's masks.
    """
    found: dict[str, Piece] = {}
    for piece in pieces:
        name = piece.name.removeprefix(_PREFIX)
        if name in found:
            raise UnsafeArtifactError(f"weights: found {ascii(name)[:80]} with and without {_PREFIX!r}")
        if not _MASK.fullmatch(name) and name != HEAD:
            found[name] = Piece(name, piece.file, piece.span)
    return list(found.values())


def _refuse_own_head(seen: Checkpoint, names: set[str]) -> None:
    if seen.config.get("tie_word_embeddings") is False and HEAD in names:
        raise UnbuildableError(
            f"{seen.name}: {HEAD}: found weights of its own; expected a tied head: MLC's GPT-2 has no other"
            " and would use the embedding's",
            hint="use a variant of another backend",
        )


def _rewrite(directory: Path, weights: _Weights, cancelled: Cancelled, advance: Advance) -> None:
    for name, pieces in weights.files.items():
        write(directory / name, pieces, cancelled=cancelled, advance=advance)
    for name in weights.old:
        (directory / name).unlink()
    _replace(directory / INDEX, _index(weights), advance)


def _index(weights: _Weights) -> bytes:
    names = {file: [piece.name for piece in pieces] for file, pieces in weights.files.items()}
    return index_of(names, sum(piece.size_bytes for pieces in weights.files.values() for piece in pieces))


def _small_files(directory: Path, seen: Checkpoint) -> tuple[dict[str, bytes], list[str]]:
    """Return the small files that have to be written, and what is different in them."""
    files: dict[str, bytes] = {}
    changes: list[str] = []
    pairs: list[tuple[str, tuple[dict[str, Any], list[str]]]] = [
        (CONFIG, normal_config(seen)),
        (SETTINGS, normal_tokenizer_config(seen.tokenizer_config)),
    ]
    for name, (tree, what) in pairs:
        if what:
            files[name] = json_bytes(tree)
            changes += what
    if _needs_tokenizer(seen):
        files[TOKENIZER] = tokenizer_json(directory)
        changes.append(f"{TOKENIZER}: written from {VOCABULARY} and {MERGES}")
    return files, changes


def _needs_tokenizer(seen: Checkpoint) -> bool:
    """Tell whether tokenizer.json has to be written.

    Raises:
        UnbuildableError: it cannot be: only GPT-2's kind is known well enough.
    """
    has = {name for name, size in seen.sizes.items() if size > 0}
    if has & {TOKENIZER, "tokenizer.model"}:
        return False
    kind = seen.tokenizer_config.get("tokenizer_class")
    is_gpt2 = kind in GPT2_TOKENIZERS or (kind is None and seen.model_type == "gpt2")
    if is_gpt2 and {VOCABULARY, MERGES} <= has:
        return True
    raise UnbuildableError(
        f"{seen.name}: tokenizer: found no {TOKENIZER}"
        f"{f', and a tokenizer_class {ascii(kind)[:60]}' if kind else ''}; expected one",
        hint="write tokenizer.json with transformers: AutoTokenizer.from_pretrained, then save_pretrained",
    )


def _replace(path: Path, data: bytes, advance: Advance) -> None:
    """Put a file in place of a link, whose target stays as it is."""
    path.unlink(missing_ok=True)
    with full_disk_named(path.parent), path.open("xb") as file:
        file.write(data)
    advance(len(data))
