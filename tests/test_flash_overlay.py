"""The flash overlay: what it puts into NVIDIA's root file system, what it refuses, what it says to run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from containers.deb import build as builder
from containers.flash.boards import BOARDS, Flash, FlashError, commands, files
from containers.flash.changes import STAGING, Changes
from containers.flash.main import main
from containers.flash.packages import Package, missing
from inference import __version__
from inference.appliance.creating import Contents, create_bundle
from inference.appliance.signing import generate_keys
from inference.device.detect import compute_capability, known_boards
from tests.documents import ROOT, blocks
from tests.release_parts import make_image

TEST = "tests/test_flash_overlay.py::test_documented_commands_run"
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


@pytest.fixture
def nvidia(tmp_path: Path) -> Nvidia:
    """A tree of L4T 36.4.3 whose first boot would wait at the setup screen."""
    made = Nvidia(tmp_path / "Linux_for_Tegra")
    for name in BOARD_FILES:
        (made.directory / name).parent.mkdir(parents=True, exist_ok=True)
        (made.directory / name).write_text("NVIDIA's\n")
    for name in ("etc/nv", "etc/systemd/system", "var/lib/dpkg", "root", "usr/lib"):
        (made.rootfs / name).mkdir(parents=True)
    user = f"me:x:{os.geteuid()}:{os.getegid()}:Me:/home/me:/bin/bash\n"
    (made.rootfs / "etc/passwd").write_text(f"root:x:0:0:root:/root:/bin/bash\n{user}")
    (made.rootfs / "lib").symlink_to("usr/lib")
    (made.rootfs / "etc/nv_tegra_release").write_text(RELEASE.format(36, "4.3"))
    (made.rootfs / "etc/systemd/system/nv-oem-config.target").symlink_to(
        "/lib/systemd/system/nv-oem-config.target"
    )
    (made.rootfs / "etc/systemd/system/default.target").symlink_to("nv-oem-config.target")
    made.write_packages(INSTALLED)
    return made


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        return builder.build("arm64", "1.2.3", tmp_path_factory.mktemp("deb"))


@pytest.fixture
def ssh_key(tmp_path: Path) -> Path:
    """A public key."""
    path = tmp_path / "id_ed25519.pub"
    path.write_text(f"{KEY}\n")
    return path


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


# The commands

INITRD = "sudo ./tools/kernel_flash/l4t_initrd_flash.sh"
NVME = "--external-device nvme0n1p1 -c tools/kernel_flash/flash_l4t_t234_nvme.xml"
NVME_AB = "--external-device nvme0n1p1 -c tools/kernel_flash/flash_l4t_t234_nvme_rootfs_ab.xml"
QSPI = "-p '-c bootloader/generic/cfg/flash_t234_qspi.xml'"
USB = "--showlogs --network usb0"
NANO, AGX, THOR = "jetson-orin-nano-devkit", "jetson-agx-orin-devkit", "jetson-agx-thor-devkit"


@pytest.mark.parametrize(
    ("board", "l4t", "storage", "options", "wanted"),
    [
        ("orin-nano-8gb", "36.4.3", "nvme", {}, [f"{INITRD} {NVME} {QSPI} {USB} {NANO}-super internal"]),
        ("orin-nano-8gb", "36.4.0", "nvme", {}, [f"{INITRD} {NVME} {QSPI} {USB} {NANO} internal"]),
        ("orin-nano-8gb", "36.4.3", "sd", {}, [f"sudo ./flash.sh {NANO}-super internal"]),
        ("orin-nx-16gb", "36.5.0", "nvme", {}, [f"{INITRD} {NVME} {QSPI} {USB} {NANO}-super internal"]),
        (
            *("orin-nx-16gb", "36.4.3", "nvme", {"rootfs_ab": True}),
            [f"sudo ROOTFS_AB=1 {INITRD[5:]} {NVME_AB} {QSPI} {USB} {NANO}-super external"],
        ),
        (
            *("orin-nano-4gb", "36.4.3", "nvme", {"massflash": 5, "config": "acme-carrier"}),
            [
                f"{INITRD} --no-flash --massflash 5 {NVME} {QSPI} --network usb0 acme-carrier internal",
                f"{INITRD} --flash-only --massflash 5 --network usb0 --showlogs",
            ],
        ),
        ("agx-orin-64gb", "36.4.3", "emmc", {}, [f"sudo ./flash.sh {AGX} internal"]),
        ("agx-orin-32gb", "36.4.3", "nvme", {}, [f"{INITRD} {NVME} {USB} {AGX} external"]),
        (
            "agx-orin-64gb",
            "36.4.3",
            "emmc",
            {"rootfs_ab": True},
            [f"sudo ROOTFS_AB=1 ./flash.sh {AGX} internal"],
        ),
        (
            *("agx-orin-64gb", "36.4.3", "emmc", {"massflash": 2}),
            [
                f"{INITRD} --no-flash --massflash 2 --network usb0 {AGX} internal",
                f"{INITRD} --flash-only --massflash 2 --network usb0 --showlogs",
            ],
        ),
        ("agx-thor-t5000", "38.2.0", "nvme", {}, [f"sudo ./l4t_initrd_flash.sh {THOR} internal"]),
        (
            "agx-thor-t4000",
            "38.4.0",
            "nvme",
            {},
            ["sudo ./l4t_initrd_flash.sh jetson-agx-thor-t4000 internal"],
        ),
        (
            *("agx-thor-t5000", "39.2.0", "nvme", {"rootfs_ab": True}),
            [f"sudo ROOTFS_AB=1 ./l4t_initrd_flash.sh {NVME_AB.replace('t234', 't264')} {THOR} external"],
        ),
        (
            *("agx-thor-t5000", "38.2.0", "nvme", {"massflash": 3}),
            [
                f"{INITRD} --no-flash --massflash 3 --network usb0 {THOR} internal",
                f"{INITRD} --flash-only --massflash 3 --network usb0 --showlogs {THOR}",
            ],
        ),
        (
            *("orin-nano-8gb", "39.2.0", "nvme", {"untested": True}),
            [f"sudo ./l4t_initrd_flash.sh {NANO}-super internal"],
        ),
    ],
)
def test_command_is_nvidias(
    board: str, l4t: str, storage: str, options: dict[str, object], wanted: list[str]
) -> None:
    """For each board, release and storage, word by word what NVIDIA's documents say."""
    flash = Flash(BOARDS[board], l4t, storage, **options)  # type: ignore[arg-type]
    assert [shlex.join(command) for command in commands(flash)] == wanted


