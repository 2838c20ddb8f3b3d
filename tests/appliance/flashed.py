"""A device that was flashed: the package and a bundle on a machine with systemd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from containers.deb import build as deb
from tests.appliance.images import architecture
from tests.appliance.machine import Machine, started
from tests.appliance.podman import Podman
from tests.conftest import wait_until
from tests.daemon_process import MODEL

ROOT = Path(deb.__file__).resolve().parents[2]
PLACE = "/made"
FIRST = "0.1.0"
SOCKET = "/run/podman.sock"
READY_S = 240.0
COMMAND_S = 420.0

_KILLED = f"""
import os, signal, sys
sys.path.insert(0, "/usr/{deb.LIBRARY.removeprefix("usr/")}")
part = sys.argv[1]

def kill(event, arguments):
    words = ""
    if event == "subprocess.Popen":
        words = " ".join(map(str, arguments[1]))
    elif event == "os.rename":
        words = f"rename to {{arguments[1]}}"
    if part in words:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill)
from inference.appliance.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass(frozen=True)
class Factory:
    """Makes releases with SmolLM2 below *directory*, which a device sees at `PLACE`."""

    directory: Path
    weights: Path

    def __post_init__(self) -> None:
        deb.build(architecture(), FIRST, self.directory)
        self.run("bundle", "keygen", "release")
        self.run("bundle", "golden", "--model", MODEL, "--output", "golden.json")

    def release(self, version: str, image: Path, *options: str) -> str:
        """Make the release *version* as a directory; return where a device has it."""
        words = ("--version", version, "--image", str(image), "--model", MODEL, "--golden", "golden.json")
        self.run("bundle", "create", *words, *options, "--key", "release", "--output", version)
        return f"{PLACE}/{version}"

    def run(self, *words: str) -> None:
        """Run a command of the checkout on the store."""
        variables = {
            "JETLLM_CACHE_DIR": str(self.weights),
            "JETLLM_STATE_DIR": str(self.directory / "state"),
            "PYTHONPATH": str(ROOT),
        }
        done = subprocess.run(
            [sys.executable, "-m", "inference", *words],
            env={**os.environ, **variables},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, done.stderr


@contextmanager
def flashed(engine: Podman, system: str, factory: Factory, bundle: str) -> Iterator[Machine]:
    """Start a machine with the package, on which nothing of ours has run yet."""
    with started(engine, system, f"--volume={factory.directory}:{PLACE}:ro") as machine:
        machine.write("/killed.py", _KILLED)
        machine.run("dpkg", "--install", f"{PLACE}/jetllm_{FIRST}_{architecture()}.deb", timeout_s=120)
        give_podman(machine)
        configure(machine, bundle=bundle)
        machine.write("/etc/jetllm/jetllm.yaml", f"preload: [{MODEL}]\noffline: true\n")
        machine.run("cp", f"{PLACE}/release.pub", "/etc/jetllm/trusted.d/")
        yield machine


def give_podman(machine: Machine) -> None:
    """Let the group docker use podman through its socket, as it uses Docker: the supervisor is not root."""
    machine.write(
        "/etc/systemd/system/podman.socket.d/group.conf",
        f"[Socket]\nListenStream=\nListenStream={SOCKET}\nSocketMode=0660\nSocketGroup=docker\n",
    )
    machine.write(
        "/etc/systemd/system/jetllm.service.d/podman.conf",
        f"[Service]\nEnvironment=CONTAINER_HOST=unix://{SOCKET}\n",
    )
    machine.run("groupadd", "--force", "--system", "docker")
    machine.run("rm", "-f", "/etc/systemd/system/podman.socket")  # a mask, in machines of the tests
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "stop", "podman.socket", "podman.service")  # it may run with its own socket
    machine.run("systemctl", "start", "podman.socket")


def configure(machine: Machine, *, bundle: str, ready_timeout_s: float = READY_S) -> None:
    """Write the appliance's settings."""
    lines = ["[appliance]", "engine = podman", "runtime =", f"bundle = {bundle}"]
    machine.write(
        "/etc/jetllm/appliance.conf", "\n".join([*lines, f"ready_timeout_s = {ready_timeout_s:g}", ""])
    )


def start(machine: Machine) -> None:
    """Start the service, as a boot does; it must become active."""
    done = machine.try_run("systemctl", "start", "jetllm.service", timeout_s=READY_S)
    units = ("jetllm-firstboot.service", "jetllm.service")
    assert done.returncode == 0, "\n".join(machine.journal(unit)[-4000:] for unit in units)


def killed(machine: Machine, before: str, *words: str) -> None:
    """Run a command of the host that is killed before what *before* is a part of: a command, or a rename."""
    done = machine.try_run("/usr/bin/python3", "-I", "/killed.py", before, *words, timeout_s=COMMAND_S)
    assert done.returncode == 137, (before, done.returncode, done.stdout, done.stderr)


def status(machine: Machine) -> dict[str, Any]:
    """What `jetllm status --json` shows."""
    shown: dict[str, Any] = json.loads(machine.try_run("jetllm", "status", "--json").stdout)
    return shown


def releases(machine: Machine) -> tuple[str | None, str | None, str | None, list[str]]:
    """The versions of the current, the previous and the next release, and of the bad ones."""
    found = status(machine)["releases"]
    current, previous, tried = (
        found[name] and found[name]["version"] for name in ("current", "previous", "next")
    )
    return current, previous, tried, [each["version"] for each in found["bad"]]


def served(machine: Machine) -> str:
    """Wait until the unit is active, ask for an answer, and return the version of who gave it."""
    wait_until(
        lambda: machine.show("jetllm.service", "ActiveState")["ActiveState"] == "active", "active", READY_S
    )
    words = ("run", "The sky is", "--model", MODEL, "--max-tokens", "4", "--temperature", "0")
    assert machine.run("jetllm", *words, timeout_s=COMMAND_S)
    label = '{{index .Config.Labels "org.opencontainers.image.version"}}'
    return machine.run("podman", "inspect", "--format", label, "jetllm")


def images(machine: Machine) -> list[str]:
    """The names of all images that the device's engine has; one without a name is "<none>:<none>"."""
    listed = machine.run("podman", "images", "--all", "--format", "{{.Repository}}:{{.Tag}}")
    return sorted(listed.split())
