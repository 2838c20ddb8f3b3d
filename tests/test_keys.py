"""The API keys: made once, kept as hashes, taken back while the daemon runs."""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path

import pytest

from inference.api import create_app
from inference.api.auth import check_bind, keys_of
from inference.errors import InvalidRequestError, SettingsError, UnsafeBindError
from inference.keys import FILE, Keys
from tests.fake_service import FakeService, settings_with
from tests.test_api_auth import ANYWHERE

NOON_S = 1_700_000_000 - 1_700_000_000 % 86_400 + 43_200


class Clock:
    """A wall clock that a test moves."""

    now_s = float(NOON_S)

    def __call__(self) -> float:
        """Return its time."""
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of keys that is not there yet, in a directory that is not there either."""
    return tmp_path / "state" / FILE


def test_a_key_is_told_once_and_kept_as_its_hash(path: Path) -> None:
    """256 random bits behind a prefix that scanners for leaked secrets can find; never in the file."""
    keys = Keys(path, Clock())
    key = keys.add("laptop")
    assert re.fullmatch(r"jetllm_[A-Za-z0-9_-]{43}", key)
    assert key[7:] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert keys.add("phone") != key
    rows = [
        {"name": name, "created": "2023-11-14T12:00:00Z", "last_used": None} for name in ("laptop", "phone")
    ]
    assert keys.rows() == rows


def test_a_key_is_known_by_its_name(path: Path) -> None:
    """The right key gives its name; all that is only like it gives nothing."""
    keys = Keys(path)
    assert keys.accepts("jetllm_x") is None and not keys.exist()
    first, second = keys.add("first"), keys.add("second")
    assert (keys.accepts(first), keys.accepts(second)) == ("first", "second")
    digest = json.loads(path.read_text())["keys"][0]["sha256"]
    for wrong in ("", first[:-1], first + "x", first.upper(), first[7:], digest, "\udcff"):
        assert keys.accepts(wrong) is None


def test_every_key_is_compared_in_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the answer takes tells nothing of how nearly right a key was: the comparison is hmac's."""
    keys, compared = Keys(path), []
    made = [keys.add(name) for name in ("a", "b", "c")]

    def compare(left: str, right: str) -> bool:
        compared.append(left)
        return left == right

    monkeypatch.setattr("inference.keys.hmac.compare_digest", compare)
    assert keys.accepts(made[0]) == "a" and len(compared) == 3
    assert keys.accepts("wrong") is None and len(compared) == 6


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_are_plain(path: Path, name: str) -> None:
    """A name is shown in tables and typed in shells."""
    with pytest.raises(InvalidRequestError, match="name"):
        Keys(path).add(name)
    assert not path.exists()


def test_a_name_is_given_once(path: Path) -> None:
    """Else nobody could say which of two is taken back."""
    keys = Keys(path)
    keys.add("laptop")
    with pytest.raises(InvalidRequestError) as caught:
        keys.add("laptop")
    assert caught.value.hint is not None and "jetllm keys revoke laptop" in caught.value.hint
    with pytest.raises(InvalidRequestError, match="no key named 'phone'"):
        keys.revoke("phone")


def test_the_last_use_is_a_day_and_is_written_rarely(path: Path) -> None:
    """At most once a minute the file is written, and once a day for one key."""
    clock = Clock()
    keys = Keys(path, clock)
    first, second = keys.add("first"), keys.add("second")

    def used() -> list[str | None]:
        return [row["last_used"] for row in keys.rows()]

    assert keys.accepts(first) and keys.accepts(second)
    assert used() == ["2023-11-14", None]
    clock.now_s += 60
    assert keys.accepts(second)
    assert used() == ["2023-11-14", "2023-11-14"]
    mark = path.stat().st_mtime_ns
    clock.now_s += 3600
    assert keys.accepts(first) and path.stat().st_mtime_ns == mark
    clock.now_s += 86_400
    assert keys.accepts(first)
    assert used() == ["2023-11-15", "2023-11-14"]


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    """Two shells may make keys at the same moment."""
    names = [f"k{number}" for number in range(8)]
    threads = [threading.Thread(target=Keys(path).add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["name"] for row in Keys(path).rows()) == names


DAMAGE = [
    "{",
    "[]",
    '{"version": 1, "keys": [{}]}',
    '{"version": 2, "keys": []}',
    '{"version": 1, "keys": [{"name": "a", "sha256": "b", "created_s": 1}]}',
    '{"version": 1, "keys": [{"name": "a", "sha256": "%s", "created_s": 1e99}]}' % ("0" * 64),
]


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_file_opens_no_door(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is let in by it, the log says so once, and nothing overwrites it."""
    keys = Keys(path)
    key = keys.add("laptop")
    path.write_text(text)
    with caplog.at_level(logging.ERROR):
        assert keys.accepts(key) is None and keys.accepts(key) is None
    assert keys.exist() and len(caplog.records) == 1
    with pytest.raises(SettingsError, match="damaged"):
        keys.add("phone")
    assert path.read_text() == text


def test_a_revoked_key_is_refused_at_once_by_the_running_daemon(path: Path) -> None:
    """Made and taken back by another process, without a restart; the last one leaves the door closed."""
    client = create_app(FakeService(settings_with(state_dir=path.parent))).test_client()
    elsewhere = Keys(path)

    def ask(key: str | None) -> int:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return client.get("/v1/models", headers=headers).status_code

    assert ask(None) == 200
    first, second = elsewhere.add("first"), elsewhere.add("second")
    assert [ask(key) for key in (first, second, None)] == [200, 200, 401]
    elsewhere.revoke("first")
    assert [ask(key) for key in (first, second)] == [401, 200]
    elsewhere.revoke("second")
    assert [ask(key) for key in (first, second, None)] == [401, 401, 401]


def test_the_setting_and_named_keys_both_work(path: Path) -> None:
    """A key in the settings keeps working beside the named ones."""
    key = Keys(path).add("laptop")
    settings = settings_with(state_dir=path.parent, api_key="from-the-settings")
    client = create_app(FakeService(settings)).test_client()
    for token, status in ((key, 200), ("from-the-settings", 200), ("other", 401)):
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/v1/models", headers=headers).status_code == status


def test_beyond_loopback_a_key_must_exist(path: Path) -> None:
    """It may be a named one; revoked while the daemon runs, it does not leave the door open."""
    settings = settings_with(host=ANYWHERE, state_dir=path.parent)
    with pytest.raises(UnsafeBindError, match="API key") as caught:
        check_bind(settings)
    assert caught.value.hint is not None and "jetllm keys add" in caught.value.hint
    keys_of(settings).add("laptop")
    check_bind(settings)
    client = create_app(FakeService(settings)).test_client()
    path.unlink()
    assert client.get("/v1/models").status_code == 401
    keys_of(settings).add("phone")
    keys_of(settings).revoke("phone")
    with pytest.raises(UnsafeBindError):
        check_bind(settings)
