"""Decisions without a daemon: for this machine, another memory, another board; recorded and repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inference.cli import main

ROOT = Path(__file__).resolve().parent.parent
BOARDS = ROOT / "tests" / "fixtures" / "devices"
ORIN = str(BOARDS / "orin-nano-8gb-super")
GUIDE: dict[str, dict[str, Any]] = {
    "distilgpt2": {
        "name": "DistilGPT-2",
        "parameters": "82M",
        "memory_requirement": 1500,
        "container": "dustynv/mlc:r36.4.0",
        "status": "production",
        "use_cases": ["text_generation", "creative_writing"],
    },
    "dialogpt-small": {
        "name": "DialoGPT-small",
        "parameters": "117M",
        "memory_requirement": 2000,
        "container": "dustynv/mlc:r36.4.0",
        "status": "production",
        "use_cases": ["conversation", "text_generation"],
        "min_available_memory": 2500,
    },
    "gpt2": {
        "name": "GPT-2",
        "parameters": "124M",
        "memory_requirement": 2500,
        "container": "dustynv/mlc:r36.4.0",
        "status": "production",
        "use_cases": ["text_generation", "creative_writing"],
        "min_available_memory": 4000,
    },
}


def select(*arguments: str) -> Result:
    """Run `jetllm select`."""
    return CliRunner().invoke(main, ["select", *arguments])


def chosen(*arguments: str) -> dict[str, Any]:
    """Run `jetllm select --json` and return its answer."""
    result = select(*arguments, "--json")
    assert result.exit_code == 0, result.output
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(params=["the guide's five keys", "the shipped entries"])
def three_models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of the three original models, named by JETLLM_REGISTRY."""
    shipped = json.loads((ROOT / "models.json").read_text())["models"]
    entries = GUIDE if request.param.startswith("the guide") else {name: shipped[name] for name in GUIDE}
    path = tmp_path / "three.json"
    path.write_text(json.dumps({"models": entries}))
    monkeypatch.setenv("JETLLM_REGISTRY", str(path))
    return path


@pytest.mark.parametrize("board", ["orin-nano-8gb-super", "agx-orin-64gb", "x86-none"])
@pytest.mark.parametrize(
    ("available_mb", "model"),
    [
        (8000, "gpt2"),
        (4001, "gpt2"),
        (3999, "dialogpt-small"),
        (2501, "dialogpt-small"),
        (2499, "distilgpt2"),
        (2000, "distilgpt2"),
        (1600, "distilgpt2"),
    ],
)
def test_the_three_original_models_by_available_memory(
    three_models: Path, board: str, available_mb: int, model: str
) -> None:
    """Above 4000 MB GPT-2, from 2500 MB DialoGPT-small, below DistilGPT-2: text generation by quality."""
    arguments = ("--task", "text_generation", "--speed", "quality", "--available-mb", str(available_mb))
    assert chosen(*arguments, "--root", str(BOARDS / board))["model"] == model


@pytest.mark.parametrize("available_mb", [8000, 3000, 2000])
def test_the_fastest_of_the_three_is_distilgpt2(three_models: Path, available_mb: int) -> None:
    """Speed priority takes the fewest bytes per token, whatever the memory."""
    arguments = ("--task", "text_generation", "--speed", "fast", "--available-mb", str(available_mb))
    assert chosen(*arguments, "--root", ORIN)["model"] == "distilgpt2"


@pytest.mark.parametrize("speed", ["fast", "balanced", "quality"])
def test_a_conversation_goes_to_dialogpt(three_models: Path, speed: str) -> None:
    """A conversational prompt is seen as one, and its own model serves it."""
    answer = chosen("--prompt", "Hello, how are you today?", "--speed", speed, "--root", ORIN)
    assert (answer["task"], answer["model"]) == ("conversation", "dialogpt-small")


def test_without_variants_mlc_in_its_container_and_transformers_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The five-key form says nothing of engines: the board's image decides."""
    path = tmp_path / "three.json"
    path.write_text(json.dumps({"models": GUIDE}))
    monkeypatch.setenv("JETLLM_REGISTRY", str(path))
    assert chosen("--task", "text_generation", "--root", ORIN)["variant"] == "mlc"
    for elsewhere in ("x86-none", "xavier-nx", "agx-thor-t5000"):
        answer = chosen("--task", "text_generation", "--root", str(BOARDS / elsewhere))
        assert answer["variant"] == "transformers"


