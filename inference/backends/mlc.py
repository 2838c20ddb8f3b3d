"""MLC-LLM: models compiled for the GPU, run by AsyncMLCEngine on an event loop of its own.

What was observed of it (facts in docs/mlc.md) and where it is answered here:

- the constructor hangs for ever on a load error: files are checked first (`_mlc_files`), and loading is
  watched from outside (`_mlc_load`);
- a thread of it dies of some requests, and then every caller hangs: these are refused (`_mlc_request`,
  `_mlc_schema`), and when one dies all the same the process ends at once with the reason on stderr, which
  the daemon answers with a new one;
- memory is taken up front, by default for 85 % of the machine: every size is given, and what the ledger
  reserved is the limit (`_mlc_memory`);
- ``abort(id)`` leaves the reader of a stream waiting: the task that reads is cancelled instead;
- one id for two live requests hangs the first: ids are random;
- the synchronous engine serves one at a time and is poisoned by a stream left early: never used;
- it renders chats with a template of its own, and a system prompt that the model was not trained
  with: the checkpoint's template is used when there is one (`_mlc_template`);
- it says nothing while it reads a prompt, which takes minutes on a CPU: as long as it works, we do;
- its clocks are wrong when requests run side by side: times are taken here;
- ``terminate`` frees almost nothing, and its threads are no daemons: only the end of the process does.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import gc
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inference.backends import Capability, LoadOptions, iterate
from inference.backends._mlc_files import MlcModel, open_model
from inference.backends._mlc_load import ThreadFailures, load_watched
from inference.backends._mlc_memory import (
    cache_tokens,
    compiled_chunk,
    device_total_bytes,
    needed_bytes,
    utilization,
)
from inference.backends._mlc_request import (
    arguments,
    check_prompt,
    check_request,
    check_roles,
    finish_reason_of,
    logprobs_of,
    refusal,
    text_of,
    usage_of,
)
from inference.backends._mlc_task import Pulse, Task
from inference.backends._mlc_template import find_template
from inference.backends._tokens import check_ids, check_prompt_ids
from inference.errors import InternalError, JetLLMError, LoadFailedError, UnsupportedParameterError
from inference.generation import Chunk, FinishReason, GenerateRequest, Timings

REQUIRES = ("mlc_llm",)
_Start = Callable[[], Awaitable[AsyncGenerator[Any, None]]]
EXIT_ENGINE_DIED = 6
_POLL_S = 0.05  # how soon a cancelled request is noticed while nothing comes
_LET_GO_S = 5.0
_LEAST_TOKENS_PER_S = 1.0  # below that a prompt is not being read
_ENGINE_THREADS = ("_background_loop_thread", "_background_stream_back_loop_thread")
_GPU_FILES = ("nvidia0", "nvhost-gpu", "nvgpu", "nvhost-ctrl-gpu")


class Backend:
    """One compiled model; `inference.backends.PushBackend` has the contract."""

    capabilities: frozenset[Capability] = frozenset(
        {"chat", "completion", "logprobs", "json_schema", "seed", "tokenize"}
    )

    def __init__(self, options: LoadOptions) -> None:
        if options.embeds:
            raise LoadFailedError(f"{options.weights.name}: the mlc backend makes no embeddings")
        self._model = open_model(options.weights, options.runtime_dir)
        try:
            self._template = find_template(self._model.directory)
        except Exception as error:  # jinja2's, or of a file that is no JSON
            raise LoadFailedError(f"{options.weights.name}: chat template: {error}") from error
        if options.threads is not None:
            os.putenv("TVM_NUM_THREADS", str(options.threads))  # read when the engine's thread begins
        api = _engine_api()
        self.engine = f"MLC-LLM (mlc_llm {api.version})"
        self._closing = threading.Event()
        self._live = 0
        self._reading: dict[Task, int] = {}
        device = options.device or default_device(Path("/dev"))
        config = _engine_config(api, self._model, options, device)
        self._has_prefix_cache = config.prefix_cache_mode == "radix"
        self._failures = ThreadFailures()
        self._engine: Any = load_watched(
            lambda: api.engine_class(
                str(self._model.directory),
                device,
                model_lib=str(self._model.library),
                engine_config=config,
            ),
            options.weights.name,
            self._failures,
        )
        self.slots = self._engine.engine_config.max_num_sequence or config.max_num_sequence
        self.context_tokens = min(config.max_single_sequence_length, self._engine.max_input_sequence_length)
        self._event_loop = asyncio.new_event_loop()
        self._loop_thread = _start(self._event_loop.run_forever, "mlc-loop")
        for name in _ENGINE_THREADS:
            if hasattr(self._engine, name):  # another version may call them otherwise
                _start(partial(self._watch, getattr(self._engine, name)), "mlc-watch")
        self._warm_up(options.weights.name)

    def _watch(self, thread: threading.Thread) -> None:
        """End the process when *thread* of the engine has ended: nothing is ever answered again."""
        thread.join()
        if not self._closing.is_set():
            sys.stderr.write(f"error: mlc_llm's engine has failed: {self._failures.reason()}\n")
            sys.stderr.flush()
            os._exit(EXIT_ENGINE_DIED)

    def _warm_up(self, name: str) -> None:
        """Generate a token: weights that cannot are refused, and the first request is as fast as the rest."""
        try:
            self.push(GenerateRequest(prompt="a", max_tokens=1), lambda: False, lambda _: None)
        except JetLLMError as error:
            self.close()
            raise LoadFailedError(f"{name}: mlc_llm loads it and cannot generate: {error.message}") from error

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield a chunk for every text that the engine streams."""
        return iterate(self.push, request, cancelled)

    def push(
        self, request: GenerateRequest, cancelled: Callable[[], bool], emit: Callable[[Chunk], None]
    ) -> None:
        """Give each chunk to *emit*, on the thread of the event loop."""
        if self._closing.is_set():
            raise InternalError("the backend is closed")
        check_request(request, self._model.vocabulary_tokens)
        call, prompt_tokens = self._call(request)
        answer, pulse = _Answer(emit), Pulse()

        def halted() -> bool:
            return cancelled() or self._closing.is_set()

        task = Task(self._event_loop, lambda: self._follow(request, call, halted, answer))
        self._reading[task] = prompt_tokens
        try:
            self._attend(task, halted, lambda: self._tell(answer, pulse, prompt_tokens, emit))
        finally:
            del self._reading[task]
        if task.error is not None:
            param = "prompt" if request.messages is None else "messages"
            raise refusal(task.error, param) from task.error

    def _attend(self, task: Task, halted: Callable[[], bool], tell: Callable[[], None]) -> None:
        """Return when *task* has ended, or was cancelled because *halted* became true."""
        while not task.ended.wait(_POLL_S):
            if halted():
                task.cancel()
                task.ended.wait(_LET_GO_S)
                return
            tell()

    def _tell(self, answer: _Answer, pulse: Pulse, prompt_tokens: int, emit: Callable[[Chunk], None]) -> None:
        """Prove life while prompts are read; after a second per token of them nobody believes it."""
        if not answer.begun and pulse.due(sum(list(self._reading.values())) / _LEAST_TOKENS_PER_S):
            emit(Chunk(prefill=(0, prompt_tokens)))

    def _call(self, request: GenerateRequest) -> tuple[_Start, int]:
        """Return what starts *request*, and its tokens, which MLC counts itself if it has the template."""
        request_id = f"jetllm-{uuid.uuid4().hex}"
        engine = self._engine
        if request.messages is not None and self._template is None:
            check_roles(request.messages, (self._model.config.get("conv_template") or {}).get("roles") or {})
            turns = [{"role": message.role, "content": message.content} for message in request.messages]
            values = arguments(request, request_id, request.max_tokens, chat=True)
            tokens = sum(len(self.tokenize(message.content)) for message in request.messages)
            return lambda: engine.chat.completions.create(messages=turns, **values), tokens
        prompt = self.prompt_tokens(request)
        param = "prompt" if request.messages is None else "messages"
        check_prompt(prompt, self._model.vocabulary_tokens, self.context_tokens, param)
        room = self.context_tokens - len(prompt)
        # Without a limit the engine would go on to the end of its own context, which may be longer.
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        values = arguments(request, request_id, limit, chat=False)
        return lambda: engine.completions.create(prompt=prompt, **values), len(prompt)

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Return the ids that the model reads of *request*, where it is not mlc_llm that renders it."""
        if request.messages is not None and self._template is None:
            raise UnsupportedParameterError(
                "messages: mlc_llm renders the chats of this model itself and does not tell their tokens",
                hint="count the text of each message, or pull a checkpoint that has its chat template",
                param="messages",
            )
        if self._template is not None and request.messages is not None:
            return self.tokenize(self._template.render(request.messages))
        if request.prompt_ids is not None:
            check_prompt_ids(request.prompt_ids, self._model.vocabulary_tokens)
            return list(request.prompt_ids)
        return self._with_prefix(self.tokenize(request.prompt or ""))

    def _with_prefix(self, tokens: list[int]) -> list[int]:
        """Return a raw prompt behind the begin-of-text tokens, which mlc_llm's tokenizer never adds."""
        config = self._model.config
        prefix = list((config.get("conv_template") or {}).get("system_prefix_token_ids") or ())
        if not tokens and not prefix and isinstance(config.get("bos_token_id"), int):
            return [config["bos_token_id"]]
        return tokens if tokens[: len(prefix)] == prefix else [*prefix, *tokens]

    async def _follow(
        self,
        request: GenerateRequest,
        call: _Start,
        halted: Callable[[], bool],
        answer: _Answer,
    ) -> None:
        self._live += 1
        try:
            if self._has_prefix_cache and not request.cache_prompt and self._live == 1:
                self._engine.reset()  # the only way to forget; it would end other requests too
            async with contextlib.aclosing(await call()) as stream:
                async for response in stream:
                    if halted():
                        # Raised inside the engine's own stream, which then gives up its slot.
                        _this_task().cancel()
                    else:
                        answer.take(response)
            if not answer.finished and not halted():
                raise InternalError("mlc_llm ended the stream without a finish reason")
        finally:
            self._live -= 1

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of *text* as it stands."""
        return [int(token) for token in self._engine.tokenizer.encode(text)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        known = check_ids(ids, self._model.vocabulary_tokens, "tokens")
        return str(self._engine.tokenizer.decode(known)) if known else ""

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """Refuse: no published image has an mlc_llm that makes embeddings."""
        raise UnsupportedParameterError("input: the mlc backend makes no embeddings", param="input")

    def close(self) -> None:
        """Stop what runs and give back what can be; the rest comes back when the process ends."""
        if self._closing.is_set():
            return
        self._closing.set()
        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_others(), self._event_loop).result(_LET_GO_S)
        # A thread of the engine that hangs must not hold us up.
        _start(self._engine.terminate, "mlc-terminate").join(_LET_GO_S)
        self._event_loop.call_soon_threadsafe(self._event_loop.stop)
        self._loop_thread.join(_LET_GO_S)
        self._event_loop.close()
        self._failures.close()
        del self._engine
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def default_device(devices: Path) -> str:
    """Return "cuda" where there is an NVIDIA GPU; mlc_llm's own "auto" would try every API there is."""
    return "cuda" if any((devices / name).exists() for name in _GPU_FILES) else "cpu"


