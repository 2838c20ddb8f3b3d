"""The first boot on a stand-in device: each step once, whatever it is killed in; and its parts alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.appliance import data
from inference.appliance.data import factory_bundles, format_disk, provide_data, why_not_empty
from inference.appliance.errors import BundleError, NoReleaseError
from inference.appliance.firstboot import STEPS, FirstBoot, take_key
from inference.appliance.layout import Layout
from inference.appliance.picture import STATUS_FILE
from inference.appliance.power import PowerMode, choose_mode, named_mode, power_modes
from inference.artifacts import files
from inference.device.detect import detect
from inference.errors import AlreadyRunningError, MissingDependencyError, SettingsError
from inference.keys import Keys
from tests.standin_device import DEVICES, StandinDevice, run_killed
from tests.supervised import free_port

MODES = {
    ("orin-nano-8gb-super", "MAXN_SUPER"): 2,
    ("orin-nano-8gb-super", "25W"): 1,
    ("orin-nano-8gb", "15W"): 0,
    ("orin-nx-16gb", "25W"): 3,
    ("agx-orin-64gb", "MAXN"): 0,
    ("agx-orin-64gb", "50W"): 3,
    ("agx-thor-t5000", "120W"): 1,
    ("xavier-nx", "20W"): 2,
}


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinDevice]:
    """A device as it was flashed, with the bundle of 1.0.0."""
    made = StandinDevice(tmp_path, free_port())
    monkeypatch.setenv("PATH", str(made.bin), prepend=os.pathsep)
    made.bundle("1.0.0", path=made.layout.bundles / "factory")
    yield made
    made.cut_power()


def told(device: StandinDevice) -> dict[str, object]:
    found: dict[str, object] = json.loads((device.layout.run / STATUS_FILE).read_text())
    return found


# From a flashed disk to a daemon that answers


def test_a_flashed_device_serves_after_its_first_boot(device: StandinDevice) -> None:
    """The image is current, the models are in the store, every step has been taken, and it says so."""
    device.boot()
    device.check()
    assert device.served() == "1.0.0"
    assert (device.layout.store / "weights" / "1.0.0.gguf").is_file()
    assert told(device) == {"step": "done", "failed": False, "message": None, "hint": None}
    assert device.notes[0] == "device: orin-nano-8gb, L4T 36.4.3"


def test_the_second_boot_only_looks(device: StandinDevice) -> None:
    """The bundle is not read again and may go; no image is loaded, no key is made."""
    device.boot()
    keys = (device.layout.state / "keys.json").read_bytes()
    shutil.rmtree(device.layout.bundles / "factory")
    device.cut_power()
    (device.place / "calls").unlink()
    device.boot()
    assert {call.split()[0] for call in device.calls} == {"image", "systemctl"}
    assert (device.layout.state / "keys.json").read_bytes() == keys
    device.check()


def test_the_board_is_written_down_for_the_container_at_every_boot(device: StandinDevice) -> None:
    """device.json has what the board is; what an earlier boot has written there is not believed."""
    device.boot()
    path = device.layout.device_file
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text())["board"] == "orin-nano-8gb"
    shutil.copy(DEVICES / "agx-orin-64gb" / "proc/device-tree/compatible", device.root / "proc/device-tree")
    shutil.copy(DEVICES / "agx-orin-64gb" / "proc/meminfo", device.root / "proc")
    device.boot()
    found = json.loads(path.read_text())
    path.unlink()
    assert found == detect(device.root).to_dict() and found["board"] == "agx-orin-64gb"


def test_killed_before_any_effect_the_next_start_completes_it(device: StandinDevice) -> None:
    """SIGKILL and a power cut before each rename and command: the next boot serves, with one key."""
    device.keep()
    for at in range(100):
        device.restore()
        if not run_killed(lambda: FirstBoot(device.installation()).run(), at):
            break
        device.cut_power()
        device.boot()
        device.check()
        assert device.served() == "1.0.0"
        keys = Keys(device.layout.state / "keys.json")
        assert [row["name"] for row in keys.rows()] == ["owner"]
        assert keys.accepts(take_key(device.installation())) == "owner"
    assert at > 10


# Refusals


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("unfit", BundleError, "the release is for L4T 35; this machine has 36.4.3"),
        ("tampered", BundleError, "SHA-256"),
        ("absent", NoReleaseError, "there is no bundle"),
        ("untrusted", BundleError, "there is no trusted key"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_started(
    device: StandinDevice, change: str, error: type[Exception], words: str
) -> None:
    """Nothing is loaded, the status has the reason, and a boot with what fits goes on from there."""
    factory = device.layout.bundles / "factory"
    if change == "unfit":
        shutil.rmtree(factory)
        device.bundle("1.0.0", l4t=("35",), path=factory)
    elif change == "tampered":
        (factory / "store/weights/1.0.0.gguf").write_bytes(b"weights of 1.0.1")
    elif change == "absent":
        shutil.rmtree(factory)
    else:
        (device.layout.trusted / "signer.pub").rename(device.place / "signer.pub")
    with pytest.raises(error, match=words):
        device.boot()
    status = told(device)
    assert status["step"] == "bundle" and status["failed"] and words in str(status["message"])
    assert device.images == set() and not device.layout.releases.exists()
    if change == "untrusted":
        (device.place / "signer.pub").rename(device.layout.trusted / "signer.pub")
    else:
        shutil.rmtree(factory, ignore_errors=True)
        device.bundle("1.0.0", path=factory)
    device.boot()
    device.check()


def test_a_device_that_has_served_is_started_whatever_fails(device: StandinDevice) -> None:
    """The engine does not answer at a later boot: that is noted, and the service may try."""
    device.boot()
    (device.bin / "docker").write_text("#!/bin/sh\necho cannot connect >&2\nexit 1\n")
    device.cut_power()
    FirstBoot(device.installation()).run()
    assert told(device)["step"] == "recover" and told(device)["failed"]
    assert "is started all the same" in device.notes[-1]


def test_it_keeps_out_while_an_update_runs(device: StandinDevice) -> None:
    """Both change the installation: the second one is refused."""
    device.boot()
    lock = device.layout.releases.parent / "update.lock"
    with files.lock_file(lock) as descriptor, pytest.raises(AlreadyRunningError):
        assert files.try_lock(descriptor)
        FirstBoot(device.installation()).run()


def test_images_that_were_all_lost_are_installed_anew(device: StandinDevice) -> None:
    """The engine's storage was emptied: the flashed bundle is still there."""
    device.boot()
    device.cut_power()
    for path in (*(device.place / "images").iterdir(), *(device.place / "tags").iterdir()):
        path.unlink()
    device.boot()
    assert device.served() == "1.0.0"
    device.check()


