"""The registry: models.json read strictly, its models found by name or alias."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from inference.errors import ModelNotFoundError, RegistryError
from inference.registry import strict_json
from inference.registry.check import check
from inference.registry.problems import dotted, shown
from inference.registry.sources import Spec
from inference.registry.spec import ModelSpec, Name

_MAX_FILE_BYTES = 16 * 2**20
_MAX_PROBLEMS = 10_000


@dataclass(frozen=True)
class Registry:
    """The models of one models.json, in the order of the file.

    Args:
        digest: SHA-256 of the file's bytes; ``None`` for one that was not read from a file.
    """

    models: Mapping[str, ModelSpec]
    path: Path
    digest: str | None = field(default=None, compare=False)
    _keys: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = {alias.lower(): key for key, spec in self.models.items() for alias in spec.aliases}
        keys.update({key.lower(): key for key in self.models})
        object.__setattr__(self, "models", MappingProxyType(dict(self.models)))
        object.__setattr__(self, "_keys", MappingProxyType(keys))

    def get(self, name: str) -> tuple[str, ModelSpec]:
        """Return the key and entry of a model by its key or an alias, in any case.

        Raises:
            ModelNotFoundError: there is none; the hint names the nearest.
        """
        key = self._keys.get(name.lower())
        if key is None:
            close = difflib.get_close_matches(name[:100].lower(), self._keys, n=1)
            guess = f"did you mean '{close[0]}'? " if close else ""
            raise ModelNotFoundError(
                f"unknown model {shown(name)}", hint=f"{guess}list them: jetllm models", param="model"
            )
        return key, self.models[key]

    def names(self) -> list[str]:
        """Return the keys, in the order of the file."""
        return list(self.models)


def load_registry(path: Path) -> Registry:
    """Read models.json whole or not at all.

    Raises:
        RegistryError: with one line for every error of the file, up to 10,000.
    """
    raw = _read(path)
    try:
        file, wrong = strict_json.parse(raw.decode("utf-8"))
    except ValueError as error:
        raise RegistryError(f"{path.name}: not JSON: {error}", hint=f"correct {path}") from None
    models: dict[str, ModelSpec] = {}
    for loc, problem in islice(check(file, models), _MAX_PROBLEMS):
        wrong.setdefault(loc, problem)
    if wrong:
        raise RegistryError(
            "\n".join(f"{path.name}: {_line(loc, problem)}" for loc, problem in wrong.items()),
            hint=f"correct {path}; docs/models.md explains the keys",
        )
    return Registry(models, path, hashlib.sha256(raw).hexdigest())


def registry_schema() -> dict[str, Any]:
    """Return the JSON schema of models.json; ``jetllm models schema`` prints it."""
    schema = _File.model_json_schema()
    for node in [schema, *schema["$defs"].values()]:
        for child in node.get("properties", {}).values():
            if "patternProperties" in child:  # a name that does not match is an error, too
                child["additionalProperties"] = False
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "models.json"}


class _File(Spec):
    """The registry of JetLLM: its models by name."""

    schema_: Annotated[
        str | None, Field(alias="$schema", title="where this schema is, for editors", description="a URL")
    ] = None
    models: Annotated[
        dict[Name, ModelSpec], Field(title="the models", description="an object of models by name")
    ]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RegistryError(
            f"{path}: {error.strerror}", hint="name a readable registry: JETLLM_REGISTRY=/path/models.json"
        ) from None
    if len(raw) > _MAX_FILE_BYTES:
        raise RegistryError(
            f"{path.name}: expected at most {_MAX_FILE_BYTES:,} bytes, got more",
            hint="name another registry: JETLLM_REGISTRY=/path/models.json",
        )
    return raw


def _line(loc: strict_json.Loc, problem: str) -> str:
    return f"{dotted(loc)}: {problem}" if loc else problem
