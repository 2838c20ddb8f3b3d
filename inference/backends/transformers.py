"""The reference backend: transformers in native precision, from safetensors or GGUF.

It is the yardstick, not the fast one: greedy golden outputs come from it, and what no other engine
can build still runs. One sequence at a time (``slots`` is 1); a second caller waits its turn.

- Precision: float32 on a CPU, bfloat16 on a GPU that has it, float16 on one that has not.
- Code in a checkpoint is never run, and pickled weights are never opened.
- Chat uses the checkpoint's template. Without one (base models) the prompt is a transcript: a line
  "role: content" per message, then "assistant:"; a line that begins with "user:" ends the answer.
- A request that names no sampling gets what generation_config.json says, else is greedy.
- Usage counts every token that was sampled, the end-of-turn token too.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TextIteratorStreamer,
)

from inference.backends import Capability, LoadOptions
from inference.backends._checkpoint import check_complete, find_checkpoint, first_line, refusal
from inference.backends._echo import after_echo, ending
from inference.backends._logits import adjustments, echoed, token_logprob
from inference.backends._room import check_room
from inference.backends._text import StoppingText
from inference.backends._tokens import check_ids
from inference.backends._transformers_embed import POOLER, Embedder, read_pooling
from inference.backends._transformers_prompt import Prompts
from inference.errors import InternalError, JetLLMError
from inference.generation import Chunk, FinishReason, GenerateRequest, Timings, TokenLogprob, Usage

REQUIRES = ("torch", "transformers")

_TURN_POLL_S = 0.1


class Backend:
    """A causal language model of transformers; `inference.backends.BackendProtocol` has the contract."""

    capabilities: frozenset[Capability] = frozenset(
        {"chat", "completion", "logprobs", "score", "seed", "tokenize"}
    )
    slots = 1

    def __init__(self, options: LoadOptions) -> None:
        where = find_checkpoint(options.weights)
        self._device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prefill_batch_tokens = options.prefill_batch_tokens
        self._turn = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._model: Any = None  # once loaded, until closed
        self._embedder: Any = None  # where it was loaded to embed
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        try:
            self._load(where, options)
        except JetLLMError:
            raise
        except Exception as error:  # the parsers of third parties raise anything
            raise refusal(options.weights, error) from error

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield a chunk for every token that completes some text."""
        if self._closing.is_set():
            raise InternalError("the backend is closed")
        prompt = self._prompts.of(request)
        check_room(len(prompt), self.context_tokens, "prompt" if request.messages is None else "messages")
        while not self._turn.acquire(timeout=_TURN_POLL_S):
            if cancelled():
                return
        try:
            inputs = torch.tensor([prompt], device=self._device)
            answer = self._echoed if request.echo else self._generated
            yield from answer(request, inputs, lambda: cancelled() or self._closing.is_set())
        finally:
            self._turn.release()

    def _echoed(
        self, request: GenerateRequest, inputs: torch.Tensor, halted: Callable[[], bool]
    ) -> Iterator[Chunk]:
        """Yield the prompt, and then what is generated."""
        started_s = time.perf_counter()
        yield from echoed(self._model, self._tokenizer, request, inputs, halted)
        echo_s = time.perf_counter() - started_s
        if halted():
            return
        if request.max_tokens == 0:
            yield ending(inputs.shape[-1], echo_s)
            return
        for chunk in self._generated(request, inputs, halted):
            yield after_echo(chunk, echo_s)

    def _generated(
        self, request: GenerateRequest, inputs: torch.Tensor, halted: Callable[[], bool]
    ) -> Iterator[Chunk]:
        prompt_tokens = inputs.shape[-1]
        processors = _processors(request, prompt_tokens, self._vocabulary_tokens)
        stream = _ChunkStream(
            self._tokenizer,
            prompt_tokens=prompt_tokens,
            stop=self._prompts.stop_strings(request),
            end_tokens=self._end_tokens(request),
            halted=halted,
        )
        if request.logprobs:
            processors.insert(0, stream.watch(request.top_logprobs))
        return self._follow(stream, inputs, self._sampling(request, prompt_tokens), processors, request.seed)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of *text* as it stands."""
        return cast("list[int]", self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return cast("str", self._tokenizer.decode(check_ids(ids, self._vocabulary_tokens, "tokens")))

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Return the ids that the model reads of *request*."""
        return self._prompts.of(request)

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """Return a vector for each input; see `inference.backends.BackendProtocol`."""
        prompts = self._embedder.prompts(inputs, self.context_tokens)
        with self._turn:
            return self._embedder.vectors(prompts, cancelled), sum(map(len, prompts))

    def close(self) -> None:
        """Stop what runs and release the weights."""
        self._closing.set()
        thread = self._thread
        if thread is not None:
            thread.join()
        self._model = self._embedder = None

    def _load(self, where: dict[str, Any], options: LoadOptions) -> None:
        """Read the checkpoint, then compute a token: the first is slow and shows what is broken."""
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        local = {**where, "local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(**local)
        kind = AutoModel if options.embeds else AutoModelForCausalLM
        model, report = kind.from_pretrained(
            **local, dtype=_dtype(self._device), use_safetensors=True, output_loading_info=True
        )
        check_complete(report, unused=POOLER if options.embeds else "")
        self._model = model.to(self._device).eval().requires_grad_(False)
        self._vocabulary_tokens = int(model.config.vocab_size)
        precision = str(model.dtype).removeprefix("torch.")
        self.engine = f"transformers {transformers.__version__} (torch {torch.__version__}, {precision})"
        limit = getattr(model.config, "max_position_embeddings", None)
        self.context_tokens = min(options.context_tokens, limit or options.context_tokens)
        self._prompts = Prompts(self._tokenizer, self._vocabulary_tokens)
        if options.embeds:
            self.capabilities = frozenset({"embed", "tokenize"})
            self.context_tokens = min(self.context_tokens, self._tokenizer.model_max_length)
            self._embedder = Embedder(self._model, self._tokenizer, read_pooling(options.weights))
            self.embed(["a"], lambda: False)
            return
        self._defaults, self._model.generation_config = model.generation_config, GenerationConfig()
        for _ in self.generate(GenerateRequest(prompt="a", max_tokens=1), lambda: False):
            pass

    def _end_tokens(self, request: GenerateRequest) -> frozenset[int]:
        """Return the tokens that end the text: the model's, and stop strings that are special tokens."""
        special = dict(zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True))
        asked = {special[text] for text in request.stop if text in special}
        if request.ignore_eos:
            return frozenset(asked)
        declared = self._defaults.eos_token_id
        own = declared if isinstance(declared, list) else [declared]
        return frozenset({*own, self._tokenizer.eos_token_id, *asked} - {None})

    def _sampling(self, request: GenerateRequest, prompt_tokens: int) -> GenerationConfig:
        room = self.context_tokens - prompt_tokens
        values: dict[str, Any] = {
            "max_new_tokens": room if request.max_tokens is None else min(request.max_tokens, room),
            "prefill_chunk_size": self._prefill_batch_tokens,
            "use_cache": True,
        }
        default = (self._defaults.temperature or 1.0) if self._defaults.do_sample else 0.0
        temperature = default if request.temperature is None else request.temperature
        if temperature == 0:
            return GenerationConfig(do_sample=False, **values)
        for name in ("top_k", "top_p", "min_p"):
            asked = getattr(request, name)
            values[name] = getattr(self._defaults, name) if asked is None else asked
        # Without a value, top_k would be the library's own 50.
        values["top_k"] = values["top_k"] or 0
        return GenerationConfig(do_sample=True, temperature=temperature, **values)

    def _follow(self, stream: _ChunkStream, *work: Any) -> Iterator[Chunk]:
        """Yield what a thread puts into *stream*; the thread has ended when this has."""
        arguments = (self._model, stream, *work)
        self._thread = threading.Thread(target=_compute, args=arguments, name="generate", daemon=True)
        self._thread.start()
        try:
            yield from stream.chunks()
        finally:
            stream.close()
            self._thread.join()
            self._thread = None


