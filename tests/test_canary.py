"""The canary: idle models are asked for a token, and readiness says what came of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from inference.canary import Canary
from inference.errors import InternalError, JetLLMError
from inference.generation import Chunk, FinishReason, GenerateRequest, Usage
from inference.runtime.worker import Worker, WorkerSpec
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess

LAST = Chunk("1", finish_reason=FinishReason.LENGTH, usage=Usage(1, 1))


class FakeWorker:
    """Answers with *chunks*, or raises *error*."""

    def __init__(self, *capabilities: str) -> None:
        self.spec = WorkerSpec("m/v", "scripted", {}, {})
        self.info = {"capabilities": capabilities}
        self.exited = False
        self.error: JetLLMError | None = None
        self.chunks = [LAST]
        self.asked: list[Any] = []

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> list[Chunk]:
        """As a worker does."""
        self.asked.append(request.max_tokens)
        if self.error is not None:
            raise self.error
        return self.chunks

    def ask(self, op: str, *, cancelled: Callable[[], bool], **fields: Any) -> Any:
        """As a worker does."""
        self.asked.append(op)
        if self.error is not None:
            raise self.error


def canary_of(*workers: FakeWorker) -> Canary:
    """A canary that is asked by hand."""
    return Canary(lambda: cast("list[Worker]", list(workers)), lambda: None, 0)


def test_a_model_that_gives_a_token_is_well() -> None:
    """One token is asked for, and nothing is wrong."""
    worker = FakeWorker("chat", "completion")
    canary = canary_of(worker)
    canary.ask()
    assert worker.asked == [1] and canary.failure() is None


@pytest.mark.parametrize("capability", ["completion", "embed"])
def test_a_failure_is_told_until_a_token_comes(capability: str) -> None:
    """The reason names the model; the next token takes it back."""
    worker = FakeWorker(capability)
    canary = canary_of(worker)
    worker.error = InternalError("CUDA error 700")
    canary.ask()
    assert canary.failure() == "m/v: the canary got no token: CUDA error 700"
    worker.error = None
    canary.ask()
    assert canary.failure() is None
    assert worker.asked == [{"completion": 1, "embed": "embed"}[capability]] * 2


def test_a_stream_without_an_end_is_a_failure() -> None:
    """Nothing at all is no token."""
    worker = FakeWorker("completion")
    worker.chunks = []
    canary = canary_of(worker)
    canary.ask()
    assert "without a reason" in str(canary.failure())


def test_what_has_ended_is_forgotten() -> None:
    """A worker that is gone says nothing of the next one."""
    worker = FakeWorker("completion")
    worker.error = InternalError("x")
    canary = canary_of(worker)
    canary.ask()
    worker.exited = True
    assert canary.failure() is None
    canary.ask()
    worker.exited = False
    assert canary.failure() is None


def test_an_idle_worker_that_hangs_is_found_without_a_client(smollm2_path: Path, tmp_path: Path) -> None:
    """The daemon asks by itself; the watchdog kills what does not answer, and requests are served again."""
    options = {"canary_interval_s": 0.3, "stall_timeout_s": 1, "context_tokens": 256, "keep_alive_s": -1}
    with DaemonProcess(tmp_path, "--preload", MODEL, **options) as daemon:
        wait_until(lambda: daemon.ask("GET", "/readyz")[0] == 200, "readiness")
        (worker,) = daemon.ask("GET", "/jetllm/v1/status")[1]["workers"]
        os.kill(worker["pid"], signal.SIGSTOP)
        wait_until(lambda: not Path(f"/proc/{worker['pid']}").exists(), "the end of the one that hangs")
        body = {"model": MODEL, "prompt": "1", "max_tokens": 1}
        assert daemon.ask("POST", "/v1/completions", body)[0] == 200
