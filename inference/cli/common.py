"""What the commands share: --json, names that a shell completes, the way to a daemon or a service."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from inference.client import Client, NoDaemonError
from inference.errors import JetLLMError
from inference.instance import running_daemon
from inference.settings import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])

AS_JSON = "inference.cli.as_json"
"""In a context's *meta*: whether standard output carries JSON, errors too."""


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta[AS_JSON] = ctx.meta.get(AS_JSON, False) or value
    return value


json_flag = click.option(
    "--json", "as_json", is_flag=True, is_eager=True, callback=_note_json, help="Print JSON."
)


def complete_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the models' names and aliases that begin so; none where there is no registry to read."""
    return [name for name in _names(ctx) if name.startswith(incomplete)]


def complete_variants(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the variants that begin so of the model that is already on the line."""
    from inference.registry import load_registry

    # An option without its value ends click's reading early: the model is among what it left over.
    given = ctx.params.get("model") or next(iter(ctx.params.get("models") or ctx.args), "")
    try:
        _, spec = load_registry(_settings(ctx).registry_path).get(given)
    except JetLLMError:
        return []
    return [name for name in spec.variants if name.startswith(incomplete)]


def _names(ctx: click.Context) -> list[str]:
    from inference.registry import load_registry

    try:
        return load_registry(_settings(ctx).registry_path).names()
    except JetLLMError:
        return []


def _settings(ctx: click.Context) -> Settings:
    return load_settings(config=ctx.find_root().params.get("config"))


model_argument = click.argument("model", shell_complete=complete_models)
variant_option = click.option(
    "--variant", shell_complete=complete_variants, help="One of the model's variants."
)


@contextmanager
def daemon_or_service(
    config: Path | None, flags: Mapping[str, Any] | None = None
) -> Iterator[tuple[Client | None, Any]]:
    """The running daemon's client, or a service of this process's own when none runs.

    Args:
        flags: settings for a service of our own; a daemon has its own ones, and is not asked with them.
    """
    settings = load_settings(flags, config=config)
    client = None if flags else client_of(settings)
    if client is not None:
        yield client, None
        return
    with own_service(settings) as service:
        yield None, service


@contextmanager
def own_service(settings: Settings) -> Iterator[Any]:
    """A service of this process's own; its workers have ended when the block has."""
    from inference.service import build_service

    service = build_service(settings)
    try:
        yield service
    finally:
        service.close()


def client_of(settings: Settings) -> Client | None:
    """The client of the daemon that holds the state directory; ``None`` when there is none."""
    url = running_daemon(settings.state_path)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return None if url is None else Client(url, key)


def daemon(config: Path | None) -> Client:
    """The running daemon's client.

    Raises:
        NoDaemonError: none runs.
    """
    client = client_of(load_settings(config=config))
    if client is None:
        raise NoDaemonError("no daemon runs with this state directory", hint="start one: jetllm serve")
    return client
