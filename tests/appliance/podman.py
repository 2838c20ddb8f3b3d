"""A container engine of the tests' own: podman with storage, state and configuration in one directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = ("podman", "runc", "debootstrap")
RUN_S = 120.0
BUILD_S = 900.0

# The default ulimits want CAP_SYS_RESOURCE; systemd is not there to make cgroups or to keep events;
# locks in files are this directory's own, those in shared memory are every podman's on the machine.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
tmp_dir = "{directory}/libpod"
"""
_STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{directory}/storage"
runroot = "{directory}/run"
"""
_REGISTRIES_CONF = 'unqualified-search-registries = []\nshort-name-mode = "disabled"\n'
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'


class EngineFailed(AssertionError):
    """podman ended with an error; its words are the message."""


@dataclass(frozen=True)
class Podman:
    """Runs podman on the storage in *directory*; *environ* makes any podman use the same.

    Args:
        environ: variables for whoever starts podman beside this class, as the product does.
    """

    directory: Path
    environ: Mapping[str, str]

    def run(self, *arguments: str, timeout_s: float = RUN_S) -> str:
        """Run ``podman ARGUMENTS``; return what it wrote to standard output, stripped.

        Raises:
            EngineFailed: it ended with an error.
        """
        done = self.try_run(*arguments, timeout_s=timeout_s)
        if done.returncode:
            said = (done.stderr.strip() + "\n" + done.stdout.strip()).strip()
            raise EngineFailed(f"podman {' '.join(arguments[:3])} ... ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def try_run(
        self, *arguments: str, timeout_s: float = RUN_S, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``podman ARGUMENTS``, however it ends."""
        return subprocess.run(
            ["podman", *arguments],
            env={**os.environ, **self.environ},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what podman knows of a container or an image."""
        found: list[dict[str, Any]] = json.loads(self.run("inspect", name))
        return found[0]

    def has(self, image: str) -> bool:
        """Whether the storage has *image*."""
        return self.try_run("image", "exists", image).returncode == 0

    def build(self, context: Path, dockerfile: Path, tag: str, *options: str) -> str:
        """Build *dockerfile* as Docker would, without pulling anything; return what was printed.

        Raises:
            EngineFailed: a step failed; its words are in the message.
        """
        return self.run(
            *("build", "--pull=never", "--isolation=chroot", "--network=host", "--format=docker"),
            *(
                "--no-cache",
                "--layers=false",
                "--tag",
                tag,
                "--file",
                str(dockerfile),
                *options,
                str(context),
            ),
            timeout_s=BUILD_S,
        )

    @contextmanager
    def container(self, image: str, *options: str, command: tuple[str, ...] = ()) -> Iterator[str]:
        """Run *image* in the background; yield the container's id, and remove it at the end."""
        identity = self.run("run", "--detach", *options, image, *command)
        try:
            yield identity
        finally:
            self.try_run("rm", "--force", "--time", "0", "--volumes", identity)

    def close(self) -> None:
        """Remove every container, image and file; nothing else of the machine was touched."""
        self.try_run("rm", "--all", "--force", "--time", "0", "--volumes")
        self.try_run("rmi", "--all", "--force")
        for mount in sorted(_mounts_below(self.directory), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def why_no_engine() -> str | None:
    """Say why containers cannot be tried here; ``None`` where they can."""
    if os.geteuid() != 0:
        return "needs root: debootstrap, overlay mounts"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return (
            f"not installed: {', '.join(missing)}: apt-get install --no-install-recommends {' '.join(TOOLS)}"
        )
    return None


def open_engine(directory: Path) -> Podman:
    """Make an engine below *directory*, which must be on a file system that carries overlays."""
    directory.mkdir(parents=True, exist_ok=True)
    settings = {"containers.conf": _CONTAINERS_CONF, "storage.conf": _STORAGE_CONF}
    for name, text in settings.items():
        (directory / name).write_text(text.format(directory=directory))
    (directory / "registries.conf").write_text(_REGISTRIES_CONF)
    return Podman(
        directory,
        {
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
        },
    )


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = (line.split()[1].replace("\\040", " ") for line in lines)
    return [point for point in points if point.startswith(f"{directory}/")]


Archive = Callable[[str], Path]
"""Returns the archive, as `podman save` writes it, of an image."""
