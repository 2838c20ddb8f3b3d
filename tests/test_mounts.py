"""The promise that nothing is mounted, or otherwise given, that makes the container root on the host.

The lists here are of what is allowed: an option or a mount that nobody has thought about is refused.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.appliance.bundle import Bundle
from inference.appliance.config import Config
from inference.appliance.engine import Engine
from inference.appliance.errors import ImageError
from inference.appliance.installation import Installation
from inference.appliance.layout import Layout
from inference.appliance.manifest import File, Image, Manifest, Model
from inference.appliance.update import import_models

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = ROOT / "containers/compose.yaml"
MANIFESTS = sorted((ROOT / "containers/fleet/k3s").glob("*.yaml"))
UNITS = ROOT / "systemd"
USER = 4242

# Options without a value, and those with one, which must match.
FLAGS = {"--rm", "--read-only", "--no-healthcheck", "--interactive"}
OPTIONS = {
    "--name": r"jetllm(-once)?",
    "--runtime": r"nvidia|runc",
    "--tmpfs": r"/tmp(:.*)?",
    "--cap-drop": r"ALL",
    "--security-opt": r"no-new-privileges(:true)?",
    "--pids-limit": r"[1-9]\d*",
    "--user": r"[1-9]\d*:[1-9]\d*",
    "--mount": r"type=bind,source=[^,]+,target=[^,]+(,readonly)?",
    "--hostname": r"[\w.-]+",
    "--publish": r".+:\d+:8080",
    "--log-driver": r"none",
    "--network": r"none",
    "--cgroupns": r"private",
    "--env": r"JETLLM_\w+(=.*)?",
    "--group-add": r"44|109",
}
REQUIRED = {"--read-only", "--cap-drop", "--security-opt", "--user", "--pids-limit"}
GROUPS = (44, 109)
MANIFEST = Manifest(
    version="0.2.0",
    created_unix_s=1,
    arch="x86_64",
    l4t=(),
    compute_capability=(),
    boards=(),
    image=Image("image.tar", "jetllm:0.2.0", f"sha256:{'0' * 64}", 1),
    models=(Model("m", "v"),),
    golden=(),
    evidence=None,
    registry=None,
    files=(File("store/blobs/m", 1, "0" * 64),),
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A device's directories; the state belongs to an ordinary user, as the package makes it."""
    layout = Layout(tmp_path / "root")
    for directory in (layout.store, layout.state, layout.run, layout.trusted, layout.bundles):
        directory.mkdir(parents=True)
    layout.settings.write_text("")

    if os.geteuid() == 0:
        os.chown(layout.state, USER, USER)
    return layout


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that does nothing but write down, line by line, what it was asked."""
    told = tmp_path / "told.jsonl"
    for name in ("docker", "podman"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        script = f"import json, sys\nprint(json.dumps(sys.argv), file=open({str(told)!r}, 'a'))\n"
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return told


def parsed(argv: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the options of a "run" with their values, and the mounts; refuse what is not allowed."""
    words = iter(argv[1:])
    options: dict[str, list[str]] = {}
    command = False
    for word in words:
        if word == "run":
            command = True
            continue
        if not word.startswith("-"):
            break
        name, equals, value = word.partition("=")
        if name in FLAGS:
            assert not equals
        else:
            assert name in OPTIONS, f"{name}: nobody has said that this is harmless"
            value = value if equals else next(words)
            assert re.fullmatch(OPTIONS[name], value), f"{name} {value}"
        options.setdefault(name, []).append(value)
    assert command
    return options, options.get("--mount", [])


def mounts_of(texts: list[str]) -> dict[Path, bool]:
    """Return what is mounted, and whether it can be written."""
    found = {}
    for text in texts:
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        found[Path(fields["source"])] = "readonly" not in fields
    return found


def trusted(layout: Layout) -> dict[str, Path]:
    """What the host's root, or its supervisor, believes or runs."""
    return {
        "configuration": layout.config,
        "settings": layout.settings,
        "keys of who may sign": layout.trusted,
        "releases": layout.releases,
        "stamps": layout.stamps,
        "bundles": layout.bundles,
        "device": layout.device_file,
        "program": layout.root / "usr/lib/jetllm",
        "command": layout.root / "usr/bin/jetllm",
        "units": layout.root / "usr/lib/systemd/system",
    }


@pytest.mark.parametrize("engine", ["docker", "podman"])
@pytest.mark.parametrize("writable", [False, True], ids=["store read-only", "store writable"])
def test_daemon_is_given_its_own_directories_and_no_rights(
    layout: Layout, engine: str, writable: bool
) -> None:
    """The container of the daemon: four mounts, of which it can write its state, and the store when asked."""
    config = Config(engine=engine, writable_store=writable)
    options, mounts = parsed(Engine(config, layout).run_argv("jetllm:current", groups=GROUPS))
    assert options.keys() >= REQUIRED
    assert mounts_of(mounts) == {
        layout.store: writable,
        layout.state: True,
        layout.run: False,
        layout.settings: False,
    }


def test_container_that_imports_a_bundle_is_given_no_more(layout: Layout, recorded: Path) -> None:
    """It reads the bundle and whom to trust, writes store and state; it has no network, nor other rights."""
    installation = Installation(layout, Config(), lambda _: None)
    import_models(installation, Bundle(MANIFEST, layout.bundles, "factory"), "jetllm:next")
    asked = [json.loads(line) for line in recorded.read_text().splitlines()]
    options, given = parsed(next(argv for argv in asked if argv[1] == "run"))
    assert options.keys() >= REQUIRED and options["--network"] == ["none"]
    assert mounts_of(given) == {
        layout.bundles: False,
        layout.trusted: False,
        layout.store: True,
        layout.state: True,
    }


