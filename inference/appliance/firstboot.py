"""The first boot: from a flashed disk to an appliance, in steps that a power cut may end anywhere.

Each step finds out by itself what is done already, and has a stamp once it is; some are taken at every
boot. What they make counts from one write on: of the releases' file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.appliance.bundle import Bundle, open_bundle
from inference.appliance.data import factory_bundles, provide_data
from inference.appliance.engine import CURRENT
from inference.appliance.errors import NoReleaseError
from inference.appliance.installation import Installation, release_of
from inference.appliance.picture import STATUS_FILE
from inference.appliance.power import choose_mode
from inference.appliance.releases import Releases
from inference.appliance.update import import_models, load_image, need_room, refuse_unfit
from inference.artifacts import files
from inference.device.detect import detect
from inference.errors import AlreadyRunningError, JetLLMError
from inference.keys import FILE as KEYS_FILE
from inference.keys import Keys

KEY_NAME = "owner"
_READABLE = 0o644


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        at_every_boot: a stamp does not spare it.
        vital: its failure is the boot's; else the device serves without it, and it is tried again.
    """

    name: str
    take: Callable[[FirstBoot], None]
    at_every_boot: bool = False
    vital: bool = True


class FirstBoot:
    """What one boot does for *installation*.

    Args:
        disk: an empty disk that may become the data partition.
    """

    def __init__(self, installation: Installation, disk: Path | None = None) -> None:
        self._installation = installation
        self._layout = installation.layout
        self._config = installation.config
        self._note = installation.note
        self._disk = disk
        self._opened = ExitStack()
        self._bundle: Bundle | None = None

    def run(self) -> None:
        """Take every step that is not done.

        Once a first boot has come to its end, a later boot starts the service whatever goes wrong here:
        the release that is installed still serves.

        Raises:
            JetLLMError: nothing is to be started; `STATUS_FILE` has the reason.
        """
        step = STEPS[0]
        try:
            step.take(self)  # the data: the lock and the stamps lie on them
            with self._installation.held(), self._opened:
                for step in STEPS[1:]:
                    self._take(step)
        except (JetLLMError, OSError) as error:
            self._tell(step.name, error)
            if isinstance(error, AlreadyRunningError) or not self._is_stamped("done"):
                raise
            self._note(f"{step.name}: {error}; the installed release is started all the same")
        else:
            self._tell("done")

    def _take(self, step: Step) -> None:
        if not step.at_every_boot and self._is_stamped(step.name):
            return
        try:
            step.take(self)
        except (JetLLMError, OSError) as error:
            if step.vital:
                raise
            self._note(f"{step.name}: {error}; the device serves without it")
            return
        if not step.at_every_boot and not self._is_stamped(step.name):
            self._stamp(step.name)

    # The steps

    def provide_data(self) -> None:
        """Mount the data partition, where one is configured."""
        provide_data(self._layout, self._config.data_label, self._disk, self._note)

    def write_device(self) -> None:
        """Write down what the board is: in a container it cannot be seen."""
        path = self._layout.device_file
        files.make_directory(path.parent)
        path.unlink(missing_ok=True)  # or it would be believed more than the board
        device = detect(self._layout.root)
        files.write_atomic(path, json.dumps(device.to_dict(), indent=1).encode() + b"\n")
        path.chmod(_READABLE)
        self._note(f"device: {device.board or device.arch or 'unknown'}, L4T {device.l4t or 'none'}")

    def recover(self) -> None:
        """Undo what an update that was cut off has left."""
        if self._layout.releases.exists():
            self._installation.recover()

    def check_bundle(self) -> None:
        """Check the bundle that the device was flashed with, and whether it is for this device."""
        if self._is_installed():
            return
        bundle = self._open()
        refuse_unfit(self._installation, bundle.manifest)
        if self._loaded(bundle) is None:
            need_room(self._installation, bundle.manifest)

    def load_image(self) -> None:
        """Load its image, and call it current."""
        if self._is_installed():
            return
        bundle = self._open()
        if self._loaded(bundle) is None:
            image = load_image(self._installation, bundle, CURRENT)
            self._stamp("image", {"bundle": bundle.manifest.digest, "image": image})

    def import_models(self) -> None:
        """Bring its models into the store."""
        if not self._is_installed():
            import_models(self._installation, self._open(), CURRENT)

    def install(self) -> None:
        """Make it the current release: from now on this device has one."""
        if self._is_installed():
            return
        bundle = self._open()
        image = self._installation.engine.image_id(CURRENT)
        if image is None:
            raise NoReleaseError("the image that was loaded is gone", hint="sudo jetllm firstboot")
        bad = self._installation.releases().bad
        self._installation.save(Releases(current=release_of(bundle.manifest, image), bad=bad))
        self._note(f"{bundle.manifest.version} is installed")

    def choose_power_mode(self) -> None:
        """Put the board into the power mode that is configured."""
        name = self._config.power_mode
        if not name or self._stamped("power").get("mode") == name:
            return
        self._note(choose_mode(self._layout.root, name))
        self._stamp("power", {"mode": name})
        self.write_device()  # how fast its memory is follows from the mode

    def make_key(self) -> None:
        """Make the first API key, show it on the console, and keep it for root until it is read."""
        if self._is_stamped("key"):
            return
        state = self._layout.state
        files.make_directory(state)
        keys, path = Keys(state / KEYS_FILE), key_path(self._installation)
        if any(row["name"] == KEY_NAME for row in keys.rows()):
            keys.revoke(KEY_NAME)  # a power cut came before anybody could read it
        key = keys.add(KEY_NAME)
        owner = state.stat()
        for file in (state / KEYS_FILE, (state / KEYS_FILE).with_suffix(".lock")):
            os.chown(file, owner.st_uid, owner.st_gid)  # the daemon's, whose user is another one
        files.write_atomic(path, f"{key}\n".encode())
        self._stamp("key")
        if not _show_on_console(self._layout.root / "dev/console", key):
            self._note("the API key is shown by: sudo jetllm firstboot --key")

    def finish(self) -> None:
        """Remember that this device has had its first boot."""
        self._stamp("done")

    # What they share

    def _open(self) -> Bundle:
        """Return the bundle, checked; once for all steps of this boot."""
        if self._bundle is None:
            path = self._factory()
            self._note(f"checking {path}")
            trusted, workspace = self._layout.trusted, self._installation.workspace
            self._bundle = self._opened.enter_context(open_bundle(path, trusted, workspace=workspace))
        return self._bundle

    def _factory(self) -> Path:
        """Return the bundle that the device was flashed with.

        Raises:
            NoReleaseError: there is none.
        """
        if self._config.bundle:
            places = [Path(self._config.bundle)]
        else:
            near = (self._layout.bundles, factory_bundles(self._layout))
            places = [place / name for place in near for name in ("factory", "factory.tar")]
        for place in places:
            if place.exists():
                return place
        raise NoReleaseError(
            f"there is no bundle: {places[0]}", hint="bring one: sudo jetllm update FILE; docs/flash.md"
        )

    def _is_installed(self) -> bool:
        return self._installation.releases().current is not None

    def _loaded(self, bundle: Bundle) -> str | None:
        """Return the image of *bundle* if an earlier start has loaded it and it is still there."""
        stamp = self._stamped("image")
        image = self._installation.engine.image_id(CURRENT)
        known = stamp.get("bundle") == bundle.manifest.digest and stamp.get("image") == image
        return image if known else None

    def _is_stamped(self, name: str) -> bool:
        return (self._layout.stamps / name).is_file()

    def _stamped(self, name: str) -> dict[str, Any]:
        try:
            stamp = json.loads((self._layout.stamps / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def _stamp(self, name: str, told: dict[str, Any] | None = None) -> None:
        files.make_directory(self._layout.stamps)
        data = json.dumps({**(told or {}), "at_unix_s": int(time.time())}).encode()
        files.write_atomic(self._layout.stamps / name, data + b"\n")

    def _tell(self, step: str, error: JetLLMError | OSError | None = None) -> None:
        """Write down how far this boot came."""
        message = error.message if isinstance(error, JetLLMError) else None if error is None else str(error)
        hint = error.hint if isinstance(error, JetLLMError) else None
        path = self._layout.run / STATUS_FILE
        files.make_directory(path.parent)
        told = {"step": step, "failed": error is not None, "message": message, "hint": hint}
        files.write_atomic(path, json.dumps(told).encode() + b"\n")
        path.chmod(_READABLE)


STEPS = (
    Step("data", FirstBoot.provide_data, at_every_boot=True),
    Step("device", FirstBoot.write_device, at_every_boot=True),
    Step("recover", FirstBoot.recover, at_every_boot=True),
    # Not spared by their stamps: a device whose image was lost is installed anew.
    Step("bundle", FirstBoot.check_bundle, at_every_boot=True),
    Step("image", FirstBoot.load_image, at_every_boot=True),
    Step("models", FirstBoot.import_models, at_every_boot=True),
    Step("release", FirstBoot.install, at_every_boot=True),
    Step("power", FirstBoot.choose_power_mode, at_every_boot=True, vital=False),
    Step("key", FirstBoot.make_key),
    Step("done", FirstBoot.finish),
)


def key_path(installation: Installation) -> Path:
    """Return the file that has the first key until it is read; root's alone."""
    return installation.layout.releases.parent / "first-key"


def take_key(installation: Installation) -> str:
    """Return the first API key, and keep it nowhere any more.

    Raises:
        NoReleaseError: it was read before, or there has been no first boot.
    """
    path = key_path(installation)
    try:
        key = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise NoReleaseError(
            "the first key was read already, or is not made yet", hint="make another: jetllm keys add NAME"
        ) from None
    path.unlink()
    files.fsync(path.parent)
    return key


def _show_on_console(console: Path, key: str) -> bool:
    """Write *key* where somebody sits, if there is such a place: not to the journal, which keeps it."""
    try:
        descriptor = os.open(console, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(descriptor, f"\r\nThe API key of this device, shown only now:\r\n  {key}\r\n\r\n".encode())
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
