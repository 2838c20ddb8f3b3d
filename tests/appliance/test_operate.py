"""docs/operate.md and docs/security.md, typed word by word into an appliance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance.flashed import COMMAND_S, FIRST, PLACE, READY_S, Factory, flashed, start
from tests.appliance.machine import Machine
from tests.appliance.podman import Archive, Podman
from tests.conftest import wait_until
from tests.daemon_process import MODEL
from tests.documents import Block, blocks

pytestmark = pytest.mark.appliance

PAGES = ("docs/operate.md", "docs/security.md")
NEW = "0.2.0"
STICK = f"/media/usb/jetllm-{NEW}.tar"
ALL, AGAIN, METRICS = (
    f"tests/appliance/test_operate.py::{name}"
    for name in (
        "test_commands_run_as_they_stand",
        "test_bad_bundle_is_taken_again_when_told_to",
        "test_metrics_are_given_with_a_key",
    )
)
# The machine has neither: it is root's, and what asks for a page there is Python.
SUDO = '#!/bin/sh\nexec "$@"\n'
CURL = """\
#!/usr/bin/python3
import sys, urllib.request
words = sys.argv[1:]
headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "--header")
with urllib.request.urlopen(urllib.request.Request(words[-1], headers=headers), timeout=30) as answer:
    print(answer.read().decode())
"""


def of(*tests: str) -> list[Block]:
    """The blocks that name one of *tests*, in the order of the pages."""
    return [block for page in PAGES for block in blocks(page) if set(block.tests) & set(tests)]


@pytest.fixture(scope="module")
def factory(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Whoever makes releases."""
    return Factory(tmp_path_factory.mktemp("made"), weights)


@pytest.fixture(scope="module")
def appliance(
    engine: Podman,
    systemd_base: str,
    factory: Factory,
    cpu_image: str,
    second_image: str,
    archive_of: Archive,
) -> Iterator[Machine]:
    """A device that was flashed and has had its first boot, with a new release on a USB stick in it."""
    bundle = factory.release(FIRST, archive_of(cpu_image))
    words = ("--version", NEW, "--image", str(archive_of(second_image)), "--model", MODEL)
    more = ("--golden", "golden.json", "--key", "release", "--output", Path(STICK).name)
    factory.run("bundle", "create", *words, *more)
    with flashed(engine, systemd_base, factory, bundle) as machine:
        machine.write("/usr/local/bin/sudo", SUDO, 0o755)
        machine.write("/usr/local/bin/curl", CURL, 0o755)
        machine.run("mkdir", "--parents", "/media/usb")
        machine.run("ln", "--symbolic", f"{PLACE}/{Path(STICK).name}", STICK)
        start(machine)
        yield machine


def typed(machine: Machine, text: str) -> str:
    """Type *text* into a shell of the machine; every command of it must succeed."""
    done = machine.try_run("/bin/sh", "-euxc", text, timeout_s=COMMAND_S)
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{machine.journal('jetllm')[-3000:]}"
    return done.stdout


def current(machine: Machine) -> str:
    """The version of the current release."""
    status = json.loads(machine.try_run("jetllm", "status", "--json").stdout)
    version: str = status["releases"]["current"]["version"]
    return version


def wait_until_active(machine: Machine) -> None:
    """Wait until the unit is active, which it is after its canary."""
    wait_until(
        lambda: machine.show("jetllm.service", "ActiveState")["ActiveState"] == "active", "active", READY_S
    )


def test_commands_run_as_they_stand(appliance: Machine) -> None:
    """Every command of the two pages that names this test succeeds, in the order of the pages."""
    assert current(appliance) == FIRST
    for block in of(ALL):
        wait_until_active(appliance)
        typed(appliance, block.text)
        if "jetllm update" in block.text:
            assert current(appliance) == NEW
        if "jetllm rollback" in block.text:
            assert current(appliance) == FIRST


def test_bad_bundle_is_taken_again_when_told_to(appliance: Machine) -> None:
    """What was gone back from is refused, and taken with the option that the page names."""
    wait_until_active(appliance)
    if current(appliance) == FIRST and not bad(appliance):
        typed(appliance, f"jetllm update {STICK} && jetllm rollback")
    refused = appliance.try_run("jetllm", "update", STICK, timeout_s=COMMAND_S)
    assert refused.returncode == 1 and "marked bad" in refused.stderr
    for block in of(AGAIN):
        typed(appliance, block.text)
    assert current(appliance) == NEW


def bad(machine: Machine) -> list[str]:
    """The versions that are marked bad."""
    status = json.loads(machine.try_run("jetllm", "status", "--json").stdout)
    return [each["version"] for each in status["releases"]["bad"]]


def test_metrics_are_given_with_a_key(appliance: Machine) -> None:
    """The page's two commands, with the key that the first prints in the second."""
    wait_until_active(appliance)
    ((make, ask),) = [block.text.strip().splitlines() for block in of(METRICS)]
    key = json.loads(typed(appliance, f"{make} --json"))["key"]
    assert "jetllm_requests_total" in typed(appliance, f"KEY={key}\n{ask}")
    assert appliance.try_run("/bin/sh", "-euc", f"KEY=wrong\n{ask}").returncode != 0
