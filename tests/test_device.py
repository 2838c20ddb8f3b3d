"""What the machine is, read from fixture trees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from inference.device import detect
from inference.device.files import exists

BOARDS = Path(__file__).parent / "fixtures" / "devices"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def _expected(board: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((BOARDS / board / "expected.json").read_text(encoding="utf-8"))
    return data


def _names() -> list[str]:
    return sorted(path.name for path in BOARDS.iterdir())


def _jetson(compatible: str, memory_mib: int = 7620) -> dict[str, str]:
    return {
        "proc/device-tree/compatible": compatible,
        "proc/meminfo": f"MemTotal: {memory_mib * 1024} kB\n",
    }


@pytest.mark.parametrize("board", _names())
def test_board_is_recognized(board: str) -> None:
    """Every fixture board is described exactly as its expected.json says."""
    assert detect(BOARDS / board).to_dict() == _expected(board)["device"]


def test_empty_root_is_survived(tmp_path: Path) -> None:
    """A machine that shows nothing is a machine of which nothing is known."""
    device = detect(tmp_path)
    unknown = (device.board, device.model, device.soc, device.l4t, device.jetpack, device.power_mode)
    assert unknown == (None,) * 6
    assert device.memory_total_bytes is None and device.bandwidth_bytes_per_s is None
    assert device.cpu_cores is None and device.arch is None
    here = detect()
    assert here.cpu_cores and here.arch


@pytest.mark.parametrize("board", _names())
def test_garbled_files_are_survived(board: str, tmp_path: Path) -> None:
    """A file of noise is an unknown value, never an error."""
    copy = tmp_path / board
    shutil.copytree(BOARDS / board, copy, symlinks=True)
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        path.write_bytes(b"\xff\x00{:<\n" * 50)
    device = detect(copy)
    assert (device.board, device.bandwidth_bytes_per_s, device.l4t) == (None, None, None)


def test_directories_in_place_of_files_are_survived(tmp_path: Path) -> None:
    """Docker creates a directory where a mounted file is missing."""
    for path in ("run/jetllm/device.json", "etc/nv_tegra_release", "proc/meminfo"):
        (tmp_path / path).mkdir(parents=True)
    assert detect(tmp_path).board is None


@pytest.mark.parametrize(
    ("compatible", "memory_mib", "board"),
    [
        ("nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0005\0nvidia,tegra234", 7620, "orin-nano-8gb"),
        ("nvidia,p3767-0003\0nvidia,p3767-0004\0nvidia,tegra234", 3520, "orin-nano-4gb"),
        ("nvidia,p3767-0004\0nvidia,p3767-0003\0nvidia,tegra234", 6284, "orin-nano-8gb"),
        ("nvidia,p3767-0001\0nvidia,p3767-0000\0nvidia,tegra234", 15368, "orin-nx-16gb"),
        ("acme,carrier-p3767-0000\0nvidia,tegra234", 15368, "orin-nx-16gb"),
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234", 6284, "orin-nano-8gb"),
        ("nvidia,p3737-0000+p3701-0000\0nvidia,tegra234", 30000, "agx-orin-32gb"),
        ("nvidia,p4071-0000+p3834-0008\0nvidia,tegra264", 125772, "agx-thor-t5000"),
        ("nvidia,p3509-0000+p3668-0001\0nvidia,tegra194", 7700, "xavier-nx-8gb"),
        ("acme,box\0nvidia,tegra234", 62828, "agx-orin-64gb"),
        ("acme,box\0nvidia,tegra264", 62000, "agx-thor-t4000"),
        ("nvidia,p3834-0000\0nvidia,tegra264", 62000, "agx-thor-t4000"),
        ("nvidia,p3449-0000-b00+p3448-0003-b00\0nvidia,tegra210", 1972, "nano-2gb"),
        ("acme,box\0nvidia,tegra234", 7620, None),
        ("nvidia,p9999-0000\0nvidia,tegra999", 7620, None),
    ],
)  # fmt: skip
def test_module_part_names_the_board(
    compatible: str, memory_mib: int, board: str | None, tmp_path: Path
) -> None:
    """The module's part decides; memory decides between sizes of one part; two possible boards are none."""
    assert detect(_tree(tmp_path, _jetson(compatible, memory_mib))).board == board


