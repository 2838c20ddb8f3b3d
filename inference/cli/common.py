"""What the commands share: the --json flag, and the way to the daemon or to a service of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from inference.client import Client
from inference.errors import JetLLMError
from inference.instance import running_daemon
from inference.settings import Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
    from inference.service import build_service

    service = build_service(settings)
    try:
        yield None, service
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
        JetLLMError: none runs.
    """
    client = client_of(load_settings(config=config))
    if client is None:
        raise JetLLMError("no daemon runs with this state directory", hint="start one: jetllm serve")
    return client
