"""Evidence is kept only of this very machine, and shown wherever models are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import inference
from inference import cli
from inference.api import create_app
from inference.errors import InvalidRequestError, ModelNotFoundError
from inference.inference_engine import InferenceEngine
from inference.measurements import FILE, model_status
from inference.registry import (
    EvidenceRecord,
    Status,
    content_sha256,
)
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget
from phase3.target import TargetError
from tests.daemon_process import MODEL as SMOLLM2
from tests.daemon_process import DaemonProcess
from tests.measured_machine import MEASURED, MODEL, VARIANT, Machine, record, shown, source_of

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An Orin Nano in the image of MLC."""
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def engine(machine: Machine) -> Iterator[InferenceEngine]:
    """Its engine; nothing was measured yet."""
    with InferenceEngine() as engine:
        yield engine


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for transformers."""
    pytest.importorskip("torch", reason="needs the extra 'transformers': make test-transformers")
    from tests.tiny_gpt2 import make_tiny_gpt2

    return make_tiny_gpt2(tmp_path_factory.mktemp("tiny-gpt2"))


class TestRecording:
    """`InferenceEngine.record_evidence`: what was measured here, and nothing else."""

    def test_a_measurement_is_kept_and_used(self, engine: InferenceEngine, tmp_path: Path) -> None:
        """It is on the disk, sealed, with time and version, and the selector goes by it at once."""
        assert source_of(engine) == "predicted" and shown(engine)["measured"] is None
        kept = engine.record_evidence(record(engine, report_sha256="f" * 64, mode="full"))
        assert kept["jetllm"] == inference.__version__ and kept["measured_at"].endswith("Z")
        line = json.loads((tmp_path / "state" / FILE).read_text())
        assert line == {name: value for name, value in kept.items() if value is not None}
        assert shown(engine)["measured"] == {
            "decode_tokens_per_s": 33.0,
            "prefill_tokens_per_s": None,
            "ttft_s": None,
            "memory_bytes": 200_000_000,
            "quality": None,
            "measured_at": kept["measured_at"],
            "issue": None,
        }
        assert (source_of(engine), engine.model(MODEL)["status"]) == (MEASURED, "verified")
        assert engine.evidence(MODEL) == [{**kept, "counts": True, "lapsed": []}]
        assert engine.evidence("two") == []

    def test_another_process_sees_it(self, engine: InferenceEngine) -> None:
        """What `jetllm check` writes, a daemon that runs goes by."""
        with InferenceEngine() as other:
            other.record_evidence(record(other))
        assert source_of(engine) == MEASURED

    def test_an_alias_is_kept_under_the_name(self, engine: InferenceEngine) -> None:
        """Evidence is found whichever name was asked for."""
        assert engine.record_evidence(record(engine, model="uno"))["model"] == MODEL
        assert engine.evidence("uno") == engine.evidence(MODEL) != []

    def test_a_quick_run_judges_nothing(self, engine: InferenceEngine) -> None:
        """Its figures are used; the status stays what it was, and so does what was at issue."""
        engine.record_evidence(record(engine, status="experimental", issue="slow"))
        engine.record_evidence(record(engine, status=None, mode="quick", decode_tokens_per_s=44.0))
        measured = shown(engine)["measured"]
        assert (measured["decode_tokens_per_s"], measured["issue"]) == (44.0, "slow")
        assert engine.model(MODEL)["status"] == "experimental"
        engine.record_evidence(record(engine))
        assert (engine.model(MODEL)["status"], shown(engine)["measured"]["issue"]) == ("verified", None)

    def test_a_model_that_does_not_load_names_no_engine(self, engine: InferenceEngine) -> None:
        """Its verdict is tied to the engine that would run it, and lapses with that."""
        silent = record(engine, engine=None, decode_tokens_per_s=None, memory_bytes=None)
        kept = engine.record_evidence({**silent, "status": "incompatible", "issue": "it does not load"})
        assert kept["engine"] == shown(engine)["engine"] is not None
        assert engine.model(MODEL)["status"] == "incompatible"
        with pytest.raises(InvalidRequestError, match="engine: measured with unknown"):
            engine.record_evidence(record(engine, engine=None))

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("board", "agx-orin-64gb", "board: measured with agx-orin-64gb, now orin-nano-8gb"),
            ("l4t", "35.4.1", "l4t: measured with 35.4.1, now 36.4.3"),
            ("power_mode", "15W", "power_mode: measured with 15W, now MAXN_SUPER"),
            ("power_mode", None, "power_mode: measured with unknown, now MAXN_SUPER"),
            ("image", "other:1", "image: measured with other:1, now dustynv/mlc:0.20.0-r36.4.0"),
            ("engine", "xllamacpp 0.0", "engine: measured with xllamacpp 0.0, now xllamacpp "),
            ("weights_sha256", "b" * 64, "weights: measured with bbbbbbbbbbbb, now "),
        ],
    )
    def test_what_was_measured_otherwise_is_refused(
        self, engine: InferenceEngine, tmp_path: Path, name: str, value: str | None, said: str
    ) -> None:
        """Each condition has to be as it was; the error says which is not, and what to do."""
        with pytest.raises(InvalidRequestError) as raised:
            engine.record_evidence(record(engine, **{name: value}))
        assert said in raised.value.message and raised.value.param == name
        assert raised.value.details == {"differing": [name]}
        assert raised.value.hint and f"jetllm check {MODEL}" in raised.value.hint
        assert not (tmp_path / "state" / FILE).exists() and engine.evidence() == []

    @pytest.mark.parametrize(
        ("values", "error", "said"),
        [
            ({"model": "three"}, ModelNotFoundError, "unknown model 'three'"),
            ({"variant": "mlc"}, ModelNotFoundError, "has no variant 'mlc'"),
            ({"variant": None}, InvalidRequestError, "variant: expected a name"),
            ({"version": 2}, InvalidRequestError, "version: expected 1, got 2"),
            ({"decode_tokens_per_s": float("nan")}, InvalidRequestError, "decode_tokens_per_s: expected"),
            ({"decode_tokens_per_s": "fast"}, InvalidRequestError, "decode_tokens_per_s: expected"),
            ({"memory_bytes": 1.5}, InvalidRequestError, "memory_bytes: expected a positive whole number"),
            ({"status": "good"}, InvalidRequestError, "status: expected a status"),
            ({"mode": "slow"}, InvalidRequestError, "mode: expected quick, full or soak, got 'slow'"),
            ({"issue": "x" * 4001}, InvalidRequestError, "issue: expected text"),
            ({"issue": "\ud800"}, InvalidRequestError, "issue: expected"),
            ({"speed": 3}, InvalidRequestError, "speed: unknown key"),
            ({"image": object()}, InvalidRequestError, "not JSON serializable"),
            ({"sha256": "0" * 64}, InvalidRequestError, "sha256: expected nothing"),
        ],
    )
    def test_what_is_no_record_is_refused(
        self, engine: InferenceEngine, values: dict[str, Any], error: type[Exception], said: str
    ) -> None:
        """Nothing is written, and the key is named."""
        with pytest.raises(error, match=re.escape(said)):
            engine.record_evidence(record(engine, **values))
        assert engine.evidence() == []

    def test_a_damaged_line_is_told(self, engine: InferenceEngine, tmp_path: Path) -> None:
        """What somebody changed by hand does not count, and the list says so."""
        engine.record_evidence(record(engine))
        path = tmp_path / "state" / FILE
        path.write_text(path.read_text().replace("33.0", "330.0"))
        assert shown(engine)["measured"] is None and shown(engine)["lapsed"] is None
        assert source_of(engine) == "predicted"
        answer = create_app(engine._service).test_client().get("/jetllm/v1/evidence").get_json()
        assert answer["evidence"] == [] and "was changed" in answer["skipped"][0]


class TestOverHTTP:
    """`/jetllm/v1/evidence`."""

    def test_a_record_is_taken_and_listed(self, engine: InferenceEngine) -> None:
        """What is posted is what is listed, and the model's card shows it."""
        client = create_app(engine._service).test_client()
        kept = client.post("/jetllm/v1/evidence", json=record(engine))
        assert kept.status_code == 200 and kept.get_json()["sha256"]
        rows = client.get("/jetllm/v1/evidence?model=uno").get_json()
        assert rows == {"evidence": [{**kept.get_json(), "counts": True, "lapsed": []}], "skipped": []}
        assert client.get("/jetllm/v1/evidence?model=two").get_json()["evidence"] == []
        card = client.get(f"/v1/models/{MODEL}").get_json()["jetllm"]
        assert (card["status"], card["status_source"]) == ("verified", MEASURED)
        assert card["variants"][VARIANT]["measured"]["memory_bytes"] == 200_000_000
        native = client.get("/jetllm/v1/models").get_json()["models"]
        assert next(each for each in native if each["id"] == MODEL)["variants"] == card["variants"]

    @pytest.mark.parametrize(
        ("values", "status", "param"),
        [
            ({"engine": "x 1"}, 400, "engine"),
            ({"model": "three"}, 404, "model"),
            ({"variant": "mlc"}, 404, "variant"),
            ({"speed": 1}, 400, "speed"),
        ],
    )
    def test_what_is_refused_has_a_status(
        self, engine: InferenceEngine, values: dict[str, Any], status: int, param: str | None
    ) -> None:
        """A wrong record is the client's mistake."""
        client = create_app(engine._service).test_client()
        response = client.post("/jetllm/v1/evidence", json=record(engine, **values))
        assert (response.status_code, response.get_json()["error"]["param"]) == (status, param)
        assert client.get("/jetllm/v1/evidence?model=three").status_code == 404

    def test_only_who_has_the_key_may(self, machine: Machine) -> None:
        """Reading and writing ask for it as every other route does."""
        with InferenceEngine(api_key="a-key-for-tests") as engine:
            client = create_app(engine._service).test_client()
            body = record(engine)
            assert client.post("/jetllm/v1/evidence", json=body).status_code == 401
            assert client.get("/jetllm/v1/evidence").status_code == 401
            key = {"Authorization": "Bearer a-key-for-tests"}
            assert client.post("/jetllm/v1/evidence", json=body, headers=key).status_code == 200
            foreign = {**key, "Origin": "http://evil.example"}
            assert client.post("/jetllm/v1/evidence", json=body, headers=foreign).status_code == 403


