"""The mlc backend on the fake engine: what it asks of mlc_llm, who runs beside whom, and the end."""

# ruff: noqa: F811 - a fixture is asked for by its name
from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from inference.backends import installed_backends, open_backend
from inference.backends.mlc import default_device
from inference.errors import (
    InternalError,
    InvalidRequestError,
    LoadFailedError,
)
from inference.generation import FinishReason, GenerateRequest
from tests.conftest import DEADLINE_S, wait_until
from tests.mlc_engine import Load, fake_engine, load, never, run, side_by_side  # noqa: F401
from tests.mlc_model import CONTEXT_TOKENS, END, load_options, make_model

pytestmark = pytest.mark.usefixtures("fake_engine")
SLOW = {"step_s": 0.01}


def engine_config(backend: Any) -> Any:
    return backend._engine.engine_config


# Sizes


def test_every_size_is_explicit_and_within_what_was_compiled(load: Load) -> None:
    """Nothing is left to the engine's own choice, which is 85 % of the machine."""
    backend = load({"slots": 9, "context_tokens": 4096, "prefill_batch_tokens": 4096})
    config = engine_config(backend)
    assert (config.max_num_sequence, backend.slots) == (4, 4)
    assert (config.max_single_sequence_length, backend.context_tokens) == (512, 512)
    assert config.max_total_sequence_length == 4 * (512 + 16)
    assert config.prefill_chunk_size == 64
    assert 0 < config.gpu_memory_utilization < 0.85


