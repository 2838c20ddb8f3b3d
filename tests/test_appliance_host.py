"""The command line of an appliance's host: `python3 -m inference.appliance`, with little of Python there."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cryptography
import pytest
from click.testing import CliRunner

from inference import __version__, cli
from inference.appliance.__main__ import main
from inference.appliance.layout import Layout
from inference.appliance.update import update
from inference.artifacts import files
from tests.standin_device import StandinDevice
from tests.supervised import free_port

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandinDevice]:
    """A device that serves 1.0.0, and has its configuration in its file."""
    made = StandinDevice(tmp_path / "device", free_port())
    monkeypatch.setenv("PATH", str(made.bin), prepend=os.pathsep)
    made.layout.config.write_text(f"[appliance]\nruntime =\nport = {made.port}\nready_timeout_s = 20\n")
    made.bundle("1.0.0", path=made.layout.bundles / "factory")
    made.boot()
    made.served()
    yield made
    made.cut_power()


def on_host(device: StandinDevice, *words: str) -> int:
    return main(["--root", str(device.root), *words])


# With nothing but the standard library and cryptography


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a Python that has cryptography and no other package of ours."""
    place = tmp_path_factory.mktemp("bare")
    found = Path(cryptography.__file__).parents[1]
    for name in ("cryptography", "cffi", "pycparser", *(path.name for path in found.glob("_cffi_backend*"))):
        if (found / name).exists():
            (place / name).symlink_to(found / name)
    (place / "inference").symlink_to(ROOT / "inference")
    # -S: no site-packages; -I: no variables, nothing of the directory it is started in.
    start = f"import runpy, sys; sys.path.insert(0, {str(place)!r}); sys.argv[0] = 'jetllm'"
    run = "runpy.run_module('inference.appliance', run_name='__main__')"
    return [sys.executable, "-I", "-S", "-c", f"{start}; {run}"]


def test_the_host_needs_only_the_standard_library_and_cryptography(
    bare: list[str], device: StandinDevice
) -> None:
    """Every module of the host is imported, and an update comes to its end, without any other package."""
    without = [*bare[:-1], "import psutil"]
    assert subprocess.run(without, capture_output=True, cwd="/").returncode == 1
    bundle = device.bundle("1.1.0")
    at = ["--root", str(device.root)]
    for words in (
        [*at, "update", str(bundle)],
        [*at, "status"],
    ):
        done = subprocess.run([*bare, *words], capture_output=True, text=True, cwd="/", timeout=60)
        assert done.returncode == 0, (words, done.stderr)
    device.check()


# What is said, and with which code