def test_an_update_is_not_replaced_by_the_flashed_bundle(device: StandinDevice, tmp_path: Path) -> None:
    """What an update brought stays current at every later boot."""
    from inference.appliance.update import update

    device.boot()
    update(device.installation(), device.bundle("1.1.0", path=tmp_path / "new"), poll_s=0.01)
    device.cut_power()
    device.boot()
    assert device.served() == "1.1.0"
    device.check()


# The key


def test_the_key_is_one_that_the_daemon_takes_and_is_shown_once(device: StandinDevice) -> None:
    """Its hash is in the daemon's file, which is the daemon's own; the key itself goes when it is read."""
    device.boot()
    path = device.layout.releases.parent / "first-key"
    assert path.stat().st_mode & 0o777 == 0o600
    key = take_key(device.installation())
    state = device.layout.state
    for name in ("keys.json", "keys.lock"):
        assert (state / name).stat().st_uid == state.stat().st_uid
    assert key not in (state / "keys.json").read_text() and not path.exists()
    assert Keys(state / "keys.json").accepts(key) == "owner"
    with pytest.raises(NoReleaseError, match="was read already"):
        take_key(device.installation())
    assert not any(key in note for note in device.notes)


def test_the_key_is_shown_on_the_console_and_not_in_the_log(device: StandinDevice) -> None:
    """Where there is one; what is logged is read by more people than sit there."""
    console = device.root / "dev/console"
    console.touch()
    device.boot()
    key = take_key(device.installation())
    assert console.read_text().count(key) == 1
    assert not any(key in note for note in device.notes)


