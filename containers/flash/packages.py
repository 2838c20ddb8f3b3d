"""The packages: whether those that the first boot will install find there all that they depend on."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from containers.flash.boards import FlashError

_RELATION = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?::[a-z0-9]+)?(?:\s*\(\s*(<<|<=|=|>=|>>)\s*([^\s)]+)\s*\))?")
_COMPARISON = {"<<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">>": "gt"}


@dataclass(frozen=True)
class Package:
    """A package's control fields, as far as they are needed here."""

    name: str
    version: str
    architecture: str
    depends: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()


def installed(rootfs: Path) -> list[Package]:
    """Return the packages of a root file system."""
    text = (rootfs / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    paragraphs = (_fields(paragraph) for paragraph in text.split("\n\n"))
    return [_package(each) for each in paragraphs if each.get("Status", "").endswith(" ok installed")]


def read(path: Path) -> Package:
    """Return what a .deb file says of itself.

    Raises:
        FlashError: it is none.
    """
    argv = ["dpkg-deb", "--field", str(path)]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)  # noqa: S603 - a list, no shell
    except FileNotFoundError:
        raise FlashError("dpkg-deb: not found", hint="sudo apt-get install dpkg") from None
    if done.returncode != 0:
        raise FlashError(
            f"{path}: not a Debian package: {done.stderr.strip()}", hint="build it with: make deb"
        )
    return _package(_fields(done.stdout))


def missing(wanted: list[Package], present: list[Package]) -> list[str]:
    """Return what *wanted* depend on and neither they nor *present* are, as in "docker.io | podman"."""
    offers: dict[str, list[str]] = {}
    for package in (*present, *wanted):
        offers.setdefault(package.name, []).append(package.version)
        for provided in package.provides:
            match = _RELATION.fullmatch(provided)
            if match:
                offers.setdefault(match.group(1), []).append(match.group(3) or "")
    relations = {relation for package in wanted for relation in package.depends}
    return sorted(each for each in relations if not any(_met(one, offers) for one in each.split("|")))


def _met(relation: str, offers: dict[str, list[str]]) -> bool:
    match = _RELATION.fullmatch(relation.strip())
    if match is None:
        return False
    name, operator, version = match.groups()
    versions = offers.get(name, [])
    return any(operator is None or _compares(each, operator, version) for each in versions)


def _compares(version: str, operator: str, wanted: str) -> bool:
    argv = ["dpkg", "--compare-versions", version, _COMPARISON[operator], wanted]
    return version != "" and subprocess.run(argv, check=False).returncode == 0  # noqa: S603 - a list, no shell


def _fields(paragraph: str) -> dict[str, str]:
    lines = re.sub(r"\n[ \t]+", " ", paragraph).splitlines()
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def _package(fields: dict[str, str]) -> Package:
    return Package(
        fields.get("Package", ""),
        fields.get("Version", ""),
        fields.get("Architecture", ""),
        (*_list(fields.get("Pre-Depends")), *_list(fields.get("Depends"))),
        _list(fields.get("Provides")),
    )


def _list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
