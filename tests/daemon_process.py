"""A real `jetllm serve` in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

MODEL = "smollm2-135m-instruct"
START_S = 30.0


class DaemonProcess:
    """Starts `jetllm serve` on a free port and stops it at the end of its block.

    *state_dir* is its own; further settings are given as variables, so that the environment's
    way is the one that is tested.
    """

    main = "inference"
    """The module that is run."""

    def __init__(self, state_dir: Path, *arguments: str, **settings: object) -> None:
        self._state_dir = state_dir
        variables = {f"JETLLM_{name.upper()}": str(value) for name, value in settings.items()}
        self._environment = {
            **os.environ,
            "JETLLM_PORT": "0",
            "JETLLM_STATE_DIR": str(state_dir),
            **variables,
        }
        self._arguments = arguments
        self.log: list[str] = []

    def __enter__(self) -> DaemonProcess:
        self.started_s = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.main, "serve", *self._arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, name="daemon-log")
        self._reader.start()
        if not self._listening.wait(START_S):
            self.__exit__(None, None, None)
            raise AssertionError(f"the daemon did not listen: {self.log}")
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                self.log.append(line.rstrip())
                if " listens on " in line:
                    self.port = int(line.rsplit(":", 1)[1])
                    self.live_s = time.monotonic() - self.started_s
                    self._listening.set()
        self._listening.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def stop(self, sig: int = signal.SIGTERM, timeout_s: float = 40) -> int:
        """Signal it and wait for its end; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        return code

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Send one request; return the status and the answer, parsed when it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        is_json = "json" in (response.getheader("Content-Type") or "")
        return response.status, json.loads(raw) if is_json else raw.decode()

    def chat(self, text: str, **options: Any) -> tuple[int, Any]:
        """One chat completion."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 8,
            "temperature": 0,
            **options,
        }
        return self.ask("POST", "/v1/chat/completions", body)

    def workers(self) -> list[dict[str, Any]]:
        """The rows of `jetllm ps`."""
        rows: list[dict[str, Any]] = self.ask("GET", "/jetllm/v1/status")[1]["workers"]
        return rows
