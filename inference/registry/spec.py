"""What models.json says of a model: its entry, and each way of running it.

A field's title says what the key means; its description completes "expected ..." in an error. Both
explain the key in the JSON schema.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from inference.registry.sources import HubSource, PackageDirectory, Source, Spec, WeightsFile

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,95}$"
NAME_RULE = "a name of 1 to 96 letters, digits and . _ / -, the first a letter or a digit"
IMPLIED_VARIANTS = ("mlc", "transformers")
"""The variants of an entry that lists none: the one in the container, and the one elsewhere."""

_EMBEDDING = frozenset({"embedding", "embeddings"})
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


Name = Annotated[str, Field(pattern=NAME_PATTERN, description=NAME_RULE)]
Text = Annotated[str, Field(min_length=1, max_length=4000, description="text of 1 to 4000 characters")]
Count = Annotated[int, Field(gt=0, le=2**53, description="a positive whole number")]
Tokens = Annotated[int, Field(gt=0, le=2**31, description="a positive number of tokens")]
MB = Annotated[float, Field(gt=0, le=10_000_000, description="a positive number of MB")]
Fraction = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]


class Status(str, Enum):
    """What is claimed of a model; evidence of the harness overrides it."""

    PRODUCTION = "production"
    VERIFIED = "verified"
    EXPERIMENTAL = "experimental"
    PLANNED = "planned"
    INCOMPATIBLE = "incompatible"


class Adapter(Spec):
    """A low-rank adapter on top of the weights; no backend applies one yet."""

    name: Annotated[Name, Field(title="name by which a request asks for it")]
    source: Annotated[Source, Field(title="where it comes from")]
    scale: Annotated[float, Field(ge=-10, le=10, title="strength", description="a number from -10 to 10")] = (
        1.0
    )


class Variant(Spec):
    """One way of running a model."""

    backend: Annotated[
        Literal["mlc", "llamacpp", "transformers"],
        Field(title="engine that runs it", description="'mlc', 'llamacpp' or 'transformers'"),
    ]
    quantization: Annotated[
        Annotated[str, Field(min_length=1, max_length=64, description="text of 1 to 64 characters")] | None,
        Field(title="how its weights are stored, in the engine's own word"),
    ] = None
    source: Annotated[Source | None, Field(title="where its weights come from")] = None
    files: Annotated[
        tuple[WeightsFile, ...],
        Field(
            max_length=1000,
            title="what to take of a hub repository; none: every file of tensors or text",
            description="a list of files",
        ),
    ] = ()
    draft: Annotated[
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,192}$", description="'model' or 'model/variant'"),
        ]
        | None,
        Field(title="registered model that drafts for it (speculative decoding); no backend uses it yet"),
    ] = None
    adapters: Annotated[
        tuple[Adapter, ...],
        Field(max_length=64, title="adapters that it may carry", description="a list of at most 64 adapters"),
    ] = ()
    context: Annotated[
        Tokens | None, Field(title="most tokens that a sequence may have; null: the model's own limit")
    ] = None
    memory_requirement: Annotated[
        MB | None, Field(title="MB (10^6 bytes) that must be available to load it; null: as the entry says")
    ] = None

    @model_validator(mode="after")
    def _files_are_those_of_its_source(self) -> Variant:
        names = [file.name for file in self.files]
        if names and not isinstance(self.source, HubSource):
            raise ValueError("expected files with a source of type 'hub' only; the others name their own")
        if len(set(names)) != len(names):
            raise ValueError("expected files of different names")
        if self.backend == "llamacpp" and isinstance(self.source, HubSource) and not _is_one_gguf(names):
            raise ValueError("expected files to name one .gguf file, or all shards of one")
        if self.backend == "llamacpp" and isinstance(self.source, PackageDirectory):
            raise ValueError("expected a source of type 'package' for a .gguf file")
        if len({adapter.name for adapter in self.adapters}) != len(self.adapters):
            raise ValueError("expected adapters of different names")
        return self

    @property
    def entry_file(self) -> str | None:
        """The file of a hub repository that llama.cpp opens: the .gguf file, of several shards the first."""
        is_gguf = self.backend == "llamacpp" and isinstance(self.source, HubSource)
        return min(file.name for file in self.files) if is_gguf else None


def _is_one_gguf(names: list[str]) -> bool:
    if len(names) == 1:
        shard = _SHARD.fullmatch(names[0])
        return names[0].endswith(".gguf") and (shard is None or shard["count"] == "00001")
    shards = [_SHARD.fullmatch(name) for name in names]
    stems = {(shard["stem"], shard["count"]) for shard in shards if shard}
    numbers = sorted(int(shard["number"]) for shard in shards if shard)
    count = len(names)
    return all(shards) and len(stems) == 1 and numbers == list(range(1, count + 1)) and _count(stems) == count


def _count(stems: set[tuple[str, str]]) -> int:
    return int(next(iter(stems))[1])


class Sampling(Spec):
    """Sampling defaults of a task, used where the request is silent."""

    temperature: Annotated[
        Annotated[float, Field(ge=0, le=2, description="a number from 0 to 2")] | None,
        Field(title="randomness; 0 is greedy"),
    ] = None
    top_p: Annotated[
        Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")] | None,
        Field(title="probability mass that is sampled from"),
    ] = None
    top_k: Annotated[
        Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 to 1000")] | None,
        Field(title="tokens that are sampled from; 0: all"),
    ] = None
    min_p: Annotated[Fraction | None, Field(title="least probability, relative to the likeliest")] = None
    repetition_penalty: Annotated[
        Annotated[float, Field(gt=0, le=2, description="a number above 0, at most 2")] | None,
        Field(title="divisor of the scores of tokens that occurred; 1: none"),
    ] = None


Parameters = Annotated[
    str,
    Field(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?[MBT]$", description="a count such as '82M' or '1.7B'"),
]


class ModelSpec(Spec):
    """One entry of models.json; the first six keys are the original guide's form."""

    name: Annotated[
        str, Field(min_length=1, max_length=200, title="name for people", description="1 to 200 characters")
    ]
    parameters: Annotated[Parameters, Field(title="how many parameters, in millions, billions or trillions")]
    memory_requirement: Annotated[MB, Field(title="MB (10^6 bytes) that must be available to load it")]
    container: Annotated[
        str | None, Field(title="image that runs it; null: none needed", description="an image tag or null")
    ]
    status: Annotated[
        Status,
        Field(
            title="what is claimed of it",
            description=", ".join(f"'{s.value}'" for s in Status).replace(", 'inc", " or 'inc"),
        ),
    ]
    use_cases: Annotated[
        tuple[Text, ...], Field(min_length=1, title="tasks it serves", description="a list of tasks")
    ]

    aliases: Annotated[
        tuple[Name, ...], Field(title="other names it answers to", description="a list of names")
    ] = ()
    architecture: Annotated[Text | None, Field(title="model family, as its configuration names it")] = None
    license: Annotated[Text | None, Field(title="licence of its weights")] = None
    issue: Annotated[Text | None, Field(title="why it is incompatible, in a sentence")] = None
    notes: Annotated[Text | None, Field(title="what else a user should know")] = None
    active_parameters: Annotated[
        Parameters | None, Field(title="parameters that one token uses, of a mixture of experts")
    ] = None
    context_length: Annotated[Tokens | None, Field(title="tokens it was trained to attend to")] = None
    layers: Annotated[Count | None, Field(title="transformer blocks")] = None
    heads: Annotated[Count | None, Field(title="query heads of a layer")] = None
    kv_heads: Annotated[Count | None, Field(title="key and value heads of a layer")] = None
    head_dim: Annotated[Count | None, Field(title="width of one attention head")] = None
    hidden_size: Annotated[Count | None, Field(title="width of the residual stream")] = None
    vocab_size: Annotated[Count | None, Field(title="tokens in its vocabulary")] = None
    chat: Annotated[
        Annotated[
            str,
            Field(
                pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$",
                description="'none', 'embedded', the name of a conversation template, or null",
            ),
        ]
        | None,
        Field(
            title="how a conversation is written out; 'none': a base model; 'embedded': its files hold a "
            "template; else a template that its engine knows by that name; null: not known"
        ),
    ] = None
    sampling: Annotated[
        dict[Name, Sampling], Field(title="sampling defaults by task", description="an object of tasks")
    ] = Field(default_factory=dict)
    min_available_memory: Annotated[
        MB | None, Field(title="MB of available memory below which it is not chosen by itself")
    ] = None
    quality: Annotated[Fraction | None, Field(title="measured quality; null: nobody measured it")] = None
    variants: Annotated[
        dict[Name, Variant], Field(title="ways of running it", description="an object of variants by name")
    ] = Field(default_factory=dict)

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors of texts, and is of use for nothing else."""
        return _EMBEDDING.issuperset(self.use_cases)

    @property
    def parameter_count(self) -> int:
        """Parameters as a number: "1.7B" is 1_700_000_000."""
        return _number_of(self.parameters)

    @property
    def active_share(self) -> float:
        """The share of the parameters that a token uses: 1 except for a mixture of experts."""
        return min(1.0, _number_of(self.active_parameters or self.parameters) / self.parameter_count)


def _number_of(parameters: str) -> int:
    scale = {"M": 10**6, "B": 10**9, "T": 10**12}[parameters[-1]]
    return round(float(parameters[:-1]) * scale)