class _HaltedError(Exception):
    """Unwinds the engine's loop from inside: there is nothing more to compute."""


def _compute(
    model: Any,
    stream: _ChunkStream,
    inputs: torch.Tensor,
    sampling: GenerationConfig,
    processors: list[Any],
    seed: int | None,
) -> None:
    """Run the engine's loop in a thread of its own; whatever ends it reaches the reader of *stream*."""
    try:
        torch.seed() if seed is None else torch.manual_seed(seed)
        with model.register_forward_pre_hook(stream.before_forward, with_kwargs=True):
            model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=sampling,
                logits_processor=LogitsProcessorList(processors),
                streamer=stream,
            )
    except _HaltedError:
        pass
    except Exception as error:  # nobody above this frame could answer it
        stream.fail(error)
    finally:
        stream.hang_up()


class _ChunkStream(TextIteratorStreamer):  # type: ignore[misc] # its type is unknown where torch is absent
    """The chunks of one generation, handed from the thread that computes to the one that reads.

    `TextIteratorStreamer` alone holds text back until the next space and counts nothing; this one
    hands on each chunk as soon as its characters are whole and cannot begin a stop string.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt_tokens: int,
        stop: tuple[str, ...],
        end_tokens: frozenset[int],
        halted: Callable[[], bool],
    ) -> None:
        super().__init__(tokenizer)
        self._text = StoppingText(partial(tokenizer.decode, skip_special_tokens=True), stop)
        self._prompt_tokens = prompt_tokens
        self._end_tokens = end_tokens
        self._halted = halted
        self._closed = threading.Event()
        self._finished = False
        self._measure: Callable[[int], TokenLogprob] | None = None
        self._unsent: list[tuple[int, TokenLogprob]] = []
        self._read_tokens = self._sampled_tokens = 0
        self._started_s = self._first_s = self._last_s = time.perf_counter()

    def chunks(self) -> Iterator[Chunk]:
        """Yield chunks as they come, and raise what ended them early."""
        for item in self:
            if isinstance(item, JetLLMError):
                raise item
            if isinstance(item, Exception):
                raise InternalError(f"transformers: {type(item).__name__}: {first_line(item)}") from item
            yield item

    def close(self) -> None:
        """Say that nobody reads any more."""
        self._closed.set()

    def watch(self, top: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the logits processor that lets chunks carry log-probabilities of the bare model."""

        def look(_tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logprobs = torch.log_softmax(scores[0].float(), dim=-1)
            self._measure = lambda token: token_logprob(self.tokenizer, logprobs, token, top)
            return scores

        return look

    def before_forward(self, _model: Any, _args: tuple[Any, ...], values: dict[str, Any]) -> None:
        """Halt, or let the engine compute the next step and tell how far the prompt has been read."""
        if self._finished or self._closed.is_set() or self._halted():
            raise _HaltedError
        if 0 < self._read_tokens < self._prompt_tokens:
            self.text_queue.put(Chunk(prefill=(self._read_tokens, self._prompt_tokens)))
        self._read_tokens += values["input_ids"].shape[-1]

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one sampled token per call."""
        if value.dim() > 1:  # the prompt comes as a batch, tokens as a list of one
            return
        token = int(value[0])
        self._last_s = time.perf_counter()
        self._first_s = self._last_s if self._sampled_tokens == 0 else self._first_s
        self._sampled_tokens += 1
        if token in self._end_tokens:
            self._finish(FinishReason.STOP)
            return
        if self._measure is not None:
            self._unsent.append((self._text.whole_chars, self._measure(token)))
        self._send(Chunk(text=self._text.feed(token)))
        if self._text.stopped:
            self._finish(FinishReason.STOP)

    def end(self) -> None:
        """Finish at the token limit, which is the only end that the engine itself brings about."""
        if not self._finished:
            self._finish(FinishReason.LENGTH)

    def fail(self, error: Exception) -> None:
        """Pass *error* to the reader."""
        self.text_queue.put(error)

    def hang_up(self) -> None:
        """Let the reader's loop end."""
        self.text_queue.put(self.stop_signal)

    def _finish(self, reason: FinishReason) -> None:
        self._finished = True
        text = self._text.rest()
        reason = FinishReason.STOP if self._text.stopped else reason
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._sampled_tokens)
        timings = Timings(self._first_s - self._started_s, self._last_s - self._first_s)
        self._send(Chunk(text=text, finish_reason=reason, usage=usage, timings=timings))

    def _send(self, chunk: Chunk) -> None:
        if not chunk.text and chunk.finish_reason is None:
            return
        limit = self._text.shown_chars
        ready = tuple(logprob for start, logprob in self._unsent if start < limit)
        self._unsent = self._unsent[len(ready) :]
        self.text_queue.put(dataclasses.replace(chunk, logprobs=ready))


def _processors(request: GenerateRequest, prompt_tokens: int, vocabulary_tokens: int) -> list[Any]:
    """Return what changes the logits before temperature and the filters."""
    repetition = request.repetition_penalty
    processors: list[Any] = []
    if repetition is not None and repetition != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition))
    return processors + adjustments(request, prompt_tokens, vocabulary_tokens)


def _dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