@pytest.mark.parametrize(
    ("board", "l4t", "storage", "options", "why"),
    [
        ("xavier-nx-8gb", "35.4.1", "nvme", {}, "L4T 35, has Python 3.8; the package needs 3.10"),
        ("nano-4gb", "32.7.4", "sd", {}, "L4T 32.7, has Python 3.6; the package needs 3.10"),
        ("orin-nano-8gb", "39.2.0", "nvme", {}, "on which no image with MLC has been tested"),
        ("orin-nano-8gb", "35.4.1", "nvme", {}, "is flashed with L4T 36, not with 35.4.1"),
        ("agx-thor-t5000", "36.4.3", "nvme", {}, "is flashed with L4T 38 or 39, not with 36.4.3"),
        ("agx-thor-t4000", "38.2.0", "nvme", {}, "is flashed with L4T 38.4 or 39, not with 38.2.0"),
        ("orin-nano-8gb", "36.4.3", "emmc", {}, "is not flashed on emmc, but on nvme or sd"),
        ("orin-nx-16gb", "36.4.3", "sd", {}, "is not flashed on sd, but on nvme"),
        ("orin-nano-8gb", "36.4.3", "sd", {"massflash": 2}, "alone"),
        ("orin-nano-8gb", "36.4.3", "sd", {"rootfs_ab": True}, "one root file system"),
        ("orin-nano-8gb", "39.2.0", "sd", {"untested": True}, "not with L4T 39.2.0"),
    ],
)
def test_what_cannot_be_flashed_so_is_refused(
    board: str, l4t: str, storage: str, options: dict[str, object], why: str
) -> None:
    """The reason is told, and what to do instead."""
    with pytest.raises(FlashError) as refused:
        commands(Flash(BOARDS[board], l4t, storage, **options))  # type: ignore[arg-type]
    assert why in refused.value.message
    assert refused.value.hint


