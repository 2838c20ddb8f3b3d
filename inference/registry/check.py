"""The check of a parsed models.json: every problem of it with its place."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from inference.registry.problems import NOTHING, meant, problems, shown, unknown_key
from inference.registry.spec import IMPLIED_VARIANTS, NAME_PATTERN, NAME_RULE, ModelSpec
from inference.registry.strict_json import Loc

_TOP_KEYS = ("models", "$schema")
_MAX_GUESSES = 50  # of drafts: each one compares a name with all names, 10 ms where there are 1,000
_Problems = Iterator[tuple[Loc, str]]


def check(file: Any, models: dict[str, ModelSpec]) -> _Problems:
    """Yield every problem of a parsed file, and fill *models* with the sound entries."""
    if not isinstance(file, dict):
        yield (), f"expected an object with the key 'models', got {shown(file)}"
        return
    for key in file:
        if key not in _TOP_KEYS:
            yield (key,), unknown_key(key, _TOP_KEYS)
    if not isinstance(file.get("$schema"), str | None):
        yield ("$schema",), f"expected a URL, got {shown(file['$schema'])}"
    entries = file.get("models", NOTHING)
    if not isinstance(entries, dict):
        yield ("models",), f"expected an object of models by name, got {shown(entries)}"
        return
    schema = functools.cache(ModelSpec.model_json_schema)  # 3 ms, and only errors need it
    for key, entry in entries.items():
        try:
            yield from _check_key(key, entry)
            if isinstance(entry, dict):
                models[key] = ModelSpec.model_validate_json(json.dumps(entry))
        except ValidationError as error:
            for loc, problem in problems(error, schema()):
                yield ("models", key, *loc), problem
    yield from _check_names(entries)
    yield from _check_drafts(models, entries)


def _check_key(key: str, entry: Any) -> _Problems:
    if not re.fullmatch(NAME_PATTERN, key):
        yield ("models", key), f"expected {NAME_RULE}, got {shown(key)}"
    if not isinstance(entry, dict):
        yield ("models", key), f"expected an object, got {shown(entry)}"


def _check_names(entries: Mapping[str, Any]) -> _Problems:
    """A name, in any case, must mean one model, whatever else is wrong with the entries."""
    claims: list[tuple[Loc, str, str]] = [
        (("models", key), key, f"the model {shown(key)}") for key in entries
    ]
    for key, entry in entries.items():
        for index, alias in _aliases(entry):
            claims.append((("models", key, "aliases", index), alias, f"an alias of {shown(key)}"))
    owners: dict[str, str] = {}
    for loc, name, meaning in claims:
        if name.lower() in owners:
            yield loc, f"expected a name of its own, got {shown(name)}, which is {owners[name.lower()]}"
        owners.setdefault(name.lower(), meaning)


def _check_drafts(models: Mapping[str, ModelSpec], entries: Mapping[str, Any]) -> _Problems:
    """A draft must be registered, and not be the variant that it drafts for."""
    keys = {alias.lower(): key for key, entry in entries.items() for _, alias in _aliases(entry)}
    keys |= {key.lower(): key for key in entries}
    guesses = 0
    for key, spec in models.items():
        for name, variant in spec.variants.items():
            found = variant.draft and _draft_problem(variant.draft, (key, name), keys, models)
            if not found:
                continue
            problem, written, known = found
            guess = meant(written, known) if guesses < _MAX_GUESSES else ""
            guesses += 1
            yield ("models", key, "variants", name, "draft"), problem + guess


def _draft_problem(
    draft: str, owner: tuple[str, str], keys: Mapping[str, str], models: Mapping[str, ModelSpec]
) -> tuple[str, str, Iterable[str]] | None:
    """Return what is wrong with a draft, what was misspelt perhaps, and the names there are."""
    whole = keys.get(draft.lower())
    stem, _, chosen = draft.rpartition("/")
    model = whole or keys.get(stem.lower())
    if model is None:
        return f"expected a registered model, got {shown(draft)}", draft.lower(), keys
    if model == owner[0] and (whole is not None or chosen == owner[1]):
        return f"expected another model or variant, got {shown(draft)}, which is this one", "", ()
    if whole is not None or model not in models:  # an unsound entry has errors of its own
        return None
    variants = models[model].variants or IMPLIED_VARIANTS
    if chosen in variants:
        return None
    return f"expected a variant of {shown(model)}, got {shown(chosen)}", chosen, variants


def _aliases(entry: Any) -> list[tuple[int, str]]:
    """Return the aliases of an entry that may be unsound, with their places."""
    aliases = entry.get("aliases") if isinstance(entry, dict) else None
    items = enumerate(aliases) if isinstance(aliases, list) else ()
    return [(index, alias) for index, alias in items if isinstance(alias, str)]
