"""The doctor: every defect is planted for real, or in the tree of a board, and found with its fix."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from inference.cli import main
from inference.doctor import (
    CHECKS,
    Finding,
    Scene,
    Verdict,
    directories,
    engines,
    examine,
    gpu,
    machine,
    models,
    running,
)
from inference.doctor.checks import Entry
from inference.doctor.finding import Check, scene_of
from inference.measurements import FILE
from inference.settings import load_settings

BOARDS = Path(__file__).parent / "fixtures" / "devices"
MODEL = "smollm2-135m-instruct"
NOBODY = 65534


def asked(check: Check, scene: Scene) -> list[Finding]:
    """Return what *check* sees."""
    return list(check(scene))


def only(check: Check, scene: Scene) -> Finding:
    """Return the one thing that *check* sees."""
    (found,) = check(scene)
    return found


def worst(check: Check, scene: Scene) -> Finding:
    """Return the worst of what *check* sees."""
    order = [Verdict.OK, Verdict.UNKNOWN, Verdict.WARN, Verdict.FAIL]
    return max(check(scene), key=lambda found: order.index(found.verdict))


def scene(**settings: object) -> Scene:
    """This machine, with *settings*."""
    return Scene(settings=load_settings({name: str(value) for name, value in settings.items()}))


@pytest.fixture
def board(tmp_path: Path) -> Callable[..., Scene]:
    """Make a copy of a board's tree, with files planted in it."""
    numbers = itertools.count()

    def make(name: str, files: dict[str, str] | None = None, **given: object) -> Scene:
        root = tmp_path / str(next(numbers)) / name
        shutil.copytree(BOARDS / name, root, symlinks=True)
        for path, text in (files or {}).items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_symlink():
                target.unlink()
            target.write_text(text)
        return dataclasses.replace(Scene(root=root), **given)  # type: ignore[arg-type]

    return make


# The whole


def test_every_finding_that_is_not_well_says_how_to_mend_it() -> None:
    """On every board and here, a warning or a failure has a fix."""
    for root in (Path("/"), *sorted(BOARDS.iterdir())):
        for name, found in examine(Scene(root=root)):
            assert found.detail, name
            assert found.fix or found.verdict in (Verdict.OK, Verdict.UNKNOWN), (root.name, name)


def test_a_sound_installation_has_exit_code_0() -> None:
    """Where nothing fails the verdict is well, in text and in JSON."""
    shown = CliRunner().invoke(main, ["doctor", "--root", str(BOARDS / "orin-nano-8gb-super"), "--json"])
    tree = json.loads(shown.stdout)
    assert shown.exit_code == 0 and tree["ok"] is True
    assert {found["check"] for found in tree["findings"]} == {e.name for e in CHECKS if e.elsewhere}


def test_a_failure_has_exit_code_1(tmp_path: Path) -> None:
    """One failure is enough; the text names its check and its fix."""
    (tmp_path / "state").write_text("no directory")
    shown = CliRunner().invoke(main, ["doctor"])
    assert shown.exit_code == 1
    line = next(line for line in shown.stdout.splitlines() if line.startswith("fail"))
    assert "directories" in line and "is no directory" in line
    assert "fix: move it away" in shown.stdout


def test_a_question_that_breaks_is_no_reason_to_ask_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that raises is told as unknown, and the next is asked."""

    def breaks(_: Scene) -> object:
        raise ZeroDivisionError("oops")

    entries = (Entry("broken", breaks), Entry("python", engines.python))  # type: ignore[arg-type]
    monkeypatch.setattr("inference.doctor.checks.CHECKS", entries)
    found = dict(examine(Scene()))
    assert found["broken"].verdict is Verdict.UNKNOWN and "ZeroDivisionError: oops" in found["broken"].detail
    assert found["python"].verdict is Verdict.OK


# Settings, directories, secrets, disk


def test_wrong_settings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is out of range fails, and the rest is looked at with the defaults."""
    monkeypatch.setenv("JETLLM_PORT", "99999")
    found = only(directories.settings, scene_of(None))
    assert found.verdict is Verdict.FAIL and "JETLLM_PORT" in found.detail and found.fix