class TestTheList:
    """`jetllm models`."""

    def test_shows_what_was_measured_and_what_lapsed(self, machine: Machine, engine: InferenceEngine) -> None:
        """The effective status, the figures with their time, what is at issue, and why nothing counts."""
        assert "MEASURED HERE" not in models()
        kept = engine.record_evidence(record(engine, status="experimental", issue="no floor of 10 tokens/s"))
        text = models()
        assert re.search(rf"^{MODEL} +100M +experimental ", text, re.MULTILINE)
        row = rf"^{MODEL} +{VARIANT} +experimental +33 +0\.19 GiB +{kept['measured_at']} +no floor of"
        assert re.search(row, text, re.MULTILINE)
        machine.write("var/lib/nvpmodel/status", "pmode:0000")
        assert "lapsed: power_mode: measured with MAXN_SUPER, now 15W" in models()

    @pytest.mark.parametrize(
        ("variants", "status"),
        [
            ([("incompatible", MEASURED, True), ("experimental", "declared", True)], "experimental"),
            ([("incompatible", MEASURED, True), ("incompatible", MEASURED, True)], "incompatible"),
            ([("experimental", "declared", True), ("verified", MEASURED, True)], "verified"),
            ([("experimental", "declared", True), ("experimental", MEASURED, True)], "experimental"),
            ([("incompatible", MEASURED, True), ("experimental", "declared", False)], "incompatible"),
            ([("planned", "declared", False)], "planned"),
        ],
    )
    def test_a_model_is_as_good_as_its_best_variant(
        self, variants: list[tuple[str, str, bool]], status: str
    ) -> None:
        """Of those that are usable here; of equal ones the measured status is the source that is named."""
        rows = {
            str(n): {"status": s, "status_source": source, "usable": usable}
            for n, (s, source, usable) in enumerate(variants)
        }
        found = model_status(Status.EXPERIMENTAL, rows)
        of_that = {source for s, source, usable in variants if s == status}
        assert found["status"] == status and found["declared_status"] == "experimental"
        assert found["status_source"] == (MEASURED if MEASURED in of_that else "declared")


