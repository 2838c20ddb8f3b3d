"""The data partition: found by its label alone, and made only of a disk that is empty, when told to."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from inference.appliance.command import demand, run
from inference.appliance.layout import Layout
from inference.artifacts import files
from inference.device.files import entries, read_text
from inference.errors import SettingsError

Note = Callable[[str], None]

_LABEL = re.compile(r"[A-Za-z0-9._-]{1,16}")  # what ext4 has room for, and udev leaves as it is
_TIMEOUT_S = 900.0
_SAMPLES, _SAMPLE_BYTES = 64, 65_536
_NOTHING_FOUND = 2  # blkid: neither a file system nor a partition table
_BLANK = (0x00, 0xFF)  # what erased flash reads as
_OPTIONS = "noatime,nodev,nosuid"


def factory_bundles(layout: Layout) -> Path:
    """Where the flashed bundle is moved to when the data partition comes to lie over its first place."""
    return layout.data.with_name(f"{layout.data.name}-bundles")


def provide_data(layout: Layout, label: str, disk: Path | None, note: Note) -> None:
    """Mount the partition with *label* at `Layout.data`, if it is not mounted there yet.

    Args:
        label: "" where the data lie on the system's own disk.
        disk: an empty disk to make the partition of where no disk has the label; ``None``: make none.

    Raises:
        SettingsError: no disk has the label, or *disk* is not empty, or cannot be mounted.
    """
    if not label:
        return
    if not _LABEL.fullmatch(label):
        raise SettingsError(
            f"data_label: expected 1 to 16 letters, digits, '.', '_' or '-', got {label!r}",
            hint="correct it in /etc/jetllm/appliance.conf, then: sudo jetllm firstboot",
        )
    files.make_directory(layout.data)
    if _is_mount_point(layout):
        return
    found = _labelled(layout, label)
    if found is None:
        if disk is None:
            raise SettingsError(
                f"data_label: no disk has the label {label!r}",
                hint=f"mkfs.ext4 -L {label} PARTITION; or, if DISK is empty: jetllm firstboot --format DISK",
            )
        _refuse_in_use(layout, disk)
        found = _formatted(layout, label, disk, note)
    _save_factory_bundle(layout)
    directories = _directories(layout)
    _mount(layout, found)
    for directory, like in directories.items():
        _make_like(directory, like)
    note(f"data: {found} ({label}) is mounted at {layout.data}")


def format_disk(disk: Path, label: str) -> None:
    """Make an ext4 file system with *label* of all of *disk*, whatever is on it."""
    demand("mkfs.ext4", "-q", "-F", "-m", "1", "-L", label, str(disk), timeout_s=_TIMEOUT_S)


def why_not_empty(disk: Path) -> str | None:
    """Say what is on *disk*; ``None`` where it has no signature, and reads as erased wherever it is read.

    A file system of a kind that blkid does not know, and an encrypted disk without a header, are no
    blank disks either.
    """
    probed = run("blkid", "-p", "-o", "export", str(disk), timeout_s=_TIMEOUT_S)
    if probed.code != _NOTHING_FOUND:
        kinds = re.findall(r"^(?:TYPE|PTTYPE)=(.+)$", probed.output, re.MULTILINE)
        return f"it has {', '.join(kinds)}" if kinds else f"blkid cannot read it: {probed.last_words}"
    with disk.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        if size_bytes == 0:
            return "it has no room"
        last = max(0, size_bytes - _SAMPLE_BYTES)
        for number in range(_SAMPLES):
            offset = last * number // (_SAMPLES - 1)
            file.seek(offset)
            block = file.read(_SAMPLE_BYTES)
            if not any(block == bytes([value]) * len(block) for value in _BLANK):
                return f"there are data at byte {offset:,}"
    return None


def _formatted(layout: Layout, label: str, disk: Path, note: Note) -> Path:
    """Format *disk*, which must be empty, or one on which a power cut ended just this."""
    mark = layout.data / "appliance" / "formatting"  # below the mount point: on the system's own disk
    begun = f"{label} {disk} {_size_bytes(disk)}\n"
    if read_text(mark) != begun:
        why = why_not_empty(disk)
        if why is not None:
            raise SettingsError(
                f"{disk} is not empty: {why}; nothing was changed",
                hint=f"take another disk; or, if nothing on it is wanted: sudo blkdiscard -f -z {disk}",
            )
        files.make_directory(mark.parent)
        files.write_atomic(mark, begun.encode())
    note(f"data: {disk} is empty; it is formatted as {label}")
    format_disk(disk, label)
    mark.unlink()
    return disk


def _refuse_in_use(layout: Layout, disk: Path) -> None:
    """Refuse what is no disk, or is one that something uses."""
    try:
        is_disk = stat.S_ISBLK(disk.stat().st_mode)
    except OSError:
        is_disk = False
    if not is_disk:
        raise SettingsError(f"{disk} is no disk", hint="lsblk lists them")
    name = disk.resolve().name
    known = entries(layout.root / "sys/class/block" / name, rf"^{re.escape(name)}p?\d+$") or ()
    held = entries(layout.root / "sys/class/block" / name / "holders") or ()
    mounted = any(line.split()[:1] == [str(disk)] for line in _mounts(layout))
    if known or held or mounted:
        what = "it has partitions" if known else "it is mounted" if mounted else "something uses it"
        raise SettingsError(f"{disk} is not empty: {what}; nothing was changed", hint="take another disk")


def _mount(layout: Layout, device: Path) -> None:
    """Mount *device*; by systemd where it runs, because a service's own mounts are seen by nobody else."""
    where = (str(device), str(layout.data))
    if (layout.root / "run/systemd/system").is_dir():
        demand("systemd-mount", "--collect", f"--options={_OPTIONS}", *where, timeout_s=_TIMEOUT_S)
    else:
        demand("mount", "-o", _OPTIONS, *where, timeout_s=_TIMEOUT_S)


def _directories(layout: Layout) -> dict[Path, os.stat_result]:
    """Return the directories that the package has made, with their owners and modes."""
    made = (layout.data, layout.releases.parent, layout.store, layout.state)
    return {directory: directory.stat() for directory in made if directory.is_dir()}


def _make_like(directory: Path, like: os.stat_result) -> None:
    files.make_directory(directory)
    os.chown(directory, like.st_uid, like.st_gid)
    directory.chmod(stat.S_IMODE(like.st_mode))


def _save_factory_bundle(layout: Layout) -> None:
    """Move the flashed bundle out of the way of the partition, which would hide it; nothing is copied."""
    target = factory_bundles(layout)
    if layout.bundles.is_dir() and not target.exists():
        layout.bundles.replace(target)
        files.fsync(target.parent)


def _labelled(layout: Layout, label: str) -> Path | None:
    link = layout.root / "dev/disk/by-label" / label
    if link.exists():
        return link
    asked = run("blkid", "-L", label, timeout_s=_TIMEOUT_S)
    return Path(asked.output.strip()) if asked.code == 0 and asked.output.strip() else None


def _is_mount_point(layout: Layout) -> bool:
    return any(line.split()[1:2] == [str(layout.data)] for line in _mounts(layout))


def _mounts(layout: Layout) -> list[str]:
    return read_text(layout.root / "proc/self/mounts").splitlines()


def _size_bytes(disk: Path) -> int:
    with disk.open("rb") as file:
        return file.seek(0, os.SEEK_END)
