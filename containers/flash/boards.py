"""The boards: which of NVIDIA's tools and board configurations flashes each one, and the commands for it.

From NVIDIA's Jetson Linux Developer Guide (Quick Start, Flashing Support) and README_initrd_flash.txt of
L4T 36.4, 38 and 39, read in November 2026. None of these commands has been run: that needs the hardware.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from inference.errors import JetLLMError


class FlashError(JetLLMError):
    """The root file system, or the board that is named, is not what the overlay is for."""

    code = "flash_refused"


EMMC, SD, NVME = "emmc", "sd", "nvme"


@dataclass(frozen=True)
class Board:
    """A module, by our name of it (`inference.device.detect`).

    Args:
        config: NVIDIA's board configuration: of the developer kit, or of the carrier board nearest to it.
        storages: what it can be flashed on; the first is the usual one.
        releases: of L4T, as in "36", which 36.4.3 is one of.
        super_since: the first release with a ``-super`` configuration, which has the faster power modes.
        refused: why it is not flashed at all.
    """

    name: str
    soc: str
    compute_capability: str
    config: str
    storages: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    super_since: tuple[int, ...] | None = None
    refused: str | None = None

    @property
    def qspi_apart(self) -> bool:
        """Whether the boot loader lies on a chip of its own and all else on the storage."""
        return self.config.startswith("jetson-orin-nano")


@dataclass(frozen=True)
class Flash:
    """How a board is to be flashed.

    Args:
        config: a board configuration in place of the board's own.
        rootfs_ab: two root file systems, of which one is updated while the other runs.
        massflash: how many devices at once; 0 for one device in one step.
        untested: flash a release that no image with MLC was tested on.
    """

    board: Board
    l4t: str
    storage: str
    config: str | None = None
    rootfs_ab: bool = False
    massflash: int = 0
    untested: bool = False


_NO_PYTHON = "its last release, L4T {l4t}, has Python {python}; the package needs 3.10"
_ORIN, _THOR = ("36",), ("38", "39")
_UNTESTED = "39"
_SUPER = (36, 4, 3)


def _orin(name: str, *storages: str) -> Board:
    return Board(name, "tegra234", "8.7", "jetson-orin-nano-devkit", storages, _ORIN, _SUPER)


def _agx(name: str, config: str) -> Board:
    return Board(name, "tegra234", "8.7", config, (EMMC, NVME), _ORIN)


def _xavier(name: str) -> Board:
    return Board(name, "tegra194", "7.2", "", refused=_NO_PYTHON.format(l4t=35, python="3.8"))


def _nano(name: str) -> Board:
    return Board(name, "tegra210", "5.3", "", refused=_NO_PYTHON.format(l4t=32.7, python="3.6"))


BOARDS = {
    board.name: board
    for board in (
        _orin("orin-nano-4gb", NVME),
        _orin("orin-nano-8gb", NVME, SD),
        _orin("orin-nx-8gb", NVME),
        _orin("orin-nx-16gb", NVME),
        _agx("agx-orin-32gb", "jetson-agx-orin-devkit"),
        _agx("agx-orin-64gb", "jetson-agx-orin-devkit"),
        _agx("agx-orin-industrial", "jetson-agx-orin-devkit-industrial"),
        Board("agx-thor-t5000", "tegra264", "11.0", "jetson-agx-thor-devkit", (NVME,), _THOR),
        Board("agx-thor-t4000", "tegra264", "11.0", "jetson-agx-thor-t4000", (NVME,), ("38.4", "39")),
        _xavier("xavier-nx-8gb"),
        _xavier("xavier-nx-16gb"),
        _xavier("agx-xavier"),
        _nano("nano-4gb"),
        _nano("nano-2gb"),
    )
}

_INITRD = "./tools/kernel_flash/l4t_initrd_flash.sh"
_UNIFIED = "./l4t_initrd_flash.sh"
_QSPI = "bootloader/generic/cfg/flash_t234_qspi.xml"


def check(flash: Flash) -> None:
    """Refuse what cannot be flashed so.

    Raises:
        FlashError: with the reason and what would do.
    """
    board = flash.board
    if board.refused:
        raise FlashError(
            f"{board.name}: {board.refused}",
            hint="docs/flash.md says how to serve on it without this package",
        )
    untested = board.soc == "tegra234" and _is_of(flash.l4t, _UNTESTED)
    if untested and not flash.untested:
        raise FlashError(
            f"{board.name}: L4T {flash.l4t} was found, on which no image with MLC has been tested",
            hint="use L4T 36.4, or insist with --untested",
        )
    if not untested and not any(_is_of(flash.l4t, release) for release in board.releases):
        raise FlashError(
            f"{board.name} is flashed with L4T {' or '.join(board.releases)}, not with {flash.l4t}",
            hint="unpack that release of Jetson Linux with its sample root file system",
        )
    if flash.storage not in board.storages:
        raise FlashError(
            f"{board.name} is not flashed on {flash.storage}, but on {' or '.join(board.storages)}",
            hint=f"--storage {board.storages[0]}",
        )
    if flash.storage == SD and (flash.massflash or flash.rootfs_ab or _major(flash.l4t) >= 38):
        raise FlashError(
            f"an SD card is flashed with L4T 36, alone, with one root file system; not with {_asked(flash)}",
            hint="--storage nvme",
        )


def commands(flash: Flash) -> list[list[str]]:
    """Return the commands to run in ``Linux_for_Tegra``, one after the other, as lists of arguments.

    Raises:
        FlashError: as `check` does.
    """
    check(flash)
    environment = ["ROOTFS_AB=1"] if flash.rootfs_ab else []
    config = config_of(flash)
    if flash.massflash:
        many = ["--massflash", str(flash.massflash)]
        # The older tool finds the board in what the first step made.
        boards = [config] if _major(flash.l4t) >= 38 else []
        options, root = _options(flash)
        options = options if "--network" in options else [*options, "--network", "usb0"]
        return [
            ["sudo", *environment, _INITRD, "--no-flash", *many, *options, config, root],
            ["sudo", _INITRD, "--flash-only", *many, "--network", "usb0", "--showlogs", *boards],
        ]
    if _major(flash.l4t) >= 38:
        options, root = _options(flash)
        return [["sudo", *environment, _UNIFIED, *options, config, root]]
    if flash.storage in (EMMC, SD):
        return [["sudo", *environment, "./flash.sh", config, "internal"]]
    options, root = _options(flash)
    return [["sudo", *environment, _INITRD, *options, "--showlogs", "--network", "usb0", config, root]]


def files(flash: Flash) -> list[str]:
    """Return the files of ``Linux_for_Tegra`` that `commands` name."""
    words = [word for command in commands(flash) for word in command]
    parts = {part for word in words for part in shlex.split(word)}
    named = {part for part in parts if part.startswith("./") or part.endswith(".xml")}
    return sorted({*named, f"{config_of(flash)}.conf"})


def config_of(flash: Flash) -> str:
    """Return the name of the board configuration."""
    board = flash.board
    if flash.config is not None:
        return flash.config
    is_super = board.super_since is not None and _numbers(flash.l4t) >= board.super_since
    return f"{board.config}-super" if is_super else board.config


def _options(flash: Flash) -> tuple[list[str], str]:
    """Return the initrd tool's options for the storage, and where the root file system is then."""
    unified = _major(flash.l4t) >= 38
    chip = "t264" if flash.board.soc == "tegra264" else "t234"
    own = flash.board.qspi_apart or chip == "t264"
    if flash.storage == EMMC or (unified and own and not flash.rootfs_ab):
        return [], "internal"
    layout = f"tools/kernel_flash/flash_l4t_{chip}_nvme{'_rootfs_ab' if flash.rootfs_ab else ''}.xml"
    options = ["--external-device", "nvme0n1p1", "-c", layout]
    if flash.board.qspi_apart and not unified:
        options += ["-p", f"-c {_QSPI}"]
    return options, "internal" if flash.board.qspi_apart and not flash.rootfs_ab else "external"


def _asked(flash: Flash) -> str:
    wishes = {
        "--massflash": flash.massflash,
        "--rootfs-ab": flash.rootfs_ab,
        f"L4T {flash.l4t}": _major(flash.l4t) >= 38,
    }
    return ", ".join(name for name, is_so in wishes.items() if is_so)


def _is_of(l4t: str, release: str) -> bool:
    return f"{l4t}.".startswith(f"{release}.")


def _major(l4t: str) -> int:
    return _numbers(l4t)[0]


def _numbers(l4t: str) -> tuple[int, ...]:
    return tuple(int(part) for part in l4t.split("."))
