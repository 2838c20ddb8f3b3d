"""A machine for units and packages: a container whose first process is systemd."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.appliance.podman import EngineFailed, Podman
from tests.conftest import wait_until

START_S = 60.0

FLAGS = ("--privileged", "--systemd=always", "--tmpfs=/run", "--tmpfs=/tmp", "--stop-signal=SIGRTMIN+3")
"""What systemd as the first process wants of podman."""


@dataclass(frozen=True)
class Machine:
    """A started machine; commands run in it as root."""

    engine: Podman
    identity: str

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """Run *command* in it; return its standard output, stripped.

        Raises:
            EngineFailed: it ended with an error.
        """
        done = self.try_run(*command, timeout_s=timeout_s)
        if done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise EngineFailed(f"{' '.join(command[:4])} ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def try_run(
        self, *command: str, timeout_s: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* in it, however it ends."""
        asked = ("--interactive",) if stdin is not None else ()
        return self.engine.try_run("exec", *asked, self.identity, *command, timeout_s=timeout_s, stdin=stdin)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in it, and the directories above."""
        script = f'mkdir -p "$(dirname "$1")" && cat > "$1" && chmod {mode:o} "$1"'
        done = self.try_run("/bin/sh", "-euc", script, "sh", path, stdin=text)
        assert done.returncode == 0, done.stderr

    def copy(self, source: Path, path: str) -> None:
        """Copy a file or a directory of ours into it."""
        self.engine.run("cp", str(source), f"{self.identity}:{path}")

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Return properties of a unit, as `systemctl show` names them."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str) -> str:
        """Return what *unit* has logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


@contextmanager
def started(engine: Podman, image: str, *options: str) -> Iterator[Machine]:
    """Start a machine from *image*; yield it once systemd has started all its units.

    Its podman keeps images in a volume: an overlay cannot lie on the container's own.
    """
    volume = "--volume=/var/lib/containers"
    with engine.container(image, *FLAGS, volume, *options, command=("/lib/systemd/systemd",)) as identity:
        machine = Machine(engine, identity)
        wait_until(lambda: _state(machine) in ("running", "degraded"), "systemd", START_S)
        yield machine


def _state(machine: Machine) -> str:
    return machine.try_run("systemctl", "is-system-running").stdout.strip()
