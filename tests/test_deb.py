"""The Debian package: what is in it, whose it is, that it needs no more than it says, that builds agree."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import fields
from pathlib import Path

import pytest

from containers.deb import build as builder
from containers.deb.closure import ForeignImportError, closure
from inference import __version__
from inference.appliance import __main__ as appliance
from inference.appliance.config import Config, load_config
from inference.settings import load_settings
from tests.documents import ROOT, blocks

BUILD = "tests/test_deb.py::test_documented_commands_build_it"
PACKAGE = ROOT / "containers/deb/package"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
EPOCH_S = 1_700_000_000

# What a host with python3 and python3-cryptography can import; the rest is not found.
ISOLATED = """
import importlib.abc, sys
FOUND = sys.stdlib_module_names | {"inference", "cryptography", "_cffi_backend", "cffi", "pycparser"}
FOUND |= {"typing_extensions"}  # cryptography's own, under Python 3.10

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] not in FOUND:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
library = sys.argv[1]
sys.path.insert(0, library)
import importlib, pathlib
for path in sorted(pathlib.Path(library, "inference").rglob("*.py")):
    name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert module.__file__ == str(path), module.__file__
    print(name)
"""


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both packages, built once."""
    output = tmp_path_factory.mktemp("debs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", str(EPOCH_S))
        return {each: builder.build(each, "1.2.3", output) for each in builder.ARCHITECTURES}