def test_the_answer_begins_with_the_choice() -> None:
    """Model, variant, context and reason stand at the top level, then every candidate once."""
    answer = chosen("--task", "code", "--root", ORIN)
    assert list(answer)[:4] == ["model", "variant", "context_tokens", "reason"]
    registered = json.loads((ROOT / "models.json").read_text())["models"]
    keys = [(c["model"], c["variant"]) for c in answer["candidates"]]
    assert sorted(keys) == sorted((m, v) for m, spec in registered.items() for v in spec["variants"])
    assert [c["verdict"] for c in answer["candidates"]].count("chosen") == 1
    assert all(c["reason"] for c in answer["candidates"])


def test_a_reader_gets_a_line_and_a_table() -> None:
    """Without --json the reason comes first, then a row for each candidate."""
    result = select("--task", "code", "--root", ORIN)
    assert result.exit_code == 0
    reason, empty, headers = result.stdout.splitlines()[:3]
    assert empty == "" and headers.split()[0] == "CANDIDATE"
    assert reason == chosen("--task", "code", "--root", ORIN)["reason"]


def test_equal_questions_get_equal_answers() -> None:
    """The choice is deterministic to the byte."""
    first, second = (select("--task", "code", "--root", ORIN, "--json").stdout for _ in range(2))
    assert first == second


def test_a_refusal_says_what_would_fit() -> None:
    """Exit code 1, the reason, and the way out; as JSON with --json."""
    arguments = ("--task", "conversation", "--root", ORIN, "--available-mb", "600")
    refused = select(*arguments)
    assert refused.exit_code == 1 and "it would fit" in refused.stderr
    as_json = select(*arguments, "--json")
    assert as_json.exit_code == 1
    error = json.loads(as_json.stdout)["error"]
    assert error["code"] == "does_not_fit" and error["details"]["would_fit_if"]


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    """A typo in --task is no silent conversation."""
    refused = select("--task", "coding-stuff", "--root", ORIN)
    assert refused.exit_code == 1
    assert "expected one of conversation, creative_writing, code" in refused.stderr


def test_a_recorded_decision_repeats(tmp_path: Path) -> None:
    """What was logged comes out the same, from the file alone; a changed record does not pass."""
    log = tmp_path / "decisions.jsonl"
    for speed in ("fast", "quality"):
        chosen("--task", "code", "--speed", speed, "--root", ORIN, "--record", str(log))
    repeated = select("--replay", str(log), "--json")
    assert [entry["same"] for entry in json.loads(repeated.stdout)] == [True, True]
    first, second = log.read_text().splitlines()
    changed = json.loads(first)
    changed["selection"]["model"] = "gpt2"
    log.write_text(f"{json.dumps(changed)}\n{second}\n")
    result = select("--replay", str(log))
    assert result.exit_code == 1
    assert result.stdout.count("DIFFERENT") == 1


def test_decisions_repeat_after_the_registry_changed(three_models: Path, tmp_path: Path) -> None:
    """The registry that a decision was made with is kept beside the log."""
    log = tmp_path / "decisions.jsonl"
    chosen("--task", "text_generation", "--root", ORIN, "--record", str(log))
    one = {"distilgpt2": GUIDE["distilgpt2"]}
    three_models.write_text(json.dumps({"models": one}))
    assert select("--replay", str(log)).exit_code == 0
    for copy in tmp_path.glob("decisions.jsonl.registry-*"):
        copy.unlink()
    lost = select("--replay", str(log))
    assert lost.exit_code == 1 and "its registry is not here" in lost.stdout


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    """A wrong file gives a line number and no traceback."""
    log = tmp_path / "notes.txt"
    log.write_text("hello\n")
    refused = select("--replay", str(log))
    assert refused.exit_code == 1
    assert "notes.txt: line 1: expected a recorded decision" in refused.stderr


def test_needed_context_rules_out_what_cannot_give_it() -> None:
    """--context is a demand: GPT-2 has 1024 tokens and is rejected with that reason."""
    answer = chosen("--task", "text_generation", "--context", "2048", "--root", ORIN)
    assert answer["context_tokens"] >= 2048
    reasons = {c["model"]: c["reason"] for c in answer["candidates"] if c["verdict"] == "rejected"}
    assert "1024" in reasons["gpt2"]


def test_models_schema_prints_the_shipped_schema() -> None:
    """`jetllm models schema` and models.schema.json are the same text."""
    result = CliRunner().invoke(main, ["models", "schema"])
    assert result.exit_code == 0
    assert result.stdout == (ROOT / "models.schema.json").read_text()


def test_a_board_is_shown_from_its_files() -> None:
    """`jetllm device --root DIR`: static facts and live readings apart, null where unknown."""
    result = CliRunner().invoke(main, ["device", "--root", ORIN, "--json"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert list(answer) == ["static", "live"]
    assert answer["static"]["board"] == "orin-nano-8gb"
    assert set(answer["live"]) == {"memory", "telemetry"}