def test_every_board_that_we_know_is_in_the_table() -> None:
    """Each is flashed or refused with a reason; a GPU is what the device would say it is."""
    assert sorted(BOARDS) == known_boards()
    for name, board in BOARDS.items():
        assert board.compute_capability == compute_capability(name)
        assert bool(board.refused) != bool(board.storages and board.releases)


def test_files_of_a_command_are_looked_for() -> None:
    """Scripts, partition layouts and the board's configuration."""
    flash = Flash(BOARDS["orin-nano-8gb"], "36.4.3", "nvme")
    assert files(flash) == [
        "./tools/kernel_flash/l4t_initrd_flash.sh",
        "bootloader/generic/cfg/flash_t234_qspi.xml",
        "jetson-orin-nano-devkit-super.conf",
        "tools/kernel_flash/flash_l4t_t234_nvme.xml",
    ]


# What is put in


@pytest.mark.parametrize("tar", [False, True], ids=["directory", "tar"])
def test_everything_is_put_in(
    nvidia: Nvidia, deb: Path, ssh_key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tar: bool
) -> None:
    """The package, the release and its key, the configuration, a login, and no setup screen."""
    bundle, public = make_release(tmp_path / "release", "orin-nano-8gb", tar=tar)
    (tmp_path / "appliance.conf").write_text("[appliance]\nhost = 0.0.0.0\n")
    (tmp_path / "jetllm.yaml").write_text("preload: [smollm2]\n")
    config, settings = tmp_path / "appliance.conf", tmp_path / "jetllm.yaml"
    before = content(nvidia.rootfs)
    arguments = ("--bundle", bundle, "--trust", public, "--ssh-key", ssh_key, "--config", config)
    assert overlay(nvidia, deb, *arguments, "--settings", settings) == 0, capsys.readouterr().err
    rootfs = nvidia.rootfs
    assert (rootfs / "var/lib/jetllm/pool" / deb.name).read_bytes() == deb.read_bytes()
    unit = rootfs / "etc/systemd/system/multi-user.target.wants/jetllm-pool.service"
    assert unit.resolve() == rootfs / "etc/systemd/system/jetllm-pool.service"
    factory = rootfs / "var/lib/jetllm/bundles/factory"
    assert {path.name for path in factory.iterdir()} == {"manifest.json", "manifest.json.sig", "image.tar"}
    assert (rootfs / "etc/jetllm/trusted.d" / public.name).read_bytes() == public.read_bytes()
    assert (rootfs / "etc/jetllm/appliance.conf").read_text() == "[appliance]\nhost = 0.0.0.0\n"
    assert (rootfs / "etc/jetllm/jetllm.yaml").read_text() == "preload: [smollm2]\n"
    assert (rootfs / "root/.ssh/authorized_keys").read_text() == f"{KEY}\n"
    assert (rootfs / "root/.ssh").stat().st_mode & 0o777 == 0o700
    assert (rootfs / "root/.ssh/authorized_keys").stat().st_mode & 0o777 == 0o600
    assert "ssh-keygen -A" in (rootfs / "etc/systemd/system/ssh.service.d/jetllm.conf").read_text()
    target = rootfs / "etc/systemd/system/default.target"
    assert os.readlink(target) == "/lib/systemd/system/multi-user.target"
    assert (rootfs / "etc/nv/nvautoconfig").is_file()
    after = content(rootfs)
    added = {name: mode for name, (mode, _) in after.items() if name not in before}
    assert all(
        mode & 0o777 == 0o755
        for name, mode in added.items()
        if (rootfs / name).is_dir() and ".ssh" not in name
    )
    assert {name for name in before if after.get(name) != before[name]} == {
        "etc/systemd/system/default.target"
    }
    out = capsys.readouterr().out
    assert f"cd {nvidia.directory}" in out
    assert f"{INITRD} {NVME} {QSPI} {USB} {NANO}-super internal" in out


