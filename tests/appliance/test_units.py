"""The units under a real systemd, with a real container engine, our real image and a real model.

A machine is a privileged container whose first process is systemd. In it the package is installed, and a
podman of its own runs the image: the supervisor's user has no right but the socket of that podman's service,
as it has Docker's on a device. Only the times are shorter: the watchdog's is 10 s instead of 60.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containers.deb.build import build
from tests.appliance import machine as machines
from tests.appliance.images import CPU_IMAGE, architecture
from tests.appliance.machine import Machine
from tests.appliance.podman import Podman
from tests.conftest import wait_until
from tests.daemon_process import MODEL

pytestmark = pytest.mark.appliance

UNIT = "jetllm.service"
WATCHDOG_S = 10
SOCKET = "/run/podman.sock"
SETTINGS = f"preload: [{MODEL}]\npin: [{MODEL}]\noffline: true\ncontext_tokens: 1024\n"
RELEASES = "/var/lib/jetllm/appliance/releases.json"
GOOD, CRASHING, FOREIGN = "localhost/good:1", "localhost/crashing:1", "localhost/foreign:1"
CHANGES = {CRASHING: 'CMD ["false"]', FOREIGN: "LABEL org.jetllm.l4t=36.4,36.5"}

FILES = {
    # Its networks must not be those of the podman that this machine runs in.
    "/etc/containers/containers.conf.d/subnet.conf": '[network]\ndefault_subnet = "10.90.0.0/24"\n',
    "/etc/systemd/system/podman.socket.d/group.conf": (
        f"[Socket]\nListenStream=\nListenStream={SOCKET}\nSocketMode=0660\nSocketGroup=docker\n"
    ),
    "/etc/systemd/system/jetllm.service.d/test.conf": (
        f"[Service]\nEnvironment=CONTAINER_HOST=unix://{SOCKET}\nWatchdogSec={WATCHDOG_S}\n"
    ),
    "/etc/systemd/system/jetllm-native.service.d/test.conf": f"[Service]\nWatchdogSec={WATCHDOG_S}\n",
    "/etc/jetllm/appliance.conf": "[appliance]\nengine = podman\nruntime =\ndrain_timeout_s = 20\n",
    "/etc/jetllm/jetllm.yaml": SETTINGS,
}
ASK = """
import http.client, json, sys
method, path, body = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=60)
key = open("/run/jetllm/key").read()
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
connection.request(method, path, body or None, headers)
response = connection.getresponse()
sys.stdout.write(f"{response.status} {response.read().decode()}")
"""


@pytest.fixture(scope="module")
def machine(
    engine: Podman,
    systemd_base: str,
    image_archive: Path,
    weights: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A machine with the package, the image and the model."""
    package = build(architecture(), "0.1.0", tmp_path_factory.mktemp("deb"))
    volumes = [f"--volume={each}:/test/{each.name}:ro" for each in (package, image_archive)]
    with machines.started(engine, systemd_base, *volumes, f"--volume={weights}:/test/store:ro") as started:
        started.run("dpkg", "--install", f"/test/{package.name}", timeout_s=120)
        for path, text in FILES.items():
            started.write(path, text)
        started.run("rm", "-f", "/etc/systemd/system/podman.socket")
        started.run("systemctl", "daemon-reload")
        started.run("systemctl", "stop", "podman.socket", "podman.service")
        started.run("systemctl", "start", "podman.socket")
        started.run("cp", "-r", "/test/store/.", "/var/lib/jetllm/cache/")
        started.run("chown", "-R", "jetllm:jetllm", "/var/lib/jetllm/cache")
        started.run("podman", "load", "--input", f"/test/{image_archive.name}", timeout_s=300)
        started.run("podman", "tag", CPU_IMAGE, GOOD)
        yield started


