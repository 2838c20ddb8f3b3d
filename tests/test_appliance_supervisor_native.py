"""The supervisor without a container: a real `jetllm serve` with a real model under it."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.appliance.config import load_config
from inference.appliance.health import Daemon, KeyRefusedError
from inference.appliance.layout import Layout
from tests.conftest import wait_until
from tests.daemon_process import MODEL
from tests.supervised import NotifySocket, Supervised, appliance, free_port

KEY = "a key of this test"


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    """What systemd is told."""
    listening = NotifySocket(f"@{tmp_path}/notify")
    yield listening
    listening.close()


@pytest.fixture
def native(smollm2_path: Path, tmp_path: Path, notify: NotifySocket) -> Supervised:
    """A supervisor, not started, whose daemon loads SmolLM2 and asks for a key."""
    layout = appliance(tmp_path / "root", free_port())
    layout.settings.write_text(f"preload: [{MODEL}]\npin: [{MODEL}]\ncontext_tokens: 1024\noffline: true\n")
    return Supervised(
        layout.root,
        notify,
        native=True,
        JETLLM_STATE_DIR=str(layout.state),
        JETLLM_CACHE_DIR=str(smollm2_path.parents[1]),
        JETLLM_API_KEY=KEY,
        WATCHDOG_USEC="2000000",
    )


def daemon_of(layout: Layout, key: str | None = KEY) -> Daemon:
    config = load_config(layout.config)
    return Daemon(config.host, config.port, key)


def test_a_real_daemon_is_followed_from_its_start_to_its_drain(
    native: Supervised, notify: NotifySocket
) -> None:
    """READY=1 after a token of the real model; at SIGTERM the running stream ends whole; nothing is left."""
    with native:
        notify.wait("READY=1")
        notify.wait("WATCHDOG=1")
        daemon = daemon_of(native.layout)
        assert daemon.live()
        assert daemon.ready()[0]
        text = daemon.complete(MODEL, "Count to five.", 8)
        assert text
        assert text == daemon.complete(MODEL, "Count to five.", 8)
        with pytest.raises(KeyRefusedError, match="refused the key"):
            daemon_of(native.layout, None).canary(MODEL)
        children = psutil.Process(native.process.pid).children(recursive=True)
        assert len(children) >= 2  # the daemon and its worker

        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        messages = [{"role": "user", "content": "Tell a long story."}]
        body = {"model": MODEL, "messages": messages, "max_tokens": 40, "stream": True, "temperature": 0}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.readline()
        assert native.stop() == 0
        assert response.read().rstrip().endswith(b"data: [DONE]")
        connection.close()
        assert notify.has("STOPPING=1")
        wait_until(lambda: not any(child.is_running() for child in children), "the end of all children")


def test_a_real_daemon_that_hangs_feeds_no_watchdog_and_its_death_is_told(
    native: Supervised, notify: NotifySocket
) -> None:
    """A stopped process is silence; what kills it is in the status and the exit code, and its workers go."""
    config = native.layout.config
    config.write_text(config.read_text().replace("drain_timeout_s = 5", "drain_timeout_s = 0.1"))
    with native:
        notify.wait("READY=1")
        children = psutil.Process(native.process.pid).children(recursive=True)
        daemon = next(child for child in children if "serve" in child.cmdline())
        notify.forget()
        os.kill(daemon.pid, signal.SIGSTOP)
        notify.wait("STATUS=unreachable")
        assert daemon.status() == psutil.STATUS_STOPPED
        notify.forget()
        os.kill(daemon.pid, signal.SIGKILL)
        assert native.ended() == 137
        assert notify.has("STATUS=the daemon ended with 137 (SIGKILL")
        assert not notify.has("WATCHDOG=1")
        wait_until(lambda: not any(child.is_running() for child in children), "the end of all children")
