"""Update, rollback and first boot on a stand-in device, killed before each thing that outlives a process.

It needs no engine and no root, only time: the ordinary tests kill before renames and commands, these also
before removals and other modes and owners, and they bring the update to its end afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.appliance.errors import NotReadyError
from inference.appliance.firstboot import FirstBoot
from inference.appliance.update import rollback, update
from inference.keys import Keys
from tests.standin_device import StandinDevice, run_killed, swept
from tests.supervised import free_port

pytestmark = pytest.mark.appliance

_POLL_S = 0.01


@pytest.fixture
def flashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinDevice]:
    """A device as it was flashed with 1.0.0."""
    made = StandinDevice(tmp_path, free_port())
    monkeypatch.setenv("PATH", str(made.bin), prepend=os.pathsep)
    made.bundle("1.0.0", path=made.layout.bundles / "factory")
    made.keep()
    yield made
    made.cut_power()


@pytest.fixture
def device(flashed: StandinDevice) -> StandinDevice:
    """The device after its first boot, switched off."""
    flashed.boot()
    flashed.cut_power()
    flashed.keep()
    return flashed


def bring(device: StandinDevice, bundle: Path) -> None:
    update(device.installation(), bundle, poll_s=_POLL_S)


def test_a_first_boot_killed_anywhere_completes_on_the_next_start(flashed: StandinDevice) -> None:
    """Every rename, command, removal, mode and owner: the next boot serves, with one key."""
    served = swept(flashed, lambda: FirstBoot(flashed.installation()).run(), every=True)
    assert len(served) > 18 and set(served) == {"1.0.0"}
    assert [row["name"] for row in Keys(flashed.layout.state / "keys.json").rows()] == ["owner"]


def test_an_update_killed_anywhere_is_whole_or_undone_and_can_be_brought_again(device: StandinDevice) -> None:
    """Every effect: the next start has the one or the other, and the update comes to its end after it."""
    good = device.bundle("1.1.0")
    for at in range(100):
        device.restore()
        if not run_killed(lambda: bring(device, good), at, every=True):
            break
        device.cut_power()
        device.boot()
        device.check()
        bring(device, good)
        assert device.served() == "1.1.0"
        device.check()
    assert at > 15


def test_killed_while_it_goes_back_from_a_bad_release_it_goes_back(
    device: StandinDevice,
) -> None:
    """Before each effect from the trial on: the next start has the release before, never the bad one."""
    wrong = device.bundle("2.0.0", answer="no")

    def act() -> None:
        with pytest.raises(NotReadyError):
            bring(device, wrong)

    served = swept(device, act, first=8)
    assert len(served) > 8 and set(served) == {"1.0.0"}


def test_killed_in_a_rollback_it_is_whole_or_not_begun(device: StandinDevice) -> None:
    """Before each of its effects: the next start serves the one or the other."""
    device.boot()
    bring(device, device.bundle("1.1.0"))
    device.cut_power()
    device.keep()
    served = swept(device, lambda: rollback(device.installation()))
    assert len(served) > 4 and served == sorted(served, reverse=True) and set(served) == {"1.0.0", "1.1.0"}