def test_a_second_run_changes_nothing(nvidia: Nvidia, deb: Path, ssh_key: Path) -> None:
    """Run again, with the same or with less, the tree stays as it is."""
    assert overlay(nvidia, deb, "--ssh-key", ssh_key) == 0
    once = content(nvidia.rootfs)
    assert overlay(nvidia, deb, "--ssh-key", ssh_key) == 0
    assert content(nvidia.rootfs) == once


def test_keys_that_are_there_stay(nvidia: Nvidia, deb: Path, ssh_key: Path) -> None:
    """A login's other keys are not taken away; with --login they are a user's."""
    directory = nvidia.rootfs / "home/me/.ssh"
    directory.mkdir(parents=True)
    (directory / "authorized_keys").write_text("ssh-rsa AAAA other")
    assert overlay(nvidia, deb, "--ssh-key", ssh_key, "--login", "me") == 0
    assert (directory / "authorized_keys").read_text() == f"ssh-rsa AAAA other\n{KEY}\n"


def test_check_changes_nothing(nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--check looks at everything, names the command and leaves the tree alone."""
    before = content(nvidia.directory)
    assert overlay(nvidia, deb, "--check", "--storage", "sd") == 0
    assert "sudo ./flash.sh jetson-orin-nano-devkit-super internal" in capsys.readouterr().out
    assert content(nvidia.directory) == before


def test_runs_as_a_command(nvidia: Nvidia, deb: Path, tmp_path: Path) -> None:
    """containers/flash/overlay finds its modules from wherever it is called."""
    tool = ROOT / "containers/flash/overlay"
    arguments = ["--board", "agx-orin-64gb", "--deb", str(deb), "--accept-license", str(nvidia.directory)]
    done = subprocess.run(
        [sys.executable, str(tool), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"sudo ./flash.sh {AGX} internal" in done.stdout
    done = subprocess.run([tool, "--list"], cwd="/", capture_output=True, text=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(BOARDS)


# The document


def test_documented_commands_run(
    nvidia: Nvidia, deb: Path, ssh_key: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """docs/flash.md's overlay commands do what the page says, as they stand there."""
    bundle, public = make_release(tmp_path / "release", "orin-nano-8gb", tar=True)
    (tmp_path / "containers").symlink_to(ROOT / "containers")
    (tmp_path / "dist").mkdir()
    here = {f"dist/jetllm_{__version__}_arm64.deb": deb, "jetllm-1.0.0.tar": bundle, "release.pub": public}
    for name, path in {**here, "id_ed25519.pub": ssh_key}.items():
        if path != tmp_path / name:
            (tmp_path / name).symlink_to(path)
    ran = [block for block in blocks("docs/flash.md") if TEST in block.tests]
    for block in ran:
        script = re.sub(r"^sudo ", "", block.text, flags=re.MULTILINE)
        subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    assert len(ran) == 2
    printed = [shlex.split(line) for line in capfd.readouterr().out.splitlines() if "flash.sh" in line]
    assert printed == commands(Flash(BOARDS["orin-nano-8gb"], "36.4.3", "nvme"))
    assert (nvidia.rootfs / "var/lib/jetllm/bundles/factory/manifest.json").is_file()


def test_documented_flash_commands_are_what_the_overlay_prints() -> None:
    """Every flash command of docs/flash.md is one that the table gives, word by word."""
    text = "".join(block.text for block in blocks("docs/flash.md") if block.needs_hardware)
    written = [line for line in text.splitlines() if re.match(r"sudo \./\S*flash\.sh ", line)]
    known = {
        shlex.join(command)
        for flash in (
            Flash(BOARDS["orin-nano-8gb"], "36.4.3", "nvme"),
            Flash(BOARDS["orin-nano-8gb"], "36.4.3", "sd"),
            Flash(BOARDS["orin-nx-16gb"], "36.4.3", "nvme", massflash=5),
            Flash(BOARDS["agx-orin-64gb"], "36.4.3", "emmc"),
            Flash(BOARDS["agx-orin-64gb"], "36.4.3", "nvme"),
            Flash(BOARDS["agx-thor-t5000"], "38.2.0", "nvme"),
        )
        for command in commands(flash)
    }
    assert set(written) == known


def test_documented_boards_are_those_of_the_table() -> None:
    """docs/flash.md names every board that is flashed."""
    text = (ROOT / "docs/flash.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name, board in BOARDS.items() if not board.refused)


# What is refused


def refused(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str], *arguments: str | Path, **options: str
) -> str:
    """Run the overlay, see that it refuses and changes nothing, and return what it says."""
    before = content(nvidia.directory)
    assert overlay(nvidia, deb, *arguments, **options) == 1
    assert content(nvidia.directory) == before
    said = capsys.readouterr().err
    assert said.startswith("overlay: ")
    assert "    hint: " in said
    return said


def test_running_system_is_refused(nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rootfs that leads to / or anywhere else, and / itself, are not written to."""
    nvidia.rootfs.rename(nvidia.directory / "moved")
    nvidia.rootfs.symlink_to("/")
    assert "which is no root file system to flash" in refused(nvidia, deb, capsys)
    assert main(["/", "--board", "orin-nano-8gb", "--deb", str(deb)]) == 1
    assert "no flash.sh and rootfs/ in it" in capsys.readouterr().err


def test_links_out_of_the_tree_are_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in the root file system that leads to the host's files is not followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (nvidia.rootfs / "var/lib/jetllm").symlink_to(outside)
    assert "leads out of the root file system" in refused(nvidia, deb, capsys)
    assert not list(outside.iterdir())


@pytest.mark.parametrize(
    ("name", "why", "hint"),
    [
        ("etc/nv_tegra_release", "no L4T release", "apply_binaries.sh"),
        ("var/lib/dpkg/status", "the sample root file system is not in it", "docs/flash.md"),
    ],
)
def test_unfinished_tree_is_refused(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str], name: str, why: str, hint: str
) -> None:
    """A step of NVIDIA's that was left out is named."""
    (nvidia.rootfs / name).unlink()
    said = refused(nvidia, deb, capsys)
    assert why in said
    assert hint in said


def test_release_of_another_board_is_refused(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The release that is found in the tree must be one that the board is flashed with."""
    (nvidia.rootfs / "etc/nv_tegra_release").write_text(RELEASE.format(38, "2.0"))
    assert "L4T 36, not with 38.2.0" in refused(nvidia, deb, capsys)
    (nvidia.rootfs / "etc/nv_tegra_release").write_text(RELEASE.format(39, "2.0"))
    assert "--untested" in refused(nvidia, deb, capsys)
    assert overlay(nvidia, deb, "--untested", "--check") == 0


def test_missing_board_files_are_refused(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command is printed whose files are not in the tree."""
    (nvidia.directory / "jetson-orin-nano-devkit-super.conf").unlink()
    assert "jetson-orin-nano-devkit-super.conf" in refused(nvidia, deb, capsys)
    assert overlay(nvidia, deb, "--check", "--board-config", "jetson-orin-nano-devkit") == 0


def test_setup_screen_needs_the_license(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NVIDIA's license is accepted by who flashes; after l4t_create_default_user.sh it has been."""
    arguments = [str(nvidia.directory), "--board", "orin-nano-8gb", "--deb", str(deb)]
    assert main(arguments) == 1
    assert "--accept-license" in capsys.readouterr().err
    (nvidia.rootfs / "etc/systemd/system/default.target").unlink()
    assert main(arguments) == 0
    assert not os.path.lexists(nvidia.rootfs / "etc/systemd/system/default.target")


def test_missing_dependencies_are_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network the first boot can install only what is there; packages bring their own needs."""
    nvidia.write_packages({name: INSTALLED[name] for name in INSTALLED if name != "docker.io"})
    said = refused(nvidia, deb, capsys)
    assert "lacks docker.io | docker-ce | podman" in said
    assert "apt-get install docker.io" in said
    engine = make_deb(tmp_path, "docker-ce", "Depends: containerd.io (>= 1.6)")
    assert "lacks containerd.io (>= 1.6)" in refused(nvidia, deb, capsys, "--package", engine)
    old = make_deb(tmp_path, "old", "Provides: containerd.io (= 1.5)")
    assert "lacks containerd.io" in refused(nvidia, deb, capsys, "--package", engine, "--package", old)
    runtime = make_deb(tmp_path, "containerd.io", version="1.7")
    assert overlay(nvidia, deb, "--package", engine, "--package", runtime) == 0
    pool = {path.name for path in (nvidia.rootfs / "var/lib/jetllm/pool").iterdir()}
    assert pool == {deb.name, "docker-ce.deb", "containerd.io.deb"}


@pytest.mark.parametrize(
    ("depends", "lacking"),
    [
        ("some", []),
        ("some (>= 2)", ["some (>= 2)"]),
        ("some (<< 2)", []),
        ("none | some", []),
        ("some:any", []),
        ("virtual", []),
        ("virtual (>= 1)", ["virtual (>= 1)"]),
        ("exact (= 3)", []),
        ("none | nothing", ["none | nothing"]),
        ("some!", ["some!"]),
    ],
)
def test_relations_of_packages(depends: str, lacking: list[str]) -> None:
    """Versions, alternatives, architectures and provided names are understood as dpkg does."""
    present = [Package("some", "1.5", "arm64", provides=("virtual", "exact (= 3)"))]
    assert missing([Package("other", "1", "arm64", depends=(depends,))], present) == lacking


def test_package_of_another_architecture_is_refused(
    nvidia: Nvidia, deb: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would not run on the device is not put there."""
    nvidia.write_packages(INSTALLED, "amd64")
    assert "built for arm64; the rootfs is amd64" in refused(nvidia, deb, capsys)


def test_file_that_is_no_package_is_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is named, and dpkg's words are told."""
    (tmp_path / "no.deb").write_text("no")
    assert "no.deb: not a Debian package" in refused(nvidia, tmp_path / "no.deb", capsys)
    other = make_deb(tmp_path, "other")
    assert "is the package 'other'" in refused(nvidia, other, capsys)


@pytest.mark.parametrize(
    "text", ["-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n", "", f"{KEY}\n{KEY}\n", "hello"]
)
def test_what_is_no_public_key_is_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """A private key above all is never put into an image; nothing of it is shown."""
    (tmp_path / "key").write_text(text)
    said = refused(nvidia, deb, capsys, "--ssh-key", tmp_path / "key")
    assert "not one public key" in said
    assert "abc" not in said


def test_login_that_is_not_there_is_refused(
    nvidia: Nvidia, deb: Path, ssh_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NVIDIA's script makes users: its command is told."""
    said = refused(nvidia, deb, capsys, "--ssh-key", ssh_key, "--login", "you")
    assert "has no user 'you'" in said
    assert "l4t_create_default_user.sh --username you" in said


def test_login_without_a_server_is_refused(
    nvidia: Nvidia, deb: Path, ssh_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key is of no use where nothing listens."""
    nvidia.write_packages({name: INSTALLED[name] for name in INSTALLED if name != "openssh-server"})
    assert "has no openssh-server" in refused(nvidia, deb, capsys, "--ssh-key", ssh_key)


def test_configuration_with_a_mistake_is_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read as the device would read it."""
    (tmp_path / "appliance.conf").write_text("[appliance]\nprot = 80\n")
    said = refused(nvidia, deb, capsys, "--config", tmp_path / "appliance.conf")
    assert "did you mean 'port'" in said


def test_bundle_that_is_not_believed_is_refused(
    nvidia: Nvidia, deb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for another board, one with a changed byte, and one that nobody trusted signed."""
    bundle, public = make_release(tmp_path / "nx", "orin-nx-16gb")
    said = refused(nvidia, deb, capsys, "--bundle", bundle, "--trust", public)
    assert "the release is for the board orin-nx-16gb; this machine has orin-nano-8gb" in said
    bundle, public = make_release(tmp_path / "nano")
    _, stranger = make_release(tmp_path / "stranger")
    refused(nvidia, deb, capsys, "--bundle", bundle, "--trust", stranger)
    refused(nvidia, deb, capsys, "--bundle", bundle)
    image = bundle / "image.tar"
    image.write_bytes(image.read_bytes()[:-1] + b"\1")
    refused(nvidia, deb, capsys, "--bundle", bundle, "--trust", public)


# All or nothing

PREPARED = """
import os, sys
from pathlib import Path
from containers.flash.changes import Changes
root, last = Path(sys.argv[1]), int(sys.argv[2])
real, count = Path.rename, 0

def rename(self, target):
    global count
    if count == last:
        os._exit(9)
    count += 1
    return real(self, target)

Path.rename = rename
with Changes(root) as changes:
    changes.put("etc/new/one", b"1")
    changes.put("etc/old", b"2")
    changes.put_link("etc/link", "to")
    changes.put_directory("var/pool", [("a", root / "etc/old")])
    changes.apply()
print(count)
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A root file system with something to replace."""
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/old").write_text("0")
    (root / "etc/link").symlink_to("from")
    (root / "var/pool").mkdir(parents=True)
    (root / "var/pool/z").write_text("z")
    return root


def prepared(root: Path, last: int) -> subprocess.CompletedProcess[str]:
    """Make four changes in a process of its own, which is killed before rename number *last*."""
    return subprocess.run(
        [sys.executable, "-c", PREPARED, root, str(last)], cwd=ROOT, capture_output=True, text=True
    )


def test_a_kill_leaves_what_the_next_run_takes_back(small: Path) -> None:
    """Killed at any rename, the next run finds the tree as it was before, and then makes all the changes."""
    before = content(small)
    done = prepared(small, 1000)
    renames = int(done.stdout)
    after = content(small)
    assert (small / "etc/new/one").read_bytes() == b"1"
    assert [path.name for path in (small / "var/pool").iterdir()] == ["a"]
    assert STAGING not in after
    assert renames == 7
    with Changes(small) as changes:
        changes.put("etc/old", b"0")
        changes.put_link("etc/link", "from")
        changes.put_directory("var/pool", [])
        changes.apply()
    (small / "etc/new/one").unlink()
    (small / "etc/new").rmdir()
    (small / "var/pool/z").write_text("z")
    assert content(small) == before
    for last in range(renames):
        assert prepared(small, last).returncode == 9
        assert content(small) != before
        with Changes(small):
            assert {name: each for name, each in content(small).items() if STAGING not in name} == before
        assert content(small) == before


def test_an_error_takes_everything_back(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails in the middle leaves the tree as it was."""
    before = content(small)
    real = Path.rename
    count = 0

    def rename(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), Changes(small) as changes:
        changes.put("etc/new/one", b"1")
        changes.put("etc/old", b"2")
        changes.put("etc/link", b"3")
        changes.apply()
    assert content(small) == before
