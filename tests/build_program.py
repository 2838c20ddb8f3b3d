"""A program that builds, for tests that kill it: it forks builders for each line that it reads.

A builder is a process like any other, but begins without the half second that imports take. Lines of JSON
go both ways: a task comes in; of each builder its pid, every step that it begins, its result and its end
go out.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.artifacts.build import Builder, BuildProgress, Engine, Order, Proof, Prove, Target
from inference.artifacts.store import Store
from inference.errors import JetLLMError
from inference.settings import load_settings, worker_environment

QUANTIZATION = "q4f16_1"


def order_of(checkpoint: Path) -> Order:
    """Return the order for the checkpoint of a test."""
    return Order(
        model="tiny",
        variant="mlc",
        checkpoint=checkpoint,
        content="c" * 64,
        preferred=QUANTIZATION,
        converted=None,
        context_tokens=128,
        chunk_tokens=64,
        sequences=4,
        conversation="chatml",
        chats=True,
        target=Target("cpu", None, platform.machine(), "test", None),
        device="cpu",
    )


def builder_of(store: Path, prove: Prove | None = None) -> Builder:
    """Return a builder of that store."""
    return Builder(
        Store(store),
        Engine("e" * 64, 1),
        prove=prove or (lambda path, order, cancelled: Proof("one two three", 3)),
        environment=worker_environment(),
        budget_bytes=lambda: None,
    )


def key_of(checkpoint: Path) -> str:
    """Return the key of the first rung."""
    return order_of(checkpoint).recipe(QUANTIZATION, "e" * 64).key


def main() -> None:
    """Serve tasks until stdin ends.

    Of a task: builders (how many), environment (what is added to this one), store, checkpoint, real
    (whether the build is loaded in a worker).
    """
    for line in sys.stdin:
        task = json.loads(line)
        for pid in [_fork(task) for _ in range(task["builders"])]:
            _tell(pid, ended=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _fork(task: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ |= task["environment"]
        tempfile.tempdir = None
        _build(task)
    _tell(pid, began=True)
    return pid


def _build(task: dict[str, Any]) -> None:
    """Sweep, as a start does, and build; never returns."""
    try:
        store = Path(task["store"])
        Store(store).sweep()
        builder = builder_of(store, _in_a_worker() if task.get("real") else None)
        build = builder.build(order_of(Path(task["checkpoint"])), progress=_reporter())
        _tell(os.getpid(), built=build.key, created_s=build.created_s)
    except JetLLMError as error:
        _tell(os.getpid(), error=str(error))
    except BaseException as error:
        _tell(os.getpid(), error=f"{type(error).__name__}: {error}")
    os._exit(0)


def _in_a_worker() -> Prove:
    from inference.building import prove

    settings = load_settings()
    return lambda path, order, cancelled: prove(path, order, settings, cancelled)


def _reporter() -> Callable[[BuildProgress], None]:
    steps = [""]

    def report(progress: BuildProgress) -> None:
        if progress.step != steps[-1]:
            steps.append(progress.step)
            _tell(os.getpid(), step=progress.step)

    return report


def _tell(pid: int, **event: Any) -> None:
    os.write(1, json.dumps({"pid": pid, **event}).encode() + b"\n")


if __name__ == "__main__":
    main()
