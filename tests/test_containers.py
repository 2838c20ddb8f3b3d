"""The container images, as far as their files tell: what runs as whom, from what, with which rights."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from inference.device import detect, image_for, why_unfit

ROOT = Path(__file__).resolve().parent.parent
CONTAINERS = ROOT / "containers"
JETSON, CPU = CONTAINERS / "Dockerfile", CONTAINERS / "Dockerfile.cpu"
BOTH = pytest.mark.parametrize("dockerfile", [JETSON, CPU], ids=lambda path: path.name)
BOARDS = ROOT / "tests" / "fixtures" / "devices"

RELEASES = (
    "32.7.1",
    "35.3.1",
    "36.2.0",
    "36.3.0",
    "36.4.0",
    "36.4.3",
    "36.4.7",
    "36.5.0",
    "38.2.0",
    "39.2.0",
)
"""L4T releases that devices have, of every line."""

ROOT_ON_THE_HOST = (
    "docker.sock",
    "podman.sock",
    "containerd.sock",
    "jtop.sock",
    "dbus",
    "/proc",
    "/sys",
    "/dev",
)
"""What, mounted into a container, gives it root on the host or a way there."""


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(part[0].upper(), part[1] if len(part) > 1 else "") for part in parts]


def _all(dockerfile: Path, name: str) -> list[str]:
    return [text for instruction, text in _instructions(dockerfile) if instruction == name]


def _last_stage(dockerfile: Path) -> list[tuple[str, str]]:
    found = _instructions(dockerfile)
    starts = [number for number, (name, _) in enumerate(found) if name == "FROM"]
    return found[starts[-1] :]


def _arguments(dockerfile: Path) -> dict[str, str]:
    return dict(text.split("=", 1) for text in _all(dockerfile, "ARG") if "=" in text)


def _pairs(dockerfile: Path, instruction: str) -> dict[str, str]:
    """Return the NAME=VALUE pairs of an instruction, with the arguments' defaults put in."""
    values = _arguments(dockerfile)
    words = [word for text in _all(dockerfile, instruction) for word in shlex.split(text)]
    told = (word.split("=", 1) for word in words)
    return {name: re.sub(r"\$\{(\w+)\}", lambda found: values.get(found[1], ""), text) for name, text in told}


@BOTH
def test_bases_are_named_with_a_version(dockerfile: Path) -> None:
    """Every stage starts from BASE_IMAGE, whose default has a tag that is not "latest"."""
    base = _arguments(dockerfile)["BASE_IMAGE"]
    assert re.fullmatch(r"[a-z0-9./-]+:\d[\w.-]*", base), base
    assert {text.split()[0] for text in _all(dockerfile, "FROM")} == {"${BASE_IMAGE}"}


@BOTH
def test_packages_are_installed_by_hash(dockerfile: Path) -> None:
    """pip installs what a lock names and hashes, torch's pin, or our own files without an index."""
    commands = [part for text in _all(dockerfile, "RUN") for part in re.split(r"&&|;|\|\|", text)]
    installs = [part for part in commands if re.search(r"pip\b.*\b(install|wheel)\b", part)]
    assert len(installs) >= 3
    for command in installs:
        locked = "--require-hashes" in command and "--no-deps" in command
        own = "--no-index" in command and "--no-deps" in command
        assert locked or own or command.split()[-2:] == ["-r", "requirements/torch.txt"], command


@BOTH
def test_build_bakes_no_index_in(dockerfile: Path) -> None:
    """Where packages come from is told by a secret of the build, which leaves no trace in the image."""
    assert not [name for name in _arguments(dockerfile) if re.search("INDEX|PROXY|TOKEN|URL", name)]
    assert not [name for name in _pairs(dockerfile, "ENV") if name.startswith("PIP_")]
    assert "://" not in dockerfile.read_text()
    assert "--mount=type=secret,id=pip" in "".join(_all(dockerfile, "RUN"))