@pytest.fixture(scope="module")
def tree(debs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package for arm64, unpacked."""
    directory = tmp_path_factory.mktemp("tree")
    subprocess.run(["dpkg-deb", "--extract", debs["arm64"], directory], check=True)
    return directory


def members(deb: Path, option: str = "--fsys-tarfile") -> list[tarfile.TarInfo]:
    """What is in one of the package's two archives, in its order."""
    done = subprocess.run(["dpkg-deb", option, deb], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        return tar.getmembers()


def field(deb: Path, name: str) -> str:
    """A field of the package's control file."""
    return subprocess.run(["dpkg-deb", "--field", deb, name], capture_output=True, text=True).stdout.strip()


def test_two_builds_are_the_same_bytes(debs: dict[str, Path], tmp_path: Path) -> None:
    """Neither the builder's clock, zone, umask, language nor directory gets into the package."""
    command = f"umask 077; exec {sys.executable} {ROOT}/containers/deb/build.py --version 1.2.3 --output out"
    environment = {"PATH": os.environ["PATH"], "TZ": "Asia/Tokyo", "LANG": "tr_TR.UTF-8"}
    environment["SOURCE_DATE_EPOCH"] = str(EPOCH_S)
    subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for deb in debs.values():
        assert (tmp_path / "out" / deb.name).read_bytes() == deb.read_bytes()


def test_everything_is_roots_and_has_one_time(debs: dict[str, Path]) -> None:
    """Files are 0644, what runs and directories are 0755, and nothing is as old as the checkout."""
    for option in ("--fsys-tarfile", "--ctrl-tarfile"):
        found = members(debs["arm64"], option)
        assert {(each.uid, each.gid, each.mtime) for each in found} == {(0, 0, EPOCH_S)}
        assert [each.name for each in found] == sorted(
            (each.name for each in found), key=lambda name: name.split("/")
        )
        for each in found:
            runs = each.isdir() or each.name == "./usr/bin/jetllm" or each.name[2:] in SCRIPTS
            assert each.mode == (0o755 if runs else 0o644), each.name
            assert each.isdir() or each.isreg(), each.name


def test_units_are_where_systemd_looks(tree: Path) -> None:
    """Every file of systemd/ is in the package, unchanged, at the place of its kind."""
    places = {
        ".service": "usr/lib/systemd/system/{}.service",
        ".sysusers": "usr/lib/sysusers.d/{}.conf",
        ".tmpfiles": "usr/lib/tmpfiles.d/{}.conf",
        ".preset": "usr/lib/systemd/system-preset/50-{}.preset",
    }
    sources = list((ROOT / "systemd").iterdir())
    assert len(sources) >= 4
    for path in sources:
        assert (tree / places[path.suffix].format(path.stem)).read_bytes() == path.read_bytes()


def test_a_file_that_systemd_has_no_place_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of systemd/ is left out in silence."""
    (tmp_path / "jetllm.slice").write_text("")
    monkeypatch.setattr(builder, "UNITS", tmp_path)
    with pytest.raises(builder.BuildError, match=r"systemd/jetllm\.slice"):
        builder.contents("arm64", "1", 0)


def test_configuration_is_conffiles_and_nothing_else_is(debs: dict[str, Path]) -> None:
    """What the administrator may change in /etc is kept by upgrades; all else is replaced."""
    listed = subprocess.run(
        ["dpkg-deb", "--info", debs["arm64"], "conffiles"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed == ["/etc/jetllm/appliance.conf", "/etc/jetllm/jetllm.yaml"]
    assert {each.name for each in members(debs["arm64"]) if each.isreg() and "/etc/" in each.name} == {
        f".{path}" for path in listed
    }


def test_control_says_what_it_is(debs: dict[str, Path]) -> None:
    """Name, version, architecture and what must be there."""
    for architecture, deb in debs.items():
        assert deb.name == f"jetllm_1.2.3_{architecture}.deb"
        assert (field(deb, "Package"), field(deb, "Version")) == ("jetllm", "1.2.3")
        assert field(deb, "Architecture") == architecture
        depends = field(deb, "Depends")
        assert depends == "python3 (>= 3.10), python3-cryptography, systemd, docker.io | docker-ce | podman"
        files_kib = sum(-(-each.size // 1024) for each in members(deb) if each.isreg())
        directories = sum(each.isdir() for each in members(deb))
        assert int(field(deb, "Installed-Size")) == files_kib + directories


def test_sums_are_those_of_the_files(debs: dict[str, Path], tree: Path) -> None:
    """`dpkg --verify` finds every file but the configuration, as it was packed."""
    lines = subprocess.run(
        ["dpkg-deb", "--info", debs["arm64"], "md5sums"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    sums = {path: total for total, path in (line.split("  ") for line in lines)}
    packed = {each.name[2:] for each in members(debs["arm64"]) if each.isreg()}
    assert set(sums) == {path for path in packed if not path.startswith("etc/")}
    for path, total in sums.items():
        assert hashlib.md5((tree / path).read_bytes(), usedforsecurity=False).hexdigest() == total


def test_host_imports_nothing_but_cryptography(tree: Path) -> None:
    """Every module of the package is imported from it where there is nothing but Python and cryptography."""
    library = tree / "usr/lib/jetllm"
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", ISOLATED, library], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert {"inference.appliance.supervisor", "inference.device.detect"} <= set(done.stdout.split())
    assert not list(library.rglob("__pycache__"))


def test_host_runs_from_where_it_lies(tree: Path, tmp_path: Path) -> None:
    """host.py finds its modules beside itself, whatever directory and PYTHON* the caller has."""
    (tmp_path / "inference.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [sys.executable, "-I", "-B", tree / "usr/lib/jetllm/host.py", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: jetllm")


def test_host_is_python_3_10(tree: Path) -> None:
    """The oldest Python that the package may be installed with understands every file."""
    for path in (tree / "usr/lib/jetllm").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def write_modules(root: Path, modules: dict[str, str]) -> Path:
    """A small checkout: inference/appliance/__init__.py, and *modules* by their path below inference/."""
    for name, text in {"__init__.py": "", "appliance/__init__.py": "", **modules}.items():
        path = root / "inference" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_closure_follows_every_import(tmp_path: Path) -> None:
    """Also those in functions; not those for type checkers, and not a package's attributes on demand."""
    modules = {
        "__init__.py": "def __getattr__(name):\n    from inference import engine\n",
        "appliance/run.py": "from inference import errors\ndef f():\n    import inference.parts.late\n",
        "errors.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import inference.engine\n",
        "parts/__init__.py": "",
        "parts/late.py": "import json\ndef busy():\n    import psutil\n",
        "engine.py": "import flask",
        "unused.py": "",
    }
    found = [str(path.relative_to("inference")) for path in closure(write_modules(tmp_path, modules))]
    assert found == sorted(
        {*modules, "appliance/__init__.py"} - {"engine.py", "unused.py"}, key=lambda name: Path(name).parts
    )


@pytest.mark.parametrize(
    "text", ["import flask", "import psutil", "def f():\n    from yaml import safe_load"]
)
def test_closure_refuses_what_a_host_does_not_have(tmp_path: Path, text: str) -> None:
    """A package that would need more than it depends on is not built; the module is named."""
    write_modules(tmp_path, {"appliance/run.py": "import inference.errors", "errors.py": text})
    with pytest.raises(ForeignImportError, match=r"inference/errors\.py imports (flask|psutil|yaml)"):
        closure(tmp_path)


def test_configuration_is_the_defaults(tree: Path, debs: dict[str, Path], tmp_path: Path) -> None:
    """appliance.conf names every setting and changes none; off the Jetson no runtime is named."""
    path = tree / "etc/jetllm/appliance.conf"
    assert load_config(path) == Config()
    text = path.read_text(encoding="utf-8")
    for each in fields(Config):
        default: object = each.default
        if isinstance(default, bool):
            default = "yes" if default else "no"
        elif isinstance(default, float):
            default = f"{default:g}"
        assert f"#{each.name} = {default}".strip() in text
    subprocess.run(["dpkg-deb", "--extract", debs["amd64"], tmp_path], check=True)
    assert load_config(tmp_path / "etc/jetllm/appliance.conf") == Config(runtime="")


def test_settings_are_the_defaults(tree: Path) -> None:
    """jetllm.yaml can be read as it is, and says nothing yet."""
    assert load_settings(config=tree / "etc/jetllm/jetllm.yaml") == load_settings()


@pytest.mark.parametrize("name", [*SCRIPTS, "jetllm"])
def test_scripts_are_posix(name: str) -> None:
    """sh understands them; shellcheck, where there is one, has nothing to say."""
    assert (PACKAGE / name).read_text().startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", PACKAGE / name], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--shell=sh", PACKAGE / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_refuse_what_they_do_not_know(script: str) -> None:
    """A maintainer script that is called as no dpkg calls it does nothing and says so."""
    done = subprocess.run(
        ["sh", PACKAGE / script, "fly"], capture_output=True, text=True, env={"PATH": "/bin"}
    )
    assert done.returncode == 1
    assert "unknown argument: fly" in done.stderr


def test_manual_and_completion_know_the_commands() -> None:
    """Each command of the host's side is in both."""
    manual, completion = ((PACKAGE / name).read_text() for name in ("jetllm.1", "completion"))
    assert len(appliance._COMMANDS) >= 7
    for name in appliance._COMMANDS:
        assert name in manual
        assert name in completion


def test_documented_commands_build_it(tmp_path: Path) -> None:
    """docs/flash.md's command builds both packages, by the names that the page goes on with."""
    page = "docs/flash.md"
    (block,) = [each for each in blocks(page) if BUILD in each.tests]
    (tmp_path / "containers").symlink_to(ROOT / "containers")
    text = block.text.replace("build.py", f"build.py --output {tmp_path}/dist")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH_S)}
    subprocess.run(["sh", "-euc", text], cwd=tmp_path, env=environment, check=True, capture_output=True)
    names = {path.name for path in (tmp_path / "dist").iterdir()}
    assert names == {f"jetllm_{__version__}_{each}.deb" for each in builder.ARCHITECTURES}
    assert all(f"`dist/{name}`" in (ROOT / page).read_text(encoding="utf-8") for name in names)


@pytest.mark.parametrize("version", ["", "v1", "1.0 beta", "../1", "1_2"])
def test_version_that_is_none_is_refused(version: str, tmp_path: Path) -> None:
    """The version becomes a file's name and a package's: anything else is refused."""
    with pytest.raises(builder.BuildError, match="expected a digit"):
        builder.build("arm64", version, tmp_path)
    assert not list(tmp_path.iterdir())


def test_build_without_dpkg_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An error ends in the next command, and nothing is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setenv("SOURCE_DATE_EPOCH", "1")
        assert builder.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "deb: dpkg-deb: not found\n    hint: sudo apt-get install dpkg-dev\n"
    assert not (tmp_path / "out").exists()
