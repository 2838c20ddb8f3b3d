"""llama.cpp through xllamacpp: GGUF files on the CPU, and on CUDA where the build has it.

What its users learned (measured, November 2026) and where it is answered here:

- spinning OpenMP threads starve each other beside a busy core: GOMP_SPINCOUNT, which
  `inference.settings.worker_environment` sets because libgomp reads it when it is loaded;
- deleting a server that served nothing can deadlock: one token right after loading;
- ``n_ctx`` is the total over the slots;
- a prefill can be cancelled only between batches and only with ``return_progress``;
- ``cache_ram_mib`` is 8 GiB by default;
- a server always listens: on a socket in a private directory, with a random key;
- an exception inside a callback ends the stream without a word: it is caught there and raised here;
- errors come as exceptions, as returned dictionaries and as chunks;
- a JSON schema that its grammar engine cannot compile is dropped with a line on stderr and the
  text comes out unconstrained: every schema is tried on one token first;
- a text whose end could begin a stop string loses that end at ``max_tokens``: stop strings are looked
  for here, and the engine, which is stopped from its callback then, never sees them.
"""

from __future__ import annotations

import functools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.backends import Capability, LoadOptions, iterate
from inference.backends._echo import after_echo, ending
from inference.backends._llamacpp_embed import embed, is_pooled
from inference.backends._llamacpp_request import body_of
from inference.backends._llamacpp_score import Scorer, logprob_of, read_ids, read_prompt
from inference.backends._llamacpp_socket import EngineSocket
from inference.backends._llamacpp_tokens import Tokens
from inference.backends._llamacpp_tools import ALIVE, Calls, constrained, in_silence, renders_tools
from inference.backends._room import check_room
from inference.backends._text import HeldText
from inference.backends._tokens import check_prompt_ids
from inference.errors import (
    ContextLengthExceededError,
    InternalError,
    InvalidRequestError,
    InvalidSchemaError,
    JetLLMError,
    LoadFailedError,
    MissingDependencyError,
)
from inference.generation import Chunk, FinishReason, GenerateRequest, Timings, TokenLogprob, Usage

REQUIRES = ("xllamacpp",)
_MIB = 2**20
_TURN_POLL_S = 0.1