# The power mode


@pytest.mark.parametrize(("board", "name"), MODES, ids=lambda part: part)
def test_a_mode_is_found_by_its_name(board: str, name: str) -> None:
    """The number of a mode differs from board to board; its name does not."""
    assert named_mode(DEVICES / board, name) == PowerMode(MODES[board, name], name)


def test_a_mode_that_the_board_has_not_is_told_with_those_it_has() -> None:
    """MAXN_SUPER on a board without it: all names, and what was probably meant."""
    with pytest.raises(SettingsError, match="expected one of 10W, 7W, got '70W'; did you mean '7W'"):
        named_mode(DEVICES / "orin-nano-4gb", "70W")
    with pytest.raises(SettingsError, match="this machine has no power modes"):
        named_mode(DEVICES / "x86-none", "15W")
    assert power_modes(DEVICES / "x86-none") == ()


def test_the_mode_is_chosen_once_and_written_down(device: StandinDevice) -> None:
    """nvpmodel gets the number, device.json has mode and bandwidth, and a second boot asks nothing."""
    device.configure(power_mode="15W")
    device.boot()
    assert [call for call in device.calls if call.startswith("nvpmodel")] == ["nvpmodel -m 0"]
    written = json.loads(device.layout.device_file.read_text())
    assert (written["power_mode"], written["bandwidth_bytes_per_s"]) == ("15W", 68e9)
    device.cut_power()
    device.boot()
    device.configure(power_mode="MAXN_SUPER")
    device.boot()
    assert [call for call in device.calls if call.startswith("nvpmodel")] == [
        "nvpmodel -m 0",
        "nvpmodel -m 2",
    ]


def test_a_mode_in_force_is_left_alone_and_one_that_waits_is_said(device: StandinDevice) -> None:
    """Some modes come with the next start of the board; that one is not made here."""
    assert choose_mode(device.root, "15W").endswith("in force")
    (device.place / "restart-needed").touch()
    assert choose_mode(device.root, "15W").endswith("it was in force already")
    assert choose_mode(device.root, "25W").endswith("it is in force after a restart of the board")


def test_a_wrong_power_mode_does_not_keep_the_device_from_serving(device: StandinDevice) -> None:
    """It is noted, and tried again at the next boot."""
    device.configure(power_mode="MAXN")
    device.boot()
    assert any("power: power_mode: expected one of 15W, 25W, MAXN_SUPER" in note for note in device.notes)
    device.check()


# The data partition


def disk(path: Path, size_bytes: int = 16 * 2**20) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


needs_ext4 = pytest.mark.skipif(
    not all(shutil.which(name) for name in ("mkfs.ext4", "blkid")),
    reason="not installed: e2fsprogs, util-linux",
)


@needs_ext4
def test_only_an_empty_disk_is_empty(tmp_path: Path) -> None:
    """A file system, a partition table, bytes that no tool knows: each is said; zeros and ones are not."""
    blank = disk(tmp_path / "blank")
    assert why_not_empty(blank) is None
    (tmp_path / "erased").write_bytes(b"\xff" * 2**20)
    assert why_not_empty(tmp_path / "erased") is None
    known = disk(tmp_path / "known")
    format_disk(known, "PHOTOS")
    assert why_not_empty(known) == "it has ext4"
    table = disk(tmp_path / "table")
    with table.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
        file.seek(446)
        file.write(bytes([0x80, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]))
    assert why_not_empty(table) == "it has dos"
    secret = disk(tmp_path / "secret")
    with secret.open("r+b") as file:
        file.write(os.urandom(4096))
    assert why_not_empty(secret) == "there are data at byte 0"
    assert why_not_empty(disk(tmp_path / "none", 0)) == "it has no room"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A system without a data partition; `mount` writes down what it was asked for."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "mount").write_text(f'#!/bin/sh\necho "$*" >> "{tmp_path}/mounted"\n')
    (place / "mount").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    layout = Layout(tmp_path / "root")
    (layout.root / "dev/disk/by-label").mkdir(parents=True)
    (layout.bundles / "factory").mkdir(parents=True)
    return layout


