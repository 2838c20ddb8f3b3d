"""The Debian package in a machine with systemd: installed, upgraded, broken, removed, purged, flashed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.deb import build as builder
from containers.flash.main import main as overlay
from tests.appliance.flashed import FIRST, READY_S, Factory, served
from tests.appliance.images import architecture
from tests.appliance.machine import FLAGS, Machine, started
from tests.appliance.podman import Archive, Podman
from tests.conftest import wait_until
from tests.daemon_process import MODEL
from tests.documents import ROOT, blocks

pytestmark = pytest.mark.appliance

OLD, NEW = "0.0.9", "1.0"
TEST = "tests/appliance/test_deb.py::test_documented_commands_make_and_remove_an_appliance"
CONFIGURATION = "[appliance]\nengine = podman\nruntime =\n"
SETTINGS = f"preload: [{MODEL}]\noffline: true\n"
# What the overlay reads of a root file system, and the machine has already (or must not have: the last).
SYSTEM = ("etc/passwd", "var/lib/dpkg/status", "etc/nv_tegra_release")
UNITS = ("jetllm.service", "jetllm-firstboot.service", "jetllm-rollback.service", "jetllm-native.service")
# What any package leaves: dpkg's own records, logs, caches, and what runs.
IGNORED = (
    "/dev",
    "/proc",
    "/sys",
    "/run",
    "/tmp",
    "/var/log",
    "/var/lib/dpkg",
    "/var/cache",
    "/var/lib/containers",
)
# An installation makes groups of the system's own, too (docker, video, render), which stay.
ACCOUNTS = {
    f"/etc/{name}{suffix}" for name in ("passwd", "group", "shadow", "gshadow") for suffix in ("", "-")
}
# In place of a supervisor that has an image, and of a first boot that has a bundle.
LONG_RUNNING = """\
[Service]
Type=exec
ExecStart=
ExecStart=/bin/sleep infinity
ExecStopPost=
WatchdogSec=0
"""
NOTHING_TO_DO = "[Service]\nExecStart=\nExecStart=/bin/true\n"


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The package in two versions, and two new ones with a script that fails."""
    output = tmp_path_factory.mktemp("debs")
    made = {version: builder.build(architecture(), version, output) for version in (OLD, NEW)}
    for script in ("preinst", "postinst"):
        sources = output / script
        shutil.copytree(builder.SOURCES, sources)
        text = (sources / script).read_text().replace("set -e\n", "set -e\n[ -e /repaired ] || exit 1\n")
        (sources / script).write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builder, "SOURCES", sources)
            made[script] = builder.build(architecture(), f"{NEW}+{script}", output)
    return made


