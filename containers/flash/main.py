"""The overlay: JetLLM put into NVIDIA's root file system, so that a flashed device serves by itself."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from containers.flash import boards, packages
from containers.flash.boards import BOARDS, Flash, FlashError
from containers.flash.changes import Changes
from containers.flash.tree import Tree, look
from inference.appliance.bundle import Bundle, open_bundle, why_unfit
from inference.appliance.config import load_config
from inference.appliance.layout import Layout
from inference.appliance.signing import load_trusted
from inference.artifacts import files
from inference.device.detect import detect
from inference.errors import JetLLMError

SOURCES = Path(__file__).resolve().parent / "rootfs"
POOL = "var/lib/jetllm/pool"
FACTORY = "var/lib/jetllm/bundles/factory"
UNIT = "etc/systemd/system/jetllm-pool.service"
WANTED = "etc/systemd/system/multi-user.target.wants/jetllm-pool.service"
_ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}
_SSH_KEY = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: [^\n]*)?")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for; return the exit code."""
    given = _parser().parse_args(arguments)
    if given.list:
        sys.stdout.writelines(_row(board) for board in BOARDS.values())
        return 0
    try:
        tree, flash, deb = _checked(given)
        if not given.check:
            _put(given, tree, flash, deb)
        sys.stdout.write(_next_steps(tree, flash))
    except JetLLMError as error:
        sys.stderr.write(f"overlay: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"overlay: {error}\n    hint: nothing was changed; free room, or run it with sudo\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="overlay", description=__doc__)
    parser.add_argument("tree", type=Path, nargs="?", help="NVIDIA's Linux_for_Tegra")
    parser.add_argument("--board", choices=BOARDS, metavar="BOARD", help="which is flashed; see --list")
    parser.add_argument("--storage", choices=(boards.EMMC, boards.SD, boards.NVME), help="where to")
    parser.add_argument("--deb", type=Path, help="our package, as `make deb` builds it")
    parser.add_argument("--package", type=Path, action="append", default=[], help="one that it depends on")
    parser.add_argument("--bundle", type=Path, help="the release to serve, a directory or a .tar")
    parser.add_argument("--trust", type=Path, action="append", default=[], help="a key; whose bundles")
    parser.add_argument("--ssh-key", type=Path, help="a public key that may log in")
    parser.add_argument("--login", default="root", help="as which user; root, if it is not given")
    parser.add_argument("--config", type=Path, help="for /etc/jetllm/appliance.conf")
    parser.add_argument("--settings", type=Path, help="for /etc/jetllm/jetllm.yaml")
    parser.add_argument("--accept-license", action="store_true", help="NVIDIA's, which its setup shows")
    parser.add_argument("--board-config", help="of a carrier board of another maker")
    parser.add_argument("--rootfs-ab", action="store_true", help="two root file systems")
    parser.add_argument("--massflash", type=_count, default=0, metavar="N", help="N devices at once")
    parser.add_argument("--untested", action="store_true", help="take a release that nobody tried")
    parser.add_argument("--check", action="store_true", help="change nothing; say how to flash")
    parser.add_argument("--list", action="store_true", help="list the boards")
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and 0 < int(text) <= 100):
        raise argparse.ArgumentTypeError(f"expected 1 to 100, got {text!r}")
    return int(text)


def _row(board: boards.Board) -> str:
    what = board.refused or f"L4T {', '.join(board.releases)}; {', '.join(board.storages)}"
    return f"{board.name:<20} {what}\n"


def _checked(given: argparse.Namespace) -> tuple[Tree, Flash, packages.Package]:
    """Look at all that is there before anything is changed."""
    for name in ("tree", "board", "deb"):
        if getattr(given, name) is None:
            raise FlashError(f"{name}: not given", hint="overlay --help, or docs/flash.md")
    board = BOARDS[given.board]
    if board.refused:
        boards.check(Flash(board, "", ""))
    tree = look(given.tree)
    flash = Flash(
        board,
        tree.l4t,
        given.storage or board.storages[0],
        given.board_config,
        given.rootfs_ab,
        given.massflash,
        given.untested,
    )
    if lacking := tree.lacks(boards.files(flash)):
        raise FlashError(
            f"{tree.directory}: {', '.join(lacking)} not found, which the flash command needs",
            hint="unpack Jetson Linux for this board anew, or name another --board-config",
        )
    deb = _check_packages(given, tree)
    if tree.has_setup_screen and not given.accept_license:
        raise FlashError(
            "the first boot would wait at NVIDIA's setup screen, where its license is accepted",
            hint="read it in rootfs/usr/share/doc/nvidia-tegra and add --accept-license; or make a user:"
            f" cd {tree.directory} && sudo ./tools/l4t_create_default_user.sh",
        )
    return tree, flash, deb


