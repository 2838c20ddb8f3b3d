"""Ollama's response shapes: lines of a generation, rows of models and workers, errors."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from inference.api.errors import without_directories
from inference.api.ollama_schema import LATEST
from inference.api.record import Clock
from inference.api.shapes import to_bytes
from inference.errors import JetLLMError
from inference.generation import Chunk, FinishReason, Generation, Timings, TokenLogprob, ToolCall, Usage

NS_PER_S = 1_000_000_000
FOR_EVER = "2300-01-01T00:00:00Z"
"""When a model leaves that stays for ever: Ollama has no null for that, and shows this as "Forever"."""

_PHASES = {"wait": "waiting for another pull", "copy": "writing weights", "check": "verifying sha256 digest"}
_FORMATS = {"llamacpp": "gguf", "mlc": "mlc", "transformers": "safetensors"}


def line(value: Any) -> bytes:
    """Return one line of NDJSON."""
    return to_bytes(value) + b"\n"


def error_of(error: JetLLMError) -> dict[str, str]:
    """Return Ollama's error: one text, with the hint behind the message."""
    hint = f" ({error.hint})" if error.hint else ""
    return {"error": without_directories(f"{error.message}{hint}")}


def rfc3339(epoch_s: float) -> str:
    """Return a time of the wall clock in UTC, to the microsecond."""
    return datetime.fromtimestamp(epoch_s, timezone.utc).isoformat().replace("+00:00", "Z")


def now() -> str:
    """Return the wall clock's time."""
    return rfc3339(time.time())


