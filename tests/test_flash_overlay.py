"""The flash overlay: what it puts into NVIDIA's root file system, and what it refuses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from containers.deb import build as builder
from containers.flash.boards import BOARDS, Flash, commands
from containers.flash.main import main
from containers.flash.packages import Package, missing
from inference import __version__
from tests.documents import ROOT, blocks
from tests.linux_for_tegra import (
    BOARD_FILES,
    INSTALLED,
    KEY,
    RELEASE,
    Nvidia,
    content,
    make_deb,
    make_release,
    overlay,
)

TEST = "tests/test_flash_overlay.py::test_documented_commands_run"


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
    assert (
        "sudo ./tools/kernel_flash/l4t_initrd_flash.sh --external-device nvme0n1p1"
        " -c tools/kernel_flash/flash_l4t_t234_nvme.xml -p '-c bootloader/generic/cfg/flash_t234_qspi.xml'"
        " --showlogs --network usb0 jetson-orin-nano-devkit-super internal" in out
    )


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
    assert "sudo ./flash.sh jetson-agx-orin-devkit internal" in done.stdout
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
