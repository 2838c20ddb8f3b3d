"""How the machine is, read from fixture trees."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.device import OverCurrent, describe, over_current_change, read_power, read_telemetry
from inference.device.load import Load

BOARDS = Path(__file__).parent / "fixtures" / "devices"
NAMES = sorted(path.name for path in BOARDS.iterdir())
THERMAL = "sys/class/thermal/"
HWMON = "sys/class/hwmon/"


def _tree(root: Path, files: Mapping[str, object]) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{content}\n", encoding="utf-8")
    return root


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    return [leaf for each in value for leaf in _leaves(each)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("board", NAMES)
def test_readings_of_a_board(board: str) -> None:
    """Every reading of every fixture board is the one written down in its expected.json."""
    expected = json.loads((BOARDS / board / "expected.json").read_text(encoding="utf-8"))["telemetry"]
    assert read_telemetry(BOARDS / board).to_dict() == expected


def test_empty_root_knows_nothing(tmp_path: Path) -> None:
    """What cannot be seen is unknown; no zero, no -1 and no false is made up."""
    assert set(_leaves(read_telemetry(tmp_path).to_dict())) == {None}


def test_description_keeps_facts_and_readings_apart() -> None:
    """What never changes is under "static", what does under "live"; all of it is JSON."""
    board = BOARDS / "orin-nx-16gb"
    expected = json.loads((board / "expected.json").read_text(encoding="utf-8"))
    live = {"memory": expected["memory"], "telemetry": expected["telemetry"]}
    assert json.loads(json.dumps(describe(board))) == {"static": expected["device"], "live": live}
    assert describe(board, reserve_bytes=5)["live"]["memory"]["reserve_bytes"] == 5


def test_this_machine_is_described() -> None:
    """The machine that runs the tests has a memory, processes, and a load."""
    live = describe()["live"]
    assert live["memory"]["total_bytes"] > 0
    assert live["telemetry"]["load"]["processes"] > 0
    assert live["telemetry"]["load"]["average_1m"] >= 0


def test_unknown_load_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A /proc that shows no processes leaves the load unknown."""

    def fail() -> list[int]:
        raise PermissionError("hidepid")

    monkeypatch.setattr(psutil, "pids", fail)
    assert read_telemetry().load == Load(None, None, None, None)


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


