"""`jetllm serve`: every setting is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from inference.cli.common import F
from inference.errors import ModelNotFoundError, SettingsError
from inference.settings import Settings, load_settings, setting_help

_HIDDEN_FLAGS = {"api_key"}  # a key on the command line is visible to every user of the machine


def _settings_flags(command: F) -> F:
    for name, info in reversed(Settings.model_fields.items()):
        if name in _HIDDEN_FLAGS:
            continue
        many = "tuple" in str(info.annotation)
        flag, text = f"--{name.replace('_', '-')}", setting_help(name)
        if info.annotation is bool:
            command = click.option(f"{flag}/--no-{name}", default=None, help=text)(command)
        else:
            command = click.option(flag, default=None, multiple=many, help=text)(command)
    return command


@click.command()
@_settings_flags
@click.pass_obj
def serve(config: Path | None, /, **flags: Any) -> None:
    """Serve HTTP until SIGTERM; what it does is also in its log: `jetllm logs`.

    \b
    Examples:
      jetllm serve --preload smollm2-135m-instruct --port 8080
      JETLLM_API_KEY=... jetllm serve --host 0.0.0.0
    """
    from inference.daemon import run_daemon

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        run_daemon(load_settings(given, config=config))
    except ModelNotFoundError as error:
        raise SettingsError(f"preload: {error.message}", hint=error.hint, param="preload") from error
