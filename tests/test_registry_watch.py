"""The registry watch tells of changes, once each, and of nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from inference.registry_watch import RegistryWatch
from tests.conftest import wait_until


class Told:
    """Counts what a watch tells."""

    def __init__(self, path: Path) -> None:
        self.times = 0
        self.path = path
        self.watch = RegistryWatch(path, look_s=0.01)
        self.watch.start(self.count)

    def at_least(self, times: int) -> bool:
        """Whether it was told so often."""
        return self.times >= times

    def count(self) -> None:
        """Called by the watch."""
        self.times += 1


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    """A watch over a file that exists."""
    path = tmp_path / "models.json"
    path.write_text("{}")
    told = Told(path)
    yield told
    told.watch.close()


def looks(told: Told, count: int) -> None:
    """Wait until the watch has surely looked *count* times: by asking it, which each look answers."""
    for _ in range(count):
        reached = told.times + 1
        told.watch.ask()
        wait_until(partial(told.at_least, reached), "the look")


def test_a_change_is_told(told: Told) -> None:
    """New content under the same name is told."""
    told.path.write_text('{"models": {}}')
    wait_until(lambda: told.times == 1, "told")


def test_a_replacement_of_equal_size_is_told(told: Told, tmp_path: Path) -> None:
    """Editors write a new file and rename it: another inode is a change."""
    other = tmp_path / "other"
    other.write_text("[]")
    other.replace(told.path)
    wait_until(lambda: told.times == 1, "told")


def test_removal_and_return_are_told(told: Told) -> None:
    """A file that is gone is a change, and so is its return."""
    told.path.unlink()
    wait_until(lambda: told.times == 1, "told of the removal")
    told.path.write_text("{}")
    wait_until(lambda: told.times == 2, "told of the return")


def test_asking_is_answered_without_a_change(told: Told) -> None:
    """SIGHUP reads the file again though nothing changed; nothing is told twice."""
    looks(told, 3)
    assert told.times == 3


def test_a_change_before_the_start_is_told(tmp_path: Path) -> None:
    """What changes while the daemon still starts is not missed."""
    path = tmp_path / "models.json"
    path.write_text("{}")
    watch = RegistryWatch(path, look_s=0.01)
    path.write_text('{"models": {}}')
    changed = threading.Event()
    watch.start(changed.set)
    try:
        assert changed.wait(20)
    finally:
        watch.close()
