"""The group of all commands; it turns our errors into one message and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from inference.cli.ask import run, select
from inference.cli.build import build, bundle
from inference.cli.check import check
from inference.cli.lint import lint
from inference.cli.machine import device, status, version
from inference.cli.models import load, models, ps, pull, unload
from inference.cli.serve import serve
from inference.console import print_note
from inference.errors import AlreadyRunningError, JetLLMError

EXIT_ERROR = 1
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL: systemd may try again
EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """Turns our errors into one message and an exit code, and nothing into a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except AlreadyRunningError as error:
            print_note(f"error: {error}")
            ctx.exit(EXIT_ALREADY_RUNNING)
        except JetLLMError as error:
            print_note(f"error: {error}")
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # The reader left; silence Python's own complaint at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(EXIT_ERROR)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print_note(f"error: {where}{error.strerror or error}")
            ctx.exit(EXIT_ERROR)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), help="Settings file; by default ./jetllm.yaml.")
@click.pass_context
def main(ctx: click.Context, config: Path | None) -> None:
    """Language models on NVIDIA Jetson, and on any Linux machine.

    Every setting of docs/settings.md is a flag of `serve` and a JETLLM_* variable everywhere.
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
    ps,
    lint,
    check,
    status,
    device,
    version,
):
    main.add_command(command)