@dataclass(frozen=True)
class _Api:
    """What is used of mlc_llm."""

    engine_class: Any
    config_class: Any
    version: str


def _engine_api() -> _Api:
    """Import mlc_llm: its native libraries may be missing, and before 2024-06 it had another engine."""
    try:
        import mlc_llm
        from mlc_llm.serve.config import EngineConfig

        engine = mlc_llm.AsyncMLCEngine
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise LoadFailedError(
            f"mlc_llm cannot be used: {type(error).__name__}: {said}",
            hint="run inside dustynv/mlc:r36.4.0 or a later image; check: python -c 'import mlc_llm'",
        ) from error
    return _Api(engine, EngineConfig, str(getattr(mlc_llm, "__version__", "of unknown version")))


def _engine_config(api: _Api, model: MlcModel, options: LoadOptions, device: str) -> Any:
    """Return the engine's sizes: all given, none above what the library was compiled for."""
    shape, config = model.shape, model.config
    slots = _at_most(options.slots, shape.get("max_batch_size"))
    context = _at_most(options.context_tokens, config.get("context_window_size"))
    context = _at_most(context, shape.get("context_window_size"))
    chunk = _at_most(options.prefill_batch_tokens, config.get("prefill_chunk_size"))
    needed = needed_bytes(model.weights_bytes, config, slots=slots, context_tokens=context)
    wanted = {
        "max_num_sequence": slots,
        "max_single_sequence_length": context,
        "max_total_sequence_length": cache_tokens(slots, context, compiled_chunk(config)),
        # It begins no more sequences at a time than it has tokens of a chunk.
        "prefill_chunk_size": max(_at_most(chunk, shape.get("prefill_chunk_size")), slots),
        "gpu_memory_utilization": utilization(needed, options.memory_bytes, device_total_bytes(device)),
        "prefix_cache_mode": "radix" if options.prompt_cache_bytes else "disable",
        "verbose": False,
    }
    return api.config_class(**wanted)