@pytest.fixture(scope="module")
def factory(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Whoever makes releases."""
    return Factory(tmp_path_factory.mktemp("made"), weights)


@pytest.fixture
def machine(engine: Podman, systemd_base: str, debs: dict[str, Path]) -> Iterator[Machine]:
    """A machine with the packages in /debs, none of them installed."""
    with started(engine, systemd_base) as made:
        made.run("mkdir", "/debs")
        for name, path in debs.items():
            made.copy(path, f"/debs/{name}.deb")
        yield made


def install(machine: Machine, name: str) -> subprocess.CompletedProcess[str]:
    """Install one of the packages, with nobody to answer questions."""
    done = machine.try_run("dpkg", "--install", f"/debs/{name}.deb", timeout_s=120)
    return done


def installed(machine: Machine) -> str:
    """What dpkg says of the package: its state and version."""
    return machine.try_run(
        "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Version}", "jetllm"
    ).stdout


def listing(machine: Machine) -> set[str]:
    """Every path of the machine that is not `IGNORED`, with what it holds."""
    skipped = " -o ".join(f"-path {path}" for path in IGNORED)
    found = machine.run("sh", "-c", f"find / \\( {skipped} \\) -prune -o -printf '%p %y %m %U:%G %l\\n'")
    return set(found.splitlines())


def enabled(machine: Machine, unit: str) -> str:
    """Whether a unit is started at boot."""
    return machine.try_run("systemctl", "is-enabled", unit).stdout.strip()


def put_models(machine: Machine) -> None:
    """Have a model, a state and a configuration as in use."""
    machine.write("/var/lib/jetllm/cache/blobs/model.gguf", "weights")
    machine.write("/var/lib/jetllm/state/keys.json", "{}")
    machine.write("/var/lib/jetllm/appliance/releases.json", "{}")
    machine.write("/var/lib/jetllm-bundles/factory/manifest.json", "{}")
    machine.write("/etc/jetllm/trusted.d/me.pub", "key")


def start(machine: Machine) -> None:
    """Have something run as jetllm.service."""
    machine.write("/etc/systemd/system/jetllm.service.d/test.conf", LONG_RUNNING)
    machine.write("/etc/systemd/system/jetllm-firstboot.service.d/test.conf", NOTHING_TO_DO)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "jetllm.service")


def test_install_enables_and_starts_nothing(machine: Machine) -> None:
    """The units are known to systemd and start at the next boot, by preset; now nothing runs."""
    done = install(machine, NEW)
    assert done.returncode == 0, done.stderr
    assert installed(machine) == f"ii {NEW}"
    assert machine.run("dpkg", "--verify", "jetllm") == ""
    assert {unit: machine.show(unit, "LoadState")["LoadState"] for unit in UNITS} == dict.fromkeys(
        UNITS, "loaded"
    )
    assert enabled(machine, "jetllm.service") == enabled(machine, "jetllm-firstboot.service") == "enabled"
    assert enabled(machine, "jetllm-native.service") == "disabled"
    assert {machine.show(unit, "ActiveState")["ActiveState"] for unit in UNITS} == {"inactive"}
    assert "jetllm" in machine.run("getent", "passwd", "jetllm")
    assert machine.run(
        "stat", "--format=%U %a", "/var/lib/jetllm/cache", "/var/lib/jetllm/state"
    ).splitlines() == [
        "jetllm 755",
        "jetllm 700",
    ]
    assert machine.run("jetllm", "version").startswith("jetllm ")
    assert "docker is not installed" in machine.try_run("jetllm", "models").stderr
    machine.run("sed", "--in-place", "s/^#engine.*/engine = podman/", "/etc/jetllm/appliance.conf")
    done = machine.try_run("jetllm", "models")
    assert done.returncode == 3
    assert "the appliance's container does not run" in done.stderr
    assert install(machine, NEW).returncode == 0


def test_install_in_a_chroot(engine: Podman, systemd_base: str, debs: dict[str, Path]) -> None:
    """Where systemd does not run, as when an image is made, the units are enabled all the same."""
    script = (
        "dpkg --install /deb && systemctl is-enabled jetllm.service && jetllm version"
        " && dpkg --remove jetllm && ! systemctl is-enabled jetllm.service && dpkg --purge jetllm"
    )
    out = engine.run("run", "--rm", f"--volume={debs[NEW]}:/deb:ro", systemd_base, "sh", "-c", script)
    assert "\nenabled\njetllm " in out


def test_upgrade_keeps_what_the_administrator_did(machine: Machine) -> None:
    """Configuration, models and what is enabled stay; what runs is started anew, what does not is not."""
    assert install(machine, OLD).returncode == 0
    machine.write("/etc/jetllm/appliance.conf", "[appliance]\nengine = podman\n")
    machine.run("systemctl", "disable", "jetllm-firstboot.service")
    put_models(machine)
    start(machine)
    before = machine.show("jetllm.service", "MainPID")
    done = install(machine, NEW)
    assert done.returncode == 0, done.stderr
    assert installed(machine) == f"ii {NEW}"
    assert machine.run("cat", "/etc/jetllm/appliance.conf") == "[appliance]\nengine = podman"
    assert enabled(machine, "jetllm-firstboot.service") == "disabled"
    assert machine.run("cat", "/var/lib/jetllm/cache/blobs/model.gguf") == "weights"
    wait_until(
        lambda: (
            machine.show("jetllm.service", "MainPID", "ActiveState")
            not in ({**before, "ActiveState": state} for state in ("active", "deactivating"))
        ),
        "a new supervisor",
    )
    wait_until(lambda: machine.show("jetllm.service", "ActiveState")["ActiveState"] == "active", "its start")
    assert machine.show("jetllm-native.service", "ActiveState")["ActiveState"] == "inactive"


@pytest.mark.parametrize(("script", "left"), [("preinst", f"ii {OLD}"), ("postinst", f"iF {NEW}+postinst")])
def test_failed_upgrade_can_be_repeated(machine: Machine, script: str, left: str) -> None:
    """What a failing script leaves, the same package completes, or another, or the old one."""
    assert install(machine, OLD).returncode == 0
    put_models(machine)
    machine.write("/etc/jetllm/appliance.conf", "[appliance]\nport = 9000\n")
    assert install(machine, script).returncode != 0
    assert installed(machine) == left
    assert machine.run("jetllm", "version").startswith("jetllm ")
    assert install(machine, OLD).returncode == 0
    assert install(machine, script).returncode != 0
    machine.write("/repaired", "")
    assert install(machine, script).returncode == 0
    assert installed(machine) == f"ii {NEW}+{script}"
    assert machine.run("dpkg", "--audit") == ""
    assert machine.run("cat", "/etc/jetllm/appliance.conf") == "[appliance]\nport = 9000"
    assert machine.run("cat", "/var/lib/jetllm/cache/blobs/model.gguf") == "weights"
    assert enabled(machine, "jetllm.service") == "enabled"


def test_remove_stops_and_keeps(machine: Machine) -> None:
    """Nothing of it runs or starts any more; configuration, state and models wait for a reinstallation."""
    assert install(machine, NEW).returncode == 0
    put_models(machine)
    machine.write("/etc/jetllm/appliance.conf", "[appliance]\nport = 9000\n")
    start(machine)
    machine.run("dpkg", "--remove", "jetllm")
    assert machine.show("jetllm.service", "ActiveState", "MainPID") == {
        "ActiveState": "inactive",
        "MainPID": "0",
    }
    assert machine.run("find", "/etc/systemd/system", "-name", "jetllm*.service") == ""
    assert machine.try_run("test", "-e", "/usr/lib/jetllm").returncode == 1
    assert machine.run("cat", "/etc/jetllm/appliance.conf") == "[appliance]\nport = 9000"
    assert machine.run("cat", "/var/lib/jetllm/state/keys.json") == "{}"
    assert install(machine, NEW).returncode == 0
    assert enabled(machine, "jetllm.service") == "enabled"
    assert machine.run("cat", "/etc/jetllm/appliance.conf") == "[appliance]\nport = 9000"


def test_purge_leaves_the_models_unless_asked(machine: Machine) -> None:
    """Of the package and of its work nothing else is left, and with the models gone not its account."""
    before = listing(machine)
    data = "/var/lib/jetllm"
    models = {data, f"{data}/cache", f"{data}/cache/blobs", f"{data}/cache/blobs/model.gguf"}
    for asked, kept in (("not", models), ("file", set()), ("variable", set())):
        assert install(machine, NEW).returncode == 0
        put_models(machine)
        machine.run("jetllm", "version")
        if asked == "file":
            machine.write("/etc/jetllm/purge-models", "")
        variable = ("env", "JETLLM_PURGE_MODELS=1") if asked == "variable" else ()
        machine.run(*variable, "dpkg", "--purge", "jetllm")
        assert {line.split()[0] for line in listing(machine) ^ before} - ACCOUNTS == kept
        assert machine.try_run("getent", "passwd", "jetllm").returncode == (0 if kept else 2)
        assert installed(machine) in ("", "un ")


def test_lintian_has_nothing_to_say(debs: dict[str, Path]) -> None:
    """Debian's own check of packages; what is overridden says why."""
    if shutil.which("lintian") is None:
        pytest.skip("not installed: lintian")
    done = subprocess.run(
        ["lintian", "--allow-root", "--display-info", "--pedantic", "--fail-on=warning,error", debs[NEW]],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_flashed_device_serves_at_its_first_boot(
    engine: Podman, systemd_base: str, factory: Factory, archive_of: Archive, cpu_image: str, tmp_path: Path
) -> None:
    """What the overlay puts into a root file system becomes an appliance by itself."""
    bundle = factory.directory / factory.release(FIRST, archive_of(cpu_image)).rpartition("/")[2]
    config, settings = tmp_path / "appliance.conf", tmp_path / "jetllm.yaml"
    config.write_text(CONFIGURATION)
    settings.write_text(SETTINGS)
    # Docker's package would have made the group; the socket is masked in machines of the tests.
    boot = "groupadd --system docker; rm /etc/systemd/system/podman.socket; exec /lib/systemd/systemd"
    volume = "--volume=/var/lib/containers"
    identity = engine.run("create", *FLAGS, volume, systemd_base, "sh", "-c", boot)
    try:
        tree = linux_for_tegra(engine, identity, tmp_path)
        given = [tree, "--board", "agx-orin-64gb", "--deb", package(factory), "--bundle", bundle]
        given += ["--trust", factory.directory / "release.pub", "--config", config, "--settings", settings]
        assert overlay([str(each) for each in given]) == 0
        for name in SYSTEM:
            (tree / "rootfs" / name).unlink()
        for name, text in podman_files().items():
            path = tree / "rootfs" / name.strip("/")
            path.parent.mkdir(parents=True)
            path.write_text(text)
        wanted = tree / "rootfs/etc/systemd/system/sockets.target.wants"
        wanted.mkdir()
        (wanted / "podman.socket").symlink_to("/lib/systemd/system/podman.socket")
        engine.run("cp", f"{tree}/rootfs/.", f"{identity}:/", timeout_s=300)
        engine.run("start", identity)
        machine = Machine(engine, identity)
        wait_until(lambda: installed(machine) == f"ii {FIRST}", "the installation", 120)
        pool = "var/lib/jetllm/pool"
        wait_until(lambda: machine.try_run("test", "-e", f"/{pool}").returncode == 1, "the end of it", 60)
        unit = "jetllm.service"
        wait_until(lambda: machine.show(unit, "ActiveState")["ActiveState"] != "inactive", unit, 180)
        started_all = machine.try_run("systemctl", "start", unit, timeout_s=READY_S)
        assert started_all.returncode == 0, machine.journal("jetllm*")
        assert served(machine) == FIRST
        assert machine.run("cat", "/etc/jetllm/appliance.conf") == CONFIGURATION.strip()
        assert machine.run("find", "/etc/systemd/system", "-name", "jetllm-pool*") == ""
        assert enabled(machine, "jetllm.service") == "enabled"
    finally:
        engine.try_run("rm", "--force", "--time", "0", "--volumes", identity)


def test_documented_commands_make_and_remove_an_appliance(
    engine: Podman, systemd_base: str, factory: Factory, archive_of: Archive, cpu_image: str
) -> None:
    """docs/flash.md on a machine that is flashed already: it serves; removed, only the models are left."""
    made = factory.release("1.0.0", archive_of(cpu_image))
    making, giving, removing = (block.commands() for block in blocks("docs/flash.md") if TEST in block.tests)
    with started(engine, systemd_base, f"--volume={factory.directory}:/made:ro") as machine:
        for command in making:
            words = [word.replace("arm64", architecture()) for word in command]
            words = [made if word == "jetllm-1.0.0" else word for word in words]
            done = machine.try_run("sh", "-euc", f"cd /made; {shlex.join(words)}", timeout_s=READY_S)
            assert done.returncode == 0, done.stderr + machine.journal("jetllm*")
            if "apt-get" in command:
                files = {"/etc/jetllm/appliance.conf": CONFIGURATION, "/etc/jetllm/jetllm.yaml": SETTINGS}
                for name, text in {**files, **podman_files()}.items():
                    machine.write(name, text)
                machine.run("rm", "/etc/systemd/system/podman.socket")  # a mask, in machines of the tests
                for words in giving:
                    machine.run(*words)
        assert served(machine) == FIRST
        for command in removing:
            machine.run(*command, timeout_s=120)
        assert machine.run("podman", "ps", "--all", "--quiet") == ""
        assert machine.run("podman", "images", "--quiet") == ""
        left = machine.try_run("find", "/etc/jetllm", "/var/lib/jetllm", "-maxdepth", "1").stdout
        assert left.split() == ["/var/lib/jetllm", "/var/lib/jetllm/cache"]


def podman_files() -> dict[str, str]:
    """The files that docs/flash.md has for podman, by their path."""
    text = (ROOT / "docs/flash.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^```text\n# (/etc/\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert len(found) == 2
    return found


def linux_for_tegra(engine: Podman, identity: str, directory: Path) -> Path:
    """NVIDIA's tree, of which the container is the root file system: what the overlay reads of it."""
    tree = directory / "Linux_for_Tegra"
    for name in ("etc/systemd/system", "var/lib/dpkg"):
        (tree / "rootfs" / name).mkdir(parents=True)
    for name in ("flash.sh", "jetson-agx-orin-devkit.conf"):
        (tree / name).write_text("")
    *copied, release = SYSTEM
    for name in copied:
        engine.run("cp", f"{identity}:/{name}", str(tree / "rootfs" / name))
    (tree / "rootfs" / release).write_text(
        "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x\n"
    )
    return tree


def package(factory: Factory) -> Path:
    """The package that a factory built."""
    return factory.directory / f"jetllm_{FIRST}_{architecture()}.deb"