@pytest.fixture
def device(machine: Machine) -> Iterator[Machine]:
    """The machine, with the good image as its current release and nothing running."""
    install(machine, GOOD)
    yield machine
    machine.try_run("systemctl", "stop", UNIT, "jetllm-native.service", "jetllm-rollback.service")
    machine.try_run("systemctl", "reset-failed")
    assert machine.run("podman", "ps", "--all", "--quiet") == ""


@pytest.fixture
def serving(machine: Machine) -> Machine:
    """The machine, with the good image serving; it is left so."""
    if state(machine) != "active":
        install(machine, GOOD)
        machine.run("systemctl", "start", UNIT, timeout_s=180)
    machine.run("systemctl", "reset-failed", UNIT)  # starts are counted from here on
    return machine


def derive(machine: Machine, name: str) -> None:
    """Have an image that is the good one but for its change; a rollback removes it."""
    if name == GOOD or machine.try_run("podman", "image", "exists", name).returncode == 0:
        return
    made = machine.run("podman", "create", GOOD)
    change = f"--change={CHANGES[name]}"
    machine.run("podman", "commit", "--quiet", "--format=docker", change, made, name, timeout_s=180)
    machine.run("podman", "rm", made)


def install(machine: Machine, current: str, previous: str | None = None) -> None:
    """Make *current* the release, as an update would have, with an empty journal from now on."""
    machine.try_run("podman", "untag", *["localhost/jetllm:previous"] * 2)  # one name alone means all
    for image, tag in ((current, "current"), (previous, "previous")):
        if image is not None:
            derive(machine, image)
            machine.run("podman", "tag", image, f"jetllm:{tag}")
    state = {
        "schema": 1,
        "current": release(machine, current),
        "previous": None if previous is None else release(machine, previous),
        "next": None,
        "bad": [],
    }
    machine.write(RELEASES, json.dumps(state))


def release(machine: Machine, image: str) -> dict[str, Any]:
    identity = machine.run("podman", "image", "inspect", "--format", "{{.Id}}", image)
    bundle = identity if re.fullmatch(r"[0-9a-f]{64}", identity) else ""
    name = image.removeprefix("localhost/")
    return {
        "version": name,
        "bundle": bundle,
        "image": f"sha256:{identity}",
        "golden": [],
        "installed_unix_s": 1,
    }


def releases(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.run("cat", RELEASES))
    return found


def ask(machine: Machine, method: str, path: str, body: object = None) -> tuple[int, str]:
    """Ask the daemon from the machine, with the supervisor's key."""
    text = "" if body is None else json.dumps(body)
    status, _, answer = machine.run("python3", "-c", ASK, method, path, text).partition(" ")
    return int(status), answer


def tokens(machine: Machine) -> int:
    """Return how many tokens the daemon has given since its start."""
    found = re.findall(
        r"^jetllm_generated_tokens_total\{.*\} (\S+)$", ask(machine, "GET", "/metrics")[1], re.M
    )
    return round(sum(map(float, found)))


