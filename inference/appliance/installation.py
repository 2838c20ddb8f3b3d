"""The installation: the releases' file, the engine's tags and the unit, changed by one process at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from inference.appliance.config import Config
from inference.appliance.engine import CURRENT, NEXT, PREVIOUS, Engine
from inference.appliance.errors import ImageError, NoReleaseError
from inference.appliance.layout import Layout
from inference.appliance.manifest import Manifest
from inference.appliance.releases import (
    RELEASES_MODE,
    DamagedReleasesError,
    Release,
    Releases,
    load_releases,
    save_releases,
)
from inference.appliance.unit import Unit
from inference.artifacts import files
from inference.errors import AlreadyRunningError

Note = Callable[[str], None]
"""Gets one line about what was done."""

_VERSION_LABEL = "org.opencontainers.image.version"
_LOCK = "update.lock"


class Installation:
    """What is installed at *layout*; every change is made inside `held`."""

    def __init__(self, layout: Layout, config: Config, note: Note) -> None:
        self.layout = layout
        self.config = config
        self.note = note
        self.engine = Engine(config, layout)
        self.unit = Unit()

    @property
    def workspace(self) -> Path:
        """Where a bundle is unpacked; whatever is in it outside of `held` is a power cut's."""
        return self.layout.releases.parent / "work"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the installation.

        Raises:
            AlreadyRunningError: another process changes it.
            NoReleaseError: this machine is no appliance; nothing is made on it.
        """
        if not (self.layout.config.exists() or self.layout.data.is_dir()):
            raise NoReleaseError(
                f"this machine is no appliance: there is no {self.layout.config}; nothing was changed",
                hint="install the package of the host's side: docs/flash.md",
            )
        with files.lock_file(self.layout.releases.parent / _LOCK) as descriptor:
            if not files.try_lock(descriptor):
                raise AlreadyRunningError(
                    "another update, rollback or first boot is under way; nothing was changed",
                    hint="wait until it has ended; it says what it does: jetllm status",
                )
            files.remove(self.workspace)
            with suppress(FileNotFoundError):
                self.layout.releases.chmod(RELEASES_MODE)  # a cut may have come before the one in `save`
            try:
                yield
            finally:
                files.remove(self.workspace)

    def releases(self) -> Releases:
        """Return the state; a damaged file is put aside, and the state is built anew of the engine's tags."""
        try:
            return load_releases(self.layout.releases)
        except DamagedReleasesError as error:
            found = self._rebuilt()  # first: where the engine does not answer, the file is left as it is
            aside = self.layout.releases.with_name(f"releases.damaged-{int(time.time())}.json")
            self.layout.releases.replace(aside)
            self.save(found)
            self.note(f"{error.message}; it is {aside.name} now, and was built anew of the engine's images")
            return found

    def save(self, releases: Releases) -> None:
        """Write the state down."""
        save_releases(self.layout.releases, releases)

    def recover(self) -> Releases:
        """Undo what an update that was cut off has left, and return the state.

        The one write that promotes or refuses a release comes before the tags follow: a cut before it is
        undone here, a cut after it is finished here.
        """
        releases = self.releases()
        cut_off = releases.next
        if cut_off is not None:
            self.note(f"the update to {cut_off.version} was cut off; it is undone")
            releases = releases.undone()
        releases = self._without_lost(releases)
        is_another = self.settle(releases)
        if cut_off is not None:
            self._drop(cut_off.image, releases)
            self.save(releases)  # last: until then it is still known what has to be undone
        if is_another and self.unit.state() in ("active", "activating"):
            self.unit.stop()
            self.unit.start()
        return releases

    def settle(self, releases: Releases, *, trial: bool = False) -> bool:
        """Make the engine's tags say what *releases* says, and drop the images that it does not name.

        Args:
            trial: `jetllm:current` is the release that is tried, `jetllm:previous` the one that served,
                and `jetllm:next` keeps the one before that, which a release that fails does not cost.

        Returns:
            Whether another image is current than before.
        """
        wanted = {CURRENT: releases.current, PREVIOUS: releases.previous, NEXT: releases.next}
        if trial:
            spare = releases.previous or releases.next
            wanted = {CURRENT: releases.next, PREVIOUS: releases.current, NEXT: spare}
        before = {tag: self.engine.image_id(tag) for tag in wanted}
        kept = releases.images()
        unwanted = [image for image in dict.fromkeys(before.values()) if image and image not in kept]
        # An image without a tag would be found by nobody any more: what a cut leaves has one.
        for image in unwanted:
            if before[NEXT] != image and wanted[NEXT] is None:
                self.engine.tag(image, NEXT)
        for tag, release in wanted.items():
            if release is not None and before[tag] != release.image:
                self.engine.tag(release.image, tag)
        for image in unwanted:
            self._drop(image, releases)
        for tag, release in wanted.items():
            if release is None and before[tag] is not None:
                self.engine.untag(tag)
        current = wanted[CURRENT]
        return before[CURRENT] != (current.image if current else None)

    def _without_lost(self, releases: Releases) -> Releases:
        """Return the state without images that the engine does not have any more."""
        found = releases
        if found.previous is not None and self.engine.image_id(found.previous.image) is None:
            self.note(f"the image of the previous release, {found.previous.version}, is gone from the engine")
            found = replace(found, previous=None)
        if found.current is not None and self.engine.image_id(found.current.image) is None:
            self.note(f"the image of the current release, {found.current.version}, is gone from the engine")
            found = replace(found, current=found.previous, previous=None)
        if found != releases:
            self.save(found)
        return found

    def _drop(self, image: str, releases: Releases) -> None:
        """Remove *image* unless it is kept; one that cannot be removed costs disk, and nothing else."""
        if image in releases.images():
            return
        try:
            self.engine.remove_image(image)
        except ImageError as error:
            self.note(f"an image that is not needed any more stays: {error.message}")

    def _rebuilt(self) -> Releases:
        """Return what the engine's tags tell; of a release that was on trial: that it is not current."""
        current, previous, tried = (self._tagged(tag) for tag in (CURRENT, PREVIOUS, NEXT))
        on_trial = tried is not None and current is not None and tried.image == current.image
        if on_trial and previous is not None:
            current, previous = previous, None
        return Releases(current=current, previous=previous)

    def _tagged(self, tag: str) -> Release | None:
        image = self.engine.image_id(tag)
        if image is None:
            return None
        version = self.engine.labels(tag).get(_VERSION_LABEL) or "unknown"
        return Release(version=version, bundle="", image=image, golden=(), installed_unix_s=int(time.time()))


def release_of(manifest: Manifest, image: str) -> Release:
    """Return the release that *manifest* describes, whose image the engine calls *image*."""
    return Release(
        version=manifest.version,
        bundle=manifest.digest,
        image=image,
        golden=manifest.golden,
        installed_unix_s=int(time.time()),
    )
