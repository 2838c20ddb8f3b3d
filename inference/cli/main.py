"""The group of all commands; it turns whatever goes wrong into one message and an exit code."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import click

from inference.cli.ask import run
from inference.cli.bench import bench
from inference.cli.build import build
from inference.cli.bundle import bundle
from inference.cli.check import check
from inference.cli.common import AS_JSON
from inference.cli.completion import completion
from inference.cli.doctor import doctor
from inference.cli.keys import keys
from inference.cli.lint import lint
from inference.cli.logs import logs
from inference.cli.machine import device, version
from inference.cli.models import load, models, ps, unload
from inference.cli.pull import pull, rm
from inference.cli.select import select
from inference.cli.serve import serve
from inference.cli.status import status
from inference.cli.update import rollback, update
from inference.client import NoDaemonError
from inference.console import print_json, print_note
from inference.errors import AlreadyRunningError, JetLLMError, RegistryError, SettingsError, UnsafeBindError

EXIT_ERROR = 1
EXIT_NO_DAEMON = 3
EXIT_DEFECT = 70  # EX_SOFTWARE
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL: systemd may try again
EXIT_CONFIG = 78  # EX_CONFIG: to start it again does not help
EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns our errors into one message and an exit code, and nothing into a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return self._explained(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # the reader left
            ctx.exit(EXIT_ERROR)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print_note(f"error: {where}{error.strerror or error}")
            ctx.exit(EXIT_ERROR)

    def _explained(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JetLLMError as error:
            print_note(f"error: {error}")
            if ctx.meta.get(AS_JSON):
                print_json({"error": error.to_dict()})
            ctx.exit(_exit_code(error))
        except (OSError, click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            print_note(f"error: internal error: {_where(error)}")
            print_note("    hint: it is a defect of JetLLM; what it depends on is in: jetllm doctor --json")
            ctx.exit(EXIT_DEFECT)


def _exit_code(error: JetLLMError) -> int:
    if isinstance(error, AlreadyRunningError):
        return EXIT_ALREADY_RUNNING
    if isinstance(error, (SettingsError, RegistryError, UnsafeBindError)):
        return EXIT_CONFIG
    return EXIT_NO_DAEMON if isinstance(error, NoDaemonError) else EXIT_ERROR


def _where(error: Exception) -> str:
    """Name an unexpected exception and the line it came from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="Settings file; by default ./jetllm.yaml.")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Language models on NVIDIA Jetson, and on any Linux machine.

    Every setting of docs/settings.md is a flag of `serve` and a JETLLM_* variable everywhere.

    \b
    Examples:
      jetllm serve --preload smollm2-135m-instruct
      jetllm run "Why is the sky blue?"
      jetllm doctor

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon runs, 70 a defect, 75 another daemon
    runs, 78 wrong settings, 130 interrupted (docs/cli.md).
    """
    ctx.obj = config


for command in (
    serve,
    run,
    select,
    models,
    pull,
    build,
    bundle,
    load,
    unload,
    rm,
    ps,
    status,
    logs,
    lint,
    check,
    bench,
    doctor,
    update,
    rollback,
    keys,
    device,
    completion,
    version,
):
    main.add_command(command)
