"""Directories: the settings, where state and weights are kept, who may read and write them, the disk."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from inference.artifacts.store import Store
from inference.device.files import exists
from inference.doctor.finding import Finding, Scene, fail, ok, warn
from inference.keys import FILE as KEYS
from inference.logs import FILE as LOG

_LEAST_FREE_BYTES = 100 * 2**20
_SMALL_FREE_BYTES = 2 * 2**30
_PRIVATE = (KEYS, LOG, "chat_history", "daemon.lock")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def settings(scene: Scene) -> Iterator[Finding]:
    """Can the settings be read?"""
    if scene.settings_error is not None:
        hint = scene.settings_error.hint or "docs/settings.md"
        yield fail(f"{scene.settings_error.message}; looked at with the defaults", hint)
    else:
        yield ok(f"read from {scene.settings_file}" if scene.settings_file else "no file; all as it comes")


def directories(scene: Scene) -> Iterator[Finding]:
    """Can state and weights be written, and by nobody else?"""
    for name, path in (("state_dir", scene.settings.state_path), ("cache_dir", scene.settings.cache_path)):
        yield _directory(name, path)


def secrets(scene: Scene) -> Iterator[Finding]:
    """Is what is private readable by its owner alone?"""
    paths = [scene.settings.state_path / name for name in _PRIVATE]
    if scene.settings_file is not None and _has_key(scene.settings_file):
        paths.append(scene.settings_file)
    found = [path for path in paths if path.is_file()]
    open_ones = [path for path in found if path.stat().st_mode & 0o077]
    for path in open_ones:
        yield fail(f"{path} can be read by others", f"chmod 600 {path}")
    if not open_ones:
        yield ok(f"{len(found)} private files are private")


def disk(scene: Scene) -> Iterator[Finding]:
    """Is there room for weights and for state, and do the weights keep to their quota?"""
    for name, path in (("cache_dir", scene.settings.cache_path), ("state_dir", scene.settings.state_path)):
        where = _existing(path)
        free = shutil.disk_usage(where).free
        detail = f"{name}: {free / 1e9:.1f} GB free at {where}"
        fix = "remove models: jetllm rm MODEL; or name another directory, JETLLM_CACHE_DIR, JETLLM_STATE_DIR"
        if free < _LEAST_FREE_BYTES:
            yield fail(f"{detail}: nothing can be written there for long", fix)
        elif free < _SMALL_FREE_BYTES and name == "cache_dir":
            yield warn(f"{detail}: few models have room", fix)
        else:
            yield ok(detail)
    quota = scene.settings.store_quota_bytes
    if quota is not None:
        used = sum(each.bytes for each in Store(scene.settings.cache_path).usage())
        detail = f"weights take {used / 1e9:.2f} of {quota / 1e9:.2f} GB"
        if used > quota:
            yield warn(
                f"{detail}: over their quota", "jetllm rm MODEL, or raise the setting store_quota_bytes"
            )
        else:
            yield ok(detail)


def _directory(name: str, path: Path) -> Finding:
    variable = f"JETLLM_{name.upper()}"
    there = exists(path)
    if there and not path.is_dir():
        return fail(f"{name}: {path} is no directory", f"move it away, or name another one: {variable}")
    if not there:
        parent = _existing(path)
        if _allows(parent, os.W_OK | os.X_OK) and parent.is_dir():
            return ok(f"{name}: {path} is made when it is needed")
        return fail(f"{name}: {path} cannot be made in {parent}", f"name another one: {variable}")
    if name == "cache_dir" and os.statvfs(path).f_flag & os.ST_RDONLY:
        # As an appliance mounts it: its weights come with bundles.
        return ok(f"{name}: {path} is mounted read-only: what is in it is served, nothing can be pulled")
    if not _allows(path, os.R_OK | os.W_OK | os.X_OK):
        return fail(f"{name}: {path} cannot be written", f"sudo chown -R $USER {path}; or {variable}")
    if path.stat().st_mode & _OTHERS_MAY_WRITE:
        return fail(f"{name}: {path} can be written by others", f"chmod go-w {path}")
    return ok(f"{name}: {path}")


def _existing(path: Path) -> Path:
    """Return *path*, or what is there of the way to it."""
    while not exists(path) and path != path.parent:
        path = path.parent
    return path


def _allows(path: Path, mode: int) -> bool:
    return os.access(path, mode, effective_ids=True)


def _has_key(path: Path) -> bool:
    try:
        return any(line.strip().startswith("api_key") for line in path.read_text("utf-8").splitlines())
    except (OSError, ValueError):
        return False
