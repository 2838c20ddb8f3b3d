"""The unit files: what systemd itself says of them, and that they agree with the supervisor's constants."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from inference.appliance import supervisor
from inference.appliance.config import Config
from inference.appliance.health import PROBE_TIMEOUT_S

UNITS = Path(__file__).resolve().parent.parent / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
MOST_EXPOSURE = {"jetllm.service": 2.0, "jetllm-native.service": 2.1}
PROGRAMS = ("usr/bin/jetllm", "opt/jetllm/bin/python", "bin/sh", "usr/bin/systemctl")

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
needs_sysusers = pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with our units, and something that can be run under every name they use."""
    shutil.copytree(UNITS, tmp_path / "etc/systemd/system")
    for name in PROGRAMS:
        program = tmp_path / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return tmp_path


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Parse a unit file: sections, keys, and all values of a key."""
    sections: dict[str, dict[str, list[str]]] = {}
    keys: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[(\w+)\]", line):
            keys = sections.setdefault(match.group(1), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            keys.setdefault(key, []).append(value)
    return sections


def verify(root: Path, *names: str) -> subprocess.CompletedProcess[str]:
    files = [str(root / "etc/systemd/system" / name) for name in names]
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", *files],
        capture_output=True,
        text=True,
        timeout=30,
    )


@needs_analyze
def test_systemd_finds_nothing_wrong_with_the_units(root: Path) -> None:
    """Every key is known, every value is one that the key takes, every program is there."""
    done = verify(root, *SERVICES)
    assert (done.returncode, done.stderr) == (0, "")


@needs_analyze
def test_a_wrong_key_would_be_found(root: Path) -> None:
    """The check above goes red on a misspelt key, which systemd itself only ignores."""
    path = root / "etc/systemd/system/jetllm.service"
    path.write_text(path.read_text().replace("WatchdogSec=", "WatchdogSecs="))
    done = verify(root, "jetllm.service")
    assert done.returncode != 0
    assert "WatchdogSecs" in done.stderr


@needs_analyze
@pytest.mark.parametrize("name", MOST_EXPOSURE)
def test_what_serves_is_hardly_exposed(name: str) -> None:
    """systemd's own measure of what a broken-into service could reach stays below its limit."""
    threshold = round(10 * MOST_EXPOSURE[name])
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", str(UNITS / name)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout


