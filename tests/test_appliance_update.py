"""The update on a stand-in device: it is whole or it never was, wherever it is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.appliance.errors import BundleError, ImageError, NoReleaseError, NotReadyError
from inference.appliance.firstboot import FirstBoot
from inference.appliance.update import rollback, update
from inference.artifacts import files
from inference.errors import AlreadyRunningError, InsufficientStorageError
from tests.standin_device import ANSWER, StandinDevice, run_killed, swept
from tests.supervised import free_port

_POLL_S = 0.01


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> StandinDevice:
    """A device that serves 1.0.0, as it lies on its disk."""
    device = StandinDevice(tmp_path_factory.mktemp("device"), free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(device.bin), prepend=os.pathsep)
        device.bundle("1.0.0", path=device.layout.bundles / "factory")
        device.boot()
        device.cut_power()
    device.keep()
    return device


@pytest.fixture
def device(prepared: StandinDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinDevice]:
    """The device, switched on."""
    monkeypatch.setenv("PATH", str(prepared.bin), prepend=os.pathsep)
    prepared.restore()
    prepared.installation().unit.start()
    config, kept = prepared.config, prepared.kept
    yield prepared
    prepared.config, prepared.kept = config, kept
    prepared.cut_power()


def bring(device: StandinDevice, bundle: Path, *, again: bool = False) -> None:
    update(device.installation(), bundle, again=again, poll_s=_POLL_S)


@pytest.fixture(scope="module")
def good(prepared: StandinDevice) -> Path:
    """The bundle of 1.1.0, which is as it should be."""
    return prepared.bundle("1.1.0")


# What becomes of a release


def test_a_good_release_is_promoted(device: StandinDevice, good: Path) -> None:
    """It serves, the one before stays as previous, and its models are in the store."""
    bring(device, good)
    found = device.releases
    assert found.current is not None and found.current.version == "1.1.0"
    assert found.previous is not None and found.previous.version == "1.0.0"
    assert (device.layout.store / "weights" / "1.1.0.gguf").is_file()
    device.check()


def test_a_tar_is_as_good_as_a_directory(device: StandinDevice, tmp_path: Path) -> None:
    """It is unpacked below the data directory, and nothing of that stays."""
    bring(device, device.bundle("1.2.0", path=tmp_path / "release.tar"))
    assert device.served() == "1.2.0"
    device.check()


def test_only_two_images_are_kept(device: StandinDevice, good: Path) -> None:
    """With the third release the first one's image goes."""
    bring(device, good)
    bring(device, device.bundle("1.2.0", path=good.with_name("third")))
    assert device.releases.previous is not None and device.releases.previous.version == "1.1.0"
    assert len(device.images) == 2
    device.check()
    shutil.rmtree(good.with_name("third"))


def test_the_release_that_serves_is_not_tried_again(device: StandinDevice, good: Path) -> None:
    """Its bundle a second time changes nothing, and nothing is stopped."""
    bring(device, good)
    stops = device.calls.count("systemctl stop jetllm.service")
    bring(device, good)
    assert device.calls.count("systemctl stop jetllm.service") == stops
    device.check()


@pytest.mark.parametrize(
    ("behaviour", "answer", "why"),
    [
        ("good", " Because it is not.", r"m answers ' Because it is not\.'; its bundle promises"),
        ("never", ANSWER, r"it was not ready within 0\.3 s: activating"),
        ("crash", ANSWER, "its service failed"),
    ],
    ids=["other tokens", "never ready", "crash loop"],
)
def test_a_release_that_does_not_prove_good_is_gone_back_from(
    device: StandinDevice, tmp_path: Path, behaviour: str, answer: str, why: str
) -> None:
    """The one before serves again, the image is removed, and the bundle is bad until somebody insists."""
    device.configure(ready_timeout_s=0.3 if behaviour == "never" else 20.0)
    bad = device.bundle("2.0.0", behaviour=behaviour, answer=answer, path=tmp_path / "bad")
    with pytest.raises(NotReadyError, match=f"2.0.0 is not taken: {why}.*1.0.0 serves again"):
        bring(device, bad)
    device.check()
    assert [mark.release.version for mark in device.releases.bad] == ["2.0.0"]
    with pytest.raises(BundleError, match="is marked bad") as raised:
        bring(device, bad)
    assert "--again" in str(raised.value.hint)
    loads = sum(call.startswith("load") for call in device.calls)
    with pytest.raises(NotReadyError):
        bring(device, bad, again=True)
    assert sum(call.startswith("load") for call in device.calls) == loads + 1
    assert len(device.releases.bad) == 1
    device.check()


