"""The command line beside a real daemon with a real model: run, chat, status, logs, bench, pull, rm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inference.cli import main
from inference.doctor import Verdict, running
from inference.doctor.finding import Scene
from inference.settings import load_settings
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.terminal import CTRL_C, CTRL_D, UP, Terminal

PRIVATE = "a prompt that nobody may read"
KEY = {"Authorization": "Bearer hush-hush"}
GREEDY = ("--model", MODEL, "--temperature", "0", "--max-tokens", "8")


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """One daemon with SmolLM2 loaded, and a store of its own with nothing else in it."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / "blobs").mkdir()
    shutil.copyfile(smollm2_path, cache / "blobs" / smollm2_path.name)
    options = {"cache_dir": cache, "context_tokens": 512, "keep_alive_s": -1, "api_key": "hush-hush"}
    with DaemonProcess(tmp_path_factory.mktemp("state"), **options) as started:
        status, row = started.ask("POST", "/jetllm/v1/models/load", {"model": MODEL}, KEY)
        assert (status, row["state"]) == (200, "ready")
        yield started


@pytest.fixture
def beside(daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> DaemonProcess:
    """The daemon, with the environment of its commands."""
    for name in ("STATE_DIR", "CACHE_DIR", "API_KEY"):
        monkeypatch.setenv(f"JETLLM_{name}", daemon._environment[f"JETLLM_{name}"])
    return daemon


def jetllm(*words: str, data: str | None = None) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(words), input=data)