def test_nothing_that_the_host_trusts_can_be_written(layout: Layout) -> None:
    """No file that root reads or runs lies in a directory that the container can write."""
    _, mounts = parsed(Engine(Config(writable_store=True), layout).run_argv("jetllm:current"))
    writable = [path for path, can in mounts_of(mounts).items() if can]
    assert writable
    for what, path in trusted(layout).items():
        assert not any(path.is_relative_to(mount) for mount in writable), what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories of root's")
def test_state_that_belongs_to_root_is_refused(layout: Layout) -> None:
    """The container runs as the owner of its state; as root it does not run."""
    os.chown(layout.state, 0, 0)
    with pytest.raises(ImageError, match="root"):
        Engine(Config(), layout).run_argv("jetllm:current")


@pytest.mark.parametrize(
    "more",
    [
        ["--privileged"],
        ["--cap-add", "SYS_ADMIN"],
        ["--pid", "host"],
        ["--network=host"],
        ["--device", "/dev/mem"],
        ["--security-opt", "seccomp=unconfined"],
        ["--volume", "/var/run/docker.sock:/var/run/docker.sock"],
        ["--user", "0:0"],
        ["--group-add", "docker"],
        ["--userns", "host"],
        ["--cgroupns", "host"],
    ],
    ids=" ".join,
)
def test_check_of_options_notices(more: list[str]) -> None:
    """The check refuses every usual way to the host."""
    with pytest.raises(AssertionError):
        parsed(["docker", "run", "--rm", *more, "jetllm:current"])


def test_run_directory_has_no_socket_of_ours() -> None:
    """/run/jetllm, which the container sees, is made for files: no unit listens there."""
    for path in UNITS.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^Listen\w+=", text, re.MULTILINE), path.name
        assert not re.search(r"^BindPaths=|^PassEnvironment=.*DOCKER", text, re.MULTILINE), path.name


@pytest.mark.parametrize("unit", ["jetllm.service", "jetllm-native.service"])
def test_units_run_as_their_own_user(unit: str) -> None:
    """What runs for long is not root, and can become nobody else."""
    text = (UNITS / unit).read_text(encoding="utf-8")
    for line in ("User=jetllm", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict"):
        assert re.search(rf"^{re.escape(line)}$", text, re.MULTILINE), line


# compose.yaml

COMPOSE_KEYS = {
    *("restart", "init", "read_only", "tmpfs", "cap_drop", "security_opt", "pids_limit", "user", "ports"),
    *("stop_grace_period", "profiles", "image", "build", "runtime", "group_add", "volumes", "environment"),
    *("healthcheck", "mem_limit", "command"),
}


def services() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml, with what they share."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    return found


@pytest.mark.parametrize("name", list(services()))
def test_compose_gives_no_rights(name: str) -> None:
    """Not root, no capabilities, a read-only root; and no key that could take one of these back."""
    service = services()[name]
    assert service.keys() <= COMPOSE_KEYS, "nobody has said that these are harmless"
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert [text.partition(":")[0] for text in service["security_opt"]] == ["no-new-privileges"]
    assert int(service["user"].partition(":")[0]) >= 1000
    assert service["pids_limit"] > 0
    assert set(service.get("group_add", [])) <= {"video", "render"}
    assert service.get("runtime", "nvidia") == "nvidia"


@pytest.mark.parametrize("name", list(services()))
def test_compose_publishes_on_loopback(name: str) -> None:
    """Who has not said otherwise is reached from this machine only."""
    assert all(text.startswith("127.0.0.1:") for text in services()[name]["ports"])


@pytest.mark.parametrize("name", list(services()))
def test_compose_mounts_nothing_of_the_host_but_the_board(name: str) -> None:
    """Volumes with names are the engine's own; of the host there is /run/jetllm, read-only."""
    for text in services()[name]["volumes"]:
        source, target, *mode = text.split(":")
        if "/" in source or source.startswith((".", "~", "$")):
            assert (source, target, mode) == ("/run/jetllm", "/run/jetllm", ["ro"]), text


def test_compose_volumes_are_not_bound_to_the_host() -> None:
    """A volume with a name could still be a directory of the host, by its driver's options."""
    volumes = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["volumes"]
    assert set(volumes.values()) == {None}


# k3s

VOLUMES = {"name", "configMap", "emptyDir", "secret", "persistentVolumeClaim", "downwardAPI", "projected"}
HOSTLY = {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace", "hostPath", "privileged"}


def test_pods_mount_nothing_of_their_node() -> None:
    """Volumes are the cluster's; no field that opens the node is there, wherever it could be."""
    assert MANIFESTS
    for path in MANIFESTS:
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            found = set(keys_of(each))
            assert not found & HOSTLY, f"{path.name}: {found & HOSTLY}"
            assert "capabilities" not in found or list(added(each)) == []
            for volume in volumes_of(each):
                assert volume.keys() <= VOLUMES, f"{path.name}: {volume}"


def keys_of(tree: Any) -> Iterator[str]:
    """Yield every key, at any depth."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield key
            yield from keys_of(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from keys_of(value)


def added(tree: Any) -> Iterator[Any]:
    """Yield what capabilities are added."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key == "capabilities":
                yield from value.get("add", [])
            yield from added(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from added(value)


def volumes_of(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The volumes of an object that makes pods."""
    template = tree.get("spec", {}).get("template", {})
    found: list[dict[str, Any]] = template.get("spec", {}).get("volumes", [])
    return found
