"""A tokenizer.json for a checkpoint that has only vocab.json and merges.txt, as GPT-2's first ones.

The format is that of huggingface/tokenizers; the settings are those that transformers gives a
GPT2Tokenizer (convert_slow_tokenizer.py, GPT2Converter).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inference.artifacts.build.safetensors import json_bytes
from inference.errors import UnsafeArtifactError
from inference.registry import strict_json

VOCABULARY, MERGES, ADDED, SETTINGS = "vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"
SPECIALS = "special_tokens_map.json"
END_OF_TEXT = "<|endoftext|>"
GPT2_TOKENIZERS = frozenset({"GPT2Tokenizer", "GPT2TokenizerFast"})

_MAX_BYTES = 64 * 2**20
_MAX_TOKENS = 2**21
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def tokenizer_json(directory: Path) -> bytes:
    """Return the tokenizer.json of the byte-level BPE whose files are in *directory*.

    Raises:
        UnsafeArtifactError: a file is not what it should be, or asks for what GPT-2's tokenizer is not.
    """
    vocabulary = _vocabulary(read_object(directory / VOCABULARY), VOCABULARY)
    settings = _optional(directory / SETTINGS)
    if settings.get("add_bos_token"):
        raise UnsafeArtifactError(f"{SETTINGS}: add_bos_token: found true; expected false, as GPT-2 has it")
    prefix = settings.get("add_prefix_space") is True
    merges = _merges(_text(directory / MERGES), vocabulary)
    added = _added(directory, vocabulary, settings)
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return json_bytes(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {**level, "add_prefix_space": prefix},
            "post_processor": {**level, "trim_offsets": False},
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        }
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object.

    Raises:
        UnsafeArtifactError: it is not strict JSON, no object, or too large.
    """
    try:
        tree, wrong = strict_json.parse(_text(path))
    except ValueError as error:
        raise UnsafeArtifactError(f"{path.name}: not JSON: {str(error)[:200]}") from None
    for loc, what in wrong.items():
        raise UnsafeArtifactError(f"{path.name}: {'.'.join(map(str, loc))[:120]}: {what}")
    if not isinstance(tree, dict):
        raise UnsafeArtifactError(f"{path.name}: expected an object")
    return tree


def _text(path: Path) -> str:
    with path.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise UnsafeArtifactError(f"{path.name}: expected at most {_MAX_BYTES:,} bytes, got more")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise UnsafeArtifactError(f"{path.name}: not UTF-8") from None


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


def _vocabulary(tree: Mapping[str, Any], name: str) -> dict[str, int]:
    for token, number in tree.items():
        if type(number) is not int or not 0 <= number < _MAX_TOKENS:
            raise UnsafeArtifactError(
                f"{name}: {ascii(token)[:60]}: expected a number below {_MAX_TOKENS},"
                f" got {ascii(number)[:40]}"
            )
    if len(set(tree.values())) != len(tree):
        raise UnsafeArtifactError(f"{name}: found a number twice; expected one for each token")
    return dict(tree)


def _merges(text: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Return the pairs, in order; a reader of the format refuses one that the vocabulary does not hold."""
    lines = text.split("\n")
    first = 1 if lines[0].startswith("#version") else 0
    found = []
    for number, line in enumerate(lines[first:], first + 1):
        pair = line.rstrip("\r").split(" ")
        if pair == [""]:
            continue
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise UnsafeArtifactError(
                f"{MERGES}: line {number}: expected two tokens of {VOCABULARY}"
                f" that together are a third, got {ascii(line)[:60]}"
            )
        found.append(" ".join(pair))
    return found


def _added(
    directory: Path, vocabulary: Mapping[str, int], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the tokens that are not made of merges, by their numbers.

    Those that the vocabulary does not hold come behind it without a gap: the format's reader counts on
    from there, whatever number it is given.
    """
    extra = _vocabulary(_optional(directory / ADDED), ADDED)
    special = set(_special([settings, _optional(directory / SPECIALS)])) | {END_OF_TEXT}
    numbers = {token: vocabulary[token] for token in special if token in vocabulary}
    for token, number in extra.items():
        if vocabulary.get(token, number) != number:
            raise UnsafeArtifactError(f"{ADDED}: {ascii(token)[:60]}: found another number in {VOCABULARY}")
        numbers[token] = number
    behind = sorted(number for token, number in numbers.items() if token not in vocabulary)
    if behind != list(range(len(vocabulary), len(vocabulary) + len(behind))):
        raise UnsafeArtifactError(
            f"{ADDED}: expected numbers from {len(vocabulary)} on without a gap, got {ascii(behind)[:60]}"
        )
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": token not in special,
            "special": token in special,
        }
        for token, number in sorted(numbers.items(), key=lambda item: item[1])
    ]


def _special(trees: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Yield the tokens that have a role; a role's value is a text or an object with the text."""
    for tree in trees:
        for role in _ROLES:
            value = tree.get(role)
            content = value.get("content") if isinstance(value, dict) else value
            if isinstance(content, str) and content:
                yield content
