"""The answers: JSON schemas of what the routes return, by name, from the types where there are types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.api.work import LoadProgress
from inference.artifacts.build import BuildProgress
from inference.artifacts.sources import Progress
from inference.bench import BenchProgress
from inference.device.memory import Memory
from inference.registry.evidence import EvidenceRecord
from inference.runtime.entry import WorkerStatus
from inference.selection.world import Candidate

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
ANY_OBJECT: Schema = {"type": "object"}

TYPED: Mapping[str, type] = {
    "Worker": WorkerStatus,
    "Memory": Memory,
    "Candidate": Candidate,
    "EvidenceRecord": EvidenceRecord,
    "PullProgress": Progress,
    "BuildProgress": BuildProgress,
    "LoadProgress": LoadProgress,
    "BenchProgress": BenchProgress,
}
"""Schemas that are made of the type whose JSON form is sent."""


def ref(name: str) -> Schema:
    """Return a reference to a schema of `NAMED` or `TYPED`."""
    return {"$ref": f"#/components/schemas/{name}"}


def many(item: Schema) -> Schema:
    """Return a list of *item*."""
    return {"type": "array", "items": item}


def maybe(schema: Schema) -> Schema:
    """Return *schema* or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def shape(required: Mapping[str, Schema], /, **optional: Schema) -> Schema:
    """Return an object that has *required* and may have *optional*, and more."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def one_of(*values: str) -> Schema:
    """Return a text that is one of *values*."""
    return {"type": "string", "enum": list(values)}


_USAGE = shape(
    {"prompt_tokens": WHOLE, "completion_tokens": WHOLE, "total_tokens": WHOLE},
    prompt_tokens_details=shape({"cached_tokens": WHOLE}),
)
_CHOICE = {"index": WHOLE, "finish_reason": maybe(TEXT)}
_COMPLETION = {
    "id": TEXT,
    "created": WHOLE,
    "model": TEXT,
    "system_fingerprint": TEXT,
    "usage": ref("Usage"),
}
_MESSAGE = shape(
    {"role": one_of("assistant"), "content": maybe(TEXT)}, tool_calls=many(ANY_OBJECT), refusal=maybe(TEXT)
)
_SPREAD = maybe(shape({"median": NUMBER, "min": NUMBER, "max": NUMBER}))
_DONE_COUNTS = {
    name: WHOLE
    for name in (
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    )
}
_LINE = {"model": TEXT, "created_at": TEXT, "done": FLAG}

NAMED: Mapping[str, Schema] = {
    "Error": shape(
        {
            "error": shape(
                {"message": TEXT, "type": TEXT, "param": maybe(TEXT), "code": TEXT, "hint": maybe(TEXT)},
                details=ANY_OBJECT,
            ),
            "request_id": TEXT,
        }
    ),
    "OllamaError": shape({"error": TEXT}),
    "Usage": _USAGE,
    "ChatCompletion": shape(
        {
            **_COMPLETION,
            "object": one_of("chat.completion"),
            "choices": many(shape({**_CHOICE, "message": _MESSAGE}, logprobs=maybe(ANY_OBJECT))),
        },
        timings=ANY_OBJECT,
        jetllm=ANY_OBJECT,
    ),
    "Completion": shape(
        {
            **_COMPLETION,
            "object": one_of("text_completion"),
            "choices": many(shape({**_CHOICE, "text": TEXT}, logprobs=maybe(ANY_OBJECT))),
        },
        timings=ANY_OBJECT,
        jetllm=ANY_OBJECT,
    ),
    "Embeddings": shape(
        {
            "object": one_of("list"),
            "model": TEXT,
            "data": many(
                shape(
                    {
                        "object": one_of("embedding"),
                        "index": WHOLE,
                        "embedding": {"anyOf": [many(NUMBER), TEXT]},
                    }
                )
            ),
            "usage": shape({"prompt_tokens": WHOLE, "total_tokens": WHOLE}),
        }
    ),
    "ModelCard": shape(
        {"id": TEXT, "object": one_of("model"), "created": WHOLE, "owned_by": TEXT, "jetllm": ANY_OBJECT}
    ),
    "Model": shape(
        {
            "id": TEXT,
            "name": TEXT,
            "state": TEXT,
            "status": TEXT,
            "parameters": TEXT,
            "use_cases": many(TEXT),
            "aliases": many(TEXT),
            "pulled": FLAG,
            "usable": FLAG,
            "variants": {"type": "object", "additionalProperties": ANY_OBJECT},
        }
    ),
    "Status": shape(
        {
            "version": TEXT,
            "pid": WHOLE,
            "uptime_s": NUMBER,
            "state": one_of("serving", "draining"),
            "jobs": WHOLE,
            "queue": shape({"waiting": WHOLE, "running": WHOLE}),
            "registry": shape({"models": WHOLE, "digest": maybe(TEXT), "error": maybe(TEXT)}),
            "memory": ref("Memory"),
            "workers": many(ref("Worker")),
            "counters": {"type": "object", "additionalProperties": many(ANY_OBJECT)},
        }
    ),
    "Device": shape(
        {"static": ANY_OBJECT, "live": shape({"memory": ANY_OBJECT, "telemetry": maybe(ANY_OBJECT)})}
    ),
    "Evidence": shape({"evidence": many(ANY_OBJECT), "skipped": many(TEXT)}),
    "Selection": shape(
        {
            "model": TEXT,
            "variant": TEXT,
            "context_tokens": WHOLE,
            "reason": TEXT,
            "task": TEXT,
            "speed": TEXT,
            "memory_bytes": WHOLE,
            "tokens_per_s": maybe(NUMBER),
            "pulled": maybe(FLAG),
            "candidates": many(ref("Candidate")),
        }
    ),
    "Unloaded": shape(
        {"model": TEXT, "variants": many(TEXT), "state": one_of("absent"), "freed_bytes": maybe(WHOLE)}
    ),
    "Deleted": shape({"model": TEXT, "variants": many(TEXT), "freed_bytes": WHOLE}),
    "Job": shape(
        {
            "id": TEXT,
            "kind": one_of("pull", "build", "load", "bench"),
            "model": TEXT,
            "variant": maybe(TEXT),
            "state": one_of("running", "done", "failed", "cancelled"),
            "progress": {
                "anyOf": [
                    *(ref(f"{kind}Progress") for kind in ("Pull", "Build", "Load", "Bench")),
                    {"type": "null"},
                ]
            },
            "result": maybe(ANY_OBJECT),
            "error": maybe(ANY_OBJECT),
            "created": WHOLE,
            "ended": maybe(WHOLE),
        }
    ),
    "BenchResult": shape(
        {
            "model": TEXT,
            "variant": TEXT,
            "engine": TEXT,
            "concurrency": WHOLE,
            "runs": WHOLE,
            "prompt_tokens": NUMBER,
            "completion_tokens": NUMBER,
            "ttft_s": _SPREAD,
            "decode_tokens_per_s": _SPREAD,
            "prefill_tokens_per_s": _SPREAD,
            "all_tokens_per_s": maybe(NUMBER),
            "predicted": shape(
                {
                    "decode_tokens_per_s": maybe(NUMBER),
                    "source": maybe(TEXT),
                    "by_formula_tokens_per_s": maybe(NUMBER),
                }
            ),
        }
    ),
    "Tokens": shape({"model": TEXT, "variant": TEXT, "tokens": many(WHOLE)}),
    "Text": shape({"model": TEXT, "variant": TEXT, "text": TEXT}),
    "TokenCount": shape({"model": TEXT, "variant": TEXT, "tokens": WHOLE, "context_tokens": maybe(WHOLE)}),
    "Readiness": shape(
        {"status": TEXT, "phase": maybe(TEXT), "percent": maybe(NUMBER), "reason": maybe(TEXT)}
    ),
    "Health": shape(
        {
            "status": TEXT,
            "phase": maybe(TEXT),
            "percent": maybe(NUMBER),
            "reason": maybe(TEXT),
            "models": many(ref("Worker")),
            "queue": shape({"waiting": WHOLE, "running": WHOLE}),
        }
    ),
    "OllamaChat": shape({**_LINE, "message": _MESSAGE}, done_reason=TEXT, **_DONE_COUNTS),
    "OllamaText": shape({**_LINE, "response": TEXT}, done_reason=TEXT, **_DONE_COUNTS),
    "OllamaEmbeddings": shape({"model": TEXT, "embeddings": many(many(NUMBER))}),
    "OllamaTags": shape(
        {"models": many(shape({"name": TEXT, "model": TEXT, "size": WHOLE, "digest": TEXT}))}
    ),
    "OllamaRunning": shape({"models": many(shape({"name": TEXT, "model": TEXT, "expires_at": TEXT}))}),
    "OllamaShown": shape({"details": ANY_OBJECT, "model_info": ANY_OBJECT, "capabilities": many(TEXT)}),
}
