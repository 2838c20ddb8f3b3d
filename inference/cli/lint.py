"""`jetllm lint`: does an image's MLC take a checkpoint, and if not, why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click

from inference.artifacts.lint import (
    DEFAULT_QUANTIZATION,
    NEWEST_IMAGE,
    Report,
    as_text,
    lint_entry,
)
from inference.artifacts.lint import lint as lint_directory
from inference.artifacts.store import Store
from inference.cli.common import complete_models, json_flag
from inference.console import print_json, print_line, print_note
from inference.errors import InvalidRequestError, JetLLMError, ModelNotFoundError
from inference.registry import ModelSpec, Variant, load_registry
from inference.registry.spec import IMPLIED_VARIANTS
from inference.settings import load_settings

EXIT_NOT_TAKEN = 1
EXIT_NOT_ASKED = 2  # as click's own for a wrong command line
_CHECKPOINT_BACKENDS = ("mlc", "transformers")


@dataclass(frozen=True)
class _Asked:
    """What the command line says; ``None`` where it is silent."""

    model: str | None
    variant: str | None
    image: str | None
    directory: str | None
    quantization: str | None
    context_tokens: int | None


@click.command()
@click.argument("model", required=False, shell_complete=complete_models)
@click.option("--variant", help="One of the model's variants; by default its mlc one.")
@click.option("--image", help=f"Image whose MLC is asked, such as {NEWEST_IMAGE}; by default the model's.")
@click.option("--path", "directory", help="Look at the checkpoint in DIR.", metavar="DIR")
@click.option("--quantization", help="In MLC's word; by default the variant's.", metavar="NAME")
@click.option(
    "--context",
    "context_tokens",
    type=click.IntRange(1, 2**31),
    metavar="TOKENS",
    help="Context that MLC is asked for; by default the variant's.",
)
@json_flag
@click.pass_context
def lint(ctx: click.Context, /, *, as_json: bool, **asked: str | int | None) -> None:
    """Say whether an image's MLC takes MODEL; from its small files alone, no weights are read.

    MODEL is a name of models.json, or a directory. Where no checkpoint of a model is here, what
    models.json says of it is looked at. The exit code is 0 when MLC takes it as it is, 1 when it does
    not (docs/lint.md tells what `jetllm build` does about it), 2 when nothing could be asked.

    \b
    Examples:
      jetllm lint smollm2-135m-instruct --image nano_llm:r36.2.0
      jetllm lint --path ./checkpoint --quantization q4f16_1 --json
    """
    question = _Asked(**asked)  # type: ignore[arg-type]  # click has checked them
    if question.model is None and question.directory is None:
        raise click.UsageError("name a MODEL, or a checkpoint with --path DIR")
    try:
        report = _report(ctx.obj, question)
    except JetLLMError as error:
        print_note(f"error: {error}")
        ctx.exit(EXIT_NOT_ASKED)
    if as_json:
        print_json(report.to_dict())
    else:
        print_line(as_text(report))
    if not report.takes:
        ctx.exit(EXIT_NOT_TAKEN)


class _Subject(NamedTuple):
    """A registered model, in the variant that tells quantization and context."""

    name: str
    spec: ModelSpec
    variants: dict[str, Variant]
    chosen: Variant | None


def _report(config: Path | None, asked: _Asked) -> Report:
    settings = load_settings(config=config)
    model, directory = asked.model, asked.directory
    if directory is not None and not os.path.lexists(directory):
        raise InvalidRequestError(
            f"--path: {directory}: no such directory", hint="name the directory that holds config.json"
        )
    try:
        named = load_registry(settings.registry_path).get(model) if model is not None else None
    except ModelNotFoundError:
        if directory is not None or not Path(str(model)).is_dir():
            raise
        named, directory = None, model
    if named is None:
        if asked.variant is not None:
            raise InvalidRequestError(
                "--variant: expected a MODEL of models.json with it", hint="jetllm models"
            )
        return lint_directory(
            str(directory),
            NEWEST_IMAGE if asked.image is None else asked.image,
            asked.quantization or DEFAULT_QUANTIZATION,
            asked.context_tokens,
        )
    subject = _subject(*named, asked.variant)
    chosen, spec = subject.chosen, subject.spec
    quantization = asked.quantization or (chosen.quantization if chosen else None) or DEFAULT_QUANTIZATION
    context_tokens = asked.context_tokens or (chosen.context if chosen else None)
    image = (spec.container or NEWEST_IMAGE) if asked.image is None else asked.image
    where = directory or _pulled(subject, Store(settings.cache_path), any_variant=asked.variant is None)
    if where is None:
        return lint_entry(subject.name, spec, image, quantization, context_tokens, variant=chosen)
    return lint_directory(where, image, quantization, context_tokens)


def _subject(name: str, spec: ModelSpec, variant: str | None) -> _Subject:
    variants = dict(spec.variants)
    if variant is not None and variant not in variants and (variants or variant not in IMPLIED_VARIANTS):
        raise ModelNotFoundError(
            f"{name} has no variant {variant!r}",
            hint=f"its variants: {', '.join(variants or IMPLIED_VARIANTS)}",
        )
    usual = (each for backend in _CHECKPOINT_BACKENDS for each in _of(backend, variants))
    chosen = variants.get(variant) if variant else next(usual, None)
    if chosen is not None and chosen.backend not in _CHECKPOINT_BACKENDS:
        able = [key for key, each in variants.items() if each.backend in _CHECKPOINT_BACKENDS]
        raise InvalidRequestError(
            f"{name}/{variant}: expected a checkpoint for MLC, got a file for {chosen.backend}",
            hint=f"variants with one: {', '.join(able) or 'none'}",
        )
    return _Subject(name, spec, variants, chosen)


def _of(backend: str, variants: dict[str, Variant]) -> Iterator[Variant]:
    return (each for each in variants.values() if each.backend == backend)


def _pulled(subject: _Subject, store: Store, *, any_variant: bool) -> str | None:
    """Return the first checkpoint directory that is here; ``None`` where there is none."""
    others = [each for backend in _CHECKPOINT_BACKENDS for each in _of(backend, subject.variants)]
    for each in (*((subject.chosen,) if subject.chosen else ()), *(others if any_variant else ())):
        path = store.path_of(subject.name, each)
        if path is not None and path.is_dir():
            return str(path)
    return None
