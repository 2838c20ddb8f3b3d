"""The manifest: what a release is, for which machines it is made, and every file of its bundle.

It is JSON, written by `jetllm bundle create`; the signature is over its bytes as they are. It is read
strictly: what is not listed here, is of another type or is out of range makes it no manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference.appliance.errors import BundleError

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
STORE = "store"
"""Below it in a bundle lies what goes into the store, by its path there."""

SCHEMA = 1
MAX_BYTES = 16 * 2**20
_MAX_FILES = 10_000
_MAX_ITEMS = 1000
_MAX_FILE_BYTES = 2**42
_MAX_TEXT = 100_000
_MAX_TOKENS = 4096

_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}")
_ARCH = re.compile(r"aarch64|x86_64")
_RELEASE = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,3}")
_CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]")
_BOARD = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9._+=@,~-]{1,100}")
_MAX_PATH = 240


@dataclass(frozen=True)
class Image:
    """The container image of a release.

    Args:
        file: its archive in the bundle.
        reference: its name, as in "jetllm:1.2.0".
        id: "sha256:" and the hash of its configuration, which is what engines call it by.
        bytes: of its layers, unpacked.
    """

    file: str
    reference: str
    id: str
    bytes: int


@dataclass(frozen=True)
class Model:
    """A variant that the bundle brings along."""

    model: str
    variant: str


@dataclass(frozen=True)
class Golden:
    """What a variant must answer.

    To *prompt* as raw text (`/v1/completions`), at temperature 0 and with ``len(tokens)`` tokens at
    most, the answer is *text*.

    Args:
        tokens: the model's ids of *text*.
    """

    model: str
    variant: str
    prompt: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class File:
    """A file of the bundle; *path* is relative to it, with ``/``."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Args:
        arch: of the processor: "aarch64" or "x86_64".
        l4t: releases that it runs on, as in "36.4", which 36.4.3 is one of; none: any machine.
        compute_capability: of the GPUs that it is compiled for; none: any.
        boards: our names of them (`device.detect.known_boards`); none: any.
        evidence: the file of measurements in the bundle, if there is one.
        registry: the models.json in the bundle, if there is one.
        files: all files but the manifest and its signature, in the order of a .tar.
        digest: the SHA-256 of the manifest's bytes, which names the bundle.
    """

    version: str
    created_unix_s: int
    arch: str
    l4t: tuple[str, ...]
    compute_capability: tuple[str, ...]
    boards: tuple[str, ...]
    image: Image
    models: tuple[Model, ...]
    golden: tuple[Golden, ...]
    evidence: str | None
    registry: str | None
    files: tuple[File, ...]
    digest: str = ""

    @property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def cargo(self) -> dict[str, File]:
        """What goes into the store, by its path there."""
        prefix = f"{STORE}/"
        return {each.path.removeprefix(prefix): each for each in self.files if each.path.startswith(prefix)}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        data = {"schema": SCHEMA, **asdict(self)}
        del data["digest"]
        return data

    def to_bytes(self) -> bytes:
        """Return the file as it is written."""
        return json.dumps(self.to_dict(), indent=1).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BundleError: it is none; the text names the key, the value wanted and the value found.
    """
    tree = _json(data)
    if isinstance(tree, dict) and type(tree.get("schema")) is int and tree["schema"] > SCHEMA:
        raise BundleError(
            f"{MANIFEST}: schema: this JetLLM knows {SCHEMA}, the bundle has {tree['schema']}",
            hint="update JetLLM on this machine first",
        )
    fields = _object(tree, "", ("schema", *Manifest.__dataclass_fields__.keys() - {"digest"}))
    _integer(fields["schema"], "schema", SCHEMA, SCHEMA)
    manifest = Manifest(
        version=_text(fields["version"], "version", _VERSION),
        created_unix_s=_integer(fields["created_unix_s"], "created_unix_s", 0, 2**40),
        arch=_text(fields["arch"], "arch", _ARCH),
        l4t=_texts(fields["l4t"], "l4t", _RELEASE),
        compute_capability=_texts(fields["compute_capability"], "compute_capability", _CAPABILITY),
        boards=_texts(fields["boards"], "boards", _BOARD),
        image=_image(fields["image"]),
        models=_list(fields["models"], "models", _model, _MAX_ITEMS),
        golden=_list(fields["golden"], "golden", _golden, _MAX_ITEMS),
        evidence=None if fields["evidence"] is None else _path(fields["evidence"], "evidence"),
        registry=None if fields["registry"] is None else _path(fields["registry"], "registry"),
        files=_list(fields["files"], "files", _file, _MAX_FILES),
        digest=hashlib.sha256(data).hexdigest(),
    )
    _check_whole(manifest)
    return manifest