DAMAGES: tuple[Callable[[Path], object], ...] = (
    Path.unlink,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\xff\x00{:<\n" * 50),
    lambda path: path.write_bytes(b"9" * 6000),
    lambda path: path.write_bytes(b"-1\n"),
    lambda path: path.write_bytes("\u0663\u0663\n".encode()),  # digits, but not ours
    lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    _instead(Path.mkdir),
    _instead(os.mkfifo),
    _instead(lambda path: path.symlink_to(path)),
)


def _copy(board: str, directory: Path) -> tuple[Path, list[Path]]:
    root = directory / board
    shutil.copytree(BOARDS / board, root, symlinks=True)
    return root, sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


@settings(max_examples=40, deadline=None)
@given(
    board=st.sampled_from(NAMES),
    damages=st.dictionaries(st.integers(0, 200), st.sampled_from(DAMAGES), max_size=12),
)
def test_any_damage_is_survived(board: str, damages: dict[int, Callable[[Path], object]]) -> None:
    """Whatever files are missing, empty, cut, garbled, directories, pipes or links: no reader raises."""
    with tempfile.TemporaryDirectory() as directory:
        root, files = _copy(board, Path(directory))
        for which, damage in damages.items():
            if which < len(files):
                damage(files[which])
        json.dumps(describe(root), allow_nan=False)


@pytest.mark.parametrize("board", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_board_of_nothing_but_damage_is_survived(
    board: str, damage: Callable[[Path], object], tmp_path: Path
) -> None:
    """The same when every file is damaged in the same way."""
    root, files = _copy(board, tmp_path)
    for path in files:
        damage(path)
    json.dumps(describe(root), allow_nan=False)


def test_pipe_in_place_of_a_sensor_does_not_hang(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    root = _tree(tmp_path, {THERMAL + "thermal_zone0/type": "cpu-thermal"})
    os.mkfifo(root / THERMAL / "thermal_zone0/temp")
    zones = read_telemetry(root).thermal.zones
    assert zones is not None and zones[0].temperature_celsius is None


@pytest.mark.parametrize(
    ("text", "celsius"),
    [("48625", 48.625), ("-256000", None), ("-5000", -5.0), ("1000000", None), ("0", 0.0), ("off", None)],
)
def test_temperature_is_in_degrees(text: str, celsius: float | None, tmp_path: Path) -> None:
    """The kernel counts thousandths; -256 degrees means that the part is off."""
    root = _tree(tmp_path, {THERMAL + "thermal_zone0/temp": text})
    zones = read_telemetry(root).thermal.zones
    assert zones is not None and zones[0].temperature_celsius == celsius


def test_zones_are_ordered_by_number(tmp_path: Path) -> None:
    """Zone 10 comes after zone 9."""
    root = _tree(tmp_path, {f"{THERMAL}thermal_zone{n}/type": f"z{n}" for n in (10, 9, 1)})
    zones = read_telemetry(root).thermal.zones
    assert zones is not None and [zone.name for zone in zones] == ["z1", "z9", "z10"]


def _cooling(name: str, state: object) -> dict[str, object]:
    return {THERMAL + "cooling_device3/type": name, THERMAL + "cooling_device3/cur_state": state}


@pytest.mark.parametrize(
    ("name", "state", "throttled"),
    [
        ("cpu-throttle-alert", 1, True),
        ("devfreq-17000000.gpu", 4, True),
        ("cpu-throttle-alert", 0, False),
        ("pwm-fan", 3, False),
        ("Fan", 1, False),
        ("TCC Offset", 5, False),
        ("intel_powerclamp", -1, None),
        ("cpu-throttle-alert", "?", None),
    ],
)
def test_throttling_is_what_slows_down(
    name: str, state: object, throttled: bool | None, tmp_path: Path
) -> None:
    """A cooling device in use is throttling, but a turning fan is not; an unknown state is unknown."""
    thermal = read_telemetry(_tree(tmp_path, _cooling(name, state))).thermal
    assert thermal.throttled is throttled
    assert thermal.throttled_by == ((name,) if throttled else ())


@pytest.mark.parametrize(
    ("load", "clock_hz", "throttled"), [(950, 500, True), (949, 500, False), (999, 1000, False)]
)
def test_busy_gpu_below_its_clock_is_throttled(
    load: int, clock_hz: int, throttled: bool, tmp_path: Path
) -> None:
    """At 95 % load or more a GPU runs at its highest clock, unless something holds it back."""
    gpu = "sys/class/devfreq/17000000.gpu/"
    files = {gpu + "device/load": load, gpu + "cur_freq": clock_hz, gpu + "max_freq": 1000}
    thermal = read_telemetry(_tree(tmp_path, files)).thermal
    assert (thermal.throttled, thermal.throttled_by) == (throttled, ("gpu clock",) if throttled else ())


@pytest.mark.parametrize(("text", "percent"), [("1000", 100.0), ("1001", None), ("-1", None), ("7", 0.7)])
def test_gpu_load_is_per_mille(text: str, percent: float | None, tmp_path: Path) -> None:
    """The driver counts thousandths; what is no share of the time is unknown."""
    root = _tree(tmp_path, {"sys/class/devfreq/17000000.ga10b/device/load": text})
    assert read_telemetry(root).gpu.load_percent == percent


def test_gpu_load_is_found_where_older_systems_have_it(tmp_path: Path) -> None:
    """Before devfreq knows the GPU, early in boot, the platform's device has its load."""
    gpu = read_telemetry(_tree(tmp_path, {"sys/devices/platform/gpu.0/load": 310})).gpu
    assert (gpu.name, gpu.load_percent) == (None, 31.0)


def test_video_unit_is_not_the_gpu(tmp_path: Path) -> None:
    """Thor lists the clock of its video engines beside the GPU's."""
    gpu = read_telemetry(_tree(tmp_path, {"sys/class/devfreq/gpu-nvd-0/cur_freq": 5})).gpu
    assert (gpu.name, gpu.clock_hz) == (None, None)


def _rails(chip: str, **rails: tuple[object, object]) -> dict[str, object]:
    files: dict[str, object] = {f"{HWMON}{chip}/name": "ina3221"}
    for number, (name, (volts, amperes)) in enumerate(rails.items(), 1):
        base = f"{HWMON}{chip}/"
        files |= {f"{base}in{number}_label": name, f"{base}in{number}_input": volts}
        files |= {f"{base}curr{number}_input": amperes}
    return files


def test_power_is_volts_times_amperes(tmp_path: Path) -> None:
    """4920 mV x 3012 mA is 14.819 W; the input rail is the total and is not added to the others."""
    power = read_power(_tree(tmp_path, _rails("hwmon3", VDD_IN=(4920, 3012), VDD_SOC=(4912, 512))))
    assert power.total_watts == pytest.approx(14.81904)
    assert [rail.name for rail in power.rails] == ["VDD_IN", "VDD_SOC"]
    assert power.rails[1].power_watts == pytest.approx(2.514944)


AGX = {"VDD_GPU_SOC": (20000, 100), "VDD_CPU_CV": (20000, 200), "VIN_SYS_5V0": (5000, 1000)}


@pytest.mark.parametrize(
    ("rails", "total_watts"),
    [
        (AGX, 11.0),
        ({**AGX, "VDDQ_VDD2_1V8AO": (5000, 200)}, 12.0),
        ({**AGX, "VDD_CPU_CV": (20000, -1)}, None),
        ({name: AGX[name] for name in ("VDD_GPU_SOC", "VDD_CPU_CV")}, None),
        ({"VDD_IN": (5000, -3), "VDD_SOC": (5000, 100)}, None),
        ({"SOMETHING": (5000, 100)}, None),
        ({}, None),
    ],
)
def test_total_is_known_or_unknown_never_a_part(
    rails: dict[str, tuple[int, int]], total_watts: float | None, tmp_path: Path
) -> None:
    """An AGX Orin's total is the sum of its rails; with one missing or negative there is no total."""
    assert read_power(_tree(tmp_path, _rails("hwmon0", **rails))).total_watts == total_watts


@pytest.mark.parametrize("number", [0, 4, 17])
def test_monitors_are_found_whatever_their_number(number: int, tmp_path: Path) -> None:
    """hwmon numbers change from boot to boot; only the name counts."""
    files = {
        **_rails(f"hwmon{number}", VDD_IN=(5000, 1000)),
        f"{HWMON}hwmon{number + 1}/name": "soctherm_oc",
        f"{HWMON}hwmon{number + 1}/oc2_event_cnt": 7,
        f"{HWMON}hwmon{number + 2}/name": "nvme",
        f"{HWMON}hwmon{number + 2}/in1_label": "VIN",
        f"{HWMON}hwmon{number + 2}/curr1_input": 1,
    }
    telemetry = read_telemetry(_tree(tmp_path, files))
    assert telemetry.power.total_watts == 5.0
    assert telemetry.over_current == OverCurrent(None, 7, None)


def test_over_current_change_is_delta_and_rate() -> None:
    """The counters run since boot; between two readings there were so many events, so often."""
    change = over_current_change(OverCurrent(1, 10, 0), OverCurrent(1, 14, 2), elapsed_s=4.0)
    assert (change.under_voltage_events, change.average_events, change.instantaneous_events) == (0, 4, 2)
    assert change.events_per_s == 1.5


@pytest.mark.parametrize(
    ("before", "after", "elapsed_s"),
    [
        (OverCurrent(9, 9, 9), OverCurrent(0, 0, 0), 1.0),
        (OverCurrent(None, None, None), OverCurrent(1, 1, 1), 1.0),
    ],
)
def test_restarted_counter_gives_no_change(before: OverCurrent, after: OverCurrent, elapsed_s: float) -> None:
    """A counter that went back, or was not there, tells nothing of the time between."""
    change = over_current_change(before, after, elapsed_s)
    assert (change.average_events, change.events_per_s) == (None, None)


def test_change_in_no_time_has_no_rate() -> None:
    """Two readings at once have a difference, but no rate."""
    change = over_current_change(OverCurrent(0, 0, 0), OverCurrent(1, 0, 0), elapsed_s=0.0)
    assert (change.under_voltage_events, change.events_per_s) == (1, None)


def test_swap_is_split_by_what_backs_it(tmp_path: Path) -> None:
    """zram lies in the memory itself, a file or a partition does not; there may be some of each."""
    swaps = (
        "Filename\tType\tSize\tUsed\tPriority\n"
        "/dev/zram0 partition 1000 10 5\n/dev/zram1 partition 1000 20 5\n"
        "/mnt/a\\040b file 4000 1 -2\n/dev/nvme0n1p3 partition 500 0 -3\n/gone\\040(deleted) file x y z"
    )
    swap = read_telemetry(_tree(tmp_path, {"proc/swaps": swaps})).swap
    assert (swap.zram_bytes, swap.zram_used_bytes) == (2000 * 1024, 30 * 1024)
    assert (swap.file_bytes, swap.file_used_bytes) == (4000 * 1024, 1024)
    assert (swap.other_bytes, swap.other_used_bytes) == (500 * 1024, 0)


def test_no_swap_is_not_unknown_swap(tmp_path: Path) -> None:
    """A readable list without areas says that there are none."""
    swap = read_telemetry(_tree(tmp_path, {"proc/swaps": "Filename Type Size Used Priority"})).swap
    assert (swap.zram_bytes, swap.file_bytes) == (0, 0)


@pytest.mark.parametrize(("text", "percent"), [("12.50", 12.5), ("100.00", 100.0), ("999.00", None)])
def test_stalls_are_a_share_of_the_time(text: str, percent: float | None, tmp_path: Path) -> None:
    """/proc/pressure gives percents; what is none is unknown."""
    stalls = f"some avg10={text} avg60=0.00 avg300=0.00 total=5"
    pressure = read_telemetry(_tree(tmp_path, {"proc/pressure/memory": stalls})).pressure
    assert (pressure.some_avg10_percent, pressure.full_avg10_percent) == (percent, None)


def test_largest_free_block_is_counted_over_all_zones(tmp_path: Path) -> None:
    """Column n of /proc/buddyinfo counts free blocks of 2**n pages."""
    text = "Node 0, zone DMA 5 0 2 0\nNode 0, zone Normal 9 1 1 0"
    pressure = read_telemetry(_tree(tmp_path, {"proc/buddyinfo": text})).pressure
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    assert (pressure.largest_free_block_bytes, pressure.largest_free_blocks) == (4 * page_bytes, 3)


def test_machine_without_nvme_says_so() -> None:
    """Disks that can be listed without an NVMe among them are a known absence."""
    disks = {board: read_telemetry(BOARDS / board).storage for board in ("orin-nano-4gb", "container-untold")}
    assert [disk.kind for disk in disks["orin-nano-4gb"] or ()] == ["mmc", "disk"]
    assert disks["container-untold"] is None


def test_memory_clock_is_capped_by_the_power_mode() -> None:
    """The 15 W mode of an Orin Nano holds its memory at 2133 MHz, though it could run at 3199."""
    assert read_telemetry(BOARDS / "orin-nano-8gb").clocks.memory_max_hz == 2_133_000_000
    assert read_telemetry(BOARDS / "orin-nano-8gb-super").clocks.memory_max_hz == 3_199_000_000
