"""From a pulled checkpoint to tokens, with the fake mlc_llm in real workers, by service and command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inference.api import create_app
from inference.artifacts.build import Target, import_bundle
from inference.artifacts.store import Store
from inference.building import board_target, can_compile
from inference.cli import main
from inference.errors import (
    BuildFailedError,
    InvalidRequestError,
    ModelNotBuiltError,
    ModelNotFoundError,
    UnsafeArtifactError,
)
from inference.generation import GenerateRequest, Message
from inference.inference_engine import InferenceEngine
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.mlc_checkpoints import make_llama
from tests.test_api_pull import events

FAKE = Path(__file__).parent / "fake_mlc"


@pytest.fixture(autouse=True)
def fake_mlc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fake is what this process, and every child of it, finds."""
    monkeypatch.syspath_prepend(str(FAKE))
    monkeypatch.setenv("PYTHONPATH", str(FAKE))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mlc_llm"]:
        del sys.modules[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one model, whose checkpoint is here and not built."""
    make_llama(tmp_path / "checkpoint")
    entry = {
        "name": "Tiny",
        "parameters": "1M",
        "memory_requirement": 100,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation", "text_generation"],
        "context_length": 256,
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 64,
        "hidden_size": 128,
        "vocab_size": 512,
        "chat": "embedded",
        "variants": {
            "mlc-q4f16_1": {
                "backend": "mlc",
                "quantization": "q4f16_1",
                "source": {"type": "file", "path": str(tmp_path / "checkpoint")},
            },
            "transformers": {"backend": "transformers"},
        },
    }
    (tmp_path / "models.json").write_text(json.dumps({"models": {"tiny": entry}}))
    for name, value in {
        "registry": tmp_path / "models.json",
        "cache_dir": tmp_path / "cache",
        "state_dir": tmp_path / "state",
        "mlc_device": "cpu",
        "port": 0,
    }.items():
        monkeypatch.setenv(f"JETLLM_{name.upper()}", str(value))
    return tmp_path


@pytest.fixture
def service(home: Path) -> Iterator[Service]:
    service = build_service(load_settings())
    yield service
    service.close()


ASK = GenerateRequest(model="tiny", messages=(Message("user", "Hello"),), max_tokens=8)


def jetllm(*words: str) -> Any:
    return CliRunner().invoke(main, list(words))


def test_a_build_is_served(service: Service) -> None:
    """Build, load, generate: the worker runs what the builder made."""
    row = service.build("tiny")
    assert row["variant"] == "mlc-q4f16_1" and row["text"]
    with service.generate(ASK) as stream:
        for _ in stream:
            pass
    assert stream.result is not None and stream.result.variant == "mlc-q4f16_1"
    assert stream.result.usage.completion_tokens == 8
    (shown,) = service.models()
    assert shown["variants"]["mlc-q4f16_1"]["built"] is True


def test_what_is_not_built_is_said_so(service: Service) -> None:
    """With the command that builds it; a chat request does not wait for minutes."""
    with pytest.raises(ModelNotBuiltError) as raised:
        service.generate(ASK)
    assert raised.value.hint == "jetllm build tiny --variant mlc-q4f16_1"
    (shown,) = service.models()
    row = shown["variants"]["mlc-q4f16_1"]
    assert (row["pulled"], row["built"], row["usable"], row["quarantined"]) == (True, False, True, None)


def test_loading_builds_first(home: Path) -> None:
    """Who asks for a model to be loaded has the time."""
    with InferenceEngine() as engine:
        seen: list[str] = []
        row = engine.load_model("tiny", building=lambda progress: seen.append(progress.step))
        assert row["state"] == "ready" and "compile" in seen
        assert engine.generate("Hello", max_tokens=4)["usage"]["completion_tokens"] == 4


def test_other_variants_need_no_build(service: Service) -> None:
    """The error names the way to run them."""
    with pytest.raises(InvalidRequestError, match="needs no build"):
        service.build("tiny", variant="transformers")
    with pytest.raises(ModelNotFoundError, match="no variant 'mlc-q5'"):
        service.build("tiny", variant="mlc-q5")


def test_a_library_of_another_engine_is_never_loaded(
    service: Service, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of mlc_llm the same model counts as not built."""
    service.build("tiny")
    other = home / "other"
    (other / "mlc_llm").mkdir(parents=True)
    (other / "mlc_llm" / "__init__.py").write_text("another = True\n")
    for path in FAKE.rglob("*.py"):
        target = other / path.relative_to(FAKE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes() + b"\n# another build\n")
    monkeypatch.syspath_prepend(str(other))
    service.close()
    again = build_service(load_settings())
    try:
        with pytest.raises(ModelNotBuiltError):
            again.generate(ASK)
    finally:
        again.close()


def test_jetllm_build_and_run(home: Path) -> None:
    """`jetllm build` says what it kept; `jetllm run` answers with it."""
    built = jetllm("build", "tiny", "--variant", "mlc-q4f16_1", "--device", "cpu")
    assert built.exit_code == 0, built.output
    assert "tiny/mlc-q4f16_1: built: q4f16_1" in built.output and "5/7 compile" in built.output
    ran = jetllm("run", "Hello", "--model", "tiny", "--device", "cpu", "--max-tokens", "4", "--json")
    assert ran.exit_code == 0, ran.output
    assert '"completion_tokens": 4' in ran.output


def test_jetllm_run_builds_what_it_is_told_to_run(home: Path) -> None:
    """A named model is brought as far as it must be."""
    ran = jetllm("run", "Hello", "--model", "tiny", "--max-tokens", "4")
    assert ran.exit_code == 0, ran.output
    assert "7/7 publish" in ran.output


def test_a_bundle_carries_a_build(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written here, taken there: it runs without its checkpoint."""
    assert jetllm("build", "tiny").exit_code == 0
    written = jetllm("bundle", "export", "tiny", "-o", str(home / "tiny.tar"), "--json")
    assert written.exit_code == 0, written.output
    monkeypatch.setenv("JETLLM_CACHE_DIR", str(home / "elsewhere"))
    (home / "checkpoint").rename(home / "gone")
    taken = jetllm("bundle", "import", str(home / "tiny.tar"))
    assert taken.exit_code == 0 and "tiny/mlc-q4f16_1: here" in taken.output, taken.output
    ran = jetllm("run", "Hello", "--model", "tiny", "--max-tokens", "4")
    assert ran.exit_code == 0, ran.output


def test_a_bundle_for_a_board_is_compiled_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another kind of machine only the weights are made; the library is the board's work."""
    built = jetllm("build", "tiny", "--for", "orin-nano-8gb")
    assert "converted, to be compiled on the board" in built.output, built.output
    assert jetllm("bundle", "export", "tiny", "-o", str(home / "tiny.tar")).exit_code == 0
    monkeypatch.setenv("JETLLM_CACHE_DIR", str(home / "elsewhere"))
    (home / "checkpoint").rename(home / "gone")
    taken = jetllm("bundle", "import", str(home / "tiny.tar"))
    assert "now: jetllm build tiny" in taken.output, taken.output
    assert jetllm("run", "Hello", "--model", "tiny", "--max-tokens", "4").exit_code == 0


def test_a_library_of_another_machine_stays_outside(
    home: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names what differs; the weights alone may be taken."""
    service.build("tiny")
    service.building.export("tiny", None, home / "tiny.tar", lambda _: None)
    monkeypatch.setenv("JETLLM_CACHE_DIR", str(home / "elsewhere"))
    monkeypatch.setenv("JETLLM_MLC_DEVICE", "cuda")
    refused = jetllm("bundle", "import", str(home / "tiny.tar"))
    assert refused.exit_code == 1 and "--weights-only" in refused.output
    assert "the device is cpu; here it is cuda" in refused.output
    taken = jetllm("bundle", "import", str(home / "tiny.tar"), "--weights-only", "--json")
    assert taken.exit_code == 0 and '"portable": true' in taken.output, taken.output
    assert not list((home / "elsewhere").rglob("lib.so"))


@pytest.mark.parametrize("place", [0.001, 0.2, 0.5, 0.9, 0.97])
def test_a_damaged_bundle_is_refused(home: Path, service: Service, place: float) -> None:
    """Wherever a byte is another one, or the file ends: nothing comes in."""
    service.build("tiny")
    path = home / "tiny.tar"
    service.building.export("tiny", None, path, lambda _: None)
    whole = path.read_bytes()
    content = whole.rstrip(b"\0")
    at = int(len(content) * place)
    for damaged in (content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], content[:at]):
        (home / "bad.tar").write_bytes(damaged)
        with pytest.raises(UnsafeArtifactError):
            import_bundle(
                home / "bad.tar",
                Store(home / "other"),
                engine=None,
                target=Target("cpu"),
                leave_library=True,
                report=lambda _: None,
            )
        assert not list((home / "other" / "builds").glob("*"))
        assert not list((home / "other" / "staging").glob("*"))


def test_boards_are_known_by_name() -> None:
    """An unknown one is refused with the list."""
    here = Target("cuda", "8.7", "aarch64", None, "36.4")
    assert board_target("orin-nano-8gb", here) == here
    assert can_compile(here, board_target("orin-nano-8gb", here))
    assert not can_compile(here, board_target("xavier-nx-8gb", here))
    with pytest.raises(InvalidRequestError) as raised:
        board_target("orin-nano", here)
    assert "orin-nano-8gb" in (raised.value.hint or "")


@pytest.fixture
def smollm2_copy(smollm2_path: Path, tmp_path: Path) -> Path:
    """A link to the real model that a test may take away."""
    (tmp_path / "smollm2.gguf").symlink_to(smollm2_path)
    return tmp_path / "smollm2.gguf"


def test_where_nothing_holds_the_next_backend_is_taken(home: Path, smollm2_copy: Path) -> None:
    """Every quantization fails, for good: the model counts as incompatible with MLC here, and says why."""
    checkpoint = home / "checkpoint" / "config.json"
    checkpoint.write_text(checkpoint.read_text().replace('"model_type": "llama"', '"model_type": "novelty"'))
    registry = json.loads((home / "models.json").read_text())
    source = {"type": "file", "path": str(smollm2_copy)}
    registry["models"]["tiny"]["variants"]["llamacpp"] = {"backend": "llamacpp", "source": source}
    (home / "models.json").write_text(json.dumps(registry))
    with InferenceEngine() as engine:
        service = engine._service
        with pytest.raises(BuildFailedError, match="novelty"):
            service.build_or_pass("tiny", "mlc-q4f16_1", "mlc-q4f16_1")
        service.build_or_pass("tiny", None, "mlc-q4f16_1")
        selection = service.select(replace(ASK, model=None))
        by_variant = {each.variant: each for each in selection.candidates}
        assert engine.load_model("tiny")["variant"] == "llamacpp"
        assert engine.generate("Hello", max_tokens=2)["text"]
    assert "it cannot be built: q4f16_1: gen_config" in by_variant["mlc-q4f16_1"].reason
    named = jetllm("run", "Hello", "--model", "tiny", "--variant", "mlc-q4f16_1")
    assert named.exit_code == 1 and "novelty" in named.output


def test_a_build_over_http(service: Service) -> None:
    """Progress as events, then the record, without a path of this machine."""
    client = create_app(service).test_client()
    told = events(client.post("/jetllm/v1/models/tiny/build", json={}).get_data(as_text=True))
    steps = {data["step"] for kind, data in told if kind == "progress"}
    assert {"convert_weight", "compile", "verify"} <= steps
    kind, done = told[-1]
    assert kind == "done" and done["recipe"]["quantization"] == "q4f16_1"
    assert str(service.settings.cache_path) not in json.dumps(told)
    refused = client.post("/jetllm/v1/models/tiny/build", json={"variant": "transformers"})
    assert refused.status_code == 400
    asked = client.post(
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    )
    assert asked.status_code == 200, asked.get_data(as_text=True)


def test_an_unbuilt_model_over_http(service: Service) -> None:
    """404 with the command, not minutes of silence."""
    asked = (
        create_app(service)
        .test_client()
        .post(
            "/v1/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}
        )
    )
    assert asked.status_code == 404
    error = asked.get_json()["error"]
    assert error["code"] == "model_not_built" and "jetllm build tiny" in json.dumps(error)
