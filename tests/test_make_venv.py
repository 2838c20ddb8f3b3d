"""The installer: what it says when the machine lacks something, and what it runs when not."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "make_venv.py"
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.fixture
def make_venv() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_venv", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Calls:
    """Stands in for subprocess.run: remembers commands and answers with *code*."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        """Remember *command* and do nothing."""
        self.commands.append(command)
        return subprocess.CompletedProcess(command, self.code)


def test_old_python_is_told_what_to_install(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below Python 3.10 nothing is created; the message has the version found and the next step."""
    monkeypatch.setattr(make_venv.sys, "version_info", (3, 8, 10))
    with pytest.raises(SystemExit, match=r"(?s)3\.10 or newer.*apt-get install python3\.10 python3\.10-venv"):
        make_venv.check_machine()


def test_missing_ensurepip_names_its_package(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian keeps ensurepip in a package of its own; the message names it."""
    monkeypatch.setattr(make_venv.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="sudo apt-get install python3-venv"):
        make_venv.check_machine()


def test_missing_libgomp_names_its_package(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's only system library is looked for before anything is downloaded."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(make_venv.ctypes, "CDLL", absent)
    with pytest.raises(SystemExit, match="sudo apt-get install libgomp1"):
        make_venv.check_machine()


def test_failed_creation_leaves_no_half_environment(
    make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A venv that could not be finished is removed, so that the next try starts clean."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    monkeypatch.setattr(make_venv.subprocess, "run", Calls(code=1))
    with pytest.raises(SystemExit, match="python3-venv"):
        make_venv.create(str(tmp_path / "venv"))
    assert not (tmp_path / "venv").exists()


def test_only_locked_files_are_installed(make_venv: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is installed by hash, and where from is left to pip's own configuration."""
    calls = Calls()
    monkeypatch.setattr(make_venv.subprocess, "run", calls)
    make_venv.main("venv", "requirements/base.txt")
    installs = [command[6:] for command in calls.commands if "install" in command]
    assert installs == [
        ["--require-hashes", "-r", "requirements/build.txt"],
        ["--require-hashes", "-r", "requirements/base.txt"],
        ["--no-deps", "--no-build-isolation", "--editable", "."],
    ]
    assert not any("index" in word for command in calls.commands for word in command)


@pytest.mark.parametrize(
    "lock", sorted((SCRIPT.parent.parent / "requirements").glob("*.txt")), ids=lambda p: p.name
)
def test_lock_files_name_no_host(lock: Path) -> None:
    """A lock file says what, not where from; every line is a pin."""
    text = lock.read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    assert all("==" in line for line in text.splitlines() if line and line[0] not in "# ")


def test_script_runs_under_this_python_without_packages() -> None:
    """The installer imports the standard library only."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import runpy; runpy.run_path({str(SCRIPT)!r})"], timeout=30
    )
    assert done.returncode == 0