def test_an_unfit_release_is_refused_before_anything_is_loaded(device: StandinDevice, tmp_path: Path) -> None:
    """One for another L4T: a sentence with both, and nothing is changed."""
    with pytest.raises(BundleError, match=r"the release is for L4T 35; this machine has 36\.4"):
        bring(device, device.bundle("2.0.0", l4t=("35",), path=tmp_path / "unfit"))
    assert not any("2.0.0" in call for call in device.calls)
    device.check()


@pytest.mark.parametrize("damage", ["byte", "missing", "signer"])
def test_a_tampered_bundle_is_refused(device: StandinDevice, good: Path, tmp_path: Path, damage: str) -> None:
    """A changed byte, a missing file, another signer: nothing of it reaches the engine."""
    bundle = tmp_path / "tampered"
    shutil.copytree(good, bundle)
    if damage == "byte":
        data = bytearray((bundle / "image.tar").read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / "image.tar").write_bytes(data)
    elif damage == "missing":
        (bundle / "store" / "weights" / "1.1.0.gguf").unlink()
    else:
        for key in device.layout.trusted.iterdir():
            key.unlink()
        shutil.copy(StandinDevice(tmp_path / "other", 1).key.with_suffix(".pub"), device.layout.trusted)
    with pytest.raises(BundleError):
        bring(device, bundle)
    assert not any(call.startswith("load") for call in device.calls[-5:])
    device.check()


# What can go wrong on the way


