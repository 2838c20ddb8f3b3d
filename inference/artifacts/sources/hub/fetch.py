"""The fetch: from the hub, or the user's own cache of it, to a snapshot in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from inference.artifacts import files
from inference.artifacts.gguf import check_gguf
from inference.artifacts.sources import address, disk, failures
from inference.artifacts.sources.aside import aside
from inference.artifacts.sources.download import Patience
from inference.artifacts.sources.hub.bring import Parts, copy
from inference.artifacts.sources.hub.library import Hub, cached_snapshot, is_offline, open_hub
from inference.artifacts.sources.hub.listing import Listing, denied, listed
from inference.artifacts.sources.hub.snapshot import (
    Facts,
    agree,
    declared_facts,
    lacking,
    matches,
    patterns_of,
)
from inference.artifacts.sources.progress import Progress, Report
from inference.artifacts.sources.proxy import proxy_for
from inference.artifacts.sources.web import Interrupted, Limits, Refused
from inference.artifacts.store import PARTIAL, Store
from inference.errors import CancelledError, DownloadError, UnsafeArtifactError
from inference.registry.sources import HubSource
from inference.registry.spec import Variant

_POLL_S = 0.2


@dataclass(frozen=True)
class _Wish:
    """What is to be fetched, for whom, and how it may be done."""

    source: HubSource
    variant: Variant
    name: str
    store: Store
    progress: Report
    cancelled: Callable[[], bool]
    patience: Patience
    stall_s: float | None

    def unavailable(self, reason: str, hint: str | None = None, *, done_bytes: int = 0) -> DownloadError:
        """Return the error for a repository that cannot be had."""
        repo = self.source.repo
        return DownloadError(
            f"{self.name}: {reason}; needed: {repo}",
            hint=hint
            or f"on a machine with network: hf download {repo}; copy its hub cache here and set "
            "HF_HUB_CACHE, or give the model a source of type 'file' in models.json",
            details={"repo": repo, "done_bytes": done_bytes},
        )

    def agree(self, found: Facts, more: Facts, revision: str) -> None:
        """Hold *found* against models.json, the first pull and what the hub says besides."""
        store, name = self.store, self.name
        hint = "correct the variant's files in models.json"
        agree(found, declared_facts(self.variant), name, "models.json", hint)
        record = store.snapshot_path(self.variant, revision).with_suffix(".json")
        hint = f"to accept it, remove {record}"
        agree(found, store.snapshot_record(self.variant), name, "its first pull", hint)
        agree(found, more, name, "the hub", f"pull it again: jetllm pull {name}")


def fetch_hub(
    source: HubSource,
    variant: Variant,
    name: str,
    store: Store,
    *,
    progress: Report,
    cancelled: Callable[[], bool],
    offline: bool,
    patience: Patience | None = None,
    stall_s: float | None = None,
) -> Path:
    """Take one commit of the repository into the store, from the local hub cache if it is there.

    What came before a cut, a cancel or a crash stays, and the next call goes on from it. Whoever asks
    for the same repository meanwhile waits, and finds it.
    """
    forbidding = "HF_HUB_OFFLINE" if is_offline(name) else "the setting 'offline'" if offline else None
    wish = _Wish(source, variant, name, store, progress, cancelled, patience or Patience(), stall_s)
    key = f"hub-{source.repo.replace('/', '--')}"

    def waiting() -> None:
        progress(Progress("wait", 0, None, None, None))

    with disk.explained(store.root, name), store.lock(key, cancelled=cancelled, waiting=waiting):
        staging = store.staging / key
        try:
            if found := store.path_of(name, variant):
                return found
            pinned = store.pinned_revision(source)
            if path := _from_cache(wish, pinned, staging / "cached"):
                return path
            if forbidding is not None:
                raise failures.forbidden(wish.unavailable(f"{forbidding} forbids the download"))
            return _from_hub(wish, _opened(wish), pinned, staging / PARTIAL)
        finally:
            store.tidy(staging)


def _from_cache(wish: _Wish, pinned: str | None, scratch: Path) -> Path | None:
    """Copy what the user's hub cache has; ``None`` if that is not all."""
    patterns = patterns_of(wish.variant)
    cached = cached_snapshot(wish.name, wish.source.repo, pinned, patterns)
    if cached is None or lacking(wish.variant, cached) is not None:
        return None
    names = sorted(str(path.relative_to(cached)) for path in cached.rglob("*") if path.is_file())
    wanted = {name: cached / name for name in names if matches(name, patterns)}
    files.remove(scratch)
    total_bytes = sum(path.stat().st_size for path in wanted.values())
    disk.make_space(wish.store, wish.name, total_bytes, scratch.parent)
    facts = copy(wanted, scratch, wish.progress, wish.cancelled, wish.name)
    return _keep(wish, cached.name, scratch, facts, {})