@pytest.mark.parametrize(
    ("mode", "gb_per_s"), [("15W", 68), ("25W", 102), ("MAXN_SUPER", 102), ("7W", 68), (None, 68)]
)
def test_bandwidth_follows_the_power_mode(mode: str | None, gb_per_s: int, tmp_path: Path) -> None:
    """The 15 W mode of an Orin Nano clamps its memory clock; an unknown mode counts as the slowest."""
    files = _jetson("nvidia,p3767-0005\0nvidia,tegra234")
    if mode:
        files["etc/nvpmodel.conf"] = f"< POWER_MODEL ID=3 NAME={mode} >\n"
        files["var/lib/nvpmodel/status"] = "pmode:0003"
    assert detect(_tree(tmp_path, files)).bandwidth_bytes_per_s == gb_per_s * 10**9


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref", "35.3.1", "5"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 2.0, GCID: 1, BOARD: generic", "36.2.0", "6.0DP"),
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "36.4.7", "6.2.1"),
        ("# R36 (release), REVISION: 4.9, GCID: 1, BOARD: generic", "36.4.9", None),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", "38.2.0", "7.0"),
        ("# R39 (release), REVISION: 2.0, DATE: Mon Jun  1 09:28:48 PM UTC 2026", "39.2.0", "7.2"),
        ("# R41 (release), REVISION: 1.0, GCID: 1", "41.1.0", None),
        ("R36 REVISION 4.3", None, None),
    ],
)
def test_release_names_l4t_and_jetpack(
    release: str, l4t: str | None, jetpack: str | None, tmp_path: Path
) -> None:
    """L4T comes from the release file's first line; JetPack from L4T where that is known."""
    device = detect(_tree(tmp_path, {"etc/nv_tegra_release": release}))
    assert (device.l4t, device.jetpack) == (l4t, jetpack)


def test_links_are_followed_within_the_root(tmp_path: Path) -> None:
    """Another machine's absolute links lead into its own tree, never to this machine's files."""
    here = tmp_path / "here"
    _tree(here, {"conf": "< POWER_MODEL ID=0 NAME=OURS >\n"})
    root = _tree(tmp_path / "root", {"var/lib/nvpmodel/status": "pmode:0000"})
    (root / "etc").mkdir()
    (root / "etc/nvpmodel.conf").symlink_to(here / "conf")
    assert detect(root).power_mode is None
    _tree(root, {str(here / "conf").lstrip("/"): "< POWER_MODEL ID=0 NAME=THEIRS >\n"})
    assert detect(root).power_mode == "THEIRS"


def test_link_that_climbs_out_stays_within_the_root(tmp_path: Path) -> None:
    """Above the root there is only the root."""
    _tree(tmp_path, {"nv_tegra_release": "# R36 (release), REVISION: 4.3, x"})
    root = _tree(tmp_path / "root", {"etc/none": ""})
    (root / "etc/nv_tegra_release").symlink_to("../../nv_tegra_release")
    assert detect(root).l4t is None


def test_circle_of_links_is_survived(tmp_path: Path) -> None:
    """A link to itself is an unreadable file."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").symlink_to("/etc/nv_tegra_release")
    assert detect(tmp_path).l4t is None


def test_path_that_cannot_be_looked_at_is_not_there(tmp_path: Path) -> None:
    """A directory that is closed to us, or a name that is too long, is no error."""
    assert exists(tmp_path) and not exists(tmp_path / ("x" * 300))


def test_copied_device_tree_is_found_without_its_link(tmp_path: Path) -> None:
    """A copy of /sys without /proc/device-tree names the board too."""
    tree = "sys/firmware/devicetree/base/"
    files = {tree + "compatible": "nvidia,p3767-0000\0nvidia,tegra234\0", tree + "model": "M\0"}
    device = detect(_tree(tmp_path, files))
    assert (device.board, device.model) == ("orin-nx-16gb", "M")


def test_device_file_is_preferred_field_by_field(tmp_path: Path) -> None:
    """The host's statement wins where it states something of the right type."""
    stated = {"board": "orin-nx-8gb", "l4t": None, "cpu_cores": "8", "in_container": True, "extra": 1}
    files = {
        "run/jetllm/device.json": json.dumps(stated),
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, x",
        "proc/cpuinfo": "processor : 0\nprocessor : 1\n",
    }
    device = detect(_tree(tmp_path, files))
    assert (device.board, device.l4t, device.cpu_cores) == ("orin-nx-8gb", "36.4.3", 2)
    assert device.in_container is False


@pytest.mark.parametrize(
    "mark", [".dockerenv", "run/.containerenv", "run/systemd/container", "proc/1/cgroup"]
)
def test_container_is_noticed(mark: str, tmp_path: Path) -> None:
    """Each runtime leaves its own mark."""
    device = detect(_tree(tmp_path, {mark: "0::/docker/4f1c\n"}))
    assert device.in_container is True