def test_an_unreadable_settings_file_is_found(tmp_path: Path) -> None:
    """A file that was named and is not there fails."""
    found = only(directories.settings, scene_of(tmp_path / "gone.yaml"))
    assert found.verdict is Verdict.FAIL and "gone.yaml" in found.detail


def test_readable_settings_are_well(tmp_path: Path) -> None:
    """The file is named."""
    (tmp_path / "jetllm.yaml").write_text("port: 1234\n")
    looked_at = scene_of(tmp_path / "jetllm.yaml")
    assert looked_at.settings.port == 1234
    assert "jetllm.yaml" in only(directories.settings, looked_at).detail


@pytest.mark.parametrize("name", ["state_dir", "cache_dir"])
def test_a_file_in_place_of_a_directory_is_found(name: str, tmp_path: Path) -> None:
    """It fails, by name."""
    (tmp_path / "here").write_text("")
    found = worst(directories.directories, scene(**{name: tmp_path / "here"}))
    assert found.verdict is Verdict.FAIL and found.detail.startswith(name)


def test_a_directory_that_cannot_be_made_is_found(tmp_path: Path) -> None:
    """A file takes no directory."""
    (tmp_path / "file").write_text("")
    found = worst(directories.directories, scene(state_dir=tmp_path / "file" / "state"))
    assert found.verdict is Verdict.FAIL and "JETLLM_STATE_DIR" in (found.fix or "")


def test_a_directory_that_others_may_write_is_found(tmp_path: Path) -> None:
    """Whoever may write there may exchange weights and keys."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    found = worst(directories.directories, scene(cache_dir=tmp_path / "cache"))
    assert found.verdict is Verdict.FAIL and found.fix == f"chmod go-w {tmp_path / 'cache'}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write")
def test_a_directory_that_may_not_be_written_is_found(tmp_path: Path) -> None:
    """Another user's directory fails, with the way to own it; so does one that cannot even be reached."""
    with tempfile.TemporaryDirectory() as directory:  # below pytest's own nobody else can look
        state = Path(directory) / "state"
        state.mkdir(mode=0o755)
        Path(directory).chmod(0o755)
        os.seteuid(NOBODY)
        try:
            found = worst(directories.directories, scene(state_dir=state))
            hidden = worst(directories.directories, scene(state_dir=tmp_path / "state"))
        finally:
            os.seteuid(0)
    assert found.verdict is Verdict.FAIL and "chown" in (found.fix or "")
    assert hidden.verdict is Verdict.FAIL and "JETLLM_STATE_DIR" in (hidden.fix or "")


@pytest.mark.parametrize("name", ["keys.json", "daemon.log", "chat_history"])
def test_a_secret_that_others_may_read_is_found(name: str, tmp_path: Path) -> None:
    """What is private has mode 0600."""
    (tmp_path / name).write_text("{}")
    (tmp_path / name).chmod(0o644)
    found = only(directories.secrets, scene(state_dir=tmp_path))
    assert found.verdict is Verdict.FAIL and found.fix == f"chmod 600 {tmp_path / name}"
    (tmp_path / name).chmod(0o600)
    assert only(directories.secrets, scene(state_dir=tmp_path)).verdict is Verdict.OK


def test_a_settings_file_with_a_key_that_others_may_read_is_found(tmp_path: Path) -> None:
    """The key in jetllm.yaml is a secret, too."""
    path = tmp_path / "jetllm.yaml"
    path.write_text("api_key: hush\n")
    path.chmod(0o644)
    assert only(directories.secrets, scene_of(path)).fix == f"chmod 600 {path}"


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No room fails, little room for weights is warned of."""
    usage = shutil.disk_usage("/")
    for free, verdict in ((10**7, Verdict.FAIL), (10**9, Verdict.WARN), (10**11, Verdict.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        assert worst(directories.disk, scene()).verdict is verdict


def test_a_store_over_its_quota_is_found(tmp_path: Path) -> None:
    """What lies in the store is counted against the setting."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / f"sha256-{'0' * 64}").write_bytes(b"x" * 5000)
    found = worst(directories.disk, scene(cache_dir=tmp_path, store_quota_bytes=1000))
    assert found.verdict is Verdict.WARN and "over their quota" in found.detail


