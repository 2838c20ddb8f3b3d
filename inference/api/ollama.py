"""Ollama's dialect: chats, texts, embeddings, and the models that are here and loaded."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from flask import Blueprint, Response, g, request

from inference.api.body import answer, client_left, read_any_object
from inference.api.context import Context, Stream
from inference.api.fields import read
from inference.api.ollama_models import model_routes
from inference.api.ollama_schema import ChatBody, EmbedBody, GenerateBody, OldEmbedBody
from inference.api.ollama_shapes import ChatLines, GenerateLines, Lines, error_of, line
from inference.api.record import Clock, Record, reason_of
from inference.errors import InternalError, InvalidRequestError
from inference.generation import Embeddings, GenerateRequest

API_VERSION = "0.12.11"
"""The release of Ollama whose API this is: clients ask for it before they use what is newer."""

_ELSEWHERE = {
    "copy": "models cannot be copied: give the entry in models.json an alias",
    "create": "models cannot be created here: add an entry to models.json",
    "push": "models cannot be pushed: there is no place to push them to",
}


def ollama_routes(context: Context) -> Blueprint:
    """Return the routes under ``/api``."""
    routes = Blueprint("ollama", __name__, url_prefix="/api")
    model_routes(routes, context)
    _install_text(routes, context)
    _install_embeddings(routes, context)

    @routes.get("/version")
    def version() -> Response:
        return answer({"version": API_VERSION})

    for name, reason in _ELSEWHERE.items():
        routes.post(f"/{name}", endpoint=name)(_refusal(reason))
    return routes


def _refusal(reason: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise InvalidRequestError(reason, hint="docs/ollama.md says what differs")

    return refuse


def _install_text(routes: Blueprint, context: Context) -> None:
    @routes.post("/chat")
    def chat() -> Response:
        body = read(ChatBody, read_any_object())
        if body.is_empty:
            return _kept(context, body, ChatLines)
        return _generate(context, body.to_request(), body, ChatLines)

    @routes.post("/generate")
    def generate() -> Response:
        body = read(GenerateBody, read_any_object())
        if body.is_empty:
            return _kept(context, body, GenerateLines)
        registry = context.service.registry
        is_chat = body.is_auto or registry.get(body.choice[0])[1].chat != "none"
        return _generate(context, body.to_request(is_chat=is_chat), body, GenerateLines)


def _install_embeddings(routes: Blueprint, context: Context) -> None:
    @routes.post("/embed")
    def embed() -> Response:
        body = read(EmbedBody, read_any_object())
        found = _embedded(context, body)
        vectors = [] if found is None else [_cut(vector, body.dimensions) for vector in found.vectors]
        total = round((time.monotonic() - g.started_s) * 1e9)
        count = 0 if found is None else found.prompt_tokens
        return answer(
            {
                "model": _shown(body, None if found is None else found.model),
                "embeddings": vectors,
                "total_duration": total,
                "load_duration": 0 if found is None else max(0, total - round(found.total_s * 1e9)),
                "prompt_eval_count": count,
            }
        )

    @routes.post("/embeddings")
    def embeddings() -> Response:
        found = _embedded(context, read(OldEmbedBody, read_any_object()).to_embed())
        return answer({"embedding": [] if found is None else found.vectors[0]})


def _embedded(context: Context, body: EmbedBody) -> Embeddings | None:
    """Return the vectors; of a body without input nothing, once its model is loaded."""
    g.model = context.model_label(body.choice[0])
    if not body.inputs:
        _keep(context, body)
        return None
    with context.permit():
        found = context.service.embed(body.to_request(), _cancelled(context))
    g.model = found.model
    return found


def _cut(vector: tuple[float, ...], dimensions: int | None) -> list[float]:
    """Return the first *dimensions* numbers, at unit length again."""
    if not dimensions or dimensions >= len(vector):
        return list(vector)
    length = math.hypot(*vector[:dimensions]) or 1.0
    return [value / length for value in vector[:dimensions]]


def _kept(context: Context, body: ChatBody | GenerateBody, lines_class: type[Lines]) -> Response:
    """Answer a request without text: it loads its model, or with a keep_alive of 0 unloads it."""
    g.model = context.model_label(body.choice[0])
    now_s = time.monotonic()
    reason, served = _keep(context, body)
    lines = lines_class(_shown(body, served), Clock(g.started_s, now_s), logprobs=False)
    return answer(lines.nothing(reason))


def _keep(context: Context, body: ChatBody | GenerateBody | EmbedBody) -> tuple[str, str | None]:
    """Load or unload the model of *body*; return which it was, and the model's own name."""
    model, variant = body.choice
    with context.permit():
        if body.keep_alive == 0:
            return "unload", context.service.unload(model)["model"]
        row = context.service.load(
            model,
            variant=variant,
            pin=None,
            keep_alive_s=body.keep_alive,
            building=lambda _: None,
            cancelled=_cancelled(context),
        )
    return "load", row["model"]


def _cancelled(context: Context) -> Callable[[], bool]:
    left = client_left()
    return lambda: left() or context.stopping.is_set()


def _shown(body: ChatBody | GenerateBody | EmbedBody, served: str | None) -> str:
    """Return the model's name as the client wrote it; of "auto" it is the one that served."""
    return served if body.is_auto and served is not None else body.asked


def _generate(
    context: Context, wanted: GenerateRequest, body: ChatBody | GenerateBody, lines_class: type[Lines]
) -> Response:
    g.model = context.model_label(wanted.model)
    with contextlib.ExitStack() as held:
        held.enter_context(context.permit())
        stream = context.service.generate(wanted, _cancelled(context))
        held.callback(stream.close)
        g.model = stream.model
        clock = Clock(g.started_s, time.monotonic())
        lines = lines_class(_shown(body, stream.model), clock, logprobs=wanted.logprobs)
        if body.stream is False:
            response = _whole(context, stream, lines, clock)
        else:
            response = _streamed(context, stream, lines, clock, held.pop_all().close)
    response.headers["X-JetLLM-Selection"] = reason_of(stream)
    if wanted.context_overflow == "slide":
        response.headers["X-JetLLM-Dropped-Turns"] = str(stream.dropped_turns)
    return response


def _whole(context: Context, stream: Stream, lines: Lines, clock: Clock) -> Response:
    for _ in stream:
        pass
    result = stream.result
    if result is None:
        raise InternalError("the stream ended without a result")
    clock.observe(context, stream.model, result.usage)
    return answer(lines.body(result))


def _streamed(
    context: Context, stream: Stream, lines: Lines, clock: Clock, release: Callable[[], None]
) -> Response:
    g.counted_elsewhere = True
    record = Record(context, stream.model, str(request.url_rule), clock)
    response = Response(_told(stream, lines, record, g.request_id), mimetype="application/x-ndjson")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(release)  # runs even if the client left before the first line
    response.call_on_close(record.close)
    return response


def _told(stream: Stream, lines: Lines, record: Record, request_id: str) -> Iterator[bytes]:
    """Turn chunks into lines, each as soon as it is there; an error ends them, and nothing says "done"."""
    last = None
    try:
        for chunk in stream:
            if chunk.text or chunk.logprobs or chunk.tool_calls:
                yield lines.piece(chunk)
            if chunk.finish_reason is not None:
                last = chunk
        if last is None or last.usage is None:
            raise InternalError("the stream ended without a reason")
        yield lines.ending(last)
        record.done(last.usage)
    except Exception as error:
        yield line(error_of(record.failed(error, request_id)))
