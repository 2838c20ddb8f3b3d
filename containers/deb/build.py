"""The Debian package of the host's side, jetllm_<version>_<architecture>.deb, built with plain dpkg-deb.

usage: python3 containers/deb/build.py [--arch ARCH]... [--version VERSION] [--output DIRECTORY]

The same sources give the same bytes: every time in it is SOURCE_DATE_EPOCH (by default the time of the
last commit), every file belongs to root, and nothing of the building machine gets in.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import format_datetime
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from containers.deb.closure import ForeignImportError, closure  # noqa: E402 - the checkout comes first
from inference import __version__  # noqa: E402 - as above

SOURCES = ROOT / "containers/deb/package"
UNITS = ROOT / "systemd"
ARCHITECTURES = ("arm64", "amd64")
SCRIPTS = ("preinst", "postinst", "prerm", "postrm")
EMPTY = ("etc/jetllm/trusted.d",)
"""Directories of the package with nothing in them."""
LIBRARY = "usr/lib/jetllm"

# Below /usr/lib, where systemd looks for what lies in systemd/.
_PLACES = {
    ".service": "systemd/system/{}.service",
    ".sysusers": "sysusers.d/{}.conf",
    ".tmpfiles": "tmpfiles.d/{}.conf",
    ".preset": "systemd/system-preset/50-{}.preset",
}


@dataclass(frozen=True)
class Entry:
    """A file of the package; its content, and its mode."""

    data: bytes
    mode: int = 0o644


class BuildError(Exception):
    """The package cannot be built here; the second argument is what to do about it."""


def main(arguments: list[str] | None = None) -> int:
    """Build the packages that were asked for and print their paths."""
    parser = argparse.ArgumentParser(description="build the Debian package of the host's side")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="both, if it is not given")
    parser.add_argument("--version", default=__version__, help=f"of the package ({__version__})")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    given = parser.parse_args(arguments)
    try:
        for architecture in given.arch or ARCHITECTURES:
            sys.stdout.write(f"{build(architecture, given.version, given.output)}\n")
    except (BuildError, ForeignImportError) as error:
        sys.stderr.write(f"deb: {error.args[0]}\n")
        sys.stderr.writelines(f"    hint: {hint}\n" for hint in error.args[1:])
        return 1
    return 0


def build(architecture: str, version: str, output: Path) -> Path:
    """Write the package into *output*, whole or not at all, and return its path."""
    if not re.fullmatch(r"[0-9][A-Za-z0-9.+~]*", version):
        raise BuildError(f"version {version!r}: expected a digit, then letters, digits, '.', '+' and '~'")
    if shutil.which("dpkg-deb") is None:
        raise BuildError("dpkg-deb: not found", "sudo apt-get install dpkg-dev")
    epoch_s = _epoch_s()
    entries = contents(architecture, version, epoch_s)
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"jetllm_{version}_{architecture}.deb"
    with tempfile.TemporaryDirectory(prefix=".deb-", dir=output) as workspace:
        tree, built = Path(workspace) / "tree", Path(workspace) / "built.deb"
        _write(tree, entries, epoch_s)
        # gzip, because every dpkg reads it and its bytes do not depend on the number of processors.
        argv = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z9", "--build", str(tree), str(built)]
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "SOURCE_DATE_EPOCH": str(epoch_s)}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - ours
        if done.returncode != 0:
            raise BuildError(f"dpkg-deb: {done.stderr.strip()}")
        built.chmod(0o644)
        built.replace(target)
    return target


def contents(architecture: str, version: str, epoch_s: int) -> dict[str, Entry]:
    """Return every file of the package by its path, those of its control area below ``DEBIAN``."""
    entries = {**_host(), **_units(), **_configuration(architecture), **_documents(version, epoch_s)}
    sums = "".join(
        f"{hashlib.md5(each.data, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, each in sorted(entries.items())
        if not path.startswith("etc/")
    )
    conffiles = "".join(f"/{path}\n" for path in sorted(entries) if path.startswith("etc/"))
    # As dpkg-gencontrol counts: each file in whole KiB, and one for each directory.
    size_kib = sum(-(-len(each.data) // 1024) for each in entries.values()) + len(_directories(entries))
    fields = {"architecture": architecture, "version": version, "installed_size": str(size_kib)}
    control = {
        "control": Entry(Template(_source("control").decode()).substitute(fields).encode()),
        "conffiles": Entry(conffiles.encode()),
        "md5sums": Entry(sums.encode()),
        **{name: Entry(_source(name), 0o755) for name in SCRIPTS if (SOURCES / name).exists()},
    }
    return {**entries, **{f"DEBIAN/{name}": each for name, each in control.items()}}


def _host() -> dict[str, Entry]:
    modules = {f"{LIBRARY}/{path}": Entry((ROOT / path).read_bytes()) for path in closure(ROOT)}
    return {
        "usr/bin/jetllm": Entry(_source("jetllm"), 0o755),
        f"{LIBRARY}/host.py": Entry(_source("host.py")),
        **modules,
    }


def _units() -> dict[str, Entry]:
    entries = {}
    for path in sorted(UNITS.iterdir()):
        place = _PLACES.get(path.suffix)
        if place is None:
            raise BuildError(f"systemd/{path.name}: nothing says where it belongs", "see _PLACES in build.py")
        entries[f"usr/lib/{place.format(path.stem)}"] = Entry(path.read_bytes())
    return entries


def _configuration(architecture: str) -> dict[str, Entry]:
    # The runtime that gives a container the GPU is the Jetson's; elsewhere there is none to name.
    runtime = "#runtime = nvidia" if architecture == "arm64" else "runtime ="
    text = Template(_source("appliance.conf").decode()).substitute(runtime=runtime)
    return {
        "etc/jetllm/appliance.conf": Entry(text.encode()),
        "etc/jetllm/jetllm.yaml": Entry(_source("jetllm.yaml")),
    }


def _documents(version: str, epoch_s: int) -> dict[str, Entry]:
    date = format_datetime(datetime.fromtimestamp(epoch_s, timezone.utc))
    changelog = Template(_source("changelog").decode()).substitute(version=version, date=date)
    return {
        "usr/share/doc/jetllm/changelog.gz": Entry(_gzip(changelog.encode())),
        "usr/share/doc/jetllm/copyright": Entry(_source("copyright")),
        "usr/share/man/man1/jetllm.1.gz": Entry(_gzip(_source("jetllm.1"))),
        "usr/share/bash-completion/completions/jetllm": Entry(_source("completion")),
        "usr/share/lintian/overrides/jetllm": Entry(_source("lintian-overrides")),
    }


def _source(name: str) -> bytes:
    return (SOURCES / name).read_bytes()


def _gzip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def _directories(entries: dict[str, Entry]) -> list[str]:
    parents = {str(each) for path in entries for each in Path(path).parents} | set(EMPTY)
    return sorted(parents | {str(each) for path in EMPTY for each in Path(path).parents})


def _write(tree: Path, entries: dict[str, Entry], epoch_s: int) -> None:
    directories = _directories(entries)
    for path in directories:
        (tree / path).mkdir(parents=True, exist_ok=True)
    for path, each in entries.items():
        (tree / path).write_bytes(each.data)
        (tree / path).chmod(each.mode)
        os.utime(tree / path, (epoch_s, epoch_s))
    for path in reversed(directories):
        (tree / path).chmod(0o755)
        os.utime(tree / path, (epoch_s, epoch_s))


def _epoch_s() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is None:
        argv = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - written here
        given = done.stdout.strip() if done.returncode == 0 else ""
    if not given.isdecimal():
        raise BuildError("no time to give the files", "set SOURCE_DATE_EPOCH to seconds since 1970")
    return int(given)


if __name__ == "__main__":
    sys.exit(main())
