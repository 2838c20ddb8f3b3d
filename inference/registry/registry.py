"""The registry: models.json read strictly, its models found by name or alias."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from inference.errors import ModelNotFoundError, RegistryError
from inference.registry import strict_json
from inference.registry.problems import NOTHING, dotted, problems, shown, unknown_key
from inference.registry.spec import NAME_PATTERN, NAME_RULE, ModelSpec, Name
from inference.registry.strict_json import Loc

_MAX_FILE_BYTES = 16 * 2**20
_TOP_KEYS = ("models", "$schema")


@dataclass(frozen=True)
class Registry:
    """The models of one models.json, in the order of the file."""

    models: Mapping[str, ModelSpec]
    path: Path
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
        RegistryError: with one line for every error of the file.
    """
    try:
        file, wrong = strict_json.parse(_read(path))
    except ValueError as error:
        raise RegistryError(f"{path.name}: not JSON: {error}", hint=f"correct {path}") from None
    models: dict[str, ModelSpec] = {}
    for loc, problem in _check(file, models):
        wrong.setdefault(loc, problem)
    if wrong:
        lines = (f"{dotted(loc)}: {problem}" if loc else problem for loc, problem in wrong.items())
        raise RegistryError(
            "\n".join(f"{path.name}: {line}" for line in lines),
            hint=f"correct {path}; docs/models.md explains the keys",
        )
    return Registry(models, path)


def registry_schema() -> dict[str, Any]:
    """Return the JSON schema of models.json."""
    schema = _File.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "models.json"}


class _File(BaseModel):
    """The registry of JetLLM: its models by name."""

    model_config = ConfigDict(extra="forbid")

    schema_: Annotated[str | None, Field(alias="$schema", description="where the JSON schema is")] = None
    models: Annotated[dict[Name, ModelSpec], Field(description="an object of models by name")]


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise RegistryError(f"{path.name}: expected at most {_MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RegistryError(
            f"{path}: {error.strerror}", hint="name a readable registry: JETLLM_REGISTRY=/path/models.json"
        ) from None


def _check(file: Any, models: dict[str, ModelSpec]) -> Iterator[tuple[Loc, str]]:
    """Yield every problem of a parsed file, and fill *models* with the sound entries."""
    if not isinstance(file, dict):
        yield (), f"expected an object with the key 'models', got {shown(file)}"
        return
    for key in file:
        if key not in _TOP_KEYS:
            yield (key,), unknown_key(key, _TOP_KEYS)
    entries = file.get("models", NOTHING)
    if not isinstance(entries, dict):
        yield ("models",), f"expected an object of models by name, got {shown(entries)}"
        return
    for key, entry in entries.items():
        yield from _check_entry(key, entry, models)
    yield from _check_names(models)


def _check_entry(key: str, entry: Any, models: dict[str, ModelSpec]) -> Iterator[tuple[Loc, str]]:
    if not re.fullmatch(NAME_PATTERN, key):
        yield ("models", key), f"expected {NAME_RULE}, got {shown(key)}"
    if not isinstance(entry, dict):
        yield ("models", key), f"expected an object, got {shown(entry)}"
        return
    try:
        models[key] = ModelSpec.model_validate_json(json.dumps(entry))
    except ValidationError as error:
        for loc, problem in problems(error, ModelSpec.model_json_schema()):
            yield ("models", key, *loc), problem


def _check_names(models: Mapping[str, ModelSpec]) -> Iterator[tuple[Loc, str]]:
    """A name, in any case, must mean one model."""
    claims: list[tuple[Loc, str, str]] = [(("models", key), key, f"the model '{key}'") for key in models]
    for key, spec in models.items():
        for index, alias in enumerate(spec.aliases):
            claims.append((("models", key, "aliases", index), alias, f"an alias of '{key}'"))
    owners: dict[str, str] = {}
    for loc, name, meaning in claims:
        if name.lower() in owners:
            yield loc, f"expected a name of its own, got {shown(name)}, which is {owners[name.lower()]}"
        owners.setdefault(name.lower(), meaning)
