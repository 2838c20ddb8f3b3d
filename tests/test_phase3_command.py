"""`phase3/test_comprehensive.py` and `jetllm check`: as users type them, on the real SmolLM2."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest

from phase3 import result
from phase3.command import main
from tests.daemon_process import MODEL, DaemonProcess
from tests.report_samples import broken, healthy

ROOT = Path(__file__).resolve().parent.parent
SUITE = [sys.executable, "test_comprehensive.py"]
CHECK = [sys.executable, "-m", "inference", "check"]
RUN_S = 240.0
# What the machine is like while the tests run; docs/examples/ has what a calm one says.
MACHINES = {"environment", "speed"}
Capture = pytest.CaptureFixture[str]


def environment(state: Path, **settings: object) -> dict[str, str]:
    variables = {f"JETLLM_{name.upper()}": str(value) for name, value in settings.items()}
    return {**os.environ, "JETLLM_STATE_DIR": str(state), **variables}


def suite(
    *arguments: str, state: Path, command: list[str] = SUITE, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run the command in phase3/, as the README says it."""
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT / "phase3",
        env=environment(state, **settings),
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )


def test_the_suite_proves_a_real_model_in_process(smollm2_path: Path, tmp_path: Path) -> None:
    """A quick run passes, writes every form of report, and leaves evidence that `jetllm models` shows."""
    out, state = tmp_path / "out", tmp_path / "state"
    done = suite("--model", MODEL, "--quick", "--out", str(out), state=state, context_tokens=1024)
    assert "Loads without errors" in done.stderr and "Traceback" not in done.stderr
    (folder,) = (out / MODEL / "llamacpp-q4_1").iterdir()
    assert str(folder / "report.html") in done.stdout
    report = result.load(folder / "report.json")
    bad = {found.check for found in report.findings if found.verdict not in ("pass", "skip")}
    assert bad <= MACHINES and not report.partial, done.stdout + done.stderr
    assert done.returncode == result.exit_code(report)
    assert report.environment["certified"] is True and report.benchmark
    assert ElementTree.parse(folder / "junit.xml").getroot().get("tests") == "21"  # noqa: S314 - ours
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert f"# {MODEL}: " in (folder / "report.md").read_text()
    (row,) = csv.DictReader((out / "results.csv").read_text().splitlines())
    assert (row["model"], row["verdict"]) == (MODEL, result.verdict(report))
    shown = subprocess.run(
        [sys.executable, "-m", "inference", "models", "--json"],
        env=environment(state, context_tokens=1024),
        capture_output=True,
        text=True,
        check=True,
    )
    (entry,) = (row for row in json.loads(shown.stdout) if row["id"] == MODEL)
    measured = entry["variants"]["llamacpp-q4_1"]["measured"]
    assert (measured is None) == (result.verdict(report) == "unfit")


def test_a_run_against_a_daemon_can_be_stopped_and_reports_what_it_has(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """Ctrl-C gives a valid partial report, exit code 2, and leaves the daemon as it was."""
    out = tmp_path / "out"
    with DaemonProcess(tmp_path / "state", context_tokens=1024, keep_alive_s=-1) as daemon:
        process = subprocess.Popen(
            [*CHECK, MODEL, "--url", daemon.url, "--out", str(out), "--json"],
            env=environment(tmp_path / "other"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stop_at_first_text_check = threading.Thread(target=_interrupt_after, args=(process, "Loads without"))
        stop_at_first_text_check.start()
        assert process.stdout is not None
        printed = process.stdout.read()
        stop_at_first_text_check.join()
        assert process.wait(RUN_S) == 2
        process.stdout.close()
        assert daemon.workers() == []
    (summary,) = json.loads(printed)
    report = result.load(Path(summary["report"]).with_name("report.json"))
    assert report.partial and "load" in {found.check for found in report.findings}
    assert not (tmp_path / "state" / "evidence.jsonl").exists()


def _interrupt_after(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            if words in line:
                process.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "smolm2-135m-instruct"], "smollm2-135m-instruct"),
        (["--model", MODEL, "--variant", "nothing"], "variant"),
        (["--model", MODEL, "--url", "http://127.0.0.1:9"], "does not answer"),
        (["--model", MODEL, "--url", "board"], "expected http://HOST:PORT"),
        (["--model", MODEL, "--soak", "never"], "expected minutes"),
        (["--model", MODEL, "--compare", "nowhere.json"], "there is no such file"),
        (["--model", MODEL, "--quick", "--full"], "not allowed with"),
        (["--compare", __file__, __file__, __file__], "expected one report or two, got 3"),
        (["--model", MODEL, "--compare", __file__], "not JSON"),
    ],
)
def test_a_wrong_command_is_told_what_is_wrong(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Exit code 2 and a sentence, never a traceback."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path))
    try:
        code: object = main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_where_reports_go_is_tried_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Ten minutes of work are not lost for a folder that cannot be written to."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path / "state"))
    taken = tmp_path / "file"
    taken.write_text("")
    assert main(["--model", MODEL, "--out", str(taken)]) == 2
    assert "--out DIR" in capsys.readouterr().err


def test_two_reports_are_compared_without_a_run(tmp_path: Path, capsys: Capture) -> None:
    """`--compare OLD NEW` prints the table."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    result.save(healthy(), old)
    result.save(broken(), new)
    assert main(["--compare", str(old), str(new)]) == 0
    assert "slower" in capsys.readouterr().out


def test_without_any_model_here_the_next_step_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Every model that can run here: none, and how to get one."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("JETLLM_CACHE_DIR", str(tmp_path / "cache"))
    assert main(["--out", str(tmp_path / "out")]) == 2
    assert "jetllm pull" in capsys.readouterr().err


def test_the_suite_is_one_command_from_any_directory(tmp_path: Path) -> None:
    """By path from elsewhere, as a module, and as `jetllm check`: the same help."""
    path = str(ROOT / "phase3" / "test_comprehensive.py")
    texts = [
        subprocess.run(
            command, cwd=where, env=environment(tmp_path), capture_output=True, text=True, check=True
        )
        .stdout.replace(name, "X")
        .split()
        for command, where, name in (
            ([sys.executable, path, "--help"], tmp_path, "test_comprehensive.py"),
            ([sys.executable, "-m", "phase3", "--help"], ROOT, "python -m phase3"),
            ([*CHECK, "--help"], ROOT, "jetllm check"),
        )
    ]
    assert texts[0] == texts[1] == texts[2] and "--soak" in texts[0]