def _check_packages(given: argparse.Namespace, tree: Tree) -> packages.Package:
    deb, *others = [packages.read(path) for path in (given.deb, *given.package)]
    if deb.name != "jetllm":
        raise FlashError(f"{given.deb} is the package {deb.name!r}, not ours", hint="make deb")
    for package in (deb, *others):
        if package.architecture not in (tree.architecture, "all"):
            raise FlashError(
                f"{package.name} is built for {package.architecture}; the rootfs is {tree.architecture}",
                hint=f"take the package for {tree.architecture}",
            )
    wanted = [deb, *others]
    if lacking := packages.missing(wanted, [each for each in tree.packages if each.name != "jetllm"]):
        names = " ".join(each.partition("|")[0].split()[0] for each in lacking)
        raise FlashError(
            f"the root file system lacks {', '.join(lacking)}, and no --package brings it",
            hint=f"sudo chroot {tree.rootfs} apt-get install {names}",
        )
    known = {each.name for each in (*tree.packages, *others)}
    if given.ssh_key and "openssh-server" not in known:
        raise FlashError(
            "--ssh-key: the root file system has no openssh-server",
            hint=f"sudo chroot {tree.rootfs} apt-get install openssh-server",
        )
    return deb


def _put(given: argparse.Namespace, tree: Tree, flash: Flash, deb: packages.Package) -> None:
    with Changes(tree.rootfs) as changes, _bundle(given, tree, flash, deb, changes.workspace) as bundle:
        sources = ((path.name, path) for path in (given.deb, *given.package))
        changes.put_directory(POOL, sources)
        changes.put(UNIT, (SOURCES / "jetllm-pool.service").read_bytes())
        changes.put_link(WANTED, f"../{Path(UNIT).name}")
        _put_configuration(given, changes)
        if given.ssh_key:
            _put_ssh(given, tree, changes)
        if bundle is not None:
            found = sorted(files.below(bundle.directory))
            names = ((str(path.relative_to(bundle.directory)), path) for path in found)
            # What was unpacked of a .tar is ours to move.
            changes.put_directory(FACTORY, names, move=bundle.directory != given.bundle)
        if tree.has_setup_screen:
            changes.put_link("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
            # What the setup screen would have done beside making a user, such as growing the file system.
            if (tree.rootfs / "etc/nv").is_dir():
                changes.put("etc/nv/nvautoconfig", b"")
        changes.apply()


@contextmanager
def _bundle(
    given: argparse.Namespace, tree: Tree, flash: Flash, deb: packages.Package, workspace: Path
) -> Iterator[Bundle | None]:
    """Check the release against its signature, the board and the free room, and open it."""
    if given.bundle is None:
        yield None
        return
    trusted = workspace / "trusted"
    trusted.mkdir()
    for path in given.trust:
        shutil.copyfile(path, trusted / path.name)
    with open_bundle(given.bundle, trusted, workspace=workspace / "bundle") as bundle:
        board = flash.board
        device = dataclasses.replace(
            detect(root=tree.rootfs),
            board=board.name,
            soc=board.soc,
            compute_capability=board.compute_capability,
            arch=_ARCHITECTURES[deb.architecture],
        )
        if why := why_unfit(bundle.manifest, device):
            raise FlashError(why, hint="name the bundle that is made for this board")
        wanted_bytes = bundle.manifest.total_bytes if bundle.directory == given.bundle else 0
        if (free_bytes := shutil.disk_usage(tree.rootfs).free) < wanted_bytes:
            raise FlashError(
                f"{tree.rootfs}: {free_bytes:,} bytes are free; the bundle has {wanted_bytes:,}",
                hint="free room on that disk, or unpack Linux_for_Tegra on another",
            )
        yield bundle


def _put_configuration(given: argparse.Namespace, changes: Changes) -> None:
    layout = Layout(Path())
    if given.config:
        load_config(given.config)
        changes.put(str(layout.config), given.config.read_bytes())
    if given.settings:
        changes.put(str(layout.settings), given.settings.read_bytes())
    for path in given.trust:
        load_trusted(path)
        if path.suffix != ".pub":
            raise FlashError(f"{path}: a public key's name ends in .pub", hint=f"mv {path} {path.stem}.pub")
        changes.put(str(layout.trusted / path.name), path.read_bytes())


def _put_ssh(given: argparse.Namespace, tree: Tree, changes: Changes) -> None:
    key = given.ssh_key.read_text(encoding="utf-8").strip()
    if not _SSH_KEY.fullmatch(key):
        raise FlashError(
            f"{given.ssh_key}: not one public key of OpenSSH", hint="it is the file whose name ends in .pub"
        )
    user, group, home = tree.account(given.login)
    directory = f"{home.strip('/')}/.ssh"
    target = f"{directory}/authorized_keys"
    there = tree.rootfs / target
    lines = there.read_text(encoding="utf-8").splitlines() if there.is_file() else []
    lines += [key] if key not in lines else []
    changes.want_directory(directory, 0o700, (user, group))
    changes.put(target, "".join(f"{line}\n" for line in lines).encode(), 0o600, (user, group))
    changes.put("etc/systemd/system/ssh.service.d/jetllm.conf", (SOURCES / "ssh-host-keys.conf").read_bytes())


def _next_steps(tree: Tree, flash: Flash) -> str:
    what = f"{flash.board.name}, L4T {tree.l4t}, {flash.storage}"
    lines = [f"{what}; with {'one' if flash.massflash else 'the'} device in recovery mode:", ""]
    lines += [f"    cd {shlex.quote(str(tree.directory.resolve()))}"]
    steps = boards.commands(flash)
    for number, command in enumerate(steps):
        if number:
            lines += ["", "then, with all of the devices in recovery mode:", ""]
        lines.append(f"    {shlex.join(command)}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
