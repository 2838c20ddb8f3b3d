"""A virtual environment with exactly what a lock file names, and the checkout itself.

usage: python3 scripts/make_venv.py VENV LOCK [UNLOCKED...]

pip's own configuration decides where packages come from. UNLOCKED files hold pins whose wheels
differ between indexes (torch), so that no hash fits everywhere. Runs under any Python 3, in order
to say which one is needed.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys

OLDEST = (3, 10)
TOOLS_LOCK = "requirements/build.txt"


def main(venv: str, lock: str, *unlocked: str) -> None:
    """Bring *venv* up to date; a second run changes nothing."""
    check_machine()
    python = f"{venv}/bin/python"
    if not works(python):
        create(venv)
    pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    run([*pip, "--require-hashes", "-r", TOOLS_LOCK])
    locked = [*pip, "--require-hashes", "-r", lock]
    run([*locked, "--no-deps"] if unlocked else locked)
    for path in unlocked:
        run([*pip, "-r", path])
    run([*pip, "--no-deps", "--no-build-isolation", "--editable", "."])


def check_machine() -> None:
    """Name what apt must install before anything is downloaded."""
    if sys.version_info < OLDEST:
        fail(
            "Python {}.{} or newer is needed, this is {}".format(*OLDEST, sys.version.split()[0]),
            "sudo apt-get install python3.10 python3.10-venv, then: make PYTHON=python3.10",
        )
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        fail("python3 -m venv cannot work: its ensurepip is missing", "sudo apt-get install python3-venv")
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        fail("libgomp.so.1 is missing; the llama.cpp engine needs it", "sudo apt-get install libgomp1")


def works(python: str) -> bool:
    """Return whether the environment's interpreter still starts; a system upgrade can break it."""
    try:
        return subprocess.run([python, "-m", "pip", "--version"], stdout=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def create(venv: str) -> None:
    """Create *venv*, or leave nothing where it would be."""
    if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
        shutil.rmtree(venv, ignore_errors=True)
        fail("python3 -m venv failed", "sudo apt-get install python3-venv")


def run(command: "list[str]") -> None:
    """Run *command*; what it prints says why it failed."""
    if subprocess.run(command).returncode:
        fail("failed: " + " ".join(command), "the lines above have pip's reason; run make again to go on")


def fail(problem: str, hint: str) -> None:
    """End with a message and the next thing to do."""
    sys.exit(f"make: {problem}\n    hint: {hint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