def read_golden(path: Path) -> tuple[Golden, ...]:
    """Read golden tokens, as `jetllm bundle golden` writes them: a manifest's list in a file of its own.

    Raises:
        BundleError: it is not such a file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        found: tuple[Golden, ...] = _list(_json(data), "golden", _golden, _MAX_ITEMS)
    except BundleError as error:
        what = error.message.removeprefix(f"{MANIFEST}: ")
        raise BundleError(f"{path.name}: {what}", hint="write it anew: jetllm bundle golden") from None
    return found


def golden_of(tree: Mapping[str, Any]) -> Golden:
    """Return golden tokens from their JSON form.

    Raises:
        BundleError: it is not theirs.
    """
    return _golden(tree, "golden")


def _json(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise _wrong(f"expected at most {MAX_BYTES:,} bytes, got more")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unrepeated, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"not JSON: {error}") from None


def _check_whole(manifest: Manifest) -> None:
    """Refuse what contradicts itself.

    Raises:
        BundleError: two files at one place, a file for nothing, or a file, a model that is not there.
    """
    paths = [file.path for file in manifest.files]
    known = set(paths)
    if len(known) != len(paths):
        raise _wrong("files: a path is there twice")
    for path in paths:
        parts = path.split("/")
        if any("/".join(parts[:count]) in known for count in range(1, len(parts))):
            raise _wrong(f"files: {path}: what it lies in is a file, too")
    named = [path for path in (manifest.image.file, manifest.evidence, manifest.registry) if path is not None]
    if len(set(named)) != len(named):
        raise _wrong("image, evidence, registry: expected files of their own")
    for path in named:
        if path not in known or path.startswith(f"{STORE}/"):
            raise _wrong(f"files: expected {path} among them, outside {STORE}/")
    for path in paths:
        if path in (MANIFEST, SIGNATURE) or not (path in named or path.startswith(f"{STORE}/")):
            raise _wrong(f"files: {path}: nothing of a bundle lies there")
    if len(set(manifest.models)) != len(manifest.models):
        raise _wrong("models: one is there twice")
    for golden in manifest.golden:
        if Model(golden.model, golden.variant) not in manifest.models:
            raise _wrong(f"golden: {golden.model}/{golden.variant}: it is not among models")


def _image(value: Any) -> Image:
    fields = _object(value, "image", Image.__dataclass_fields__)
    return Image(
        file=_path(fields["file"], "image.file"),
        reference=_text(fields["reference"], "image.reference", _REFERENCE),
        id=_text(fields["id"], "image.id", _IMAGE_ID),
        bytes=_integer(fields["bytes"], "image.bytes", 0, _MAX_FILE_BYTES),
    )


def _model(value: Any, where: str) -> Model:
    fields = _object(value, where, Model.__dataclass_fields__)
    return Model(*(_text(fields[name], f"{where}.{name}", _NAME) for name in ("model", "variant")))


def _golden(value: Any, where: str) -> Golden:
    fields = _object(value, where, Golden.__dataclass_fields__)
    tokens = _list(
        fields["tokens"], f"{where}.tokens", lambda each, at: _integer(each, at, 0, 2**31), _MAX_TOKENS
    )
    if not tokens:
        raise _wrong(f"{where}.tokens: expected one at least, got none")
    return Golden(
        model=_text(fields["model"], f"{where}.model", _NAME),
        variant=_text(fields["variant"], f"{where}.variant", _NAME),
        prompt=_text(fields["prompt"], f"{where}.prompt"),
        text=_text(fields["text"], f"{where}.text"),
        tokens=tokens,
    )


def _file(value: Any, where: str) -> File:
    fields = _object(value, where, File.__dataclass_fields__)
    return File(
        path=_path(fields["path"], f"{where}.path"),
        bytes=_integer(fields["bytes"], f"{where}.bytes", 0, _MAX_FILE_BYTES),
        sha256=_text(fields["sha256"], f"{where}.sha256", _SHA256),
    )


def _object(value: Any, where: str, keys: Collection[str]) -> Mapping[str, Any]:
    at = f"{where}: " if where else ""
    if not isinstance(value, dict):
        raise _wrong(f"{at}expected an object, got {_shown(value)}")
    if strange := sorted(set(value) - set(keys)):
        raise _wrong(f"{at}unknown key {_shown(strange[0])}")
    if missing := sorted(set(keys) - set(value)):
        raise _wrong(f"{at}{missing[0]} is missing")
    return value


def _list(value: Any, where: str, read: Callable[[Any, str], Any], most: int) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(f"{where}: expected a list, got {_shown(value)}")
    if len(value) > most:
        raise _wrong(f"{where}: expected at most {most:,}, got {len(value):,}")
    return tuple(read(each, f"{where}[{number}]") for number, each in enumerate(value))


def _texts(value: Any, where: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    return _list(value, where, lambda each, at: _text(each, at, pattern), _MAX_ITEMS)


def _text(value: Any, where: str, pattern: re.Pattern[str] | None = None) -> str:
    if (
        not isinstance(value, str)
        or len(value) > _MAX_TEXT
        or any("\ud800" <= each <= "\udfff" for each in value)
    ):
        raise _wrong(f"{where}: expected a text, got {_shown(value)}")
    if pattern is not None and not pattern.fullmatch(value):
        raise _wrong(f"{where}: expected {pattern.pattern}, got {_shown(value)}")
    return value


def _path(value: Any, where: str) -> str:
    """Return a relative path that stays below where it starts, on any file system."""
    text = _text(value, where)
    parts = text.split("/")
    if len(text) > _MAX_PATH or not all(_PART.fullmatch(part) and part.strip(".") for part in parts):
        raise _wrong(f"{where}: expected a path below the bundle, got {_shown(value)}")
    return text


def _integer(value: Any, where: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise _wrong(f"{where}: expected {wanted}, got {_shown(value)}")
    return value


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."


def _wrong(what: str) -> BundleError:
    return BundleError(f"{MANIFEST}: {what}", hint="take the bundle from where it was made: it is damaged")
