"""A whole service, in this process or as a daemon, with the scripted backends in place of transformers.

As a program it is `jetllm`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import psutil

import inference.backends
from inference import catalog, gauges, planning, service
from inference.cli import main
from inference.device import Memory, read_memory, read_telemetry
from inference.device.detect import detect
from inference.registry import load_registry
from inference.runtime.worker import Worker, WorkerSpec
from inference.selection.estimate import estimate_decode_tokens_per_s
from tests.daemon_process import DaemonProcess
from tests.model_script import SEGMENT, SHARED_MEMORY, ModelScript, write_script
from tests.posing_worker import POSING

MODEL = "scripted"
_BOARDS = Path(__file__).parent / "fixtures" / "devices"
_BOARD = "orin-nano-8gb"
_CELSIUS = 48


class ScriptedDaemon(DaemonProcess):
    """`jetllm serve` that runs the scripted backends."""

    main = "tests.scripted_service"


@contextmanager
def scripted_backend(root: Path = Path("/"), *, alone: bool = False) -> Iterator[None]:
    """Within the block, services made in this process run the scripted backends.

    They take the machine for the one whose file system is at *root*.

    Args:
        alone: of its memory the workers take what they really hold and leave behind, and nobody else any.
    """
    worker = functools.partial(WorkerSpec, main="tests.posing_worker")
    described = functools.partial(detect, root)
    whole = read_memory(root)
    memory = functools.partial(_taken_from, whole) if alone else functools.partial(read_memory, root)
    inference.backends.__path__.insert(0, POSING)
    try:
        with (
            mock.patch.object(planning, "WorkerSpec", worker),
            mock.patch.object(service, "detect", described),
            mock.patch.object(catalog, "detect", described),
            mock.patch.object(catalog, "read_memory", memory),
            mock.patch.object(gauges, "read_telemetry", functools.partial(read_telemetry, root)),
        ):
            yield
    finally:
        inference.backends.__path__.remove(POSING)
        _segment().unlink(missing_ok=True)


@contextmanager
def leaking_loads(leaks: bool = True, leak_bytes: int = 2_000_000) -> Iterator[None]:
    """Within the block, services made in this process keep memory for each worker, if that *leaks*."""
    kept: list[bytearray] = []
    make = Worker.start

    def start(worker: Worker) -> None:
        kept.append(bytearray(b"x") * leak_bytes)
        make(worker)

    with mock.patch.object(Worker, "start", start) if leaks else nullcontext():
        yield


def scripted_registry(
    directory: Path, *, backend: str = "transformers", source: object = None, **script: object
) -> Path:
    """Write a registry with one model and return its path.

    It loads as *script* says, unless it is of another *source*.
    """
    weights = directory / "weights"
    weights.mkdir()
    (weights / "script.json").write_text(json.dumps(script))
    variant = {"backend": backend, "source": source or {"type": "file", "path": str(weights)}}
    return _registry(directory, variant, parameters="1M", memory_requirement=50)


def model_registry(
    directory: Path,
    script: ModelScript,
    *,
    speed: float | None = None,
    predicted_tokens_per_s: float = 600.0,
    root: Path = Path("/"),
    **entry: object,
) -> Path:
    """Write a registry with one scripted model and return its path.

    Args:
        speed: how many times as fast as the product predicts it decodes; ``None``: as *script* says.
        predicted_tokens_per_s: what the product predicts on the machine whose file system is at *root*:
            the model is made as large as that asks for.
        entry: what the registry says otherwise of it.
    """
    write_script(directory / "weights", script)
    variant = {
        "backend": "transformers",
        "quantization": "f32",
        "source": {"type": "file", "path": str(directory / "weights")},
    }
    usual = {"chat": "chatml", "memory_requirement": 120, **entry}
    path = _registry(directory, variant, parameters="1M", **usual)
    millions = _predicted_tokens_per_s(path, root) / predicted_tokens_per_s
    path = _registry(directory, variant, parameters=f"{millions:.6f}M", **usual)
    if speed is not None:
        itl_s = 1 / (speed * _predicted_tokens_per_s(path, root))
        write_script(directory / "weights", replace(script, itl_s=itl_s))
    return path


def board_tree(directory: Path, *, clocks: float = 1.0) -> Path:
    """Copy the file system of a cool and idle Orin Nano to *directory* and return its root.

    Its GPU and its memory run at a share of their clocks.
    """
    root = directory / _BOARD
    shutil.copytree(_BOARDS / _BOARD, root, symlinks=True)
    for file in root.glob("sys/class/thermal/cooling_device*/cur_state"):
        file.write_text("0\n")
    for file in root.glob("sys/class/thermal/thermal_zone*/temp"):
        file.write_text(f"{_CELSIUS * 1000}\n")
    gpu = root / "sys/class/devfreq/17000000.gpu"
    (gpu / "device/load").write_text("0\n")
    memory = root / "sys/kernel/debug/bpmp/debug/clk/emc/rate"
    limits = (
        (gpu / "cur_freq", gpu / "max_freq"),
        (memory, root / "sys/kernel/nvpmodel_emc_cap/emc_iso_cap"),
    )
    for clock, limit in limits:
        clock.write_text(f"{round(int(limit.read_text()) * clocks)}\n")
    return root


def _taken_from(memory: Memory, **_: object) -> Memory:
    """Return what the workers leave of *memory*; the budget stays as it was."""
    taken = sum(map(_held_bytes, psutil.Process().children())) + _segment_bytes()
    return replace(memory, available_bytes=(memory.available_bytes or 0) - taken)


def _segment() -> Path:
    return SHARED_MEMORY / f"{SEGMENT}{os.getpid()}"


def _segment_bytes() -> int:
    return _segment().stat().st_size if _segment().exists() else 0


def _held_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def _registry(directory: Path, variant: object, **more: object) -> Path:
    entry = {
        "name": "Scripted",
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation", "text_generation"],
        "context_length": 4096,
        "variants": {"v": variant},
        **more,
    }
    path = directory / "models.json"
    path.write_text(json.dumps({"models": {MODEL: entry}}))
    return path


def _predicted_tokens_per_s(registry: Path, root: Path) -> float:
    spec, device = load_registry(registry).models[MODEL], detect(root)
    found = estimate_decode_tokens_per_s(
        spec, spec.variants["v"], device.bandwidth_bytes_per_s, cpu_cores=device.cpu_cores
    )
    assert found is not None, "nothing is predicted for this machine"
    return found


if __name__ == "__main__":
    with scripted_backend():
        main()