@BOTH
def test_image_runs_as_nobody_in_particular(dockerfile: Path) -> None:
    """The last user is a number, which Kubernetes can check, and not root."""
    users = [text for name, text in _last_stage(dockerfile) if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@BOTH
def test_image_serves_without_surprises(dockerfile: Path) -> None:
    """The command is `jetllm serve`, and the base's entrypoint does not come before it."""
    last = _last_stage(dockerfile)
    assert [text for name, text in last if name == "CMD"] == ['["jetllm", "serve"]']
    assert [text for name, text in last if name == "ENTRYPOINT"] == ["[]"]


@BOTH
def test_health_check_needs_nothing_but_python(dockerfile: Path) -> None:
    """The health check is our script; no curl and no wget is brought in for it."""
    assert "healthcheck.py" in _all(dockerfile, "HEALTHCHECK")[0]
    assert not re.search(r"\b(curl|wget)\b", dockerfile.read_text())


@BOTH
def test_environment_is_that_of_the_documents(dockerfile: Path) -> None:
    """The daemon listens on every address of its container; what it keeps is in two directories."""
    told = _pairs(dockerfile, "ENV")
    ours = {name: text for name, text in told.items() if name.startswith("JETLLM_")}
    assert ours == {
        "JETLLM_CONFIG": "/etc/jetllm/jetllm.yaml",
        "JETLLM_HOST": "0.0.0.0",  # noqa: S104 - in the container, whose port is published on loopback
        "JETLLM_PORT": "8080",
        "JETLLM_CACHE_DIR": "/var/cache/jetllm",
        "JETLLM_STATE_DIR": "/var/lib/jetllm",
    }
    assert told["HOME"] == "/tmp"


@BOTH
def test_image_tells_our_version(dockerfile: Path) -> None:
    """The version in the labels and in the image's own name is the package's."""
    (version,) = re.findall(r'(?m)^version = "(.+)"$', (ROOT / "pyproject.toml").read_text())
    assert _pairs(dockerfile, "LABEL")["org.opencontainers.image.version"] == version
    assert _own_name(dockerfile).startswith(f"jetllm:{version}-")


def _own_name(dockerfile: Path) -> str:
    """Return what the image writes into /etc/jetllm/image."""
    (command,) = (text for text in _all(dockerfile, "RUN") if "/etc/jetllm/image" in text)
    (told,) = re.findall(r'echo "(\S+)" > /etc/jetllm/image', command)
    values = _arguments(dockerfile)
    return re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], told)


def test_base_is_the_newest_of_the_table() -> None:
    """The Jetson's Dockerfile starts from the image that `images.image_for` gives to L4T 36.4."""
    image = image_for(_orin("36.4.3"))
    assert image is not None
    assert _arguments(JETSON)["BASE_IMAGE"] == image.tag


@pytest.mark.parametrize("l4t", RELEASES)
def test_labels_agree_with_the_table(l4t: str) -> None:
    """A device's L4T is in the label org.jetllm.l4t exactly where the table has our base for it."""
    label = _pairs(JETSON, "LABEL")["org.jetllm.l4t"]
    labelled = any(f"{l4t}.".startswith(f"{release}.") for release in label.split(","))
    image = image_for(_orin(l4t))
    assert labelled == (image is not None and image.tag == _arguments(JETSON)["BASE_IMAGE"])


@pytest.mark.parametrize("l4t", RELEASES)
def test_image_that_names_itself_is_refused_where_its_base_is(l4t: str) -> None:
    """The name in /etc/jetllm/image has the L4T in it: `why_unfit` judges our image as it does the base."""
    base = why_unfit(_arguments(JETSON)["BASE_IMAGE"], l4t)
    own = why_unfit(_own_name(JETSON), l4t)
    assert (own is None) == (base is None)
    assert own is None or f"L4T {l4t}" in own


def test_compute_capability_is_that_of_the_boards() -> None:
    """The label org.jetllm.compute-capability is what `detect` says of every board that the image is for."""
    label = _pairs(JETSON, "LABEL")["org.jetllm.compute-capability"]
    devices = [detect(path) for path in sorted(BOARDS.iterdir()) if (path / "expected.json").exists()]
    served = [device for device in devices if (image := image_for(device)) and "36.4" in image.tag]
    assert served
    assert {device.compute_capability for device in served} == set(label.split(","))