# Python and engines


def test_an_old_python_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 3.10 nothing of JetLLM runs."""
    monkeypatch.setattr(sys, "version_info", (3, 8, 10, "final", 0))
    assert only(engines.python, Scene()).verdict is Verdict.FAIL


def test_a_missing_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that cannot be found is named."""
    monkeypatch.setattr(engines, "_PACKAGES", ("flask", "no_such_package"))
    found = only(engines.packages, Scene())
    assert found.verdict is Verdict.FAIL and "no_such_package" in found.detail and "flask" not in found.detail


@pytest.mark.parametrize(
    ("source", "fix"),
    [
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp1"),
        ("raise RuntimeError('half installed')", "--force-reinstall"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "newer processor"),
    ],
    ids=["libgomp", "broken", "illegal instruction"],
)
def test_an_engine_that_does_not_import_is_found(
    source: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is imported in a child, as a worker would, which may well die of it."""
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(engines, "engine_versions", lambda: {"llamacpp": "xllamacpp 1"})
    found = only(engines.engines, Scene())
    assert found.verdict is Verdict.FAIL and fix in (found.fix or "")


def test_a_board_without_its_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an image with MLC fits the board, llama.cpp alone leaves its GPU idle."""
    monkeypatch.setattr(engines, "engine_versions", lambda: {"llamacpp": "xllamacpp 1"})
    found = worst(engines.engines, Scene(root=BOARDS / "orin-nano-8gb-super"))
    assert found.verdict is Verdict.WARN and "0.20.0-r36.4.0" in (found.fix or "")
    assert worst(engines.engines, Scene(root=BOARDS / "agx-thor-t5000")).verdict is Verdict.OK


def test_no_engine_at_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing can be run."""
    monkeypatch.setattr(engines, "engine_versions", dict)
    assert only(engines.engines, Scene()).verdict is Verdict.FAIL


def test_the_engines_here_import() -> None:
    """What the tests run with is well."""
    assert {found.verdict for found in asked(engines.libgomp, Scene())} == {Verdict.OK}
    assert engines.tried(engines._IMPORT, "xllamacpp") is None


def test_a_missing_libgomp_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that the loader does not find is told with the package that has it."""
    monkeypatch.setattr(engines, "_GOMP", "libgomp.so.0")
    found = only(engines.libgomp, Scene())
    assert found.verdict is Verdict.FAIL and "apt-get install libgomp1" in (found.fix or "")


# The GPU and L4T

NODES = {"dev/nvmap": "", "dev/nvgpu/igpu0/ctrl": ""}


def test_gpu_nodes_that_are_missing_are_found(board: Callable[..., Scene]) -> None:
    """On a Jetson both the memory's and the GPU's node have to be there."""
    found = asked(gpu.gpu, board("orin-nano-8gb", {"dev/nvmap": ""}))
    assert [each.verdict for each in found] == [Verdict.OK, Verdict.FAIL]
    assert "igpu0" in found[1].detail and "nvgpu" in (found[1].fix or "")


def test_gpu_nodes_missing_in_a_container_are_the_runtimes(board: Callable[..., Scene]) -> None:
    """In a container it is --runtime nvidia that is missing."""
    found = worst(gpu.gpu, board("container-cgroup2", {"dev/null": ""}))
    assert found.verdict is Verdict.FAIL and "--runtime nvidia" in (found.fix or "")


def test_gpu_nodes_of_another_group_are_found(board: Callable[..., Scene]) -> None:
    """Who is not in the group of the node is told how to join it; who is in it is well."""
    stranger = board("orin-nano-8gb", NODES, uid=1000, groups=frozenset({1000}))
    for name in NODES:
        (stranger.root / name).chmod(0o660)
    group = (stranger.root / "dev/nvmap").stat().st_gid
    assert worst(gpu.gpu, stranger).fix == "sudo usermod -aG video,render $USER, then log in again"
    member = dataclasses.replace(stranger, groups=frozenset({group}))
    assert worst(gpu.gpu, member).verdict is Verdict.OK
    root = dataclasses.replace(stranger, uid=0)
    assert worst(gpu.gpu, root).verdict is Verdict.OK


def test_thor_has_other_nodes(board: Callable[..., Scene]) -> None:
    """Thor's driver is the one of the big GPUs."""
    nodes = {"dev/nvidia0": "", "dev/nvidiactl": ""}
    assert worst(gpu.gpu, board("agx-thor-t5000", nodes)).verdict is Verdict.OK
    assert (
        worst(gpu.gpu, board("agx-thor-t5000", {"dev/nvmap": "", "dev/nvidia0": ""})).verdict is Verdict.FAIL
    )


def test_a_wrong_image_for_the_l4t_is_found(board: Callable[..., Scene]) -> None:
    """An image of another L4T fails, with the one that fits."""
    wrong = board("container-cgroup2", {"etc/jetllm/image": "dustynv/mlc:r35.4.1\n"})
    found = only(gpu.l4t, wrong)
    assert found.verdict is Verdict.FAIL and "0.20.0-r36.4.0" in (found.fix or "")


def test_an_l4t_without_an_image_is_told(board: Callable[..., Scene]) -> None:
    """An Orin can be flashed to a release that has one; a Thor cannot, and is well as it is."""
    assert only(gpu.l4t, board("agx-orin-32gb")).verdict is Verdict.WARN
    assert only(gpu.l4t, board("agx-thor-t5000")).verdict is Verdict.OK


def test_a_jetson_without_l4t_is_found(board: Callable[..., Scene]) -> None:
    """What image it needs is not known then."""
    lost = board("orin-nano-8gb", {"etc/nv_tegra_release": "nothing\n"})
    assert only(gpu.l4t, lost).verdict is Verdict.WARN


# The machine


def meminfo(total_kib: int, available_kib: int) -> dict[str, str]:
    """A /proc/meminfo."""
    return {"proc/meminfo": f"MemTotal: {total_kib} kB\nMemAvailable: {available_kib} kB\n"}


@pytest.mark.parametrize(
    ("available_mib", "verdict"), [(550, Verdict.FAIL), (900, Verdict.WARN), (4000, Verdict.OK)]
)
def test_scarce_memory_is_found(board: Callable[..., Scene], available_mib: int, verdict: Verdict) -> None:
    """What is left after the reserve decides."""
    assert (
        only(machine.memory, board("orin-nano-8gb", meminfo(7_600_000, available_mib * 1024))).verdict
        is verdict
    )


def test_a_reserve_above_all_memory_is_found(board: Callable[..., Scene]) -> None:
    """The setting leaves nothing."""
    settings = load_settings({"memory_reserve_bytes": str(2**40)})
    found = only(machine.memory, board("orin-nano-8gb", settings=settings))
    assert found.verdict is Verdict.FAIL and "memory_reserve_bytes" in (found.fix or "")


def test_unreadable_memory_is_unknown(board: Callable[..., Scene]) -> None:
    """No number is made up."""
    assert only(machine.memory, board("orin-nano-8gb", {"proc/meminfo": ""})).verdict is Verdict.UNKNOWN


def test_full_zram_is_found(board: Callable[..., Scene]) -> None:
    """zram that is used lies in the memory that models would have."""
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 1000000 900000 5\n"
    found = only(machine.swap, board("orin-nano-8gb", {"proc/swaps": swaps}))
    assert found.verdict is Verdict.WARN and "zram" in found.detail
    empty = swaps.replace("900000", "0")
    assert only(machine.swap, board("orin-nano-8gb", {"proc/swaps": empty})).verdict is Verdict.OK


def test_a_slow_power_mode_is_found(board: Callable[..., Scene]) -> None:
    """The fix has the id that the fastest mode has on this board."""
    slow = board("orin-nano-8gb-super", {"var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n"})
    found = worst(machine.power, slow)
    assert found.verdict is Verdict.WARN and "sudo nvpmodel -m 2" in (found.fix or "")
    assert (
        worst(
            machine.power, board("orin-nano-8gb-super", {"var/lib/nvpmodel/status": "pmode:0002\n"})
        ).verdict
        is Verdict.OK
    )


def test_a_weak_supply_is_found(board: Callable[..., Scene]) -> None:
    """The SoC counts the times when its voltage fell."""
    details = [found.detail for found in asked(machine.power, board("orin-nano-8gb"))]
    assert any("3 times" in detail and "voltage" in detail for detail in details)


def test_throttling_and_heat_are_found(board: Callable[..., Scene]) -> None:
    """Slowed down is told with what does it; hot is told with the temperature."""
    assert "gpu clock" in only(machine.heat, board("orin-nano-8gb")).detail
    assert only(machine.heat, board("nano-4gb")).verdict is Verdict.WARN
    assert only(machine.heat, board("orin-nano-8gb-super")).verdict is Verdict.OK


def test_a_clock_in_the_past_is_found() -> None:
    """A board without a battery begins in 1970, where no certificate is valid yet."""
    found = only(machine.clock, dataclasses.replace(Scene(), now_s=0.0))
    assert found.verdict is Verdict.FAIL and "timedatectl" in (found.fix or "")
    assert only(machine.clock, Scene()).verdict is Verdict.OK


def test_a_tight_container_is_found(board: Callable[..., Scene]) -> None:
    """What the cgroup leaves is told, and warned of where it is little."""
    tight = {
        "sys/fs/cgroup/jetllm/memory.max": "3000000000\n",
        "sys/fs/cgroup/jetllm/memory.current": "2900000000\n",
        "sys/fs/cgroup/jetllm/memory.stat": "inactive_file 0\nactive_file 0\n",
    }
    found = worst(machine.container, board("container-cgroup2", tight))
    assert found.verdict is Verdict.WARN and "--memory" in (found.fix or "")
    assert worst(machine.container, board("container-cgroup2")).verdict is Verdict.OK


def test_a_container_that_cannot_see_its_board_is_found(board: Callable[..., Scene]) -> None:
    """The host has to write what it is."""
    assert "device.json" in (worst(machine.container, board("container-untold")).fix or "")


def test_few_open_files_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hard limit below what the daemon needs is warned of."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    assert only(machine.limits, Scene()).verdict is Verdict.WARN


# Models


def test_a_broken_registry_is_found(tmp_path: Path) -> None:
    """Its own message is told; the weights are not looked at then."""
    (tmp_path / "models.json").write_text('{"models": {"m": {"memory_requirement": "1.2GB"}}}')
    looked_at = scene(registry=tmp_path / "models.json")
    found = only(models.registry, looked_at)
    assert found.verdict is Verdict.FAIL and "memory_requirement" in found.detail
    assert asked(models.weights, looked_at) == []


def test_damaged_evidence_is_found(tmp_path: Path) -> None:
    """A line that was changed does not count, and is named by its number."""
    (tmp_path / FILE).write_text('{"model": "m"}\n')
    found = only(models.evidence, scene(state_dir=tmp_path))
    assert found.verdict is Verdict.WARN and f"{FILE}:1" in found.detail


@pytest.fixture
def store(smollm2_path: Path, tmp_path: Path) -> Path:
    """A store with SmolLM2 and nothing else; return the weights in it."""
    blob = tmp_path / "cache" / "blobs" / smollm2_path.name
    blob.parent.mkdir(parents=True)
    shutil.copyfile(smollm2_path, blob)
    return blob


def test_a_flipped_byte_in_the_weights_is_found(store: Path, tmp_path: Path) -> None:
    """The hash tells what neither size nor header does."""
    looked_at = scene(cache_dir=tmp_path / "cache")
    assert only(models.weights, looked_at).detail.startswith("1 looked at")
    with store.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    found = worst(models.weights, looked_at)
    assert found.verdict is Verdict.FAIL and "SHA-256" in found.detail
    assert f"jetllm rm {MODEL}" in (found.fix or "") and f"jetllm pull {MODEL}" in (found.fix or "")


def test_large_weights_are_hashed_only_when_asked(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --deep what is large is looked at no further than its header, and that is said."""
    monkeypatch.setattr(models, "_QUICK_BYTES", 1000)
    with store.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"?")
    told: list[tuple[str, int, int]] = []
    quick = scene(cache_dir=tmp_path / "cache")
    assert "--deep" in only(models.weights, quick).detail
    deep = dataclasses.replace(quick, deep=True, progress=lambda *args: told.append(args))
    assert worst(models.weights, deep).verdict is Verdict.FAIL
    size = store.stat().st_size
    assert len(told) > 2 and told[-1][1:] == (size, size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_truncated_weights_are_not_there(store: Path, tmp_path: Path) -> None:
    """What has not its size is not the model; nothing is called sound."""
    os.truncate(store, 1000)
    assert only(models.weights, scene(cache_dir=tmp_path / "cache")).detail.startswith("none are here")


def test_weights_that_were_put_aside_are_found(store: Path, tmp_path: Path) -> None:
    """The reason is told, and the way to bring them again."""
    aside = tmp_path / "cache" / "quarantine" / store.name
    aside.parent.mkdir()
    store.rename(aside)
    aside.with_name(f"{aside.name}.reason").write_text("it was corrupt")
    found = worst(models.weights, scene(cache_dir=tmp_path / "cache"))
    assert found.verdict is Verdict.FAIL and "it was corrupt" in found.detail


# What runs


def test_a_bound_port_is_found() -> None:
    """Another program on the port fails, with the way to find out which."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        found = only(running.port, scene(port=number))
    assert found.verdict is Verdict.FAIL and f"sport = :{number}" in (found.fix or "")
    assert only(running.port, scene(port=number)).verdict is Verdict.OK


def test_an_address_that_is_not_ours_is_found() -> None:
    """A host that this machine does not have cannot be listened on."""
    found = only(running.port, scene(host="192.0.2.1"))
    assert found.verdict is Verdict.FAIL and found.fix == "correct the setting host"


def test_an_open_bind_without_a_key_is_found() -> None:
    """The daemon would refuse to start."""
    found = only(running.port, scene(host="::", port=0))
    assert found.verdict is Verdict.FAIL and "jetllm keys add" in (found.fix or "")


def test_no_daemon_is_well() -> None:
    """Not to run one is no defect."""
    assert only(running.daemon, scene()).verdict is Verdict.OK


def test_a_daemon_that_does_not_answer_is_found(tmp_path: Path) -> None:
    """Its lock is held, and nobody listens where it said it would."""
    from inference.instance import InstanceLock

    lock = InstanceLock(tmp_path)
    try:
        lock.publish("http://127.0.0.1:9")
        found = only(running.daemon, scene(state_dir=tmp_path))
    finally:
        lock.close()
    assert found.verdict is Verdict.FAIL and "does not answer" in found.detail


def test_a_unit_that_does_not_run_is_found(board: Callable[..., Scene]) -> None:
    """Installed and not running is warned of; running is seen from its cgroup."""
    unit = {"etc/systemd/system/jetllm.service": "[Service]\n"}
    found = only(running.systemd, board("orin-nano-8gb", unit))
    assert found.verdict is Verdict.WARN and "journalctl -u jetllm.service" in (found.fix or "")
    alive = unit | {"sys/fs/cgroup/system.slice/jetllm.service/cgroup.procs": "77\n"}
    assert only(running.systemd, board("orin-nano-8gb", alive)).verdict is Verdict.OK


def test_the_network_is_asked_only_when_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --online nothing is sent; with it an index that is not there is found."""
    assert "not asked" in only(running.network, Scene()).detail
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/index")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    found = only(running.network, dataclasses.replace(Scene(), online=True))
    assert found.verdict is Verdict.FAIL and "--from FILE" in (found.fix or "")
