"""`inference.runtime.vitals`: what the kernel says of a process."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

import psutil
import pytest

from inference.runtime import vitals
from inference.runtime.vitals import read_vitals, uses_gpu
from tests.conftest import wait_until

MIB = 2**20


def test_the_signs_are_the_kernels() -> None:
    """Resident memory and CPU time agree with another reader; the peak is never below what is resident."""
    found, theirs = read_vitals(os.getpid()), psutil.Process()
    assert found is not None
    assert abs(found.resident_bytes - theirs.memory_info().rss) < 4 * MIB
    assert 0 < found.mapped_bytes < found.resident_bytes <= found.peak_bytes
    assert found.cpu_s == pytest.approx(sum(theirs.cpu_times()[:2]), abs=0.5)


def test_the_peak_outlives_the_memory() -> None:
    """What was given back is still in the peak."""
    with mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE) as block:
        block.write(b"x" * (64 * MIB))
        during = read_vitals(os.getpid())
    after = read_vitals(os.getpid())
    assert during is not None and after is not None
    assert after.peak_bytes >= during.resident_bytes > after.resident_bytes + 32 * MIB


def test_a_process_that_ended_has_no_signs() -> None:
    """Neither one that waits to be reaped nor one that is gone."""
    process = subprocess.Popen(["true"])
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "the end")
    assert read_vitals(process.pid) is None
    process.wait()
    assert read_vitals(process.pid) is None
    assert not uses_gpu(process.pid)


def fake(proc: Path, status: str, name: str = "python") -> None:
    process = proc / "7"
    (process / "fd").mkdir(parents=True)
    (process / "status").write_text(status)
    (process / "stat").write_text(f"7 ({name}) S " + " ".join(["0"] * 10) + " 200 100" + " 0" * 30)


def test_a_kernel_that_says_less_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a peak the resident memory is one; a name may hold parentheses and spaces."""
    monkeypatch.setattr(vitals, "_PROC", tmp_path)
    fake(tmp_path, "Name:\tx\nVmRSS:\t  2048 kB\n", name="a) S (b")
    found = read_vitals(7)
    assert found is not None
    assert (found.resident_bytes, found.mapped_bytes, found.peak_bytes) == (2 * MIB, 0, 2 * MIB)
    assert found.cpu_s == 300 / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("device", "gpu"),
    [("/dev/nvmap", True), ("/dev/nvidia0", True), ("/dev/nvme0n1", False), ("/dev/null", False)],
)
def test_an_open_gpu_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool) -> None:
    """An NVIDIA device among the descriptors means memory that is not resident; a disk is none."""
    monkeypatch.setattr(vitals, "_PROC", tmp_path)
    fake(tmp_path, "")
    (tmp_path / "7" / "fd" / "3").symlink_to(device)
    assert uses_gpu(7) is gpu