def durations(clock: Clock, ended_s: float, usage: Usage, timings: Timings | None) -> dict[str, int]:
    """Return counts and nanoseconds; what came before the prompt was read is the load's, queue and all."""
    waited_s = clock.first_text_s - clock.started_s
    prefill_s = waited_s if timings is None else timings.prefill_s
    decode_s = ended_s - clock.first_text_s if timings is None else timings.decode_s
    return {
        "total_duration": _ns(ended_s - clock.started_s),
        "load_duration": _ns(max(0.0, waited_s - prefill_s)),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _ns(prefill_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _ns(decode_s),
    }


class Lines(ABC):
    """How one generation is told; *name* is the model's as the client knows it."""

    def __init__(self, name: str, clock: Clock, *, logprobs: bool) -> None:
        self.name = name
        self._clock = clock
        self._logprobs = logprobs

    @abstractmethod
    def said(self, text: str, calls: Iterable[ToolCall] = ()) -> dict[str, Any]:
        """Return the part of a line that has the text."""

    def piece(self, chunk: Chunk) -> bytes:
        """Return the line of one chunk's text and calls."""
        said = self.said(chunk.text, chunk.tool_calls) | self._logprobs_of(chunk.logprobs)
        return line({"model": self.name, "created_at": now(), **said, "done": False})

    def ending(self, chunk: Chunk) -> bytes:
        """Return the last line, without text."""
        usage = chunk.usage or Usage(0, 0)
        return line(self._end(self.said(""), chunk.finish_reason, usage, chunk.timings))

    def body(self, generation: Generation) -> dict[str, Any]:
        """Return the answer that is not streamed."""
        said = self.said(generation.text, generation.tool_calls) | self._logprobs_of(generation.logprobs)
        return self._end(said, generation.finish_reason, generation.usage, generation.timings)

    def nothing(self, reason: str) -> dict[str, Any]:
        """Return the answer to a request that only loads or unloads."""
        end = {"done": True, "done_reason": reason}
        return {"model": self.name, "created_at": now(), **self.said(""), **end}

    def _end(
        self, said: dict[str, Any], reason: FinishReason | None, usage: Usage, timings: Timings | None
    ) -> dict[str, Any]:
        shown = FinishReason.LENGTH if reason is FinishReason.LENGTH else FinishReason.STOP
        return {
            "model": self.name,
            "created_at": now(),
            **said,
            "done": True,
            "done_reason": shown.value,
            **durations(self._clock, time.monotonic(), usage, timings),
        }

    def _logprobs_of(self, items: Iterable[TokenLogprob]) -> dict[str, Any]:
        if not self._logprobs:
            return {}
        shown = [{**_token(each), "top_logprobs": [_token(other) for other in each.top]} for each in items]
        return {"logprobs": shown}


class ChatLines(Lines):
    """``/api/chat``."""

    def said(self, text: str, calls: Iterable[ToolCall] = ()) -> dict[str, Any]:
        """Return the assistant's message."""
        shown = [_call(index, call) for index, call in enumerate(calls)]
        return {"message": {"role": "assistant", "content": text, **({"tool_calls": shown} if shown else {})}}


class GenerateLines(Lines):
    """``/api/generate``."""

    def said(self, text: str, calls: Iterable[ToolCall] = ()) -> dict[str, Any]:
        """Return the response."""
        return {"response": text}


def pull_line(progress: dict[str, Any], digest: str | None) -> dict[str, Any]:
    """Return the line of a pull's progress; its clients draw a bar for each *digest*."""
    phase = progress["phase"]
    if phase != "download":
        return {"status": _PHASES.get(phase, phase)}
    counted = {"total": progress["total_bytes"], "completed": progress["done_bytes"]}
    found = {"status": "pulling weights"}
    if digest is not None:
        found = {"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}"}
    return found | {key: value for key, value in counted.items() if value is not None}


def held(model: dict[str, Any]) -> list[str]:
    """Return the variants of a described model that are here and can run here."""
    return [name for name, each in model["variants"].items() if each["pulled"] and each["usable"]]


def model_rows(models: Iterable[dict[str, Any]], specs: Any) -> list[dict[str, Any]]:
    """Return a row for each variant that is here: the first is a model's ``:latest``, others go by name."""
    return [
        {
            **_named(model["id"], LATEST if index == 0 else variant),
            "modified_at": rfc3339(model["variants"][variant]["modified_s"] or 0),
            **_weights(model, variant, specs[model["id"]]),
        }
        for model in models
        for index, variant in enumerate(held(model))
    ]


def worker_rows(
    workers: list[dict[str, Any]], models: dict[str, dict[str, Any]], specs: Any
) -> list[dict[str, Any]]:
    """Return a row for each loaded model; one that is loaded in several variants goes by their names."""
    ready = [row for row in workers if row["state"] == "ready" and row["model"] in models]
    return [_worker(row, ready, models[row["model"]], specs[row["model"]]) for row in ready]


def description(
    model: dict[str, Any], variant: str, spec: Any, template: str | None, capabilities: Iterable[str]
) -> dict[str, Any]:
    """Return what ``/api/show`` tells; what is not known is left out."""
    shown = model["variants"][variant]
    return {
        "license": model["license"] or "",
        "template": template or "",
        "modified_at": rfc3339(shown["modified_s"] or 0),
        "details": _details(shown, spec),
        "model_info": _model_info(spec),
        "capabilities": list(capabilities),
    }


def _worker(
    row: dict[str, Any], ready: list[dict[str, Any]], model: dict[str, Any], spec: Any
) -> dict[str, Any]:
    is_only = sum(other["model"] == row["model"] for other in ready) == 1
    size = row["memory_observed_bytes"] or row["memory_predicted_bytes"]
    return {
        **_named(row["model"], LATEST if is_only else row["variant"]),
        **_weights(model, row["variant"], spec),
        "size": size,
        "size_vram": size if row["on_gpu"] else 0,
        "expires_at": _expiry(row),
        "context_length": row["context_tokens"],
    }


def _expiry(row: dict[str, Any]) -> str:
    """When the worker leaves if nothing more is asked of it; of one at work, if it ended now."""
    left_s = row["keep_alive_s"] if row["expires_in_s"] is None else row["expires_in_s"]
    return FOR_EVER if row["pinned"] or left_s < 0 else rfc3339(time.time() + left_s)


def _named(model: str, tag: str) -> dict[str, str]:
    name = f"{model}:{tag}"
    return {"name": name, "model": name}


def _weights(model: dict[str, Any], variant: str, spec: Any) -> dict[str, Any]:
    shown = model["variants"][variant]
    return {
        "size": shown["bytes"] or 0,
        "digest": shown["digest"] or "0" * 64,  # its clients cut it without a look at its length
        "details": _details(shown, spec),
    }


def _details(variant: dict[str, Any], spec: Any) -> dict[str, Any]:
    form, quantization = _FORMATS[variant["backend"]], variant["quantization"]
    families = [] if spec.architecture is None else [spec.architecture]
    return {
        "parent_model": "",
        "format": form,
        "family": spec.architecture or "",
        "families": families,
        "parameter_size": spec.parameters,
        "quantization_level": (quantization.upper() if form == "gguf" else quantization)
        if quantization
        else "",
    }


def _model_info(spec: Any) -> dict[str, Any]:
    """Return the registry's numbers under the names that GGUF has for them."""
    family = spec.architecture or "unknown"
    numbers = {
        "context_length": spec.context_length,
        "block_count": spec.layers,
        "embedding_length": spec.hidden_size,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_dim,
        "vocab_size": spec.vocab_size,
    }
    return {
        "general.architecture": family,
        "general.basename": spec.name,
        "general.parameter_count": spec.parameter_count,
        **{f"{family}.{key}": value for key, value in numbers.items() if value is not None},
    }


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": call.id,
        "function": {"index": index, "name": call.name, "arguments": _arguments(call.arguments)},
    }


def _arguments(text: str) -> dict[str, Any]:
    """Return arguments as the object that Ollama's clients need; what is none comes as it was written."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def _token(item: TokenLogprob) -> dict[str, Any]:
    raw = item.token.encode("utf-8", "replace") if item.token_bytes is None else item.token_bytes
    return {"token": item.token, "logprob": item.logprob, "bytes": list(raw)}


def _ns(seconds: float) -> int:
    return round(seconds * NS_PER_S)