def test_the_share_of_memory_is_what_the_ledger_reserved(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """gpu_memory_utilization x the device's memory = the reservation."""
    monkeypatch.setattr("inference.backends.mlc.device_total_bytes", lambda device: 8 * 2**30)
    config = engine_config(load({"memory_bytes": 2 * 2**30}))
    assert config.gpu_memory_utilization == 0.25


def test_a_reservation_that_is_too_small_is_refused_before_the_engine(load: Load) -> None:
    """The engine would allocate a KV cache of any size, and then hang."""
    with pytest.raises(LoadFailedError, match=r"would take 0.05 GiB; 0.00 GiB are reserved") as caught:
        load({"memory_bytes": 10**6})
    assert caught.value.details["reserved_bytes"] == 10**6
    assert threading.active_count() == 1


def test_smaller_wishes_are_kept(load: Load) -> None:
    """Fewer sequences, a shorter context and a smaller chunk are the options' to choose."""
    config = engine_config(load({"slots": 2, "context_tokens": 100, "prefill_batch_tokens": 32}))
    assert (config.max_num_sequence, config.max_single_sequence_length, config.prefill_chunk_size) == (
        2,
        100,
        32,
    )
    assert config.max_total_sequence_length == 2 * (112 + 16)


def test_a_chunk_is_never_smaller_than_the_number_of_sequences(load: Load) -> None:
    """The engine begins no more of them at a time than it has tokens of a chunk."""
    assert engine_config(load({"prefill_batch_tokens": 1})).prefill_chunk_size == 4


@pytest.mark.parametrize(("cache_bytes", "mode"), [(0, "disable"), (1, "radix")])
def test_prefix_cache_is_as_the_options_say(load: Load, cache_bytes: int, mode: str) -> None:
    """Finished prompts are kept only where memory was given for them."""
    assert engine_config(load({"prompt_cache_bytes": cache_bytes})).prefix_cache_mode == mode


def test_a_full_context_is_answered(load: Load) -> None:
    """A prompt with room for one token of answer is not left waiting, with every sequence full."""
    backend = load()
    room = CONTEXT_TOKENS - 1
    results = side_by_side(backend, [{"prompt": letter * room, "max_tokens": 9} for letter in "abcd"])
    assert [chunks[-1].finish_reason for _, chunks in results] == [FinishReason.LENGTH] * 4
    assert [chunks[-1].usage.completion_tokens for _, chunks in results] == [1] * 4


def test_a_full_prompt_alone_is_answered(load: Load) -> None:
    """The engine keeps 8 tokens free per sequence: in a cache of the bare context it would wait for ever."""
    gone = threading.Event()
    timer = threading.Timer(5, gone.set)
    timer.start()
    _, chunks = run(load({"slots": 1}), gone.is_set, prompt="a" * (CONTEXT_TOKENS - 1))
    timer.cancel()
    assert [chunk.finish_reason for chunk in chunks[-1:]] == [FinishReason.LENGTH]


# Files and versions


@pytest.mark.parametrize("knows", ["tensor-cache.json", "ndarray-cache.json"])
@pytest.mark.parametrize("has", ["tensor-cache.json", "ndarray-cache.json"])
def test_either_name_of_the_cache_file_serves_either_engine(tmp_path: Path, knows: str, has: str) -> None:
    """Engines before and after September 2025 look for different names, and hang without theirs."""
    weights = make_model(tmp_path / "m", cache_name=has)
    (weights / "fake.json").write_text(json.dumps({"cache_name": knows}))
    before = sorted(path.name for path in weights.iterdir())
    backend = open_backend("mlc", load_options(weights))
    assert run(backend, prompt="a", max_tokens=2)[1][-1].finish_reason is FinishReason.LENGTH
    backend.close()
    assert sorted(path.name for path in weights.iterdir() if not path.name.startswith(".")) == before


def test_an_engine_without_async_engine_is_named(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of early 2024 has another engine, which is not tried."""
    import mlc_llm

    monkeypatch.setattr(mlc_llm, "__all__", ["protocol", "serve"])
    with pytest.raises(LoadFailedError, match="mlc_llm cannot be used: AttributeError"):
        load()


def test_an_engine_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing native library is told, in the first line of what the import says."""
    (tmp_path / "mlc_llm").mkdir()
    (tmp_path / "mlc_llm" / "__init__.py").write_text(
        "raise RuntimeError('Cannot find libraries: libmlc_llm.so\\nList of candidates:')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        LoadFailedError, match=r"cannot be used: RuntimeError: Cannot find libraries: libmlc_llm.so\n"
    ):
        open_backend("mlc", load_options(make_model(tmp_path / "model")))


def test_an_engine_with_other_thread_names_loads(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads are watched where they are found, and nothing depends on it."""
    monkeypatch.setattr("inference.backends.mlc._ENGINE_THREADS", ("_no_such_thread",))
    assert run(load(), prompt="a", max_tokens=1)[1][-1].usage.completion_tokens == 1


def test_backend_is_installed_where_mlc_llm_is() -> None:
    """The daemon learns it without importing the engine."""
    assert "mlc" in installed_backends()
    assert "mlc_llm" not in sys.modules


@pytest.mark.parametrize(("files", "device"), [([], "cpu"), (["nvidia0"], "cuda"), (["nvhost-gpu"], "cuda")])
def test_the_gpu_is_taken_where_there_is_one(tmp_path: Path, files: list[str], device: str) -> None:
    """The engine's own "auto" would try every API that it was built with."""
    for name in files:
        (tmp_path / name).touch()
    assert default_device(tmp_path) == device


def test_a_missing_device_is_the_engines_own_error(load: Load) -> None:
    """It raises there, and says which."""
    with pytest.raises(LoadFailedError) as caught:
        load({"device": "cuda"})
    assert "Device is not found" in str(caught.value.__cause__)


def test_weights_that_cannot_generate_are_refused_at_the_load(load: Load, monkeypatch: Any) -> None:
    """One token is generated before the first request."""

    async def broken(**fields: Any) -> Any:
        raise ValueError("no such function: decode")

    import mlc_llm

    made = mlc_llm.AsyncMLCEngine.__init__

    def make(engine: Any, *args: Any, **named: Any) -> None:
        made(engine, *args, **named)
        engine.completions.create = broken

    monkeypatch.setattr(mlc_llm.AsyncMLCEngine, "__init__", make)
    with pytest.raises(
        LoadFailedError, match="cannot generate: mlc_llm refuses the request: no such function"
    ):
        load()


# Side by side, and leaving


def test_requests_run_side_by_side_on_one_load(load: Load) -> None:
    """Each gets its own words, as if it were alone, and all are under way at once."""
    backend = load(**SLOW)
    asked: list[dict[str, Any]]
    asked = [{"prompt": word, "max_tokens": 12, "temperature": 0} for word in ("a", "bb", "ccc", "dddd")]
    alone = [run(backend, **request)[0] for request in asked]
    seen: list[int] = []
    follow = backend._engine.completions.create

    def create(**fields: Any) -> Any:
        seen.append(backend._live)
        return follow(**fields)

    backend._engine.completions.create = create
    assert [text for text, _ in side_by_side(backend, asked)] == alone
    assert max(seen) == 4


def test_every_request_has_an_id_of_its_own(load: Load) -> None:
    """Two live requests of one id hang the first."""
    backend = load()
    ids: list[str] = []
    follow = backend._engine.completions.create

    def create(**fields: Any) -> Any:
        ids.append(fields["request_id"])
        return follow(**fields)

    backend._engine.completions.create = create
    side_by_side(backend, [{"prompt": "x", "max_tokens": 4}] * 8)
    assert len(set(ids)) == 8


def test_the_fake_hangs_on_one_id_for_two_requests(load: Load) -> None:
    """What the ids guard against: the second is refused, the first never ends."""
    backend = load(**SLOW)

    async def both() -> tuple[list[Any], bool]:
        create = backend._engine.completions.create
        streams = [await create(prompt=[1], request_id="same", stream=True, max_tokens=5) for _ in range(2)]

        async def drain(stream: Any) -> None:
            async for _ in stream:
                pass

        first, second = (asyncio.ensure_future(drain(stream)) for stream in streams)
        done, pending = await asyncio.wait([first, second], timeout=0.3)
        for task in pending:
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        return [task.exception() for task in done], first in pending

    errors, is_hanging = asyncio.run_coroutine_threadsafe(both(), backend._event_loop).result(DEADLINE_S)
    assert [type(error) for error in errors] == [RuntimeError]
    assert is_hanging


def test_a_cancelled_request_gives_its_slot_back(load: Load) -> None:
    """Within half a second the only slot serves the next one, which reads its own words only."""
    backend = load({"slots": 1}, step_s=0.02)
    expected = run(backend, prompt="next", max_tokens=3, temperature=0)[0]
    gone = threading.Event()
    stream = backend.generate(GenerateRequest(prompt="long", max_tokens=400), gone.is_set)
    assert next(stream).text
    gone.set()
    started_s = time.monotonic()
    rest = list(stream)
    assert all(chunk.finish_reason is None for chunk in rest)
    assert run(backend, prompt="next", max_tokens=3, temperature=0)[0] == expected
    assert time.monotonic() - started_s < 1.0


def test_a_silent_prefill_is_cancelled_too(load: Load) -> None:
    """`cancelled` is looked at while the engine sends nothing."""
    backend = load(prefill_s=0.2)
    gone = threading.Event()
    threading.Timer(0.1, gone.set).start()
    started_s = time.monotonic()
    assert run(backend, gone.is_set, prompt="x" * 400)[1] == []
    assert time.monotonic() - started_s < 1.0


def test_closing_the_iterator_poisons_nothing(load: Load) -> None:
    """The synchronous engine would hand the rest of the stream to the next reader."""
    backend = load(**SLOW)
    expected = run(backend, prompt="mine", max_tokens=5, temperature=0)[0]
    for _ in range(4):
        stream = backend.generate(GenerateRequest(prompt="left", max_tokens=300), never)
        next(stream)
        stream.close()
        assert run(backend, prompt="mine", max_tokens=5, temperature=0)[0] == expected
    wait_until(lambda: not backend._engine._streams, "all streams given up")


def test_a_refused_request_leaves_nothing_in_the_engine(load: Load) -> None:
    """What the engine itself refuses ends in its words, and the next request is served."""
    backend = load()
    with pytest.raises(InvalidRequestError, match="mlc_llm refuses the request: Penalty value"):
        raise_from_engine(backend)
    assert run(backend, prompt="x", max_tokens=1)[1][-1].usage.completion_tokens == 1
    assert backend._live == 0


def raise_from_engine(backend: Any) -> None:
    follow = backend._engine.completions.create

    async def create(**fields: Any) -> Any:
        return await follow(**{**fields, "presence_penalty": 3.0})

    backend._engine.completions.create = create
    try:
        run(backend, prompt="x")
    finally:
        backend._engine.completions.create = follow


def test_cached_prompts_are_counted_and_can_be_avoided(load: Load) -> None:
    """Tokens found in the prefix cache were not computed again; `cache_prompt` false begins anew."""
    backend = load({"prompt_cache_bytes": 1})
    asked: dict[str, Any] = {"prompt": "the same prompt", "max_tokens": 2, "temperature": 0}
    run(backend, **asked)
    assert run(backend, **asked)[1][-1].usage.cached_tokens == 14
    assert run(backend, **asked, cache_prompt=False)[1][-1].usage.cached_tokens == 0


# The end


def test_closing_ends_running_requests_and_every_thread(load: Load) -> None:
    """`terminate` alone would leave readers waiting; a second close does nothing."""
    backend = load(step_s=0.02)
    stream = backend.generate(GenerateRequest(prompt="long", max_tokens=400), never)
    next(stream)
    backend.close()
    assert all(chunk.finish_reason is None for chunk in stream)
    backend.close()
    with pytest.raises(InternalError, match="closed"):
        run(backend, prompt="x")
    wait_until(lambda: threading.active_count() == 1, "the end of all threads")


def test_loading_again_after_closing_works(load: Load) -> None:
    """Nothing of the first engine stands in the way of the second."""
    load().close()
    assert run(load(), prompt="x", max_tokens=END - 250)[1][-1].usage.completion_tokens == 6
