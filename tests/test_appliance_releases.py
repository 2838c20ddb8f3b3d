"""The releases: what follows what, what is written, and what becomes of a file that is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.appliance.errors import NoReleaseError
from inference.appliance.manifest import Golden
from inference.appliance.releases import (
    BadRelease,
    DamagedReleasesError,
    Release,
    Releases,
    load_releases,
    save_releases,
)


def release(version: str) -> Release:
    """A release with hashes that are made of its version."""
    golden = (Golden("m", "v", "Hello", " world", (1, 2)),)
    return Release(version, version[0] * 64, f"sha256:{version[0] * 64}", golden, 1_700_000_000)


ONE, TWO, THREE = release("1.0"), release("2.0"), release("3.0")
SERVING = Releases(current=TWO, previous=ONE)


def test_a_promoted_release_leaves_the_one_before_as_previous() -> None:
    """Two are kept: what was tried, and what served while it was."""
    assert SERVING.trying(THREE).promoted() == Releases(current=THREE, previous=TWO)
    assert SERVING.trying(THREE).promoted().images() == {THREE.image, TWO.image}


def test_an_undone_update_was_never_there() -> None:
    """What was cut off leaves nothing, no mark either."""
    assert SERVING.trying(THREE).undone() == SERVING


def test_a_failed_release_is_marked_and_what_served_stays() -> None:
    """The mark has the reason, and is found by the bundle."""
    found = SERVING.trying(THREE).failed("it was silent", 5)
    assert (found.current, found.previous, found.next) == (TWO, ONE, None)
    assert found.is_bad(THREE.bundle) == BadRelease(THREE, "it was silent", 5)
    assert found.is_bad(TWO.bundle) is None and found.is_bad("") is None


def test_going_back_marks_what_was_current_and_happens_once() -> None:
    """Behind the previous release there is no other one, and then nothing is changed."""
    found = SERVING.reverted("it crashed", 7)
    assert (found.current, found.previous) == (ONE, None) and found.is_bad(TWO.bundle) is not None
    with pytest.raises(NoReleaseError, match="no previous release"):
        found.reverted("it crashed", 8)


def test_a_bad_release_that_proves_good_is_no_longer_bad() -> None:
    """Who insists and is right takes the mark away; the others stay."""
    marked = SERVING.trying(THREE).failed("once", 1)
    other = marked.trying(release("4.0")).failed("twice", 2)
    assert [bad.release.version for bad in other.trying(THREE).promoted().bad] == ["4.0"]


def test_only_the_last_fifty_marks_are_kept() -> None:
    """The file does not grow with the years."""
    found = SERVING
    for number in range(60):
        each = Release(f"{number}", f"{number:064x}", "sha256:0", (), 0)
        found = found.trying(each).failed("bad", number)
    assert [bad.at_unix_s for bad in found.bad] == list(range(10, 60))


def test_what_is_saved_is_read_back_by_any_user(tmp_path: Path) -> None:
    """All of it, with marks and golden tokens, in a file that is readable for everybody."""
    path = tmp_path / "appliance" / "releases.json"
    saved = SERVING.trying(THREE).failed("bad", 3).trying(release("4.0"))
    save_releases(path, saved)
    assert load_releases(path) == saved
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_text())["schema"] == 1
    assert load_releases(tmp_path / "none.json") == Releases()


GOOD = SERVING.trying(THREE).failed("bad", 3).to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"schema": 1}',
        "[" * 100_000,
        json.dumps({**GOOD, "schema": 2}),
        json.dumps({**GOOD, "current": 3}),
        json.dumps({**GOOD, "current": {**GOOD["current"], "image": ""}}),
        json.dumps({**GOOD, "current": {**GOOD["current"], "bundle": "../x"}}),
        json.dumps({**GOOD, "current": {**GOOD["current"], "golden": [{"model": 1}]}}),
        json.dumps({**GOOD, "bad": [{"reason": "x"}]}),
        json.dumps(GOOD)[:-40],
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_a_damaged_file_is_said_to_be_damaged(tmp_path: Path, text: str) -> None:
    """Whatever stands there: an error of ours with what to do, never another one."""
    path = tmp_path / "releases.json"
    path.write_text(text)
    with pytest.raises(DamagedReleasesError, match="it is damaged") as raised:
        load_releases(path)
    assert "jetllm firstboot" in str(raised.value.hint)


def test_status_shows_current_previous_next_and_bad() -> None:
    """A line each, with version, bundle and image, and the reason of a mark."""
    lines = SERVING.trying(THREE).failed("it was silent", 5).trying(release("4.0")).lines()
    assert [name for name, _ in lines] == ["current", "previous", "next", "bad"]
    assert lines[0][1] == "2.0, bundle 222222222222, image 222222222222"
    assert lines[3][1].endswith(": it was silent")
