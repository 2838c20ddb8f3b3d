"""The command line as a whole: every command's help, its JSON, its completion, its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

import inference
from inference.cli import main
from inference.instance import InstanceLock

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
MODEL = "smollm2-135m-instruct"
BOARD = str(ROOT / "tests/fixtures/devices/orin-nano-8gb")
NO_DATA = {"serve", "completion"}  # the one never ends, the other prints a script
ITS_OWN = {"check"}  # parses its own words; phase3's tests look at its --json


def walk(group: click.Group = main, words: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Yield every command with its words, groups too."""
    for name, command in group.commands.items():
        yield " ".join((*words, name)), command
        if isinstance(command, click.Group):
            yield from walk(command, (*words, name))


COMMANDS = dict(walk())


def jetllm(*words: str) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, list(words), prog_name="jetllm")


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_it_is_and_shows_an_example(words: str) -> None:
    """Every command's help has a sentence, and an example that begins with the command itself."""
    shown = jetllm(*words.split(), "--help")
    assert shown.exit_code == 0
    if words in ITS_OWN:
        assert f"jetllm {words} --" in shown.stdout
        return
    examples = re.search(r"Examples?:\n((?: +\S.*\n)+)", shown.stdout)
    assert examples is not None and f"jetllm {words}" in examples.group(1)
    assert COMMANDS[words].get_short_help_str()


@pytest.mark.parametrize("words", COMMANDS)
def test_what_prints_data_prints_json_too(words: str) -> None:
    """Every command that prints data has --json."""
    command = COMMANDS[words]
    if words in NO_DATA | ITS_OWN | {"models schema"} or (
        isinstance(command, click.Group) and words != "models"
    ):
        return
    assert "--json" in {flag for param in command.params for flag in param.opts}


@pytest.mark.parametrize(
    "words",
    [
        ("models",),
        ("models", "schema"),
        ("device",),
        ("device", "--root", BOARD),
        ("select", "--task", "code", "--root", BOARD),
        ("version",),
        ("logs",),
        ("keys", "list"),
        ("keys", "add", "laptop"),
        ("doctor", "--root", BOARD),
        ("lint", MODEL, "--image", "dustynv/mlc:0.20.0-r36.4.0"),
    ],
    ids=" ".join,
)
def test_json_is_one_value_and_alone_on_stdout(words: tuple[str, ...]) -> None:
    """With --json standard output has one JSON value and nothing else; notes are elsewhere."""
    given = words if words[-1] == "schema" else (*words, "--json")
    shown = jetllm(*given)
    assert shown.exit_code in (0, 1)
    assert json.loads(shown.stdout) is not None


def test_an_error_is_json_too() -> None:
    """With --json an error is {"error": ...} on standard output, and a message on the other."""
    failed = jetllm("ps", "--json")
    assert failed.exit_code == 3
    assert json.loads(failed.stdout)["error"]["code"] == "no_daemon"
    assert failed.stderr.startswith("error: no daemon runs")


@pytest.mark.parametrize(
    "command", [("ps",), ("status",), ("load", MODEL), ("unload", MODEL)], ids=lambda words: words[0]
)
def test_no_daemon_is_an_exit_code_and_the_next_step(command: tuple[str, ...]) -> None:
    """What needs a daemon ends with 3 and says how to start one."""
    failed = jetllm(*command)
    assert failed.exit_code == 3 and failed.stdout == ""
    assert (
        failed.stderr
        == "error: no daemon runs with this state directory\n    hint: start one: jetllm serve\n"
    )


@pytest.mark.parametrize("words", [("frobnicate",), ("run", "hi", "--temperature", "9"), ("keys", "add")])
def test_wrong_usage_is_exit_code_2(words: tuple[str, ...]) -> None:
    """What click refuses is told with the usage, and `jetllm` is the program's name."""
    failed = jetllm(*words)
    assert failed.exit_code == 2 and failed.stderr.startswith("Usage: jetllm")


def test_version_tells_python_and_engines() -> None:
    """--json has the versions of JetLLM, of Python and of every engine."""
    found = json.loads(jetllm("version", "--json").stdout)
    assert found["jetllm"] == inference.__version__ and found["python"].startswith("3.")
    assert "xllamacpp" in found["engines"]["llamacpp"]
    assert jetllm("version").stdout == f"jetllm {inference.__version__}\n"