class TestTheHarness:
    """Targets hand over what phase3 measured."""

    def test_the_loaded_engine_is_the_one_that_is_matched(self, smollm2_path: Path, tmp_path: Path) -> None:
        """The engine that a worker names is the one known of a model that is not loaded: evidence counts."""
        with InferenceEngine(context_tokens=512) as engine:
            target = EngineTarget(engine, SMOLLM2, "llamacpp-q4_1")
            before = engine.model(SMOLLM2)["variants"]["llamacpp-q4_1"]
            target.load()
            loaded = target.environment()
            assert loaded.engine == before["engine"] and loaded.weights_sha256 == before["weights_sha256"]
            target.unload()
            kept = target.record_evidence(conditions(loaded))
            assert [row["sha256"] for row in engine.evidence(SMOLLM2) if row["counts"]] == [kept["sha256"]]
            with pytest.raises(TargetError, match="measured with nothing, now"):
                target.record_evidence({**conditions(loaded), "engine": "nothing"})
        with DaemonProcess(tmp_path / "other") as daemon:
            remote = HttpTarget(daemon.url, SMOLLM2, "llamacpp-q4_1")
            assert remote.record_evidence(conditions(loaded))["engine"] == loaded.engine
            assert remote.registered().status == "verified"
            with pytest.raises(TargetError, match="measured with nothing, now"):
                remote.record_evidence({**conditions(loaded), "engine": "nothing"})

    @pytest.mark.transformers
    def test_so_is_the_one_of_transformers(self, tiny_gpt2: Path, tmp_path: Path) -> None:
        """Several packages make that engine; the daemon knows their versions without importing them."""
        path = tmp_path / "models.json"
        entry = {
            **{"name": "Tiny", "parameters": "1M", "memory_requirement": 100, "container": None},
            **{"status": "experimental", "use_cases": ["text_generation"], "chat": "none"},
            "variants": {
                "v": {"backend": "transformers", "source": {"type": "file", "path": str(tiny_gpt2)}}
            },
        }
        path.write_text(json.dumps({"models": {"tiny": entry}}))
        with InferenceEngine(registry=path, context_tokens=64) as engine:
            target = EngineTarget(engine, "tiny")
            target.load()
            loaded = target.environment()
            assert loaded.engine is not None
            assert re.fullmatch(r"torch [\w.+]+, transformers [\w.]+", loaded.engine)
            target.unload()
            assert target.record_evidence(conditions(loaded))["engine"] == loaded.engine
            assert engine.select("tiny")["candidates"][0]["tokens_per_s_source"] == MEASURED


def test_the_documented_record_is_one() -> None:
    """The example of docs/evidence.md is sealed and has every key that there is."""
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    example = json.loads(next(block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)))
    assert EvidenceRecord.model_validate_json(json.dumps(example)).sha256 == content_sha256(example)
    assert [name for name in EvidenceRecord.model_fields if f"`{name}`" not in text] == []


def conditions(environment: Any) -> dict[str, Any]:
    """A record of what was measured in *environment*."""
    names = ("model", "variant", "board", "l4t", "power_mode", "image", "engine", "weights_sha256")
    figures = {"decode_tokens_per_s": 40.0, "status": "verified"}
    return {**{name: getattr(environment, name) for name in names}, **figures}


def models() -> str:
    """What `jetllm models` prints."""
    result = CliRunner().invoke(cli.main, ["models"])
    assert result.exit_code == 0, result.output
    return str(result.output)
