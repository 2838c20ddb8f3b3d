"""How many bytes may be given to models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.device import read_memory

BOARDS = Path(__file__).parent / "fixtures" / "devices"
GIB = 2**30
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nSwapFree: 99999999 kB\n"


def _tree(root: Path, files: dict[str, str]) -> Path:
    for path, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("board", sorted(path.name for path in BOARDS.iterdir()))
def test_budget_of_a_board(board: str) -> None:
    """The budget of every fixture board is the one computed by hand in its expected.json."""
    expected = json.loads((BOARDS / board / "expected.json").read_text(encoding="utf-8"))["memory"]
    assert read_memory(BOARDS / board).to_dict() == expected


def test_swap_is_not_counted(tmp_path: Path) -> None:
    """Only MemAvailable counts: zram would lie in the same memory."""
    memory = read_memory(_tree(tmp_path, {}), reserve_bytes=0)
    assert memory.budget_bytes == 8 * GIB


def test_given_reserve_replaces_the_default(tmp_path: Path) -> None:
    """A reserve that the user set is taken as it is; more than there is leaves nothing."""
    root = _tree(tmp_path, {})
    assert read_memory(root, reserve_bytes=GIB).budget_bytes == 7 * GIB
    assert read_memory(root, reserve_bytes=9 * GIB).budget_bytes == 0


def test_reserve_is_at_least_512_mib(tmp_path: Path) -> None:
    """On a 2 GiB machine 6 % would be too little."""
    small = "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n"
    memory = read_memory(_tree(tmp_path, {"proc/meminfo": small}))
    assert (memory.reserve_bytes, memory.budget_bytes) == (GIB // 2, GIB // 2)


def test_unknown_memory_is_none(tmp_path: Path) -> None:
    """A machine without a readable /proc/meminfo has an unknown budget, not none at all."""
    memory = read_memory(tmp_path)
    assert (memory.total_bytes, memory.available_bytes, memory.budget_bytes) == (None, None, None)


V2 = "sys/fs/cgroup/"
V1 = "sys/fs/cgroup/memory/"


@pytest.mark.parametrize(
    ("files", "headroom_gib"),
    [
        pytest.param({}, None, id="no cgroup"),
        pytest.param({"proc/self/cgroup": "0::/\n"}, None, id="the root cgroup has no limit file"),
        pytest.param(
            {"proc/self/cgroup": "0::/a\n", V2 + "a/memory.max": "max\n", V2 + "a/memory.current": "5\n"},
            None,
            id="max",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/a/b\n",
                V2 + "a/memory.max": f"{4 * GIB}",
                V2 + "a/memory.current": f"{GIB}",
                V2 + "a/b/memory.max": f"{6 * GIB}",
                V2 + "a/b/memory.current": "0",
            },
            3,
            id="the tightest of the nested ones",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/../../docker/4f1c\n",
                V2 + "memory.max": f"{2 * GIB}",
                V2 + "memory.current": f"{GIB}",
            },
            1,
            id="a path outside of the mount",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,memory:/docker/4f1c\n0::/\n",
                V1 + "memory.limit_in_bytes": f"{3 * GIB}",
                V1 + "memory.usage_in_bytes": f"{2 * GIB}",
                V1 + "memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file 0\n",
            },
            2,
            id="v1 counts the hierarchical page cache",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:memory:/\n",
                V1 + "memory.limit_in_bytes": "9223372036854771712",
                V1 + "memory.usage_in_bytes": "1",
            },
            None,
            id="v1 without a limit",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", V2 + "memory.max": f"{GIB}", V2 + "memory.current": f"{2 * GIB}"},
            0,
            id="over the limit",
        ),
        pytest.param(
            {"proc/self/cgroup": "nonsense\n0::/a\n", V2 + "a/memory.max": "12x", V2 + "a/memory.stat": "?"},
            None,
            id="garbled",
        ),
    ],
)
def test_cgroup_headroom(files: dict[str, str], headroom_gib: int | None, tmp_path: Path) -> None:
    """Headroom is the limit less what is used, page cache apart, in the tightest cgroup around us."""
    memory = read_memory(_tree(tmp_path, files), reserve_bytes=0)
    headroom = None if headroom_gib is None else headroom_gib * GIB
    assert memory.cgroup_headroom_bytes == headroom
    assert memory.budget_bytes == (8 * GIB if headroom is None else headroom)
