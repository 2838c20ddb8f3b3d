"""Engines: Python, the packages beside us and the engines, each tried in a process of its own."""

from __future__ import annotations

import importlib.util
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from inference.backends import engine_versions, packages_of
from inference.device.detect import detect
from inference.device.images import image_for
from inference.doctor.finding import Finding, Scene, fail, ok, warn
from inference.settings import worker_environment

_MLC = "mlc"
_LEAST_PYTHON = (3, 10)
_IMPORT_S = 120.0
_PACKAGES = ("flask", "waitress", "pydantic", "yaml", "psutil", "click", "rich", "prometheus_client")
_IMPORT = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
_LOAD = "import ctypes, sys\nctypes.CDLL(sys.argv[1])"
_GOMP = "libgomp.so.1"
_GOMP_FIX = "sudo apt-get install libgomp1"
_TAIL_CHARACTERS = 300


def python(scene: Scene) -> Iterator[Finding]:
    """Is Python new enough?"""
    found = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < _LEAST_PYTHON:
        yield fail(
            f"{found}; JetLLM needs {'.'.join(map(str, _LEAST_PYTHON))}",
            "make a virtual environment with a newer Python: scripts/make-venv, or use the container",
        )
    else:
        yield ok(found)


def packages(scene: Scene) -> Iterator[Finding]:
    """Are the packages there that the daemon imports?"""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        yield fail(f"not installed: {', '.join(missing)}", f"{sys.executable} -m pip install jetllm")
    else:
        yield ok(f"all {len(_PACKAGES)} are installed")


def engines(scene: Scene) -> Iterator[Finding]:
    """Which engines are installed, and do they import?"""
    installed = engine_versions()
    if not any(packages_of(name) for name in installed):
        yield fail(
            "no engine is installed: nothing can be run",
            f"{sys.executable} -m pip install xllamacpp; or use the container (docs/jetson.md)",
        )
    for name, version in installed.items():
        if packages_of(name):
            error = tried(_IMPORT, *packages_of(name))
            yield ok(f"{name}: {version}") if error is None else _broken(name, version, error)
    image = image_for(detect(scene.root))
    if image is not None and _MLC in image.backends and _MLC not in installed:
        yield warn(
            "MLC is not installed, and this board's GPU stands idle without it",
            f"run the container, which is built on {image.tag} (docs/jetson.md)",
        )


def libgomp(scene: Scene) -> Iterator[Finding]:
    """Is the OpenMP library there that llama.cpp is linked to?"""
    error = tried(_LOAD, _GOMP)
    yield ok(f"{_GOMP} loads") if error is None else fail(f"{_GOMP} does not load: {error}", _GOMP_FIX)


def tried(program: str, *arguments: str) -> str | None:
    """Run a Python *program* as a worker would be run; return why it failed, ``None`` when it did not."""
    environment = worker_environment()
    ours = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = ":".join(filter(None, (environment.get("PYTHONPATH"), ours)))
    try:
        done = subprocess.run(  # noqa: S603 - the programs are written above
            [sys.executable, "-c", program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_IMPORT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_IMPORT_S:.0f} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return last[:_TAIL_CHARACTERS]


def _broken(name: str, version: str, error: str) -> Finding:
    if _GOMP in error:
        return fail(f"{name}: {version} does not import: {error}", _GOMP_FIX)
    if "SIGILL" in error:
        fix = "its wheel is for a newer processor: build it here, pip install --no-binary :all: " + " ".join(
            packages_of(name)
        )
        return fail(f"{name}: {version} does not import: {error}", fix)
    fix = f"{sys.executable} -m pip install --force-reinstall {' '.join(_distributions(version))}"
    verdict = warn if name == "transformers" else fail  # the reference; nobody is served by it alone
    return verdict(f"{name}: {version} does not import: {error}", fix)


def _distributions(version: str) -> list[str]:
    """Return the names in "name 1.2, other 3"."""
    return [part.partition(" ")[0] for part in version.split(", ")]
