"""The commands that flash a board: NVIDIA's own, for what is in the table, and nothing else."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from containers.flash.boards import BOARDS, Flash, FlashError, commands, files
from inference.device.detect import compute_capability, known_boards

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
    board: str, l4t: str, storage: str, options: dict[str, Any], wanted: list[str]
) -> None:
    """For each board, release and storage, word by word what NVIDIA's documents say."""
    flash = Flash(BOARDS[board], l4t, storage, **options)
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
    board: str, l4t: str, storage: str, options: dict[str, Any], why: str
) -> None:
    """The reason is told, and what to do instead."""
    with pytest.raises(FlashError) as refused:
        commands(Flash(BOARDS[board], l4t, storage, **options))
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
