"""docs/ollama.md: what it shows is what happens, what it lists is what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.api import create_app
from inference.api.ollama_schema import ChatBody, GenerateBody, Options
from inference.settings import load_settings
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_service import FakeService
from tests.transcripts import Transcript, differences, played, transcripts

TEXT = (Path(__file__).parents[1] / "docs" / "ollama.md").read_text(encoding="utf-8")
TRANSCRIPTS = transcripts(TEXT)


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon for the whole page: its transcripts are a session, from the first to the last."""
    directory = tmp_path_factory.mktemp("ollama")
    shipped = json.loads(load_settings().registry_path.read_text())["models"][MODEL]
    registry = directory / "models.json"
    registry.write_text(json.dumps({"models": {MODEL: shipped}}))
    with DaemonProcess(directory, registry=registry, context_tokens=512, offline=True) as started:
        yield started


def test_routes_are_the_documented_ones() -> None:
    """Every route below /api has its row, and no row is without a route."""
    rules = [rule for rule in create_app(FakeService()).url_map.iter_rules() if rule.rule.startswith("/api/")]
    served = {f"{method} {rule.rule}" for rule in rules for method in rule.methods or ()} - {
        f"{method} {rule.rule}" for rule in rules for method in ("HEAD", "OPTIONS")
    }
    assert set(re.findall(r"`((?:GET|POST|DELETE) /api/[a-z]+)`", TEXT)) == served


def test_fields_are_documented() -> None:
    """Every field and every option that is read is named."""
    names = {*ChatBody.model_fields, *GenerateBody.model_fields, *Options.model_fields} - {"name"}
    assert [name for name in sorted(names) if f"`{name}`" not in TEXT] == []


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda one: one.command.split("'")[0][:60])
def test_transcripts_are_what_happens(daemon: DaemonProcess, transcript: Transcript) -> None:
    """What the page shows to be typed is answered as it shows, but for times, hashes and a model's words."""
    assert not list(differences(transcript.shown, played(transcript.command, daemon.port)))


def test_a_line_that_is_wrong_is_noticed(daemon: DaemonProcess) -> None:
    """Of a stream every line that is shown counts, the last one too."""
    shown = next(one for one in TRANSCRIPTS if "/api/generate" in one.command and "..." in one.shown)
    found = played(shown.command, daemon.port)
    assert not list(differences(shown.shown, found))
    for old, new in (
        ('"done": true', '"done": false'),
        ('"eval_count"', '"evals"'),
        ('"response"', '"text"'),
    ):
        assert list(differences(shown.shown.replace(old, new), found))


def test_every_route_that_answers_is_shown() -> None:
    """There is a transcript of each but those for vectors, whose model is not fetched for a page."""
    commands = " ".join(transcript.command for transcript in TRANSCRIPTS)
    for name in ("chat", "generate", "tags", "show", "ps", "pull"):
        assert f"/api/{name} " in commands.replace("\n", " "), name