@needs_sysusers
def test_the_user_is_made_and_may_use_the_engine_and_the_gpu(tmp_path: Path) -> None:
    """systemd-sysusers makes the user of the units, in the groups of the engine's socket and the GPU."""
    (tmp_path / "etc").mkdir()
    done = subprocess.run(
        ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "jetllm.sysusers")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    passwd = (tmp_path / "etc/passwd").read_text()
    groups = dict(
        (line.split(":")[0], line.split(":")[3].split(","))
        for line in (tmp_path / "etc/group").read_text().splitlines()
    )
    assert re.search(r"^jetllm:.*:/var/lib/jetllm:.*nologin$", passwd, re.MULTILINE)
    assert all("jetllm" in groups[name] for name in ("docker", "video", "render"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_directive_is_written_once(name: str) -> None:
    """A key twice is a mistake, where systemd does not add the values up."""
    added_up = {"Environment", "ExecCondition", "ExecStopPost", "SystemCallFilter"}
    for section, keys in unit(name).items():
        twice = {key for key, values in keys.items() if len(values) > 1} - added_up
        assert not twice, f"{name} [{section}]"


@pytest.mark.parametrize("name", SERVICES)
def test_units_name_only_units_that_there_are(name: str) -> None:
    """A misspelt unit of ours would never be started, and nobody would say so."""
    named = re.findall(r"jetllm[a-z-]*\.service", (UNITS / name).read_text(encoding="utf-8"))
    assert set(named) <= set(SERVICES)


@pytest.mark.parametrize("name", ["jetllm.service", "jetllm-native.service"])
def test_what_serves_agrees_with_the_supervisor(name: str) -> None:
    """The times and the exit code that both sides know are the same on both."""
    service, head = unit(name)["Service"], unit(name)["Unit"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    assert service["Restart"] == ["always"]
    assert service["KillMode"] == ["mixed"]
    assert service["RestartPreventExitStatus"] == [str(supervisor.EXIT_UNFIT)]
    assert float(service["TimeoutStartSec"][0]) == supervisor.STALL_S
    stop_s = Config().drain_timeout_s + 2 * supervisor.STOP_GRACE_S
    assert float(service["TimeoutStopSec"][0]) >= stop_s
    # One answer that is late is no hang.
    assert float(service["WatchdogSec"][0]) >= 4 * PROBE_TIMEOUT_S
    # Starts that are never ready are a crash loop, too.
    starts = int(head["StartLimitBurst"][0])
    assert float(head["StartLimitIntervalSec"][0]) >= starts * (Config().ready_timeout_s + 60)


def test_a_crash_loop_starts_the_rollback_and_nothing_else_does() -> None:
    """The rollback hangs on OnFailure= alone, and asks whether it was a crash loop."""
    assert unit("jetllm.service")["Unit"]["OnFailure"] == ["jetllm-rollback.service"]
    rollback = unit("jetllm-rollback.service")
    assert "Install" not in rollback
    given_up, restarts, refused = rollback["Service"]["ExecCondition"]
    assert given_up == "/usr/bin/systemctl is-failed --quiet jetllm.service"
    burst = unit("jetllm.service")["Unit"]["StartLimitBurst"][0]
    assert "NRestarts" in restarts and f"-ge {burst}'" in restarts
    assert "ExecMainStatus" in refused and f"!= {supervisor.EXIT_UNFIT}'" in refused
    assert rollback["Service"]["ExecStart"] == ["/usr/bin/jetllm rollback --failed"]
    others = [name for name in SERVICES if "OnFailure" in unit(name)["Unit"]]
    assert others == ["jetllm.service"]


def test_a_killed_supervisor_leaves_no_container() -> None:
    """What runs after every end of the supervisor removes what the engine still runs."""
    service = unit("jetllm.service")["Service"]
    assert service["ExecStopPost"][0] == "-/usr/bin/jetllm supervise --remove"


def test_the_supervisor_has_no_rights_but_the_engines_socket() -> None:
    """It runs as a user without capabilities; the group of the socket comes with the user."""
    service = unit("jetllm.service")["Service"]
    assert service["User"] == service["Group"] == ["jetllm"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == [""]
    assert service["NoNewPrivileges"] == service["MemoryDenyWriteExecute"] == ["yes"]
    assert "SupplementaryGroups" not in service


def test_the_first_boot_comes_before_what_serves() -> None:
    """The device says what it is, and is made ready, before an image is started."""
    first = unit("jetllm-firstboot.service")
    assert "jetllm.service" in first["Unit"]["Before"][0]
    assert first["Service"]["RemainAfterExit"] == ["yes"]
    head = unit("jetllm.service")["Unit"]
    assert head["Requires"] == ["jetllm-firstboot.service"]
    assert "jetllm-firstboot.service" in head["After"][0]


def test_the_preset_decides_for_every_unit_that_can_be_enabled() -> None:
    """A package manager enables what the preset enables: the container's unit, not the native one."""
    lines = [line.split() for line in (UNITS / "jetllm.preset").read_text().splitlines()]
    decided = {words[1]: words[0] for words in lines if words and words[0] in ("enable", "disable")}
    assert set(decided) == {name for name in SERVICES if "Install" in unit(name)}
    assert decided["jetllm.service"] == decided["jetllm-firstboot.service"] == "enable"
    assert decided["jetllm-native.service"] == "disable"


def test_the_directories_of_the_container_belong_to_its_user() -> None:
    """What the container writes is its user's; what decides which image runs is root's."""
    lines = (UNITS / "jetllm.tmpfiles").read_text(encoding="utf-8").splitlines()
    owners = {words[1]: words[3] for line in lines if (words := line.split()) and words[0] == "d"}
    assert owners["/var/lib/jetllm/state"] == owners["/var/lib/jetllm/cache"] == "jetllm"
    assert owners["/run/jetllm"] == "jetllm"
    assert owners["/var/lib/jetllm/appliance"] == owners["/var/lib/jetllm/bundles"] == "root"
