"""jetson-stats as a second source: what a child makes of it, and what becomes of the child."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from inference.device import JtopSource
from inference.device.jtop import growing
from inference.device.jtop_main import reading
from tests.conftest import wait_until

# What the package is to its user: a context manager that is also asked whether it is ok.
FAKE = """
import os, sys, time
from pathlib import Path

class JtopException(Exception):
    def __init__(self, message):
        super().__init__(message, "")
        self.message = message

starts = Path(__file__).with_name("starts")
with starts.open("a") as file:
    file.write("x")
start = starts.stat().st_size  # 1 in the first child, 2 in the second
print("a word on the standard output")

class jtop:
    memory = {"RAM": {"tot": 7802880, "used": 1000, "free": 2000, "shared": 3, "lfb": 2},
              "SWAP": {"tot": 10, "used": 1}}
    stats = {"RAM": 0.25}
    power = {"rail": {"VDD_SOC": {"power": 1451, "avg": 9}}, "tot": {"power": 4556, "avg": 9}}
    temperature = {"tj": {"temp": 48.625}, "cv0": {"temp": -256}}
    gpu = {"gpu": {"status": {"load": 12.5}}}
    nvpmodel = None

    def __init__(self, interval):
        self.asked = 0

    def __enter__(self):
        START
        return self

    def __exit__(self, *_):
        pass

    def ok(self):
        self.asked += 1
        time.sleep(0.01)
        OK
        return True
"""
READING = {
    "ram_total_bytes": 7990149120,
    "ram_used_bytes": 1024000,
    "ram_free_bytes": 2048000,
    "ram_shared_bytes": 3072,
    "swap_total_bytes": 10240,
    "swap_used_bytes": 1024,
    "largest_free_blocks": 2,
    "power_watts": 4.556,
    "rail_watts": {"VDD_SOC": 1.451},
    "temperature_celsius": {"cv0": None, "tj": 48.625},
    "gpu_load_percent": {"gpu": 12.5},
    "power_mode": None,
}
HANG = "time.sleep(60)"
Start = Callable[..., JtopSource]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a source whose child finds a package that does *at_start* and, before a reading, *ok*."""
    started: list[JtopSource] = []

    def begin(at_start: str = "pass", ok: str = "pass", fake: str = FAKE, **limits: float) -> JtopSource:
        (tmp_path / "jtop.py").write_text(fake.replace("START", at_start).replace("OK", ok))
        source = JtopSource(_environment(tmp_path), **{"pause_s": 0.01, **limits})
        started.append(source)
        source.start()
        return source

    yield begin
    for source in started:
        source.close()