def test_image_for_the_cpu_is_for_any_machine() -> None:
    """Its labels name no L4T and no compute capability, and its own name is refused nowhere."""
    labels = _pairs(CPU, "LABEL")
    assert (labels["org.jetllm.l4t"], labels["org.jetllm.compute-capability"]) == ("", "")
    assert all(why_unfit(_own_name(CPU), l4t) is None for l4t in RELEASES)


def _orin(l4t: str) -> Any:
    return dataclasses.replace(detect(BOARDS / "orin-nx-16gb"), l4t=l4t)


def _compose() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())
    return data


@pytest.mark.parametrize("service", ["jetson", "cpu"])
def test_compose_takes_every_right_away(service: str) -> None:
    """A service has a read-only root, no capability, no way to new ones, few processes, and is not root."""
    told = _compose()["services"][service]
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in told["security_opt"]
    assert told["pids_limit"] <= 1024
    assert not str(told["user"]).startswith(("0", "root"))
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "userns_mode"} & set(told)


@pytest.mark.parametrize("service", ["jetson", "cpu"])
def test_compose_publishes_on_loopback_only(service: str) -> None:
    """Who wants the network to reach the daemon says so; Docker's firewall rules would pass the host's."""
    ports = _compose()["services"][service]["ports"]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_mounts_nothing_that_gives_root() -> None:
    """No socket of an engine, of D-Bus or of jetson-stats, and nothing of the kernel's, is mounted."""
    mounts = [mount for told in _compose()["services"].values() for mount in told["volumes"]]
    assert not [mount for mount in mounts for piece in ROOT_ON_THE_HOST if piece in mount.split(":")[0]]
    bound = [mount for mount in mounts if mount.startswith(("/", "."))]
    assert all(mount.endswith(":ro") for mount in bound), bound


def test_compose_builds_our_dockerfiles() -> None:
    """Each service is built from the file that is its own, with the repository as the context."""
    for name, dockerfile in (("jetson", JETSON), ("cpu", CPU)):
        told = _compose()["services"][name]["build"]
        context = (CONTAINERS / told["context"]).resolve()
        assert context / told["dockerfile"] == dockerfile


def test_no_file_of_ours_asks_for_the_host() -> None:
    """No file in containers/ gives a container the host's rights or the engine's socket."""
    files = [path for path in CONTAINERS.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {JETSON, CPU} < set(files)
    for path in files:
        told = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        assert not re.search(
            r"privileged:\s*true|--privileged|docker\.sock|jtop\.sock|system_bus_socket", told
        ), path


def test_locks_agree() -> None:
    """The image for the CPU installs what the tests ran with: the same versions and hashes, and no torch."""
    ours, theirs = (_locked(CONTAINERS / "transformers.txt"), _locked(ROOT / "requirements/transformers.txt"))
    assert set(ours) <= set(theirs)
    assert all(ours[pin] == theirs[pin] for pin in ours)
    assert _locked(ROOT / "requirements/base.txt").items() <= ours.items()
    assert not [pin for pin in ours if pin.startswith("torch==")]


def _locked(path: Path) -> dict[str, frozenset[str]]:
    """Return a lock's pins with their hashes; markers, which follow from who asks, are left out."""
    blocks = re.split(r"\n(?=[a-z0-9])", path.read_text().split("make lock", 1)[1].strip())
    return {block.split()[0]: frozenset(re.findall("sha256:[0-9a-f]{64}", block)) for block in blocks}


def test_context_has_what_is_copied_and_no_more() -> None:
    """.dockerignore shuts everything out and lets in by name; git's directory and weights stay out."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert {"inference", "requirements", "pyproject.toml", "models.json"} <= let_in
    assert not [name for name in let_in if name.startswith((".", "tests", "*"))]


@BOTH
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    """hadolint passes both files; what it is told to leave alone is said beside it."""
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: make test-appliance")
    done = subprocess.run([hadolint, str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