def test_keys_are_made_listed_and_revoked() -> None:
    """A key is shown once; afterwards only its name is; a revoked one is gone."""
    made = jetllm("keys", "add", "laptop")
    key = made.stdout.strip()
    assert made.exit_code == 0 and len(key) > 30
    listed = jetllm("keys", "list")
    assert "laptop" in listed.stdout and key not in listed.stdout
    assert jetllm("keys", "revoke", "laptop").exit_code == 0
    assert json.loads(jetllm("keys", "list", "--json").stdout) == []
    again = jetllm("keys", "revoke", "laptop")
    assert again.exit_code == 1 and "jetllm keys list" in again.stderr


def test_logs_of_a_daemon_under_systemd_point_to_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cgroup of the daemon's process tells its unit; without one nothing is said of a journal."""
    monkeypatch.setenv("JETLLM_STATE_DIR", str(tmp_path))
    lock = InstanceLock(tmp_path)
    try:
        lock.publish("http://127.0.0.1:9")
        assert "journalctl" not in jetllm("logs").stderr
        # A test cannot put itself into a system's cgroup; this is what the kernel would show then.
        cgroup = "0::/system.slice/jetllm.service\n"
        monkeypatch.setattr("inference.cli.logs.read_text", lambda path: cgroup)
        assert "journalctl -u jetllm.service" in jetllm("logs").stderr
    finally:
        lock.close()


# Completion


def completed(*words: str) -> list[str]:
    """Return what a shell is given to offer for the last of *words*."""
    shell = BashComplete(main, {}, "jetllm", "_JETLLM_COMPLETE")
    return [item.value for item in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_says_where_to_put_it(shell: str) -> None:
    """For each shell: the script, and how to install it in its first lines."""
    script = jetllm("completion", shell).stdout
    head = script.splitlines()[:3]
    assert any(line.startswith("# install: jetllm completion") for line in head)
    assert f"_JETLLM_COMPLETE={shell}_complete" in script and "%(" not in script
    assert (shell == "zsh") == script.startswith("#compdef jetllm\n")


def test_the_bash_script_is_bash() -> None:
    """The shell itself finds nothing wrong with it."""
    script = jetllm("completion", "bash").stdout
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_a_shell_gets_what_it_asks_for() -> None:
    """What bash puts into the environment is answered by the program itself."""
    variables = {"_JETLLM_COMPLETE": "bash_complete", "COMP_WORDS": "jetllm sta", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "inference"],
        env={**os.environ, **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("plain,status\n", "", 0)


def test_commands_and_models_and_variants_are_completed() -> None:
    """The shell offers commands, models of the registry with their aliases, and a model's variants."""
    assert {"serve", "select", "status"} <= set(completed("s"))
    assert MODEL in completed("run", "--model", "smol")
    assert MODEL in completed("pull", "smollm2-135")
    variants = completed("load", MODEL, "--variant", "")
    assert variants and not any("/" in name for name in variants)


def test_a_broken_registry_completes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pressing Tab with a registry that cannot be read is silent."""
    (tmp_path / "models.json").write_text("{")
    monkeypatch.setenv("JETLLM_REGISTRY", str(tmp_path / "models.json"))
    assert completed("run", "--model", "smol") == []


# The page


def test_every_command_has_its_place_on_the_page() -> None:
    """docs/cli.md has a heading per command, with an example below it."""
    for words in COMMANDS:
        _, found, text = PAGE.partition(f"\n## {words.split()[0]}\n")
        assert found, f"no heading for {words}"
        assert f"$ jetllm {words}" in text.partition("\n## ")[0], f"no example of {words}"


def test_options_of_the_page_exist() -> None:
    """An option that the page shows with a command is one of that command."""
    lines = re.findall(r"^\$ jetllm (.+)$", PAGE, re.MULTILINE)
    assert len(lines) >= len(main.commands)
    for line in lines:
        words = max((words for words in COMMANDS if f"{line} ".startswith(f"{words} ")), key=len)
        if words in ITS_OWN:
            continue
        known = {flag for p in COMMANDS[words].params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        shown = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", re.sub(r"\"[^\"]*\"|#.*|[|>].*", "", line)))
        assert shown <= known, line


def test_the_exit_codes_of_the_page_are_those_of_the_program() -> None:
    """The one table of exit codes is complete."""
    from inference.cli import main as _  # noqa: F401 - the module below is its package's

    module = sys.modules["inference.cli.main"]
    ours = {value for name, value in vars(module).items() if name.startswith("EXIT_")} | {0, 2}
    section = PAGE.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)} == ours
