"""What runs: the port, the daemon, its unit, and whether the package index can be reached."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import Iterator

import inference
from inference.client import Client
from inference.device.files import exists, read_text
from inference.doctor.finding import Finding, Scene, fail, ok, unknown, warn
from inference.errors import JetLLMError, UnsafeBindError
from inference.instance import running_daemon
from inference.registry import load_registry
from inference.registry.sources import PackageDirectory, PackageSource

_UNITS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
_UNIT = "jetllm.service"
_CGROUPS = (
    "sys/fs/cgroup/system.slice",
    "sys/fs/cgroup/systemd/system.slice",
    "sys/fs/cgroup/unified/system.slice",
)
_INDEX_S = 60.0


def port(scene: Scene) -> Iterator[Finding]:
    """Could a daemon listen, or does one?"""
    settings = scene.settings
    address = f"{settings.host}:{settings.port}"
    if url := running_daemon(settings.state_path):
        yield ok(f"the daemon listens on {url}")
        return
    try:
        family, kind, _, _, where = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        yield fail(f"{address}: {error.strerror}", _port_fix(error, settings.port))
        return
    yield _exposed(scene) or ok(f"{address} is free")


def daemon(scene: Scene) -> Iterator[Finding]:
    """Does a running daemon answer, and is it ready?"""
    settings = scene.settings
    url = running_daemon(settings.state_path)
    if url is None:
        yield ok("none runs; start one: jetllm serve")
        return
    key = settings.api_key.get_secret_value() if settings.api_key else None
    client = Client(url, key)
    try:
        ready, told = client.readiness()
        status = client.get("/jetllm/v1/status")
    except JetLLMError as error:
        yield fail(error.message, error.hint or "jetllm logs")
        return
    if status["version"] != inference.__version__:
        yield warn(
            f"the daemon is jetllm {status['version']}, this command {inference.__version__}",
            "restart it: sudo systemctl restart jetllm, or stop it and jetllm serve",
        )
    if registry_error := status["registry"]["error"]:
        yield warn(f"the daemon keeps its former registry: {registry_error}", "mend models.json")
    if ready:
        yield ok(f"ready at {url}")
    else:
        why = ", ".join(str(value) for value in told.values() if value is not None)
        yield fail(f"{url} is not ready: {why}", "jetllm status; jetllm logs")


def systemd(scene: Scene) -> Iterator[Finding]:
    """If systemd has a unit of ours, does it run?"""
    unit = next((scene.root / at / _UNIT for at in _UNITS if exists(scene.root / at / _UNIT)), None)
    if unit is None:
        yield ok(f"there is no {_UNIT}")
        return
    groups = (scene.root / at / _UNIT / "cgroup.procs" for at in _CGROUPS)
    if any(read_text(group).strip() for group in groups):
        yield ok(f"{_UNIT} runs")
    else:
        yield warn(
            f"{_UNIT} is installed and does not run",
            f"why: journalctl -u {_UNIT} -n 50; start it: sudo systemctl restart {_UNIT}",
        )


def network(scene: Scene) -> Iterator[Finding]:
    """With --online: can the package index be reached, from which most weights come?"""
    if not scene.online:
        yield ok("not asked (--online asks)")
        return
    if scene.settings.offline:
        yield ok("the setting offline is on: nothing is fetched")
        return
    package = _package(scene)
    if package is None:
        yield unknown("no model of the registry comes from the package index")
        return
    error = _asked_index(package)
    if error is None:
        yield ok(f"the package index has {package}")
    else:
        yield fail(
            f"the package index does not answer for {package}: {error}",
            "pip config list shows which one is asked; by hand: jetllm pull MODEL --from FILE",
        )


def _exposed(scene: Scene) -> Finding | None:
    """Say that others could use the daemon without a key."""
    from inference.api.auth import check_bind

    try:
        check_bind(scene.settings)
    except UnsafeBindError as error:
        return fail(error.message, error.hint or "jetllm keys add NAME")
    return None


def _port_fix(error: OSError, number: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"who has it: ss -ltnp 'sport = :{number}'; or take another: JETLLM_PORT"
    if error.errno == errno.EACCES:
        return "a port below 1024 is root's: take another, JETLLM_PORT"
    return "correct the setting host"


def _package(scene: Scene) -> str | None:
    """Return a package of the registry that weights come in."""
    try:
        models = load_registry(scene.settings.registry_path).models.values()
    except JetLLMError:
        return None
    sources = (variant.source for spec in models for variant in spec.variants.values())
    packages = (source for source in sources if isinstance(source, PackageSource | PackageDirectory))
    return next((source.wheel_parts[0].name for source in packages), None)


def _asked_index(package: str) -> str | None:
    """Ask pip for the versions of *package*; return why it found none."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--no-input", "--retries=1"]
    try:
        done = subprocess.run(  # noqa: S603 - the package is one of the registry
            [*command, "--disable-pip-version-check", "--pre"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_INDEX_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {_INDEX_S:.0f} s"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