def test_no_room_is_said_before_anything_is_written(
    device: StandinDevice, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the image and the models must fit; the numbers are in the message."""
    usage = shutil.disk_usage(device.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InsufficientStorageError, match=r"1\.1\.0 needs 0\.00 GB .*0\.00 GB are free"):
        bring(device, good)
    monkeypatch.undo()
    assert not any(call.startswith("load") for call in device.calls[-2:])
    device.check()


def test_a_disk_that_is_full_in_the_middle_leaves_what_was(device: StandinDevice, good: Path) -> None:
    """The engine's words are shown, the release serves on, and the bundle is not bad."""
    (device.place / "full").touch()
    with pytest.raises(ImageError, match="no space left on device"):
        bring(device, good)
    assert device.releases.bad == () and not any("stop" in call for call in device.calls)
    device.check()
    (device.place / "full").unlink()
    bring(device, good)
    device.check()


def test_an_import_that_fails_leaves_what_was(device: StandinDevice, tmp_path: Path) -> None:
    """The image that was loaded is removed again, and nothing was stopped."""
    with pytest.raises(ImageError, match="the store is damaged"):
        bring(device, device.bundle("2.0.0", behaviour="import", path=tmp_path / "bad"))
    assert not any("stop" in call for call in device.calls)
    device.check()


def test_a_second_update_is_refused_while_one_runs(device: StandinDevice, good: Path) -> None:
    """The kernel's lock tells; the second changes nothing, and the crash loop's rollback keeps still."""
    with files.lock_file(device.layout.releases.parent / "update.lock") as descriptor:
        assert files.try_lock(descriptor)
        with pytest.raises(AlreadyRunningError):
            bring(device, good)
        with pytest.raises(AlreadyRunningError):
            rollback(device.installation())
        assert rollback(device.installation(), failed=True) is None
    assert "an update is under way" in device.notes[-1]
    device.check()


def test_an_image_named_like_a_tag_of_ours_takes_nothing_away(device: StandinDevice, tmp_path: Path) -> None:
    """A signed archive may call its image jetllm:current; an update that fails restores the tag."""
    bad = device.bundle("2.0.0", behaviour="crash", reference="jetllm:current", path=tmp_path / "bad")
    with pytest.raises(NotReadyError):
        bring(device, bad)
    device.check()


# Going back


def test_rollback_by_hand_goes_back_and_marks(device: StandinDevice, good: Path) -> None:
    """The release before serves, the other is bad, and a second time there is none to go back to."""
    bring(device, good)
    rollback(device.installation())
    device.check()
    assert device.served() == "1.0.0"
    assert device.releases.bad[0].reason == "gone back from by hand"
    with pytest.raises(NoReleaseError, match="nothing was changed"):
        rollback(device.installation())
    device.check()


def test_a_crash_loop_goes_back_once(device: StandinDevice, good: Path) -> None:
    """The unit's rollback: the reason says so; with no previous release the device stays as it is."""
    bring(device, good)
    rollback(device.installation(), failed=True)
    device.check()
    assert device.releases.bad[0].reason == "its service failed again and again"
    before = device.layout.releases.read_bytes()
    with pytest.raises(NoReleaseError):
        rollback(device.installation(), failed=True)
    assert device.layout.releases.read_bytes() == before
    device.check()


def test_a_crash_loop_in_a_trial_that_was_killed_marks_what_was_tried(
    device: StandinDevice, good: Path
) -> None:
    """The update's process is gone, its release crashes: it is bad, and the one that served serves."""
    assert run_killed(lambda: bring(device, good), "is-active")
    assert device.releases.next is not None
    rollback(device.installation(), failed=True)
    assert [mark.release.version for mark in device.releases.bad] == ["1.1.0"]
    assert device.served() == "1.0.0"
    device.check()


# The state's file, and what the engine lost


def test_a_damaged_state_is_put_aside_and_built_anew(device: StandinDevice, good: Path) -> None:
    """Of the engine's tags: versions and images are known again, and going back still works."""
    bring(device, good)
    device.layout.releases.write_text("{")
    device.cut_power()
    device.boot()
    found = device.releases
    assert found.current is not None and (found.current.version, found.current.bundle) == ("1.1.0", "")
    assert found.previous is not None and found.previous.version == "1.0.0"
    assert [path.read_text() for path in device.layout.releases.parent.glob("releases.damaged-*")] == ["{"]
    device.check()
    rollback(device.installation())
    device.check()


def test_a_state_damaged_in_a_trial_takes_what_served(device: StandinDevice) -> None:
    """With all three tags there, and next current too, the previous one is what was proven."""
    old = device.tags["jetllm:current"]
    tags = device.place / "tags"
    new = "a" * 64
    shutil.copy(device.place / "images" / old.removeprefix("sha256:"), device.place / "images" / new)
    (tags / "jetllm:previous").write_text(f"{old.removeprefix('sha256:')}\n")
    for name in ("jetllm:current", "jetllm:next"):
        (tags / name).write_text(f"{new}\n")
    device.layout.releases.write_text(json.dumps([]))
    device.cut_power()
    device.boot()
    assert device.releases.current is not None and device.releases.current.image == old
    device.check()


def test_an_image_that_is_gone_is_answered_by_the_previous_one(device: StandinDevice, good: Path) -> None:
    """Somebody pruned the engine's images: the next start has what is left."""
    bring(device, good)
    lost = device.tags["jetllm:current"].removeprefix("sha256:")
    (device.place / "images" / lost).unlink()
    (device.place / "tags" / "jetllm:current").unlink()
    device.cut_power()
    device.boot()
    assert device.served() == "1.0.0"
    device.check()


# Killed anywhere


def test_killed_before_any_effect_it_is_whole_or_undone_at_the_next_start(
    device: StandinDevice, good: Path
) -> None:
    """SIGKILL and a power cut before each rename and command: one release serves, and nothing is left."""
    served = swept(device, lambda: bring(device, good))
    assert len(served) > 10 and served[0] == "1.0.0" and served[-1] == "1.1.0"
    assert served == sorted(served)  # from one effect on it is the new one, and stays


def test_killed_again_while_it_is_undone_it_is_undone(device: StandinDevice, good: Path) -> None:
    """An image that was loaded and had no tag of ours yet is removed, however often the power is cut."""
    assert run_killed(lambda: bring(device, good), "docker tag")
    assert len(device.images) == 2
    device.cut_power()
    device.keep()
    served = swept(device, lambda: FirstBoot(device.installation()).run())
    assert len(served) > 3 and set(served) == {"1.0.0"}


def test_an_update_after_one_that_was_killed_takes_it(device: StandinDevice, good: Path) -> None:
    """Without a power cut too: the next update undoes what was left, and comes to its end."""
    assert run_killed(lambda: bring(device, good), "is-active")
    bring(device, good)
    assert device.served() == "1.1.0"
    device.check()
