"""A small `Linux_for_Tegra`, and what is put into it: packages, releases."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from containers.flash.main import main
from inference.appliance.creating import Contents, create_bundle
from inference.appliance.signing import generate_keys
from tests.release_parts import make_image

RELEASE = "# R{} (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJetLLMJetLLMJetLLMJetLLMJetLLMJetLLMJetL me@host"
INSTALLED = {
    "dpkg": "1.21.1ubuntu2.3",
    "python3": "3.10.6-1~22.04.1",
    "python3-cryptography": "3.4.8-1ubuntu2.2",
    "systemd": "249.11-0ubuntu3.12",
    "docker.io": "24.0.7-0ubuntu2~22.04.1",
    "openssh-server": "1:8.9p1-3ubuntu0.10",
}
BOARD_FILES = (
    *("flash.sh", "l4t_initrd_flash.sh", "tools/kernel_flash/l4t_initrd_flash.sh"),
    "bootloader/generic/cfg/flash_t234_qspi.xml",
    *(f"tools/kernel_flash/flash_l4t_{name}.xml" for name in ("t234_nvme", "t234_nvme_rootfs_ab")),
    *(f"tools/kernel_flash/flash_l4t_{name}.xml" for name in ("t264_nvme", "t264_nvme_rootfs_ab")),
    *(f"jetson-orin-nano-devkit{suffix}.conf" for suffix in ("", "-super")),
    *(f"jetson-agx-{name}.conf" for name in ("orin-devkit", "thor-devkit", "thor-t4000")),
)


@dataclass(frozen=True)
class Nvidia:
    """A `Linux_for_Tegra` as NVIDIA's archives and apply_binaries.sh leave it, in small."""

    directory: Path

    @property
    def rootfs(self) -> Path:
        """Its root file system."""
        return self.directory / "rootfs"

    def write_packages(self, versions: dict[str, str], architecture: str = "arm64") -> None:
        """Say what is installed in it."""
        paragraphs = [
            f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\n"
            f"Version: {version}\nDescription: one\n of several lines\n"
            for name, version in versions.items()
        ]
        gone = "Package: podman\nStatus: deinstall ok config-files\nArchitecture: arm64\nVersion: 3.4\n"
        (self.rootfs / "var/lib/dpkg/status").write_text("\n".join([*paragraphs, gone]))


def make_deb(directory: Path, name: str, *lines: str, version: str = "1.0") -> Path:
    """Another package, with nothing in it."""
    control = directory / name / "DEBIAN"
    control.mkdir(parents=True)
    fields = (f"Package: {name}", f"Version: {version}", "Architecture: arm64", "Maintainer: x <x@x.invalid>")
    (control / "control").write_text("\n".join([*fields, *lines, "Description: x", ""]))
    built = directory / f"{name}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", directory / name, built],
        check=True,
        capture_output=True,
    )
    return built


def make_release(directory: Path, *boards: str, tar: bool = False) -> tuple[Path, Path]:
    """A signed bundle for *boards*, with an image of one empty layer; and the public key."""
    directory.mkdir()
    make_image(directory / "image.tar", "aarch64")
    private = directory / "release.key"
    public = generate_keys(private)
    contents = Contents("1.0", directory / "image.tar", (), (), {}, l4t=("36.4",), boards=boards)
    output = directory / ("bundle.tar" if tar else "bundle")
    create_bundle(contents, output, private)
    return output, public


def content(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file, link and directory below *root*, with mode and content."""
    found = {}
    for path in root.rglob("*"):
        data = (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        found[str(path.relative_to(root))] = (path.lstat().st_mode, data)
    return found


def overlay(nvidia: Nvidia, deb: Path, *arguments: str | Path, board: str = "orin-nano-8gb") -> int:
    """Run the overlay in this process."""
    given = [nvidia.directory, "--board", board, "--deb", deb, "--accept-license", *arguments]
    return main([str(each) for each in given])