@needs_ext4
def test_without_the_label_nothing_is_mounted_and_nothing_is_formatted(
    system: Layout, tmp_path: Path
) -> None:
    """An empty disk beside it is no reason to take it."""
    blank = disk(tmp_path / "blank")
    with pytest.raises(SettingsError, match="no disk has the label 'JETDATA'") as raised:
        provide_data(system, "JETDATA", None, lambda note: None)
    assert "firstboot --format" in str(raised.value.hint)
    assert why_not_empty(blank) is None and not (tmp_path / "mounted").exists()


def test_the_partition_with_the_label_is_mounted_and_the_flashed_bundle_found(
    system: Layout, tmp_path: Path
) -> None:
    """It would hide the bundle below it, which is moved out of its way without copying."""
    link = system.root / "dev/disk/by-label/JETDATA"
    link.symlink_to(disk(tmp_path / "part"))
    provide_data(system, "JETDATA", None, lambda note: None)
    assert (tmp_path / "mounted").read_text() == f"-o noatime,nodev,nosuid {link} {system.data}\n"
    assert (factory_bundles(system) / "factory").is_dir()
    provide_data(system, "", None, lambda note: None)
    (system.root / "proc/self").mkdir(parents=True)
    (system.root / "proc/self/mounts").write_text(f"/dev/x {system.data} ext4 rw 0 0\n")
    provide_data(system, "JETDATA", None, lambda note: None)
    assert len((tmp_path / "mounted").read_text().splitlines()) == 1


@needs_ext4
def test_an_empty_disk_is_formatted_when_told_to_and_no_other(
    system: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full one keeps every byte; formatting that a power cut ended is begun again."""
    full = disk(tmp_path / "full")
    format_disk(full, "PHOTOS")
    before = full.read_bytes()
    with pytest.raises(SettingsError, match="is no disk"):
        provide_data(system, "JETDATA", full, lambda note: None)
    # A test has no block device; what is checked of one further down is the file's content.
    monkeypatch.setattr(data, "_refuse_in_use", lambda layout, path: None)
    with pytest.raises(SettingsError, match="is not empty: it has ext4; nothing was changed"):
        provide_data(system, "JETDATA", full, lambda note: None)
    assert full.read_bytes() == before
    blank = disk(tmp_path / "blank")
    mkfs = tmp_path / "bin/mkfs.ext4"
    half = 'printf half | dd of="$last" conv=notrunc 2>/dev/null'
    mkfs.write_text(f"#!/bin/sh\nfor last; do :; done\n{half}\nkill -9 $PPID\n")
    mkfs.chmod(0o755)
    assert run_killed_by_its_command(system, blank)
    mkfs.unlink()
    assert why_not_empty(blank) == "there are data at byte 0"
    provide_data(system, "JETDATA", blank, lambda note: None)
    label = subprocess.run(
        ["blkid", "-p", "-o", "value", "-s", "LABEL", blank], capture_output=True, text=True
    )
    assert label.stdout.strip() == "JETDATA"


def run_killed_by_its_command(system: Layout, blank: Path) -> bool:
    """Format in a process that its own mkfs kills; return whether it was."""
    child = os.fork()
    if child == 0:
        try:
            provide_data(system, "JETDATA", blank, lambda note: None)
        finally:
            os._exit(1)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("label", ["../sda1", "a b", "x" * 17])
def test_a_label_is_a_name(system: Layout, label: str) -> None:
    """What could be a path, or is longer than ext4 has room for, is refused."""
    with pytest.raises(SettingsError, match="data_label: expected"):
        provide_data(system, label, None, lambda note: None)


def test_a_missing_command_is_named_with_its_package(
    system: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint is the command that installs it."""
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(MissingDependencyError, match="blkid is not installed") as raised:
        provide_data(system, "JETDATA", None, lambda note: None)
    assert raised.value.hint == "sudo apt-get install util-linux"


def test_every_step_has_its_place() -> None:
    """The order that the steps need: data before all, the release after image and models, done at the end."""
    names = [step.name for step in STEPS]
    assert names == [
        "data",
        "device",
        "recover",
        "bundle",
        "image",
        "models",
        "release",
        "power",
        "key",
        "done",
    ]
    assert [step.name for step in STEPS if not step.vital] == ["power"]