def value(*words: str) -> Any:
    """Return what a command prints with --json."""
    done = jetllm(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def running_requests() -> int:
    """How many requests compute now."""
    count: int = value("status")["queue"]["running"]
    return count


# One prompt


def test_a_prompt_may_come_from_standard_input(beside: DaemonProcess) -> None:
    """`echo hi | jetllm run -` is `jetllm run hi`; without a terminal "-" may be left out."""
    asked = jetllm("run", "Say hi", *GREEDY)
    assert asked.exit_code == 0 and asked.stdout.strip()
    assert jetllm("run", "-", *GREEDY, data="Say hi").stdout == asked.stdout
    assert jetllm("run", *GREEDY, data="Say hi").stdout == asked.stdout


def test_the_system_text_comes_first(beside: DaemonProcess) -> None:
    """--system is a turn of its own, which counts."""
    plain = value("run", "Say hi", *GREEDY)["usage"]["prompt_tokens"]
    told = value("run", "Say hi", *GREEDY, "--system", "You are a very polite pirate.")["usage"][
        "prompt_tokens"
    ]
    assert told != plain


def test_a_daemon_that_is_killed_in_the_answer_is_told(smollm2_path: Path, tmp_path: Path) -> None:
    """What came stays on the screen, then one error; no traceback."""
    with DaemonProcess(tmp_path, "--preload", MODEL, context_tokens=1024) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "inference",
                "run",
                "Tell a story",
                "--model",
                MODEL,
                "--max-tokens",
                "900",
            ],
            env={**os.environ, "JETLLM_STATE_DIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as asked:
            assert asked.stdout is not None and asked.stderr is not None
            assert asked.stdout.read(1)
            daemon.stop(signal.SIGKILL)
            error = asked.stderr.read().decode()
            assert asked.wait(20) == 1
    assert f"{MODEL}: ready after" in (tmp_path / "daemon.log").read_text()
    assert "is lost" in error and "jetllm logs" in error and "Traceback" not in error


# The conversation


def test_a_conversation_streams_and_obeys(beside: DaemonProcess) -> None:
    """At a terminal: answers, every command, several lines, Ctrl-C for the answer, Ctrl-D for the end."""
    with Terminal("run", "--model", MODEL, "--max-tokens", "12", "--temperature", "0") as terminal:
        terminal.expect(">>> ")
        terminal.type("/help\n")
        assert "/model NAME" in terminal.expect("several lines")
        terminal.expect(">>> ")
        terminal.type("/stats\n")
        terminal.expect("no answer yet")
        terminal.expect(">>> ")
        terminal.type("Say hi\n")
        terminal.expect("Say hi\r\n")
        assert len(terminal.expect(">>> ").strip(" >\r\n")) > 3
        terminal.type("/stats\n")
        assert "12 written" in terminal.expect("ended by length")
        terminal.expect(">>> ")
        terminal.type("/model smolm2\n")
        terminal.expect("error: ")
        terminal.expect(">>> ")
        terminal.type("/model smollm2\n")
        terminal.expect(f"model: {MODEL}")
        terminal.expect(">>> ")
        terminal.type("/system Answer in French.\n")
        terminal.expect("system: Answer in French.")
        terminal.expect(">>> ")
        terminal.type("/fly\n")
        terminal.expect("unknown command /fly")
        terminal.expect(">>> ")
        terminal.type("/clear\n")
        terminal.expect("forgotten")
        terminal.expect(">>> ")
        terminal.type('"""one\n')
        terminal.expect("... ")
        terminal.type('two"""\n')
        terminal.expect('two"""\r\n')
        terminal.expect(">>> ")
        terminal.type(CTRL_C)
        terminal.expect("ends the conversation")
        terminal.expect(">>> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


def test_ctrl_c_stops_the_answer_and_not_the_conversation(beside: DaemonProcess) -> None:
    """The daemon stops computing; the next question is answered."""
    with Terminal("run", "--model", MODEL, "--max-tokens", "450", "--temperature", "0") as terminal:
        terminal.expect(">>> ")
        terminal.type("Write a very long story about a dragon\n")
        wait_until(lambda: running_requests() == 1, "the answer's start")
        terminal.expect("about a dragon\r\n")
        terminal.type(CTRL_C)
        terminal.expect("stopped")
        wait_until(lambda: running_requests() == 0, "the answer's end", 3)
        terminal.expect(">>> ")
        terminal.type("/exit\n")
        assert terminal.end() == 0


def test_typed_lines_are_kept_for_their_owner(beside: DaemonProcess) -> None:
    """The history is of mode 0600, and the next conversation has it."""
    history = beside._state_dir / "chat_history"
    with Terminal("run", "--model", MODEL, "--max-tokens", "2") as terminal:
        terminal.expect(">>> ")
        terminal.type("/system remember this\n")
        terminal.expect("system: remember this")
        terminal.expect(">>> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with Terminal("run", "--model", MODEL) as terminal:
        terminal.expect(">>> ")
        terminal.type(UP)
        terminal.expect("/system remember this")
        terminal.type("\n")
        terminal.expect("system: remember this")
        terminal.expect(">>> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_a_conversation_needs_no_daemon(smollm2_path: Path) -> None:
    """Without a daemon this process answers, stops at Ctrl-C and goes on."""
    with Terminal("run", "--model", MODEL, "--max-tokens", "3000", "--temperature", "0") as terminal:
        terminal.expect(">>> ")
        terminal.type("Write a very long story about a dragon\n")
        terminal.expect("about a dragon\r\n")
        terminal.expect(" ")
        terminal.type(CTRL_C)
        terminal.expect("stopped")
        terminal.expect(">>> ")
        terminal.type("/clear\n")
        terminal.expect("forgotten")
        terminal.expect(">>> ")
        terminal.type("Say hi\n")
        terminal.expect("Say hi\r\n")
        terminal.expect(">>> ")
        terminal.type("/stats\n")
        terminal.expect(f"{MODEL}/")
        terminal.expect(">>> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


def test_json_needs_a_prompt(beside: DaemonProcess) -> None:
    """A conversation is no JSON value."""
    with Terminal("run", "--json") as terminal:
        assert terminal.end() == 2
    assert "--json goes with a PROMPT" in terminal.screen


# What the daemon tells


def test_status_is_one_screen(beside: DaemonProcess) -> None:
    """Daemon, queue, memory, machine and models, in text and in JSON."""
    shown = jetllm("status").stdout
    for part in ("daemon   ready; jetllm", beside.url, "queue    0 running", "memory   ", "device   ", MODEL):
        assert part in shown
    tree = value("status")
    assert tree["ready"] is True and tree["pid"] == beside.pid and tree["device"]["static"]["arch"]
    assert [worker["model"] for worker in tree["workers"]] == [MODEL]


def test_the_log_has_what_happened_and_no_secrets(beside: DaemonProcess) -> None:
    """The start and the loads, in a file for its owner alone; no prompt, no answer, no key."""
    answer = value("run", PRIVATE, *GREEDY)["choices"][0]["message"]["content"]
    beside.ask("POST", "/v1/chat/completions", {"messages": PRIVATE}, KEY)
    beside.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {PRIVATE}"})
    shown = jetllm("logs", "-n", "1000").stdout
    assert f"listens on {beside.url}" in shown
    assert not any(secret in shown for secret in (PRIVATE, "hush-hush", answer.strip()))
    assert stat.S_IMODE((beside._state_dir / "daemon.log").stat().st_mode) == 0o600
    entry = value("logs", "-n", "1000")[0]
    assert entry["level"] == "INFO" and entry["logger"] == "inference.daemon"
    assert len(jetllm("logs", "-n", "1").stdout.splitlines()) == 1


def test_the_log_is_followed(beside: DaemonProcess) -> None:
    """`jetllm logs -f` shows what comes, until Ctrl-C."""
    with Terminal("logs", "-f", "-n", "1") as terminal:
        terminal.expect("INFO")
        jetllm("load", MODEL, "--pin")
        jetllm("unload", MODEL)
        terminal.expect("unloaded")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    assert value("load", MODEL, "--no-pin")["state"] == "ready"


def test_the_log_outlives_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a daemon did not start can be read afterwards."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("JETLLM_REGISTRY", str(tmp_path / "models.json"))
    (tmp_path / "models.json").write_text("{")
    failed = subprocess.run(
        [sys.executable, "-m", "inference", "serve", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert failed.returncode == 78
    assert "models.json" in jetllm("logs").stdout


def test_the_doctor_asks_the_daemon(beside: DaemonProcess) -> None:
    """A daemon that is ready is well, and its port is its own."""
    scene = Scene(settings=load_settings())
    assert [found.verdict for found in running.daemon(scene)] == [Verdict.OK]
    assert "the daemon listens on" in next(iter(running.port(scene))).detail


def test_a_key_that_is_missing_is_explained(beside: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its key the command line is refused like everybody else, and says so."""
    monkeypatch.delenv("JETLLM_API_KEY")
    refused = jetllm("ps", "--json")
    assert refused.exit_code == 1 and "JETLLM_API_KEY" in refused.stderr
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"


# Work in the daemon


def test_a_pull_is_the_daemons(beside: DaemonProcess) -> None:
    """Its result is the daemon's answer; its progress is on standard error alone."""
    pulled = jetllm("pull", "smollm2", "--json")
    assert pulled.exit_code == 0, pulled.stderr
    (row,) = json.loads(pulled.stdout)
    assert row["model"] == MODEL and f"{MODEL}/{row['variant']}: here" in pulled.stderr


def test_a_bench_is_measured_in_the_daemon(beside: DaemonProcess) -> None:
    """The figures and what was predicted, as text and as JSON."""
    course = ("--runs", "1", "--max-tokens", "8", "--prompt-tokens", "16")
    figures = value("bench", MODEL, *course)
    assert figures["model"] == MODEL and figures["decode_tokens_per_s"]["median"] > 0
    shown = jetllm("bench", MODEL, *course)
    assert "first text after, ms" in shown.stdout and "round 1 of 1" in shown.stderr


def test_a_bench_needs_no_daemon(smollm2_path: Path) -> None:
    """Without a daemon it is measured in this process; more at once than slots is refused."""
    course = ("--runs", "1", "--max-tokens", "4", "--prompt-tokens", "16")
    assert value("bench", MODEL, *course)["completion_tokens"] == 4
    refused = jetllm("bench", MODEL, "--concurrency", "9")
    assert refused.exit_code == 1 and "slots" in refused.stderr


def test_weights_are_removed_once_nobody_uses_them(beside: DaemonProcess) -> None:
    """What is loaded stays; afterwards its disk is given back, and `pull` would bring it again."""
    blob = next((Path(beside._environment["JETLLM_CACHE_DIR"]) / "blobs").glob("sha256-*"))
    size = blob.stat().st_size
    value("load", MODEL, "--no-pin")
    refused = jetllm("rm", MODEL)
    assert refused.exit_code == 1 and "jetllm unload" in refused.stderr and blob.exists()
    value("unload", MODEL)
    kept = blob.parents[2] / "kept"
    os.link(blob, kept)
    row = value("rm", MODEL)
    assert row["model"] == MODEL and row["freed_bytes"] >= size and not blob.exists()
    again = jetllm("rm", MODEL)
    assert again.exit_code == 1 and "not" in again.stderr
    kept.rename(blob)  # for the other tests