class Backend:
    """One GGUF model in a llama.cpp server inside this process."""

    capabilities: frozenset[Capability] = frozenset(
        {"chat", "completion", "logprobs", "score", "json_schema", "grammar", "seed", "tokenize"}
    )

    def __init__(self, options: LoadOptions) -> None:
        xllamacpp = _import_engine()
        self.slots = options.slots
        self.context_tokens = options.context_tokens
        self.engine = f"llama.cpp (xllamacpp {xllamacpp.__version__})"
        self._schema_to_grammar = xllamacpp.json_schema_to_grammar
        self._scoring = threading.Lock()
        self._compiled = functools.lru_cache(maxsize=256)(self._compiles)
        self._key = secrets.token_hex(16)
        self._socket_path = options.runtime_dir / "engine.sock"
        self._ask = EngineSocket(self._socket_path, self._key, _error).ask
        self._server = self._opened(xllamacpp, self._params(xllamacpp, options))
        self._tokens = Tokens(self._ask)
        if options.embeds:
            self._prepare_to_embed(xllamacpp, options)
        else:
            self._first_token()
            if renders_tools(self._ask):
                self.capabilities |= {"tools"}

    def _params(self, xllamacpp: Any, options: LoadOptions) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(options.weights)
        params.n_parallel = options.slots
        params.n_ctx = options.slots * options.context_tokens
        params.n_batch = params.n_ubatch = options.prefill_batch_tokens
        if options.embeds:
            params.embedding = True
            # With a cache for each slot, inputs of different lengths are cut within a batch, and the mean
            # is that of the last cut alone: 0.4 off in a vector of length 1 (November 2026).
            params.kv_unified = True
            # Each input is computed at once: its tokens see each other, the later ones too.
            params.n_batch = params.n_ubatch = max(options.prefill_batch_tokens, options.context_tokens)
        params.cache_ram_mib = options.prompt_cache_bytes // _MIB
        # Each checkpoint of a sliding-window cache is memory that nobody counts: Gemma 3 270M grew by
        # 190 MiB over 14 turns with the default of 32.
        params.n_ctx_checkpoints = 1
        cores = len(os.sched_getaffinity(0))
        params.cpuparams.n_threads = options.threads or default_threads(cores)
        params.cpuparams_batch.n_threads = options.threads or cores
        params.fit_params = False  # the selector has decided what fits
        params.warmup = False  # the first token below is one
        params.endpoint_metrics = True
        params.ui = False
        params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        params.verbosity = 1
        params.hostnames = [str(self._socket_path)]
        params.api_keys = [self._key]
        return params

    def _opened(self, xllamacpp: Any, params: Any) -> Any:
        self._socket_path.unlink(missing_ok=True)
        try:
            return xllamacpp.Server(params)
        except RuntimeError:
            # Its text is always "Failed to init server"; the daemon adds the reason from stderr.
            raise LoadFailedError(f"llama.cpp could not load {Path(params.model.path).name}") from None

    def _prepare_to_embed(self, xllamacpp: Any, options: LoadOptions) -> None:
        """Make the first vector; of a file that says nothing of pooling, vectors are means."""
        self.capabilities = frozenset({"embed", "tokenize"})
        if is_pooled(self._ask):
            return
        del self._server
        params = self._params(xllamacpp, options)
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        self._server = self._opened(xllamacpp, params)
        if not is_pooled(self._ask):
            raise LoadFailedError(f"{options.weights.name}: llama.cpp makes no vectors of texts with it")

    def _first_token(self) -> None:
        answer = self._server.handle_completions({"prompt": " ", "max_tokens": 1})
        if "error" in answer:
            raise LoadFailedError(f"llama.cpp loaded but generates nothing: {answer['error'].get('message')}")

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield chunks as they are decoded; see `inference.backends.BackendProtocol`."""
        return iterate(self.push, request, cancelled)

    def push(
        self, request: GenerateRequest, cancelled: Callable[[], bool], emit: Callable[[Chunk], None]
    ) -> None:
        """Give each chunk to *emit* on the engine's own call; see `inference.backends.PushBackend`."""
        check_prompt_ids(request.prompt_ids, self._tokens.size)
        if request.tools and request.tool_choice not in (None, "auto", "none"):
            request, emit = constrained(request), in_silence(emit)
        body = body_of(request, self._grammar(request))
        if body.get("tool_choice") == "auto":
            self._run(body, _CallRelay(cancelled, emit, request.stop))
            return
        if not request.echo:
            self._run(body, _Relay(cancelled, emit, request.stop))
            return
        started_s = time.perf_counter()
        prompt_tokens = self._echo(request, cancelled, emit)
        echo_s = time.perf_counter() - started_s
        if prompt_tokens is None:
            return
        if request.max_tokens == 0:
            emit(ending(prompt_tokens, echo_s))
        elif request.logprobs:
            relay = _Relay(cancelled, lambda chunk: emit(after_echo(chunk, echo_s)), request.stop)
            self._run(body, relay)
        else:
            self._run(body, _Relay(cancelled, emit, request.stop))

    def _echo(
        self, request: GenerateRequest, cancelled: Callable[[], bool], emit: Callable[[Chunk], None]
    ) -> int | None:
        """Emit the prompt, scored if that was asked for; return its tokens, None if the caller has left."""
        ids = request.prompt_ids
        prompt = read_prompt(self._ask, request.prompt or "") if ids is None else read_ids(self._ask, ids)
        check_room(len(prompt.ids), self.context_tokens, "prompt")
        if not request.logprobs:
            emit(Chunk(request.prompt or b"".join(prompt.pieces).decode("utf-8", "replace")))
            return len(prompt.ids)

        def send(body: Mapping[str, Any], read: Callable[[Mapping[str, Any]], None]) -> bool:
            self._run(body, _RawRelay(cancelled, read))
            return not cancelled()

        scorer = Scorer(send, self.tokenize("a")[-1], prompt, request.top_logprobs, emit)
        # Two that score the same text would take each other's KV cache away at every step.
        while not self._scoring.acquire(timeout=_TURN_POLL_S):
            emit(Chunk(prefill=(0, len(prompt.ids))))
            if cancelled():
                return None
        try:
            return len(prompt.ids) if scorer.run() else None
        finally:
            self._scoring.release()

    def _run(self, body: Mapping[str, Any], relay: _Relay) -> None:
        """Have the engine answer *body*, giving *relay* what it says."""
        chats = "messages" in body
        handle = self._server.handle_chat_completions if chats else self._server.handle_completions
        try:
            answer = handle(body, relay.take)
        except (ValueError, RuntimeError, TypeError) as error:
            code = 400 if isinstance(error, ValueError) else 500
            raise relay.error or _error({"message": str(error), "code": code}) from None
        if relay.error is not None:
            raise relay.error
        if isinstance(answer, Mapping) and "error" in answer:
            raise _error(answer["error"])

    def _grammar(self, request: GenerateRequest) -> str | None:
        if request.json_schema is None:
            if request.grammar is not None and request.grammar.lstrip().startswith("%"):
                raise InvalidSchemaError("grammar: expected GBNF, found another dialect", param="grammar")
            return request.grammar
        schema = dict(request.json_schema) or {"type": "object"}
        # Without this a small model fills its tokens with newlines between two keys.
        schema.setdefault("x-guidance", {"whitespace_flexible": False})
        grammar: str = self._schema_to_grammar(schema)
        if not self._compiled(grammar):
            raise InvalidSchemaError(
                "the engine cannot enforce this JSON schema",
                hint="use type, properties, required, items, enum, pattern and local $ref only",
                param="tools" if request.tools else "response_format",
            )
        return grammar

    def _compiles(self, grammar: str) -> bool:
        """Whether *grammar* rules: a token that starts no JSON text, pushed hard, must not come out."""
        intruder = next(ids[0] for ids in map(self.tokenize, "@#~`") if len(ids) == 1)
        body = {"prompt": " ", "max_tokens": 1, "grammar": grammar, "logit_bias": [[intruder, 100]]}
        answer = self._server.handle_completions(body)
        return "error" not in answer and answer["choices"][0]["text"][:1] not in tuple("@#~`")

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of *text*, without added special tokens."""
        return self._tokens.of(text)

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self._tokens.text(ids)

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Return the ids that the model reads of *request*."""
        return self._tokens.of_request(request, body_of(request, None))

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """Return a vector for each input; see `inference.backends.BackendProtocol`."""
        return embed(self._server, self._tokens, self.context_tokens, inputs, cancelled)

    def close(self) -> None:
        """Stop the server; the heap comes back whole only when the process ends."""
        self.__dict__.pop("_server", None)


