"""A command of the host: run to its end, within a limit, with nothing to read."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from inference.errors import JetLLMError, MissingDependencyError

_PACKAGES = {"blkid": "util-linux", "mount": "mount", "mkfs.ext4": "e2fsprogs", "systemctl": "systemd"}


class CommandError(JetLLMError):
    """A command of the host failed; its own words are in the message."""

    code = "host_command"


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it wrote."""

    code: int
    output: str
    errors: str

    @property
    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = [line for line in (self.output + self.errors).splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"nothing; it ended with {self.code}"


def run(*argv: str, timeout_s: float) -> Done:
    """Run *argv* and return how it ended, whatever its code is.

    Raises:
        MissingDependencyError: there is no such command.
        CommandError: it did not end within *timeout_s*.
    """
    try:
        done = subprocess.run(  # noqa: S603 - a list; what is in it was checked by the caller
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError:
        package = _PACKAGES.get(argv[0])
        raise MissingDependencyError(
            f"{argv[0]} is not installed", hint=f"sudo apt-get install {package}" if package else None
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"{' '.join(argv)}: it did not end within {timeout_s:.0f} s") from None
    return Done(done.returncode, done.stdout, done.stderr)


def demand(*argv: str, timeout_s: float, hint: str | None = None) -> Done:
    """Run *argv*, which must succeed.

    Raises:
        CommandError: it did not.
    """
    done = run(*argv, timeout_s=timeout_s)
    if done.code != 0:
        raise CommandError(f"{' '.join(argv)}: {done.last_words}", hint=hint)
    return done