def _opened(wish: _Wish) -> Hub:
    def waiting() -> None:
        if wish.cancelled():
            raise CancelledError("the download was cancelled")

    try:
        return aside(lambda: open_hub(wish.name), "token of the hub", poll_s=_POLL_S, waiting=waiting)
    except (OSError, RuntimeError, ValueError) as error:  # a login that cannot be renewed
        raise wish.unavailable(f"huggingface_hub has no token: {error}", "hf auth login") from error


def _from_hub(wish: _Wish, hub: Hub, pinned: str | None, partial: Path) -> Path:
    """Download what is not here yet."""
    parts: Parts | None = None

    def counted() -> tuple[int, int | None]:
        return (parts.done_bytes, parts.total_bytes) if parts else (0, None)

    with failures.explained(wish.name, counted, wish.unavailable):
        try:
            limits = _limits(hub, wish)
            listing = listed(hub, wish.source.repo, pinned, limits, wish.patience)
            parts, facts = _wanted(wish, hub, listing, partial)
            disk.make_space(wish.store, wish.name, parts.missing_bytes, partial.parent)
            found = parts.bring(limits, wish.patience, wish.progress, wish.store)
        except Refused as error:
            raise denied(error, hub, wish.source.repo) from error
    try:
        path = _keep(wish, listing.revision, parts.finish(), found, facts)
    except UnsafeArtifactError:
        files.remove(partial)
        raise
    files.remove(parts.directory)
    return path


def _limits(hub: Hub, wish: _Wish) -> Limits:
    """Let a public hub lead to public addresses only; a mirror of one's own network wherever it says."""
    limits = Limits(False, wish.cancelled, wish.stall_s or hub.stall_s)
    parts = urlsplit(hub.endpoint)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise Refused(f"HF_ENDPOINT: expected https://host, got {hub.endpoint!r}", "correct HF_ENDPOINT")
    port = parts.port or 443
    if parts.scheme == "https" and proxy_for("https", host, port):
        return limits  # only the proxy knows its address
    try:
        found = address.resolved(host, port, limits.resolve, poll_s=_POLL_S, waiting=limits.patience())
    except OSError as error:
        raise Interrupted(f"the name {host} cannot be resolved ({error.strerror or error})") from error
    is_own = any(address.is_reachable(each, local=True) for each in found)
    if parts.scheme == "http" and not is_own:
        raise Refused(
            f"the hub's address {hub.endpoint} is public and not https://",
            "correct HF_ENDPOINT: a token and a model's hashes need TLS",
        )
    return replace(limits, local=None) if is_own else limits


def _wanted(wish: _Wish, hub: Hub, listing: Listing, partial: Path) -> tuple[Parts, Facts]:
    """Return what is to be downloaded, and what the hub says of it.

    Raises:
        UnsafeArtifactError: it is not what is declared, or was pulled first.
    """
    patterns = patterns_of(wish.variant)
    remote = [each for each in listing.files if matches(each.name, patterns)]
    facts = {each.name: {"sha256": each.sha256, "bytes": each.bytes} for each in remote}
    if absent := [file.name for file in wish.variant.files if file.name not in facts]:
        raise _incomplete(wish, f"no file {', '.join(absent)}")
    if not any(each.name.endswith((".safetensors", ".bin", ".gguf")) for each in remote):
        raise _incomplete(wish, "no complete safetensors weights")
    wish.agree(facts, {}, listing.revision)
    directory = partial / wish.store.snapshot_path(wish.variant, listing.revision).name
    for other in files.entries(partial):  # of another commit: nobody goes on from it
        if not other.name.startswith(listing.revision):
            files.remove(other)
    urls = {each.name: hub.file_url(wish.source.repo, listing.revision, each.name) for each in remote}
    return Parts(tuple(remote), urls, hub.headers, directory, wish.name), facts


def _keep(wish: _Wish, revision: str, snapshot: Path, found: Facts, facts: Facts) -> Path:
    """Check the snapshot, record it, and make it the store's."""
    variant, store = wish.variant, wish.store
    if lacks := lacking(variant, snapshot):
        raise _incomplete(wish, lacks)
    wish.agree(found, facts, revision)
    for file in variant.files if variant.backend == "llamacpp" else ():
        check_gguf(snapshot / file.name, subject=f"{wish.name}: {file.name}")
    target = store.snapshot_path(variant, revision)
    record = {"repo": wish.source.repo, "revision": revision, "files": found}
    store.record_snapshot(target, record)
    store.commit(snapshot, target)
    if wish.source.revision is None:
        store.pin(wish.source, revision)
    return target / (variant.entry_file or "")


def _incomplete(wish: _Wish, lacks: str) -> UnsafeArtifactError:
    return UnsafeArtifactError(
        f"{wish.name}: {wish.source.repo} has {lacks}; pickled weights are refused",
        hint="correct the variant's source and files in models.json",
    )