def default_threads(cores: int) -> int:
    """How many threads leave the daemon room to pass tokens on.

    On few cores one is left free: every layer's barrier waits for the slowest thread, so a daemon,
    or a second model, that takes a core for a moment stops all of them (docs/bench-log.md).
    """
    return max(1, cores - 1) if cores <= 4 else cores


def _import_engine() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        if "libgomp" not in str(error):
            raise
        raise MissingDependencyError(
            "llama.cpp needs the OpenMP runtime libgomp.so.1, which is not installed",
            hint="sudo apt-get install libgomp1",
        ) from None
    return xllamacpp


class _Relay:
    """The callback that llama.cpp gets: translates its chunks, and keeps what went wrong."""

    def __init__(
        self, cancelled: Callable[[], bool], emit: Callable[[Any], None], stop: tuple[str, ...] = ()
    ) -> None:
        self.error: JetLLMError | None = None
        self._text = HeldText(stop)
        self._cancelled = cancelled
        self._emit = emit
        self._finish_reason: FinishReason | None = None

    def take(self, raw: Any) -> bool:
        """Take one of the engine's chunks; returning True stops the engine."""
        if self._text.stopped or self._cancelled():
            return True
        try:
            if "error" in raw:
                raise _error(raw["error"])
            chunk = self._translate(raw)
            if chunk is not None:
                self._emit(chunk)
        except JetLLMError as error:
            self.error = error
        except Exception as error:
            # Anything that escapes here is swallowed by the engine.
            self.error = InternalError(f"llama.cpp sent a chunk of unknown form: {error!r}")
        return self._text.stopped or self.error is not None

    def _translate(self, raw: Mapping[str, Any]) -> Any:
        progress = raw.get("prompt_progress")
        if progress is not None:
            return Chunk(prefill=(progress["processed"], progress["total"]))
        choices = raw["choices"]
        if choices:
            choice = choices[0]
            if choice.get("finish_reason"):
                self._finish_reason = FinishReason(choice["finish_reason"])
            text = choice["delta"].get("content") if "delta" in choice else choice.get("text")
            logprobs = _logprobs(choice)
            shown = self._text.feed(text or "")
            if self._text.stopped:
                self._finish_reason, usage = FinishReason.STOP, _usage_so_far(raw["timings"])
            elif not raw.get("usage"):
                return Chunk(shown, logprobs) if shown or logprobs else None
            else:
                shown, usage = shown + self._text.rest(), _usage(raw["usage"])
        else:
            shown, logprobs, usage = self._text.rest(), (), _usage(raw["usage"])
        return Chunk(
            shown,
            logprobs,
            finish_reason=self._finish_reason or FinishReason.STOP,
            usage=usage,
            timings=_timings(raw.get("timings")),
        )


