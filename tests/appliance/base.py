"""The base images of the tests: small Debian systems that stand in for the published ones.

Each is made once by debootstrap, into a tar file in a cache outside of the repository; its name has a
hash of its recipe in it, so that another recipe makes another file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
SUITE_PYTHON = (3, 11)
CACHE_VARIABLE = "APPLIANCE_TEST_CACHE"
ROOT = Path(__file__).resolve().parents[2]

_DEBOOTSTRAP_S = 900.0
_DOWNLOAD_S = 600.0
_STEP_S = 120.0
_CLEAN = """
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /var/log/*.log /var/log/apt
rm -rf /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info
rm -f /etc/machine-id /var/lib/dbus/machine-id; : > /etc/machine-id
"""


@dataclass(frozen=True)
class Recipe:
    """A Debian system: what is installed beside the minimum, and a shell script that is run in it.

    With a *parent* it begins with that system and not with nothing.
    """

    name: str
    packages: tuple[str, ...]
    script: str = ""
    parent: Recipe | None = None

    @property
    def key(self) -> str:
        """What tells this recipe from another."""
        told = json.dumps([SUITE, self.packages, self.script, _CLEAN, self.parent and self.parent.key])
        return f"{self.name}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


PYTHON = Recipe(
    "python",
    ("ca-certificates", "libgomp1", "python3", "python3-pip", "python3-venv"),
    # As in the published image: `python` is there, and pip may install into the system.
    "ln -s /usr/bin/python3 /usr/local/bin/python; rm -f /usr/lib/python3*/EXTERNALLY-MANAGED\n",
)
"""Stands in for python:3.11-slim, and with MLC's stand-in added for a Jetson's image."""

SYSTEMD = Recipe(
    "systemd",
    (
        *("systemd", "systemd-sysv", "dbus", "ca-certificates", "procps", "iproute2", "util-linux"),
        *("podman", "runc", "netavark", "aardvark-dns", "iptables", "slirp4netns"),
        "python3-cryptography",
    ),
    """
for unit in systemd-binfmt.service systemd-udevd.service systemd-resolved.service \
    systemd-logind.service getty.target console-getty.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer e2scrub_all.timer fstrim.timer podman.socket podman-auto-update.timer; do
  ln -sf /dev/null /etc/systemd/system/$unit
done
mkdir -p /etc/containers
cat > /etc/containers/containers.conf <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
# The machine is itself in podman's default network.
[network]
default_subnet = "10.89.0.0/16"
CONF
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > /etc/containers/policy.json
# Where cgroups are of version 1, runc finds a container's own only in a namespace of theirs; there, podman
# takes the namespace from nothing but the command line.
dpkg-divert --quiet --rename --divert /usr/bin/podman.real /usr/bin/podman
cat > /usr/bin/podman <<'PODMAN'
#!/bin/sh
case "$1" in
  run | create) verb=$1 && shift && exec /usr/bin/podman.real "$verb" --cgroupns=private "$@" ;;
esac
exec /usr/bin/podman.real "$@"
PODMAN
chmod 755 /usr/bin/podman
""",
    parent=PYTHON,
)
"""A machine for units and packages: systemd as its first process, and podman inside."""


def cache_directory() -> Path:
    """Where what is costly to make is kept between runs; `CACHE_VARIABLE` names another place."""
    named = os.environ.get(CACHE_VARIABLE)
    directory = Path(named) if named else Path.home() / ".cache" / "jetllm-appliance-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Hold the lock of *name* in the cache; yield the cache's directory."""
    cache = cache_directory()
    with (cache / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield cache


def system_tar(recipe: Recipe) -> Path:
    """Return the tar file of *recipe*'s system, made now if nobody has made it here before."""
    parent = system_tar(recipe.parent) if recipe.parent else None
    with locked(recipe.key) as cache:
        done = cache / f"{recipe.key}.tar"
        if not done.exists():
            started_s = time.monotonic()
            system = cache / f".{recipe.key}"
            try:
                if parent:
                    _extend(recipe, parent, system, cache / "debs")
                else:
                    _bootstrap(recipe, system, cache / "debs")
                _pack(system, done)
            finally:
                shutil.rmtree(system, ignore_errors=True)
            _note(done, started_s)
        return done


def wheels() -> Path:
    """Return a directory with the wheels of our lock files for the stand-in's Python.

    They are fetched with whatever pip is configured with here; in the images is no trace of that.
    """
    locks = [ROOT / "requirements" / name for name in ("base.txt", "build.txt")]
    told = b"".join(path.read_bytes() for path in locks)
    key = f"wheels-{hashlib.sha256(told).hexdigest()[:12]}"
    with locked(key) as cache:
        done = cache / key
        if not done.is_dir():
            started_s = time.monotonic()
            fetched = cache / f".{key}"
            shutil.rmtree(fetched, ignore_errors=True)
            for path in locks:
                _do(
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
                    *("--only-binary=:all:", "--dest", str(fetched), "--requirement", str(path)),
                    timeout_s=_DOWNLOAD_S,
                )
            fetched.rename(done)
            _note(done, started_s)
        return done


def _bootstrap(recipe: Recipe, system: Path, debs: Path) -> None:
    shutil.rmtree(system, ignore_errors=True)
    debs.mkdir(exist_ok=True)
    _do(
        *("debootstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}"),
        *(f"--cache-dir={debs}", SUITE, str(system)),
        timeout_s=_DEBOOTSTRAP_S,
    )
    _do("chroot", str(system), "/bin/sh", "-euc", recipe.script + _CLEAN, timeout_s=_STEP_S)


def _extend(recipe: Recipe, parent: Path, system: Path, debs: Path) -> None:
    """Install into a copy of *parent*: debootstrap cannot configure python3-cryptography."""
    shutil.rmtree(system, ignore_errors=True)
    system.mkdir()
    _do("tar", "--extract", "--file", str(parent), "--directory", str(system), timeout_s=_STEP_S)
    archives = system / "var/cache/apt/archives"
    archives.mkdir(parents=True, exist_ok=True)
    for package in debs.glob("*.deb"):
        shutil.copy2(package, archives)
    shutil.copy("/etc/resolv.conf", system / "etc/resolv.conf")
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        os.mknod(system / "dev" / name, stat.S_IFCHR, os.makedev(1, minor))
        (system / "dev" / name).chmod(0o666)
    install = f"apt-get install -y --no-install-recommends {' '.join(recipe.packages)}\n"
    script = f"export DEBIAN_FRONTEND=noninteractive\napt-get update -qq\n{install}{recipe.script}{_CLEAN}"
    _do("chroot", str(system), "/bin/sh", "-euc", script, timeout_s=_DEBOOTSTRAP_S)


def _pack(system: Path, archive: Path) -> None:
    temporary = archive.with_suffix(".part")
    _do(
        *("tar", "--create", "--file", str(temporary), "--directory", str(system), "--one-file-system"),
        *("--numeric-owner", "--xattrs", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*", "."),
        timeout_s=_STEP_S,
    )
    temporary.rename(archive)


def _note(made: Path, started_s: float) -> None:
    """Keep beside *made* how long it took and how large it is."""
    files = [made] if made.is_file() else [each for each in made.rglob("*") if each.is_file()]
    told = {
        "seconds": round(time.monotonic() - started_s, 1),
        "bytes": sum(each.stat().st_size for each in files),
    }
    made.with_name(f"{made.name}.json").write_text(json.dumps(told) + "\n")


def _do(*command: str, timeout_s: float) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command[:3])} ... ended with {done.returncode}:\n{said}")