def _at_most(wanted: int, limit: Any) -> int:
    # -1 is how MLC writes that there is none.
    return min(wanted, limit) if isinstance(limit, int) and limit > 0 else wanted


class _Answer:
    """What a stream has brought so far; times are of this process's clock."""

    def __init__(self, emit: Callable[[Chunk], None]) -> None:
        self.finished = self.begun = False
        self._emit = emit
        self._reason: FinishReason | None = None
        self._started_s = self._first_s = self._last_s = time.perf_counter()

    def take(self, response: Any) -> None:
        """Emit what *response* has; counts come alone, behind the last text."""
        for choice in response.choices:
            self._tick()
            self._reason = finish_reason_of(choice) or self._reason
            chunk = Chunk(text_of(choice), logprobs_of(choice))
            if chunk.text or chunk.logprobs:
                self._emit(chunk)
        if response.usage is not None and not self.finished:
            self.finished = True
            timings = Timings(self._first_s - self._started_s, self._last_s - self._first_s)
            usage = usage_of(response.usage)
            self._emit(Chunk(finish_reason=self._reason or FinishReason.STOP, usage=usage, timings=timings))

    def _tick(self) -> None:
        self._last_s = time.perf_counter()
        if not self.begun:
            self._first_s, self.begun = self._last_s, True


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - only coroutines ask
    return task


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {_this_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _start(work: Callable[[], Any], name: str) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread
