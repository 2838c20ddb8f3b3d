"""docs/api.md: what it lists is what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.api import Limits, create_app
from inference.api.errors import STATUS_BY_CODE
from inference.api.schema import ChatBody, CompletionBody, LoadBody, PullBody, UnloadBody, read
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.fake_service import FakeService
from tests.gguf_template import tool_registry
from tests.transcripts import Transcript, differences, played, transcripts

TEXT = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
TRANSCRIPTS = transcripts(TEXT)


def test_routes_are_the_documented_ones() -> None:
    """Every route has its row, and no row is without a route."""
    rules = create_app(FakeService()).url_map.iter_rules()
    served = {
        f"{method} {rule.rule.replace('<path:name>', '<id>')}"
        for rule in rules
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert set(re.findall(r"^\| `((?:GET|POST|DELETE) [^`]+)`", TEXT, re.MULTILINE)) == served


def test_codes_are_the_documented_ones() -> None:
    """The error table is the mapping in force."""
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", TEXT, re.MULTILINE)
    assert {code: int(status) for code, status in rows} == STATUS_BY_CODE


def test_fields_are_documented() -> None:
    """Every field that is read is named."""
    fields = set(ChatBody.model_fields) | set(CompletionBody.model_fields)
    assert [name for name in sorted(fields) if f"`{name}" not in TEXT] == []


def test_limits_are_the_documented_ones() -> None:
    """The numbers of the limits table are the defaults."""
    limits = Limits()
    for shown in (
        f"{limits.request_s:g} s from its first byte",
        f"{limits.header_bytes // 1024} KiB of header",
        f"{limits.body_bytes // 2**20} MiB of body",
        f"{limits.buffered_bytes // 1024} KiB; dropped after {limits.stall_s:g} s",
        f"closed after {limits.idle_s:g} s",
        f"{limits.connections}; {limits.connections_per_address} of one address",
        f"{limits.connections_per_loopback} of this machine",
    ):
        assert shown in TEXT


def test_example_bodies_are_accepted() -> None:
    """The bodies of the curl examples pass the checks."""
    bodies = [json.loads(found) for found in re.findall(r"-d '(\{.*?\})'", TEXT, re.DOTALL)]
    assert len(bodies) > len(TRANSCRIPTS) > 9
    for body in bodies:
        if "messages" in body:
            read(ChatBody, body).to_requests()
        elif "prompt" in body:
            read(CompletionBody, body).to_requests()
        elif "variant" in body:
            read(PullBody, body)
        else:
            read(LoadBody, body)
            read(UnloadBody, body)


def test_metrics_are_documented() -> None:
    """Every metric of ours is named."""
    text = create_app(FakeService()).test_client().get("/metrics").get_data(as_text=True)
    names = set(re.findall(r"^# TYPE (jetllm_\w+) ", text, re.MULTILINE))
    assert [name for name in sorted(names) if name not in TEXT] == []


@pytest.fixture(scope="module")
def daemon(
    smollm2_path: Path, gemma_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """A daemon with the models of the transcripts; SmolLM2 is there with a template that has tools, too."""
    directory = tmp_path_factory.mktemp("docs")
    registry = tool_registry(directory, smollm2_path)
    settings = {"registry": registry, "context_tokens": 512, "offline": True}
    with DaemonProcess(directory / "state", "--preload", MODEL, **settings) as started:
        wait_until(lambda: started.ask("GET", "/readyz")[0] == 200, "readiness")
        yield started


@pytest.mark.parametrize(
    "transcript", TRANSCRIPTS, ids=lambda transcript: transcript.command.split("'")[0][:60]
)
def test_transcripts_are_what_happens(daemon: DaemonProcess, transcript: Transcript) -> None:
    """What the page shows to be typed is answered as it shows, but for ids, times and a model's words."""
    assert not list(differences(transcript.shown, played(transcript.command, daemon.port)))


def test_a_transcript_that_is_wrong_is_noticed(daemon: DaemonProcess) -> None:
    """A field more, another word or another status is a difference."""
    shown = next(t for t in TRANSCRIPTS if t.shown.startswith("{") and '"index"' in t.shown)
    found = played(shown.command, daemon.port)
    for old, new in (('"index": 0', '"index": 1'), ('"usage"', '"usages"'), ('"object": "', '"object": "x')):
        assert old in shown.shown
        assert list(differences(shown.shown.replace(old, new), found))


def test_every_kind_is_shown() -> None:
    """There is a transcript of each of the ways to ask."""
    commands = " ".join(transcript.command for transcript in TRANSCRIPTS)
    for word in ("auto:", '"n"', '"tools"', '"stream"', "slide", "gemma-3-270m", "json_schema", '"echo"'):
        assert word in commands, word
