"""A running daemon and its registry's file: read again when it changes or at SIGHUP, whole or not at all."""

from __future__ import annotations

import http.client
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.errors import DrainingError, ModelNotFoundError
from inference.generation import GenerateRequest, Message
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.conftest import wait_until
from tests.daemon_process import DaemonProcess


def entry(weights: Path, **values: Any) -> dict[str, Any]:
    """One model whose weights are a file of the user's."""
    return {
        "name": "Mine",
        "parameters": "135M",
        "memory_requirement": 300,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation"],
        "variants": {"gguf": {"backend": "llamacpp", "source": {"type": "file", "path": str(weights)}}},
        **values,
    }


def write(path: Path, models: dict[str, Any]) -> None:
    """Replace the registry's file as editors do."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"models": models}))
    new.replace(path)


@pytest.fixture
def registry_path(smollm2_path: Path, tmp_path: Path) -> Path:
    """A registry with one model."""
    path = tmp_path / "models.json"
    write(path, {"mine": entry(smollm2_path)})
    return path


@pytest.fixture
def make_service(registry_path: Path) -> Iterator[Callable[..., Service]]:
    """Make services over that registry; they are closed at the end."""
    made: list[Service] = []

    def make(**settings: Any) -> Service:
        usual = {"registry": str(registry_path), "context_tokens": 512, "min_residency_s": 0}
        made.append(build_service(load_settings({**usual, **settings})))
        return made[-1]

    yield make
    for service in made:
        service.close()


def names(daemon: DaemonProcess) -> set[str]:
    """The registered models, as the daemon tells them."""
    return {model["id"] for model in daemon.ask("GET", "/jetllm/v1/models")[1]["models"]}


def registry_status(daemon: DaemonProcess) -> dict[str, Any]:
    """What the daemon's status says of its registry."""
    status: dict[str, Any] = daemon.ask("GET", "/jetllm/v1/status")[1]["registry"]
    return status


def test_a_changed_file_is_put_in_force(registry_path: Path, smollm2_path: Path, tmp_path: Path) -> None:
    """A model that is added can be asked for without a restart; the daemon stays the same process."""
    with DaemonProcess(tmp_path / "state", registry=registry_path) as daemon:
        assert names(daemon) == {"mine"}
        write(registry_path, {"mine": entry(smollm2_path), "other": entry(smollm2_path)})
        wait_until(lambda: names(daemon) == {"mine", "other"}, "the new registry")
        assert daemon.chat("Say hi", model="other")[0] == 200
        assert daemon.process.poll() is None


def test_a_bad_file_leaves_the_old_registry_whole(registry_path: Path, tmp_path: Path) -> None:
    """SIGHUP with a broken file: every error is told, the old models are served, the next good file wins."""
    with DaemonProcess(tmp_path / "state", registry=registry_path) as daemon:
        good, before = registry_path.read_text(), registry_status(daemon)
        bad = json.loads(good)
        bad["models"]["mine"].update(memory_requirement="1.2GB", statsu="planned")
        bad["models"]["second"] = bad["models"]["mine"]
        write(registry_path, bad["models"])
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: registry_status(daemon)["error"], "the error")
        now = registry_status(daemon)
        assert (now["models"], now["digest"]) == (before["models"], before["digest"])
        assert now["error"].count("expected a positive number of MB, got '1.2GB'") == 2
        assert "did you mean 'status'?" in now["error"]
        assert names(daemon) == {"mine"}
        assert daemon.chat("Say hi", model="mine")[0] == 200
        registry_path.unlink()
        wait_until(lambda: "No such file" in str(registry_status(daemon)["error"]), "the missing file")
        assert str(registry_path.parent) not in registry_status(daemon)["error"]
        registry_path.write_text(good)
        wait_until(lambda: registry_status(daemon)["error"] is None, "the good file")


def test_hangups_before_and_after_do_not_end_the_daemon(registry_path: Path, tmp_path: Path) -> None:
    """Twenty SIGHUP in a row without a terminal: the same daemon, the same registry."""
    with DaemonProcess(tmp_path / "state", registry=registry_path) as daemon:
        for _ in range(20):
            daemon.process.send_signal(signal.SIGHUP)
        assert names(daemon) == {"mine"}
        assert daemon.stop() == 0