def test_version_and_help_are_the_hosts_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Both work without a container; help has the commands and the exit codes."""
    assert main(["version"]) == 0 and capsys.readouterr().out == f"jetllm {__version__}\n"
    assert main(["version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jetllm"] == __version__
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"    {name} " in text for name in ("supervise", "firstboot", "update", "rollback", "status"))


def test_status_shows_releases_service_and_daemon(
    device: StandinDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """On one screen and as JSON; without a daemon the code is 3 and the releases are shown all the same."""
    update(device.installation(), device.bundle("1.1.0"), poll_s=0.01)
    assert on_host(device, "status") == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["service"] == "active" and lines["daemon"] == "ok"
    assert lines["current"].startswith("1.1.0, bundle ") and lines["previous"].startswith("1.0.0, bundle ")
    device.stop_daemon()
    assert on_host(device, "status", "--json") == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown["daemon"]["status"] == "unreachable" and shown["releases"]["current"]["version"] == "1.1.0"
    assert shown["firstboot"]["step"] == "done"


def test_an_error_is_one_message_with_its_hint_and_json_too(
    device: StandinDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json standard output has one JSON value; the message is on standard error as well."""
    assert on_host(device, "rollback", "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["error"]["code"] == "no_release"
    assert told.err.startswith("error: there is no previous release") and "\n    hint: " in told.err
    assert on_host(device, "update", str(device.root / "none.tar")) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_a_machine_that_is_no_appliance_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To go back where nothing was installed is refused, and makes no directory."""
    assert main(["--root", str(tmp_path), "rollback"]) == 1
    assert "this machine is no appliance" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_exit_codes_are_the_documented_ones(
    device: StandinDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """75 while an update is under way, 78 where nothing fits, 2 for wrong usage; each is on the page."""
    with files.lock_file(device.layout.releases.parent / "update.lock") as descriptor:
        assert files.try_lock(descriptor)
        assert on_host(device, "rollback") == 75
        assert on_host(device, "rollback", "--failed") == 0
    other = StandinDevice(device.root.parent / "other", device.port, board="xavier-nx")
    other.bundle("1.0.0", path=other.layout.bundles / "factory")
    assert on_host(other, "firstboot") == 78
    assert "the release is for L4T 36.4" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        on_host(device, "update")
    assert ended.value.code == 2
    section = PAGE.partition("\n## Exit codes\n")[2].partition("\n## ")[0]
    assert all(str(code) in section for code in (0, 1, 2, 3, 69, 70, 75, 78, 130))


def test_a_bad_configuration_names_its_line(
    device: StandinDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown setting is an error, not a default."""
    device.layout.config.write_text("[appliance]\nprot = 1\n")
    assert on_host(device, "status") == 78
    assert "prot: unknown setting; did you mean 'port'?" in capsys.readouterr().err


def test_a_bundle_is_verified_on_the_host(device: StandinDevice, capsys: pytest.CaptureFixture[str]) -> None:
    """With the trusted keys of the device; a changed byte is refused."""
    bundle = device.bundle("1.1.0")
    assert on_host(device, "bundle", "verify", str(bundle), "--json") == 0
    assert json.loads(capsys.readouterr().out)["signer"] == "signer"
    (bundle / "store/weights/1.1.0.gguf").write_bytes(b"weights of 1.1.1")
    assert on_host(device, "bundle", "verify", str(bundle)) == 1
    assert "SHA-256" in capsys.readouterr().err


def test_the_first_key_is_shown_once(device: StandinDevice, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output and nothing beside it; the second time it is gone."""
    assert on_host(device, "firstboot", "--key") == 0
    assert capsys.readouterr().out.startswith("jetllm_")
    assert on_host(device, "firstboot", "--key") == 1


# What runs in the container


def started(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inference.appliance", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


def test_every_other_command_becomes_the_containers(device: StandinDevice) -> None:
    """The engine's exec takes the process over: its arguments, its output, its exit code."""
    for words in (("ps", "--json"), ("bundle", "export", "m"), ("run", "Hello, you")):
        done = started(*words)
        assert (done.returncode, done.stdout) == (7, f"--interactive jetllm jetllm {' '.join(words)}\n")


def test_a_terminal_is_kept(device: StandinDevice) -> None:
    """Somebody who sits at one gets one in the container; a script gets none."""
    master, slave = pty.openpty()
    try:
        command = [sys.executable, "-m", "inference.appliance", "run"]
        done = subprocess.run(command, cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, timeout=60)
        assert done.returncode == 7
        assert os.read(master, 1000).decode() == "--interactive --tty jetllm jetllm run\r\n"
    finally:
        os.close(master)
        os.close(slave)


def test_without_the_container_it_says_how_to_start_it(device: StandinDevice) -> None:
    """Exit code 3, as of every command that needs a daemon and finds none."""
    device.stop_daemon()
    done = started("ps")
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr.splitlines()[1] == "    hint: jetllm status; then: sudo systemctl start jetllm"


# The same from a pip installation


def test_status_of_the_pip_installation_shows_the_releases_too(
    device: StandinDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the machine is an appliance; without a daemon they are shown before the error."""
    monkeypatch.setattr(Layout.__init__, "__defaults__", (device.root,))
    result = CliRunner().invoke(cli.main, ["status"])
    assert result.exit_code == 3 and result.stdout.startswith("current  1.0.0, bundle ")
    bundle = device.bundle("1.1.0")
    result = CliRunner().invoke(cli.main, ["update", "--json", str(bundle)])
    assert result.exit_code == 0 and json.loads(result.stdout)["version"] == "1.1.0"
    device.check()
    result = CliRunner().invoke(cli.main, ["rollback", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["current"]["version"] == "1.0.0"
    device.check()
