"""The update: a new release is checked, tried, and kept only if it answers as its bundle promises."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

from inference.appliance.bundle import Bundle, open_bundle, why_unfit
from inference.appliance.command import run
from inference.appliance.engine import CURRENT, NEXT, PREVIOUS, SHORT_TIMEOUT_S, Mount
from inference.appliance.errors import BundleError, NotReadyError
from inference.appliance.health import supervised_daemon
from inference.appliance.installation import Installation, release_of
from inference.appliance.manifest import STORE, Manifest
from inference.appliance.releases import Release, Releases
from inference.artifacts import files
from inference.device.detect import detect
from inference.errors import AlreadyRunningError, InsufficientStorageError

_POLL_S = 0.5
_BY_HAND = "gone back from by hand"
_CRASHED = "its service failed again and again"
_ROOTS = {"docker": "{{.DockerRootDir}}", "podman": "{{.Store.GraphRoot}}"}
_BUNDLE_IN_CONTAINER = "/bundle"
_JOURNAL = "what it said: journalctl -u jetllm.service"
_SHOWN_CHARACTERS = 120


def update(
    installation: Installation, path: Path, *, again: bool = False, poll_s: float = _POLL_S
) -> Release:
    """Bring the release in *path* into service, and return it.

    Whenever this is cut off, the next start has either the release before or this one in full.

    Args:
        path: a bundle: a directory, or a .tar of one.
        again: take a bundle that was marked bad.

    Raises:
        BundleError: it is not trusted, not whole, not for this machine, or was marked bad.
        InsufficientStorageError: the disk has no room for it.
        NotReadyError: it did not become ready, or answered otherwise than its bundle promises; the
            release before serves again.
        AlreadyRunningError: another update is under way.
    """
    with installation.held():
        releases = installation.recover()
        with _checked(installation, path) as bundle:
            refuse_unfit(installation, bundle.manifest)
            if releases.current is not None and releases.current.bundle == bundle.manifest.digest:
                installation.note(f"{bundle.manifest.version} is the current release already")
                return releases.current
            if not again:
                _refuse_bad(releases, bundle.manifest)
            need_room(installation, bundle.manifest)
            releases = _bring(installation, releases, bundle)
        return _try(installation, releases, poll_s)


def rollback(installation: Installation, *, failed: bool = False) -> Releases | None:
    """Go back to the release before, mark the one that was current as bad, and return the state.

    Args:
        failed: a crash loop asks for it, not a person. While an update is under way nothing is done
            (``None``): the update sees the failure itself, and undoes it.

    Raises:
        NoReleaseError: there is none before; the device stays as it is.
    """
    try:
        with installation.held():
            return _back(installation, _CRASHED if failed else _BY_HAND)
    except AlreadyRunningError:
        if not failed:
            raise
        installation.note("an update is under way, which undoes itself; nothing was done")
        return None


def _back(installation: Installation, reason: str) -> Releases:
    releases = installation.releases()
    now_s = int(time.time())
    # What was cut off in its trial is what has failed; else it is what is current.
    releases = releases.failed(reason, now_s) if releases.next else releases.reverted(reason, now_s)
    installation.unit.stop()
    installation.save(releases)
    installation.settle(releases)
    installation.unit.start()
    if releases.current is not None:
        installation.note(f"back to {releases.current.version}")
    return releases


def load_image(installation: Installation, bundle: Bundle, tag: str) -> str:
    """Load the image of *bundle*, give it *tag* and no other name, and return what the engine calls it by."""
    engine, image = installation.engine, bundle.manifest.image
    installation.note(f"loading the image of {bundle.manifest.version}")
    loaded = engine.load(bundle.directory / image.file)
    engine.tag(loaded, tag)
    if image.reference not in (CURRENT, PREVIOUS, NEXT):
        engine.untag(image.reference)
    return loaded


def import_models(installation: Installation, bundle: Bundle, tag: str) -> None:
    """Let the image *tag* bring the models of *bundle* into the store: what they are, it knows best."""
    if not any(file.path.startswith(f"{STORE}/") for file in bundle.manifest.files):
        return
    layout = installation.layout
    installation.note(f"importing {', '.join(each.model for each in bundle.manifest.models)}")
    mounts = [
        Mount(bundle.directory, _BUNDLE_IN_CONTAINER),
        Mount(layout.trusted, "/etc/jetllm/trusted.d"),
        Mount(layout.store, "/var/cache/jetllm", writable=True),
        Mount(layout.state, "/var/lib/jetllm", writable=True),
    ]
    installation.engine.run_once(tag, ["jetllm", "bundle", "import", _BUNDLE_IN_CONTAINER], mounts)


def need_room(installation: Installation, manifest: Manifest) -> None:
    """Refuse a bundle that the disks have no room for, before anything is written.

    The image needs twice its size: its archive's layers while they are unpacked, and they themselves.

    Raises:
        InsufficientStorageError: with the numbers.
    """
    stored_bytes = sum(file.bytes for file in manifest.files if file.path.startswith(f"{STORE}/"))
    needs = (
        (_engine_root(installation), 2 * manifest.image.bytes),
        (_standing(installation.layout.store), stored_bytes),
    )
    on_disk: dict[int, int] = {}
    for directory, needed_bytes in needs:
        disk = directory.stat().st_dev
        on_disk[disk] = on_disk.get(disk, 0) + needed_bytes
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < on_disk[disk]:
            raise InsufficientStorageError(
                f"{manifest.version} needs {on_disk[disk] / 1e9:.2f} GB at {directory} (twice its image, and "
                f"its models); {free_bytes / 1e9:.2f} GB are free; nothing was changed",
                hint=f"see what takes it: {installation.config.engine} system df; sudo du -xhd 2 {directory}",
            )


def _checked(installation: Installation, path: Path) -> AbstractContextManager[Bundle]:
    installation.note(f"checking {path.name}")
    files.make_directory(installation.workspace.parent)
    return open_bundle(path, installation.layout.trusted, workspace=installation.workspace)


def refuse_unfit(installation: Installation, manifest: Manifest) -> None:
    """Refuse a release that does not run on this machine.

    Raises:
        BundleError: with what the release is for, and what this machine is.
    """
    why = why_unfit(manifest, detect(installation.layout.root))
    if why is not None:
        raise BundleError(f"{manifest.version}: {why}; nothing was changed", hint="take one for this machine")


def _refuse_bad(releases: Releases, manifest: Manifest) -> None:
    bad = releases.is_bad(manifest.digest)
    if bad is not None:
        raise BundleError(
            f"{manifest.version}: this bundle is marked bad: {bad.reason}",
            hint="take a newer one; or insist: jetllm update --again FILE",
        )


def _bring(installation: Installation, releases: Releases, bundle: Bundle) -> Releases:
    """Load the image and the models of *bundle* beside what serves, and return the state with it as next."""
    manifest = bundle.manifest
    # Before the image is there, so that what a cut leaves of it has a name to be removed by.
    trying = releases.trying(release_of(manifest, manifest.image.id))
    installation.save(trying)
    try:
        image = load_image(installation, bundle, NEXT)
        if image != manifest.image.id:
            trying = releases.trying(release_of(manifest, image))
            installation.save(trying)
        import_models(installation, bundle, NEXT)
    except BaseException:
        installation.recover()
        raise
    return trying


def _try(installation: Installation, releases: Releases, poll_s: float) -> Release:
    """Let what is next serve; keep it if it proves good, go back if not."""
    tried = releases.next
    assert tried is not None  # noqa: S101 - `_bring` has made it
    installation.note(f"trying {tried.version}")
    try:
        installation.unit.stop()
        installation.settle(releases, trial=True)
        installation.unit.start()
        _prove(installation, tried, poll_s)
    except NotReadyError as error:
        outcome = _restore(installation, releases.failed(error.message, int(time.time())), poll_s)
        raise NotReadyError(
            f"{tried.version} is not taken: {error.message}; {outcome}", hint=error.hint
        ) from None
    except BaseException:
        _restore(installation, releases.undone(), poll_s)
        raise
    releases = releases.promoted()
    installation.save(releases)
    installation.settle(releases)
    installation.note(f"{tried.version} is current")
    return tried


def _restore(installation: Installation, releases: Releases, poll_s: float) -> str:
    """Let the release before the trial serve again; return in words whether it does."""
    installation.save(releases)
    installation.unit.stop()
    installation.settle(releases)
    if releases.current is None:
        return "there is no release before it"
    installation.unit.start()
    try:
        _await_ready(installation, time.monotonic() + installation.config.ready_timeout_s, poll_s)
    except NotReadyError as error:
        return f"{releases.current.version} is current again, but: {error.message}"
    return f"{releases.current.version} serves again"


def _prove(installation: Installation, release: Release, poll_s: float) -> None:
    """Wait until *release* is ready, and compare what it answers with what its bundle promises.

    Raises:
        NotReadyError: it is not, or does not, within the configured time.
    """
    end_s = time.monotonic() + installation.config.ready_timeout_s
    _await_ready(installation, end_s, poll_s)
    for golden in release.golden:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise NotReadyError(f"its tokens did not come within {installation.config.ready_timeout_s:g} s")
        daemon = supervised_daemon(installation.config, installation.layout)
        answer = daemon.complete(golden.model, golden.prompt, len(golden.tokens), timeout_s=left_s)
        if answer != golden.text:
            raise NotReadyError(
                f"{golden.model} answers {_shown(answer)}; its bundle promises {_shown(golden.text)}",
                hint="the release is not for this machine, or was not made with care; it is marked bad",
            )


def _await_ready(installation: Installation, end_s: float, poll_s: float) -> None:
    """Wait until the unit is active, which it is after its canary, and the daemon ready.

    Raises:
        NotReadyError: the unit has failed, or *end_s* (monotonic) has come.
    """
    while True:
        state = installation.unit.state()
        # Anew each time: the supervisor makes its key at its first start.
        daemon = supervised_daemon(installation.config, installation.layout)
        ready, told = daemon.ready() if state == "active" else (False, {})
        if ready:
            return
        if state == "failed":
            raise NotReadyError("its service failed", hint=_JOURNAL)
        if time.monotonic() >= end_s:
            why = ", ".join(str(told[key]) for key in ("status", "phase", "reason") if told.get(key)) or state
            limit_s = installation.config.ready_timeout_s
            raise NotReadyError(f"it was not ready within {limit_s:g} s: {why}", hint=_JOURNAL)
        threading.Event().wait(poll_s)


def _engine_root(installation: Installation) -> Path:
    """Return where the engine keeps its images; where it does not say, the data directory stands for it."""
    engine = installation.config.engine
    asked = run(engine, "info", "--format", _ROOTS[engine], timeout_s=SHORT_TIMEOUT_S)
    said = asked.output.strip()
    known = asked.code == 0 and said.startswith("/")
    return _standing(Path(said) if known else installation.layout.data)


def _standing(path: Path) -> Path:
    """Return *path*, or the nearest directory above it that is there."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