def chat(**options: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "Count to five."}]
    return {"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0, **options}


def serves(machine: Machine) -> bool:
    return ask(machine, "POST", "/v1/chat/completions", chat())[0] == 200


def state(machine: Machine, unit: str = UNIT) -> str:
    return machine.show(unit, "ActiveState")["ActiveState"]


def restarts(machine: Machine) -> int:
    return int(machine.show(UNIT, "NRestarts")["NRestarts"])


def now(machine: Machine) -> str:
    """Return the machine's time, to look at the journal from there on.

    Not a cursor: with --unit, journalctl leaves out the first line after it.
    """
    return machine.run("date", "+%Y-%m-%d %H:%M:%S.%6N")


def since(machine: Machine, time: str, unit: str) -> list[str]:
    """Return what *unit*, and systemd about it, has logged since then."""
    machine.run("journalctl", "--sync")
    return machine.run(
        "journalctl", "--no-pager", "--output=cat", f"--since={time}", f"--unit={unit}"
    ).splitlines()


def daemon_pid(machine: Machine) -> str:
    return machine.run("pgrep", "--full", "--oldest", "bin/jetllm serve")


def test_starts_and_is_ready_after_a_token(machine: Machine) -> None:
    """`systemctl start` returns once the model in the container gave a token; nobody is root on the way."""
    install(machine, GOOD)
    begin = now(machine)
    machine.run("systemctl", "start", UNIT, timeout_s=180)
    assert tokens(machine) == 1
    told = since(machine, begin, UNIT)
    daemon_ready = next(n for n, line in enumerate(told) if line.startswith(f"{MODEL}: ready after"))
    assert daemon_ready < next(n for n, line in enumerate(told) if line.startswith(f"Started {UNIT}"))
    assert machine.show(UNIT, "StatusText")["StatusText"] == "ready"
    assert serves(machine)
    user = machine.run("id", "--user", "jetllm")
    for pid in (machine.show(UNIT, "MainPID")["MainPID"], daemon_pid(machine)):
        status = machine.run("cat", f"/proc/{pid}/status")
        assert re.search(r"^Uid:((\s+\d+){4})$", status, re.M).group(1).split() == [user] * 4  # type: ignore[union-attr]
        assert re.search(r"^CapEff:\s+0+$", status, re.M)
        assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)


