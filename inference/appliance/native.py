"""The daemon without a container: `jetllm serve` of this Python, in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

from inference.appliance.config import Config
from inference.appliance.engine import KEY_VARIABLE
from inference.appliance.health import Daemon
from inference.appliance.layout import Layout
from inference.appliance.notify import inherited


class Native:
    """The daemon at *config*'s address; *environ* may name its directories and its key."""

    def __init__(self, config: Config, layout: Layout, environ: Mapping[str, str]) -> None:
        self.daemon = Daemon(config.host, config.port, environ.get(KEY_VARIABLE) or None)
        usual = {"JETLLM_CACHE_DIR": str(layout.store), "JETLLM_STATE_DIR": str(layout.state)}
        if layout.settings.is_file():
            usual["JETLLM_CONFIG"] = str(layout.settings)
        self._environment = {
            **usual,
            **inherited(environ),
            "JETLLM_HOST": config.host,
            "JETLLM_PORT": str(config.port),
            "JETLLM_DRAIN_TIMEOUT_S": f"{config.drain_timeout_s:g}",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; its output is ours."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "inference", "serve"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._process

    def stop(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Ask it to end, and kill it and its workers after *timeout_s*."""
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.remove()

    def remove(self) -> None:
        """Kill it if it still runs; its workers end with it, whatever they do."""
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