class _CallRelay(_Relay):
    """A relay that also reads calls of tools; they come whole with the last chunk."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._calls = Calls()

    def _translate(self, raw: Mapping[str, Any]) -> Any:
        calling = self._calls.read(raw)
        chunk = super()._translate(raw)
        if chunk is None:
            return ALIVE if calling else None
        return chunk if chunk.finish_reason is None else replace(chunk, tool_calls=self._calls.whole())


class _RawRelay(_Relay):
    """A relay that gives on what llama.cpp says as it is."""

    def _translate(self, raw: Mapping[str, Any]) -> Any:
        return raw


def _logprobs(choice: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    content = (choice.get("logprobs") or {}).get("content") or ()
    return tuple(logprob_of(item, top=item.get("top_logprobs", ())) for item in content)


def _usage(raw: Mapping[str, Any]) -> Usage:
    cached = (raw.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Usage(raw["prompt_tokens"], raw["completion_tokens"], cached)


def _usage_so_far(timings: Mapping[str, Any]) -> Usage:
    cached = timings["cache_n"]
    return Usage(cached + timings["prompt_n"], timings["predicted_n"], cached)


def _timings(raw: Mapping[str, Any] | None) -> Timings | None:
    return None if raw is None else Timings(raw["prompt_ms"] / 1000, raw["predicted_ms"] / 1000)


def _error(raw: Mapping[str, Any]) -> JetLLMError:
    message = str(raw.get("message", "llama.cpp gave no reason"))
    lowered = message.lower()
    if raw.get("type") == "exceed_context_size_error":
        prompt, context = raw.get("n_prompt_tokens"), raw.get("n_ctx")
        return ContextLengthExceededError(
            f"the prompt has {prompt} tokens; the context window has {context}",
            hint="shorten the prompt, or raise context_tokens",
            details={"prompt_tokens": prompt, "context_tokens": context},
        )
    if "grammar" in lowered or "schema" in lowered:
        return InvalidSchemaError(f"the engine cannot compile it: {message}")
    if raw.get("code") == 400:
        return InvalidRequestError(message)
    return InternalError(f"llama.cpp: {message}")