def test_the_container_reaches_nothing_of_the_host(serving: Machine) -> None:
    """Read-only, no capability, no socket, not privileged: as the engine itself tells it."""
    told = json.loads(serving.run("podman", "inspect", "jetllm"))[0]
    host = told["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert not host["Privileged"]
    assert not told["EffectiveCaps"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["PidsLimit"] == 1024
    mounted = {mount["Destination"]: mount["RW"] for mount in told["Mounts"]}
    assert mounted == {
        "/var/cache/jetllm": False,
        "/var/lib/jetllm": True,
        "/run/jetllm": False,
        "/etc/jetllm/jetllm.yaml": False,
    }


def test_a_hung_daemon_is_restarted_by_the_watchdog(serving: Machine) -> None:
    """A stopped process is silence: systemd kills the supervisor, and a new container serves."""
    before, begin = daemon_pid(serving), now(serving)
    serving.run("kill", "-STOP", before)
    wait_until(lambda: restarts(serving) == 1, "the restart", WATCHDOG_S + 60)
    wait_until(lambda: state(serving) == "active", "the new daemon", 120)
    assert any("Watchdog timeout" in line for line in since(serving, begin, UNIT))
    assert daemon_pid(serving) != before
    assert serving.try_run("kill", "-0", before).returncode != 0
    assert serves(serving)


def test_a_killed_supervisor_leaves_no_container(serving: Machine) -> None:
    """Without its supervisor the container would hold the name and the port of the next one."""
    before = daemon_pid(serving)
    serving.run("kill", "-KILL", serving.show(UNIT, "MainPID")["MainPID"])
    wait_until(lambda: restarts(serving) == 1 and state(serving) == "active", "the restart", 120)
    assert serving.try_run("kill", "-0", before).returncode != 0
    assert serves(serving)


def test_sigterm_drains_an_accepted_request(serving: Machine) -> None:
    """`systemctl stop` lets a stream that runs come to its end, and leaves no container."""
    answers: list[tuple[int, str]] = []
    body = chat(max_tokens=120, stream=True)
    client = threading.Thread(
        target=lambda: answers.append(ask(serving, "POST", "/v1/chat/completions", body))
    )
    client.start()

    def accepted() -> bool:
        status = json.loads(ask(serving, "GET", "/jetllm/v1/status")[1])
        return bool(status["queue"]["running"] == 1)

    wait_until(accepted, "the request", 30)
    serving.run("systemctl", "stop", UNIT, timeout_s=90)
    client.join()
    assert answers[0][0] == 200
    assert answers[0][1].rstrip().endswith("data: [DONE]")
    assert serving.show(UNIT, "Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    assert serving.run("podman", "ps", "--all", "--quiet") == ""


def test_a_crash_loop_brings_the_previous_image_back_exactly_once(device: Machine) -> None:
    """Four starts that crash, then one rollback: the previous image serves, the other one is bad."""
    install(device, CRASHING, previous=GOOD)
    begin = now(device)
    device.try_run("systemctl", "start", "--no-block", UNIT)
    wait_until(lambda: releases(device)["bad"], "the rollback", 240)
    wait_until(lambda: state(device) == "active", "the previous image", 240)
    assert serves(device)
    after = releases(device)
    assert after["current"]["version"] == "good:1"
    assert [bad["version"] for bad in after["bad"]] == ["crashing:1"]
    told = since(device, begin, "jetllm-rollback.service")
    assert len([line for line in told if line.startswith("Finished jetllm-rollback")]) == 1
    assert len([line for line in told if line.startswith("Starting jetllm-rollback")]) == 1
    crashes = [line for line in since(device, begin, UNIT) if "the daemon ended with 1" in line]
    assert len(crashes) == 4


def test_restarts_that_are_asked_for_are_no_crash_loop(device: Machine) -> None:
    """Stopped and started more often than a crash loop may, it still starts."""
    for _ in range(4):
        device.run("systemctl", "start", "--no-block", UNIT)
        wait_until(lambda: device.show(UNIT, "MainPID") != {"MainPID": "0"}, "the supervisor", 60)
        device.run("systemctl", "stop", UNIT, timeout_s=120)
    device.run("systemctl", "start", "--no-block", UNIT)
    wait_until(lambda: device.show(UNIT, "MainPID") != {"MainPID": "0"}, "the supervisor", 60)


def test_a_crash_loop_without_a_previous_image_changes_nothing(device: Machine) -> None:
    """There is nothing to go back to: the rollback says so once, and the device is as it was."""
    install(device, CRASHING)
    before, begin = releases(device), now(device)
    device.try_run("systemctl", "start", "--no-block", UNIT)
    ran = "jetllm-rollback.service"
    wait_until(lambda: any("no previous release" in line for line in since(device, begin, ran)), "it", 240)
    wait_until(lambda: state(device, ran) in ("failed", "inactive"), "the end of the rollback", 60)
    assert len([line for line in since(device, begin, ran) if line.startswith("Starting")]) == 1
    assert state(device) == "failed"
    assert releases(device) == before


def test_an_image_for_a_jetson_is_refused_and_nothing_is_tried_again(device: Machine) -> None:
    """No restart and no rollback answers an image for another machine; the reason is in the status."""
    install(device, FOREIGN, previous=GOOD)
    before, begin = releases(device), now(device)
    assert device.try_run("systemctl", "start", UNIT, timeout_s=60).returncode != 0
    told = device.show(UNIT, "ActiveState", "ExecMainStatus", "NRestarts", "StatusText")
    assert (told["ActiveState"], told["ExecMainStatus"], told["NRestarts"]) == ("failed", "78", "0")
    assert "built for L4T 36.4 and 36.5; this machine has no L4T" in told["StatusText"]
    rollback = "jetllm-rollback.service"
    wait_until(lambda: state(device, rollback) == "inactive", "the rollback's condition")
    assert not any("Finished" in line for line in since(device, begin, rollback))
    assert releases(device) == before


def test_the_native_unit_serves_without_a_container(device: Machine) -> None:
    """The same supervisor, in the same sandbox, runs `jetllm serve` of /opt/jetllm: here the image's own."""
    made = device.run("podman", "create", GOOD)
    device.run("podman", "cp", f"{made}:/opt/jetllm", "/opt/jetllm", timeout_s=120)
    device.run("podman", "rm", made)
    native = "jetllm-native.service"
    device.run("systemctl", "start", native, timeout_s=180)
    assert device.show(native, "StatusText")["StatusText"] == "ready"
    assert device.run("podman", "ps", "--all", "--quiet") == ""
    device.run("systemctl", "stop", native, timeout_s=60)
    assert device.show(native, "Result")["Result"] == "success"