def test_the_end_of_its_terminal_ends_the_daemon(registry_path: Path, tmp_path: Path) -> None:
    """Where SIGHUP means that the terminal was closed, the daemon drains and leaves."""
    mine, its = pty.openpty()
    # A session's leader that opens a terminal gets it as its own.
    take = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.executable, sys.argv[2:])"
    serve = [sys.executable, "-m", "inference", "serve", "--port", "0", "--registry", str(registry_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", take, os.ttyname(its), *serve],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(its)
    assert process.stderr is not None
    with process.stderr as log:
        assert any(b" listens on " in line for line in log)
        os.close(mine)
        assert process.wait(20) == 0


def test_a_removed_model_finishes_then_leaves(
    make_service: Callable[..., Service], registry_path: Path, smollm2_path: Path
) -> None:
    """A loaded model that is no longer registered ends its stream, unloads, and is unknown from then on."""
    service = make_service()
    request = GenerateRequest(
        model="mine", messages=(Message("user", "Tell me a story"),), max_tokens=60, ignore_eos=True
    )
    with service.generate(request) as stream:
        write(registry_path, {"other": entry(smollm2_path)})
        assert service.reload_registry()
        with pytest.raises(ModelNotFoundError):
            service.generate(request)
        assert sum(bool(chunk.text) for chunk in stream) > 0
        assert stream.result is not None and stream.result.usage.completion_tokens == 60
    wait_until(lambda: not service.status()["workers"], "the removed model's end")


def test_a_changed_variant_is_loaded_anew(
    make_service: Callable[..., Service], registry_path: Path, smollm2_path: Path
) -> None:
    """Another context for a loaded variant: the old worker leaves, the next request gets the new one."""
    service = make_service()
    old = service.load("mine")["pid"]
    changed = entry(smollm2_path)
    changed["variants"]["gguf"]["context"] = 256
    write(registry_path, {"mine": changed})
    assert service.reload_registry()
    wait_until(lambda: all(w["pid"] != old for w in service.status()["workers"]), "the old worker's end")
    assert service.load("mine")["context_tokens"] == 256


def test_what_did_not_change_stays_loaded(
    make_service: Callable[..., Service], registry_path: Path, smollm2_path: Path
) -> None:
    """A note in another entry costs no worker."""
    service = make_service()
    pid = service.load("mine")["pid"]
    write(registry_path, {"mine": entry(smollm2_path, notes="new"), "other": entry(smollm2_path)})
    assert service.reload_registry()
    assert [w["pid"] for w in service.status()["workers"]] == [pid]
    assert not service.reload_registry()


def test_a_pin_that_is_no_longer_registered_harms_nothing(
    make_service: Callable[..., Service], registry_path: Path, smollm2_path: Path
) -> None:
    """Pins and preloads are settings of their own: a registry without them is still served."""
    service = make_service(pin="mine", preload="mine")
    service.preload()
    write(registry_path, {"other": entry(smollm2_path)})
    assert service.reload_registry()
    assert service.load("other")["state"] == "ready"
    assert service.readiness()[0]
    with pytest.raises(ModelNotFoundError):
        service.load("mine")
    service.begin_drain()
    with pytest.raises(DrainingError):
        service.load("other")


def test_requests_during_a_reload_are_answered(
    registry_path: Path, smollm2_path: Path, tmp_path: Path
) -> None:
    """Ten reloads under a running stream: the stream is whole."""
    with DaemonProcess(tmp_path / "state", "--preload", "mine", registry=registry_path) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        body = {"model": "mine", "prompt": "Once", "max_tokens": 150, "stream": True, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        for turn in range(10):
            write(registry_path, {"mine": entry(smollm2_path, notes=f"turn {turn}")})
            daemon.process.send_signal(signal.SIGHUP)
        text = response.read().decode()
        connection.close()
        assert text.rstrip().endswith("data: [DONE]")
