"""The mlc backend in a real worker process: every way in which the engine fails, and what is told."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.errors import InvalidRequestError, JetLLMError, LoadFailedError, WorkerCrashedError
from inference.generation import Chunk, GenerateRequest, Message
from inference.runtime.plan import Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker, WorkerSpec
from tests.conftest import wait_until
from tests.fake_mlc.mlc_llm.library import LAST_WORD
from tests.mlc_model import make_model, worker_spec

Start = Callable[[WorkerSpec], Worker]
TOLD_S = 1.0  # facts/faults.md, B1: noticed and told to the client


def never() -> bool:
    return False


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Path]:
    """Makes a model whose engine follows a script."""
    return lambda **script: make_model(tmp_path / "tiny", **script)


def impatient(weights: Path) -> WorkerSpec:
    return dataclasses.replace(worker_spec(weights), main="tests.impatient_worker")


def failed(worker: Worker) -> JetLLMError:
    assert worker.exited
    assert isinstance(worker.exit_error, LoadFailedError)
    return worker.exit_error


def text_of(worker: Worker, **request: Any) -> str:
    asked = GenerateRequest(**{"prompt": "hello", "max_tokens": 8, "temperature": 0, **request})
    return "".join(chunk.text for chunk in worker.generate(asked, never))


def test_a_model_loads_and_answers(start_worker: Start, model: Callable[..., Path]) -> None:
    """The engine is found on PYTHONPATH, beside our own package; the worker says what it got."""
    worker = start_worker(worker_spec(model()))
    assert worker.ready, worker.exit_error
    assert worker.info is not None
    assert (worker.info["slots"], worker.info["context_tokens"]) == (4, 512)
    assert worker.info["engine"] == "MLC-LLM (mlc_llm 0.1.dev0)"
    assert len(text_of(worker)) == 8
    assert worker.tokenize("ab") == [97, 98]


def test_the_threads_are_those_of_the_options(start_worker: Start, model: Callable[..., Path]) -> None:
    """TVM takes as many as the variable says, all cores without it."""
    worker = start_worker(worker_spec(model(answer="$TVM_NUM_THREADS"), threads=3))
    assert text_of(worker) == "3"


# A load that fails


def test_a_constructor_that_hangs_is_given_up_with_its_reason(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """A load error in C++ leaves the constructor waiting; the reason is only on stderr."""
    error = failed(start_worker(impatient(model(load="hang"))))
    assert "does not finish loading tiny; nothing happened for 0.5 s" in error.message
    assert "Check failed: Cannot find parameter in cache: lm_head.q_weight" in error.message


def test_a_silent_hang_is_given_up_too(start_worker: Start, model: Callable[..., Path]) -> None:
    """Without a word on stderr the time is told."""
    assert "nothing happened for 0.5 s" in failed(start_worker(impatient(model(load="silent")))).message


def test_a_load_that_works_is_waited_for(start_worker: Start, model: Callable[..., Path]) -> None:
    """It is judged by what it does, not by how long it takes."""
    assert start_worker(impatient(model(load_cpu_s=2.0))).ready


def test_a_thread_that_fails_while_loading_is_told_at_once(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """The constructor would wait for it for ever; its error is the reason, without frames and advice."""
    weights = model(load="raise")
    started_s = time.monotonic()
    error = failed(start_worker(worker_spec(weights)))
    assert time.monotonic() - started_s < 10
    assert "Insufficient GPU memory error: The available single GPU memory is 10.0 MB" in error.message


def test_an_engine_that_looks_for_other_files_is_told(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """The next engine may rename its cache file again."""
    weights = model()
    (weights / "fake.json").write_text(json.dumps({"cache_name": "weight-cache.json"}))
    assert (
        "Cannot find tensor cache file weight-cache.json"
        in failed(start_worker(worker_spec(weights))).message
    )


def test_a_cut_library_is_refused_before_it_is_opened(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """Opened, it kills the process with SIGBUS."""
    weights = model()
    data = (weights / "lib.so").read_bytes()
    (weights / "lib.so").write_bytes(data[:-30])
    assert (
        f"lib.so: cut off after {len(data) - 30} bytes" in failed(start_worker(worker_spec(weights))).message
    )


def test_a_library_that_kills_the_process_is_a_failed_load(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """What no check finds ends the worker only, and its signal is told."""
    weights = model()
    data = (weights / "lib.so").read_bytes()
    (weights / "lib.so").write_bytes(data.replace(LAST_WORD, b"holey"))
    assert "was killed by SIGBUS" in failed(start_worker(worker_spec(weights))).message


def test_an_engine_that_exits_is_a_failed_load(start_worker: Start, model: Callable[..., Path]) -> None:
    """Its exit code is told."""
    assert "ended with exit code 9" in failed(start_worker(worker_spec(model(load="exit")))).message


def test_a_thread_that_dies_of_the_weights_is_a_failed_load(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """NaN in the weights shows with the first token, which is generated before anybody is served."""
    error = failed(start_worker(worker_spec(model(die_after_tokens=1))))
    assert "NaN in the logits" in error.message


# A worker that fails


@pytest.mark.parametrize("dies", ["engine", "callback"])
def test_a_dead_engine_thread_is_told_within_a_second(
    start_worker: Start, model: Callable[..., Path], dies: str
) -> None:
    """Every caller would wait for ever: the process ends, and all of them hear why."""
    worker = start_worker(worker_spec(model(die_after_tokens=6, dies=dies, step_s=0.01)))
    stream = worker.generate(GenerateRequest(prompt="a", max_tokens=100), never)
    other = worker.generate(GenerateRequest(prompt="b", max_tokens=100), never)
    assert next(stream).text
    started_s = time.monotonic()
    for running in (stream, other):
        with pytest.raises(WorkerCrashedError, match="NaN in the logits") as caught:
            list(running)
        assert "exit code 6" in caught.value.message
    assert time.monotonic() - started_s < TOLD_S
    assert worker.wait(TOLD_S)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGKILL"])
def test_a_signal_in_the_middle_is_told_within_a_second(
    start_worker: Start, model: Callable[..., Path], name: str
) -> None:
    """The stream ends in an error, never as if it were complete."""
    worker = start_worker(worker_spec(model(signal_after_tokens=5, signal=name)))
    stream = worker.generate(GenerateRequest(prompt="a", max_tokens=100), never)
    chunks: list[Chunk] = []
    started_s = time.monotonic()
    with pytest.raises(WorkerCrashedError, match=f"was killed by {name}"):
        chunks.extend(stream)
    assert all(chunk.finish_reason is None for chunk in chunks)
    assert time.monotonic() - started_s < TOLD_S
    assert worker.wait(TOLD_S)


@pytest.mark.parametrize(
    "request_",
    [
        {"logit_bias": {5000: 1.0}},
        {"logprobs": True, "top_logprobs": 20, "messages": (Message("user", "x"),), "prompt": None},
        {"json_schema": {"type": "strange"}},
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"type": "object", "properties": {'"': {}}}},
    ],
)
def test_what_kills_the_engine_is_refused_and_it_lives(
    start_worker: Start, model: Callable[..., Path], request_: dict[str, Any]
) -> None:
    """Each of these ended the process when it was given to the engine as it is."""
    worker = start_worker(worker_spec(model(chat_template=None)))
    with pytest.raises(InvalidRequestError):
        text_of(worker, **request_)
    assert len(text_of(worker)) == 8
    assert worker.ready


def test_leaving_early_disturbs_nobody(start_worker: Start, model: Callable[..., Path]) -> None:
    """The only slot is free again, and the next caller reads its own words."""
    worker = start_worker(worker_spec(model(step_s=0.01), slots=1))
    expected = text_of(worker)
    for _ in range(5):
        stream = worker.generate(GenerateRequest(prompt="left", max_tokens=400), never)
        assert next(stream).text
        stream.close()
    assert text_of(worker) == expected


def test_stopping_is_quick_although_the_engines_threads_are_no_daemons(
    start_worker: Start, model: Callable[..., Path]
) -> None:
    """`terminate` frees almost nothing; the end of the process frees all, and it does not wait."""
    worker = start_worker(worker_spec(model(step_s=0.01)))
    stream = worker.generate(GenerateRequest(prompt="x", max_tokens=400), never)
    next(stream)
    worker.stop()
    assert worker.wait(2)
    assert worker.exit_error is None
    assert not psutil.pid_exists(worker.pid)


# The supervisor


def ask(supervisor: Supervisor, plan: Plan, **request: Any) -> str:
    with supervisor.exclusive():
        lease = supervisor.apply(plan)
    try:
        return text_of(supervisor.wait(lease, never, time.monotonic() + 20), **request)
    finally:
        lease.release()


@pytest.mark.parametrize(
    "script",
    [{"die_after_tokens": 12}, {"signal_after_tokens": 12, "signal": "SIGSEGV"}],
    ids=["thread", "process"],
)
def test_a_dead_worker_is_replaced(
    make_supervisor: Callable[..., Supervisor], model: Callable[..., Path], script: dict[str, Any]
) -> None:
    """The request that it took along fails; the next one is served by another process, with the same text."""
    supervisor = make_supervisor()
    plan = Plan(("tiny", "mlc"), worker_spec(model(**script)), slots=4, memory_bytes=100)
    before = ask(supervisor, plan)
    first = supervisor.snapshot()[0].pid
    with pytest.raises(WorkerCrashedError):
        ask(supervisor, plan)
    assert ask(supervisor, plan) == before
    (status,) = supervisor.snapshot()
    assert status.pid != first
    wait_until(lambda: first is not None and not psutil.pid_exists(first), "the end of the first")
