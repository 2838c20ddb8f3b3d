"""The tree: NVIDIA's Linux_for_Tegra with its root file system, and what the overlay must know of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from containers.flash.boards import FlashError
from containers.flash.packages import Package, installed
from inference.device.detect import detect

SETUP_SCREEN = "nv-oem-config.target"
"""What NVIDIA's image boots into until somebody answered it at a keyboard; nothing serves beside it."""

_DEFAULT_TARGET = "etc/systemd/system/default.target"


@dataclass(frozen=True)
class Tree:
    """A `Linux_for_Tegra` that was looked at.

    Args:
        l4t: the release of the root file system.
        architecture: Debian's name of it.
    """

    directory: Path
    rootfs: Path
    l4t: str
    architecture: str
    packages: tuple[Package, ...]

    @property
    def has_setup_screen(self) -> bool:
        """Whether its first boot waits for a keyboard."""
        link = self.rootfs / _DEFAULT_TARGET
        return link.is_symlink() and link.readlink().name == SETUP_SCREEN

    def account(self, name: str) -> tuple[int, int, str]:
        """Return a user's and group's number and home directory.

        Raises:
            FlashError: the root file system has no such user.
        """
        for line in (self.rootfs / "etc/passwd").read_text(encoding="utf-8").splitlines():
            fields = line.split(":")
            if fields[0] == name and len(fields) == 7:
                return int(fields[2]), int(fields[3]), fields[5]
        raise FlashError(
            f"{self.rootfs} has no user {name!r}",
            hint=f"cd {self.directory} && sudo ./tools/l4t_create_default_user.sh --username {name}"
            " --password PASSWORD --accept-license",
        )

    def lacks(self, names: list[str]) -> list[str]:
        """Return which files of `Linux_for_Tegra` are not there."""
        return [name for name in names if not (self.directory / name).is_file()]


def look(directory: Path) -> Tree:
    """Look at a `Linux_for_Tegra`.

    Raises:
        FlashError: it is none, it is the running system, or NVIDIA's files are not in its root file system.
    """
    rootfs = directory / "rootfs"
    unpack = "docs/flash.md says how to unpack NVIDIA's files; name the directory Linux_for_Tegra"
    if not (directory / "flash.sh").is_file() or not rootfs.is_dir():
        raise FlashError(f"{directory}: no flash.sh and rootfs/ in it", hint=unpack)
    if rootfs.is_symlink() or any(rootfs.samefile(each) for each in ("/", directory)):
        raise FlashError(
            f"{rootfs} leads to {rootfs.resolve()}, which is no root file system to flash", hint=unpack
        )
    apply = f"cd {directory} && sudo ./apply_binaries.sh"
    for name in ("etc/passwd", "var/lib/dpkg/status"):
        if not (rootfs / name).is_file():
            raise FlashError(f"{rootfs}: no {name}: the sample root file system is not in it", hint=unpack)
    l4t = detect(root=rootfs).l4t
    if l4t is None:
        raise FlashError(f"{rootfs}: no L4T release in etc/nv_tegra_release", hint=apply)
    if not os.access(rootfs, os.W_OK) or rootfs.stat().st_uid != os.geteuid():
        raise FlashError(f"{rootfs} belongs to another user", hint="run the same command with sudo")
    packages = installed(rootfs)
    architecture = next((each.architecture for each in packages if each.name == "dpkg"), "")
    return Tree(directory, rootfs, l4t, architecture, tuple(packages))
