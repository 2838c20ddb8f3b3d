"""`jetllm` on an appliance's host: what concerns the device itself; all else runs in the container."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inference import __version__
from inference.appliance.bundle import check_bundle
from inference.appliance.command import run
from inference.appliance.config import Config, load_config
from inference.appliance.engine import NAME
from inference.appliance.errors import BundleError, NoReleaseError
from inference.appliance.firstboot import FirstBoot, take_key
from inference.appliance.installation import Installation
from inference.appliance.layout import Layout
from inference.appliance.picture import picture, picture_lines
from inference.appliance.supervisor import remove_container, supervise
from inference.appliance.update import rollback, update
from inference.errors import AlreadyRunningError, JetLLMError, SettingsError

EXIT_ERROR = 1
EXIT_NO_DAEMON = 3
EXIT_DEFECT = 70  # EX_SOFTWARE
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL
EXIT_UNFIT = 78  # EX_CONFIG: to start it again does not help
EXIT_INTERRUPTED = 130

_ASK_TIMEOUT_S = 30.0
_EPILOG = """\
Every other command runs in the container, where the daemon is: jetllm run, models, pull, keys, ...

exit codes: 0 done, 1 failed, 2 wrong usage, 3 no daemon runs, 70 a defect, 75 another update is under
way, 78 nothing that runs on this device, 130 interrupted (docs/cli.md)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; whatever goes wrong is one message on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in words
    try:
        if not _is_ours(words):
            return _in_container(load_config(Layout().config), words)
        options = _parser().parse_args(words or ["--help"])
        as_json = getattr(options, "as_json", False)
        act: Callable[[argparse.Namespace], int] = options.act
        return act(options)
    except JetLLMError as error:
        _note(f"error: {error}")
        if as_json:
            _print_json({"error": error.to_dict()})
        return _exit_code(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _note(f"error: {where}{error.strerror or error}")
        return EXIT_ERROR
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        _note(f"error: internal error: {type(error).__name__}: {error} ({where})")
        _note("    hint: it is a defect of JetLLM")
        return EXIT_DEFECT


def _exit_code(error: JetLLMError) -> int:
    if isinstance(error, SettingsError):
        return EXIT_UNFIT
    return EXIT_ALREADY_RUNNING if isinstance(error, AlreadyRunningError) else EXIT_ERROR


def _is_ours(words: Sequence[str]) -> bool:
    """Whether a command line is for the host; `bundle` is partly."""
    first = words[0] if words else "--help"
    if first == "bundle":
        return words[1:2] == ["verify"]
    return first in (*_COMMANDS, "-h", "--help", "--root")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jetllm",
        description="JetLLM on this device.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="the file system of the device")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (act, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(act=act)
        _add_options(name, command)
    return parser


def _add_options(name: str, command: argparse.ArgumentParser) -> None:
    if name == "supervise":
        command.add_argument("--native", action="store_true", help="`jetllm serve` in place of the container")
        command.add_argument(
            "--remove", action="store_true", help="only remove what a killed supervisor left"
        )
        return
    if name == "firstboot":
        command.add_argument(
            "--format", type=Path, metavar="DISK", help="make the data partition of this disk, if it is empty"
        )
        command.add_argument(
            "--key", action="store_true", help="show the first API key, once, and do nothing else"
        )
        return
    if name == "bundle":
        verify = command.add_subparsers(dest="what", required=True, metavar="verify").add_parser("verify")
        verify.add_argument("path", type=Path, metavar="FILE|DIR")
        verify.add_argument("--trusted", type=Path, help="a public key, or a directory of such")
        verify.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
        return
    if name == "update":
        command.add_argument("path", type=Path, metavar="FILE|DIR", help="a bundle: a .tar or a directory")
        command.add_argument("--again", action="store_true", help="take a bundle that is marked bad")
    if name == "rollback":
        command.add_argument(
            "--failed", action="store_true", help="the service failed; for jetllm-rollback.service"
        )
    command.add_argument("--json", dest="as_json", action="store_true", help="print JSON")


def _installation(options: argparse.Namespace) -> Installation:
    layout = Layout(options.root)
    return Installation(layout, load_config(layout.config), _note)


def _supervise(options: argparse.Namespace) -> int:
    logging.basicConfig(level="INFO", format="%(levelname)s %(name)s: %(message)s")
    layout = Layout(options.root)
    config = load_config(layout.config)
    if options.remove:
        remove_container(config, layout)
        return 0
    return supervise(config, layout, os.environ, native=options.native)


def _firstboot(options: argparse.Namespace) -> int:
    installation = _installation(options)
    if options.key:
        _print(take_key(installation))
        return 0
    try:
        FirstBoot(installation, options.format).run()
    except (BundleError, NoReleaseError, SettingsError) as error:
        _note(f"error: {error}")
        return EXIT_UNFIT
    return 0


def _update(options: argparse.Namespace) -> int:
    release = update(_installation(options), options.path, again=options.again)
    if options.as_json:
        _print_json({"version": release.version, "bundle": release.bundle, "image": release.image})
    return 0


def _rollback(options: argparse.Namespace) -> int:
    releases = rollback(_installation(options), failed=options.failed)
    if options.as_json:
        _print_json(None if releases is None else releases.to_dict())
    return 0


def _status(options: argparse.Namespace) -> int:
    layout = Layout(options.root)
    shown = picture(layout, load_config(layout.config))
    if options.as_json:
        _print_json(shown)
    else:
        for name, text in picture_lines(layout, shown):
            _print(f"{name:<8} {text}")
    return EXIT_NO_DAEMON if shown["daemon"]["status"] == "unreachable" else 0


def _verify(options: argparse.Namespace) -> int:
    manifest, signer = check_bundle(options.path, options.trusted or Layout(options.root).trusted)
    if options.as_json:
        _print_json({"signer": signer, "bundle": manifest.digest, **manifest.to_dict()})
    else:
        held = f"{len(manifest.files)} files, {manifest.total_bytes:,} bytes"
        _print(f"{manifest.version}: {held}, signed by {signer}")
    return 0


def _version(options: argparse.Namespace) -> int:
    if options.as_json:
        _print_json({"jetllm": __version__, "python": platform.python_version()})
    else:
        _print(f"jetllm {__version__}")
    return 0


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "supervise": (_supervise, "run the daemon, for jetllm.service"),
    "firstboot": (_firstboot, "make a flashed device ready, for jetllm-firstboot.service"),
    "update": (_update, "bring a release into service; it is kept only if it answers as it should"),
    "rollback": (_rollback, "go back to the release before, and mark the current one as bad"),
    "status": (_status, "show the releases, the service and the daemon"),
    "bundle": (_verify, "verify a bundle"),
    "version": (_version, "show the version"),
}


def _in_container(config: Config, words: Sequence[str]) -> int:
    """Become the command in the daemon's container, with this terminal; return only where there is none."""
    found = run(
        *(config.engine, "container", "inspect", "--format", "{{.State.Running}}", NAME),
        timeout_s=_ASK_TIMEOUT_S,
    )
    if found.code != 0 and "permission denied" in found.errors.lower():
        _note(f"error: {config.engine}: {found.last_words}\n    hint: sudo jetllm {words[0]} ...")
        return EXIT_ERROR
    if found.output.strip() != "true":
        _note("error: the appliance's container does not run")
        _note("    hint: jetllm status; then: sudo systemctl start jetllm")
        return EXIT_NO_DAEMON
    terminal = ("--tty",) if sys.stdin.isatty() and sys.stdout.isatty() else ()
    command = [config.engine, "exec", "--interactive", *terminal, NAME, "jetllm", *words]
    os.execvp(command[0], command)  # noqa: S606 - a list, and the engine is docker or podman


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))


if __name__ == "__main__":
    sys.exit(main())