def _environment(packages: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_reading_is_in_our_units(start: Start) -> None:
    """KiB become bytes, mW become W, a part that is off has no temperature."""
    source = start()
    wait_until(source.latest, "a reading")
    assert source.latest() == READING
    assert source.reason is None


def test_package_is_never_imported_here(start: Start) -> None:
    """Importing it would make this process's multiprocessing fork."""
    wait_until(start().latest, "a reading")
    assert "jtop" not in sys.modules


def test_absent_package_is_a_reason(tmp_path: Path) -> None:
    """Without jetson-stats there is no reading, and it is said why."""
    source = JtopSource(_environment(tmp_path))
    source.start()
    wait_until(lambda: source.reason != "no reading yet", "a reason")
    assert (source.latest(), source.reason) == (None, "jetson-stats is not installed")
    source.close()


def test_broken_package_is_a_reason(start: Start) -> None:
    """A package that lacks one of its own dependencies is not called absent."""
    source = start(fake="import smbus2_that_is_not_there")
    wait_until(lambda: source.reason != "no reading yet", "a reason")
    assert source.reason is not None
    assert source.reason.startswith("jetson-stats does not import: No module named 'smbus2")


def test_version_mismatch_is_a_reason(start: Start) -> None:
    """Client and service of different versions: null, and the package's own words."""
    raising = 'raise JtopException("Mismatch version jtop service: [4.3.2] and client: [7.2.2].\\n\\nRun: x")'
    source = start(at_start=raising, longest_pause_s=60)
    wait_until(lambda: source.reason != "no reading yet", "a reason")
    mismatch = "jetson-stats: Mismatch version jtop service: [4.3.2] and client: [7.2.2]. Run: x"
    assert (source.latest(), source.reason) == (None, mismatch)


def test_reader_that_hangs_is_replaced(start: Start) -> None:
    """A read that sleeps 60 s: soon no reading, then another child; the first is dead and reaped."""
    hanging = f"start == 1 and self.asked == 3 and {HANG}"
    source = start(ok=hanging, stale_s=0.1, hang_s=0.8)
    wait_until(source.latest, "a reading")
    first = source.pid
    wait_until(lambda: source.latest() is None, "no reading")
    assert source.reason
    wait_until(lambda: source.latest() and source.pid != first, "another child's reading")
    assert first is not None and not psutil.pid_exists(first)


def test_service_that_hangs_from_the_start_gives_nothing(start: Start) -> None:
    """A connection that is never made: null, and the child is replaced again and again."""
    source = start(at_start=HANG, hang_s=0.3)
    wait_until(lambda: source.pid is not None, "a child")
    first = source.pid
    wait_until(lambda: source.pid not in (None, first), "another child")
    assert source.latest() is None and source.reason == "jetson-stats: no reading for 0.3 s"


def test_old_reading_is_no_reading(start: Start) -> None:
    """What was true a while ago is not shown as true now, though its reader is still given time."""
    source = start(ok=f"self.asked == 3 and {HANG}", stale_s=0.1)
    wait_until(source.latest, "a reading")
    wait_until(lambda: source.latest() is None, "no reading")
    assert source.reason == "jetson-stats: no reading for 0.1 s" and source.pid is not None


def test_lost_connection_drops_its_last_reading(start: Start) -> None:
    """A service that went away has said nothing that still holds."""
    lost = 'if self.asked == 3: raise JtopException("Lost connection with jtop server")'
    source = start(ok=lost, stale_s=1000, pause_s=60)
    wait_until(lambda: source.reason == "jetson-stats: Lost connection with jtop server", "the loss")
    assert source.latest() is None


def test_lost_connection_is_made_anew(start: Start) -> None:
    """When the service comes back a new child finds it."""
    lost = 'if start == 1 and self.asked == 3: raise JtopException("Lost connection with jtop server")'
    source = start(ok=lost)
    wait_until(source.latest, "a reading")
    first = source.pid
    wait_until(lambda: source.latest() and source.pid != first, "another child's reading")


@pytest.mark.parametrize("words", ["this is not JSON", "[1, 2]", "7", "\\xff"])
def test_nonsense_from_the_child_ends_it(words: str, start: Start) -> None:
    """What is no reading is not taken for one."""
    source = start(at_start=f"os.write(int(sys.argv[1]), b'{words}\\n'); {HANG}", longest_pause_s=60)
    wait_until(lambda: source.reason != "no reading yet", "a reason")
    assert source.latest() is None
    assert source.reason == "jetson-stats: its reader says nothing that can be understood"


def test_endless_line_ends_the_child(start: Start) -> None:
    """A child that never ends its line does not fill the daemon's memory."""
    source = start(at_start="\n        while True: os.write(int(sys.argv[1]), b'x' * 65536)")
    wait_until(lambda: source.reason != "no reading yet", "a reason")
    assert source.reason == "jetson-stats: its reader says nothing that can be understood"


def test_sudden_death_of_the_child_is_survived(start: Start) -> None:
    """A child that is killed is replaced."""
    source = start()
    wait_until(source.latest, "a reading")
    first = source.pid
    assert first is not None
    psutil.Process(first).kill()
    wait_until(lambda: source.latest() and source.pid != first, "another child's reading")


def test_pauses_grow_up_to_the_longest() -> None:
    """A package that never works is started ever more rarely."""
    assert list(itertools.islice(growing(2, 20), 6)) == [2, 4, 8, 16, 20, 20]


def test_there_is_a_pause_before_another_child(start: Start, tmp_path: Path) -> None:
    """A package that fails is not started over and over."""
    starts, begin_s = tmp_path / "starts", time.monotonic()
    start(at_start='raise JtopException("no")', pause_s=0.6)
    wait_until(lambda: starts.exists() and starts.stat().st_size >= 2, "a second child")
    assert time.monotonic() - begin_s > 0.6


def test_closing_takes_less_than_a_second(start: Start, tmp_path: Path) -> None:
    """A child that hangs, even with Python's lock in its hands, holds up nothing and is gone."""
    source = start(at_start="import ctypes; ctypes.PyDLL(None).sleep(60)")
    wait_until((tmp_path / "starts").exists, "a child")
    pid, begin_s = source.pid, time.monotonic()
    source.close()
    assert time.monotonic() - begin_s < 1
    assert pid is not None and not psutil.pid_exists(pid)
    assert (source.latest(), source.reason) == (None, "closed")
    source.close()


def test_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A daemon that is killed leaves no reader behind, not even one that hangs."""
    (tmp_path / "jtop.py").write_text(FAKE.replace("START", HANG).replace("OK", "pass"))
    daemon = (
        "import sys, time; from inference.device import JtopSource\n"
        f"source = JtopSource({_environment(tmp_path)!r}); source.start()\n"
        "while not source.pid: time.sleep(0.01)\n"
        "print(source.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", daemon], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        wait_until((tmp_path / "starts").exists, "the child's import of the package")
        parent.kill()
    wait_until(lambda: _ended(pid), "the child's end")


def test_what_is_not_said_well_is_unknown() -> None:
    """Missing parts, wrong types, infinities, negative powers and impossible loads are null."""
    strange = SimpleNamespace(
        memory={"RAM": {"tot": "7", "used": True, "free": float("nan"), "lfb": -1}, "SWAP": None},
        power={"tot": {"power": -5}, "rail": {"B": 7, "A": {"power": float("inf")}}},
        temperature={"cpu": {"temp": None}, 3: {"temp": 40}},
        gpu={"gpu": {"status": {"load": 101}}},
        nvpmodel=SimpleNamespace(name="MAXN"),
    )
    said = reading(strange)
    assert said["rail_watts"] == {"A": None, "B": None}
    assert said["temperature_celsius"] == {"3": 40.0, "cpu": None}
    assert (said["gpu_load_percent"], said["power_mode"]) == ({"gpu": None}, "MAXN")
    assert {said[key] for key in said if key.startswith(("ram_", "swap_", "largest_"))} == {None}
    assert said["power_watts"] is None


def test_object_that_was_not_started_says_nothing() -> None:
    """An unstarted jtop raises KeyError for its parts: all is null."""

    class Unstarted:
        @property
        def power(self) -> object:
            raise KeyError("power")

    said = reading(Unstarted())
    assert set(map(str, said.values())) <= {"None", "{}"}
