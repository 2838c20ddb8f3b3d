"""OpenAI's dialect: chats, completions and the list of models."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, g, request

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context, Stream
from inference.api.errors import body_of, public, status_of
from inference.api.schema import ChatBody, CompletionBody, read
from inference.api.shapes import ChatShape, CompletionShape, Shape, event
from inference.errors import InternalError
from inference.generation import Chunk, GenerateRequest, Usage

_CLIENT_LEFT = 499


def openai_routes(context: Context) -> Blueprint:
    """Return the routes under ``/v1``."""
    routes = Blueprint("openai", __name__, url_prefix="/v1")

    @routes.post("/chat/completions")
    def chat() -> Response:
        body = read(ChatBody, read_object())
        return _generate(context, body.to_request(), body, ChatShape, "chatcmpl-")

    @routes.post("/completions")
    def completions() -> Response:
        body = read(CompletionBody, read_object())
        return _generate(context, body.to_request(), body, CompletionShape, "cmpl-")

    @routes.get("/models")
    def models() -> Response:
        usable = [_card(m) for m in context.service.models() if m.get("pulled") and m.get("usable")]
        return answer({"object": "list", "data": usable})

    @routes.get("/models/<path:name>")
    def model(name: str) -> Response:
        return answer(_card(context.service.model(name)))

    return routes


def _card(model: dict[str, Any]) -> dict[str, Any]:
    extras = {key: value for key, value in model.items() if key not in ("id", "created")}
    return {
        "id": model["id"],
        "object": "model",
        "created": model.get("created", 0),
        "owned_by": "jetllm",
        "jetllm": extras,
    }


def _generate(
    context: Context,
    wanted: GenerateRequest,
    body: ChatBody | CompletionBody,
    shape_class: type[Shape],
    id_prefix: str,
) -> Response:
    g.model = context.model_label(wanted.model)
    left = client_left()
    with contextlib.ExitStack() as held:
        held.enter_context(context.permit())
        stream = context.service.generate(wanted, lambda: left() or context.stopping.is_set())
        held.callback(stream.close)
        g.model = stream.model
        shape = shape_class(
            completion_id=id_prefix + stream.request_id,
            created=int(time.time()),
            model=stream.model,
            fingerprint=stream.system_fingerprint,
            logprobs=wanted.logprobs,
            include_usage=body.include_usage,
        )
        clock = _Clock(g.started_s, time.monotonic())
        if body.stream:
            response = _streamed(context, stream, shape, clock, held.pop_all().close)
        else:
            response = _whole(context, stream, shape, clock)
    response.headers["X-JetLLM-Selection"] = _one_line(stream)
    return response


@dataclass(frozen=True)
class _Clock:
    """When a request arrived and when its first text was there, on the monotonic clock."""

    started_s: float
    first_text_s: float

    def observe(self, context: Context, model: str, usage: Usage) -> None:
        context.metrics.observe(
            model,
            ttft_s=self.first_text_s - self.started_s,
            total_s=time.monotonic() - self.started_s,
            usage=usage,
        )


def _whole(context: Context, stream: Stream, shape: Shape, clock: _Clock) -> Response:
    for _ in stream:
        pass
    result = stream.result
    if result is None:
        raise InternalError("the stream ended without a result")
    clock.observe(context, stream.model, result.usage)
    return Response(shape.body(result), mimetype="application/json")


def _streamed(
    context: Context, stream: Stream, shape: Shape, clock: _Clock, release: Callable[[], None]
) -> Response:
    g.counted_elsewhere = True
    record = _Record(context, stream.model, str(request.url_rule), clock)
    response = Response(_events(stream, shape, record, g.request_id), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(release)  # runs even if the client left before the first event
    response.call_on_close(record.close)
    return response


class _Record:
    """How a stream ended, for the metrics: until it says otherwise, its client left."""

    def __init__(self, context: Context, model: str, route: str, clock: _Clock) -> None:
        self._context, self._model, self._route, self._clock = context, model, route, clock
        self._code = _CLIENT_LEFT

    def done(self, last: Chunk) -> None:
        self._code = 200
        if last.usage is not None:
            self._clock.observe(self._context, self._model, last.usage)

    def failed(self, error: Exception, request_id: str) -> bytes:
        shown = public(self._context.cause_of(error), request_id)
        self._code = status_of(shown)
        return event(body_of(shown, request_id))

    def close(self) -> None:
        self._context.metrics.count(self._model, self._route, self._code)


def _events(stream: Stream, shape: Shape, record: _Record, request_id: str) -> Iterator[bytes]:
    """Turn chunks into events, each as soon as it is there; an error ends them without [DONE]."""
    opening = shape.opening()
    last = None
    try:
        for chunk in stream:
            if chunk.text or chunk.logprobs:
                yield opening + shape.piece(chunk)
                opening = b""
            if chunk.finish_reason is not None:
                last = chunk
        if last is None:
            raise InternalError("the stream ended without a reason")
        yield opening + shape.ending(last)
        record.done(last)
    except Exception as error:
        yield record.failed(error, request_id)


def _one_line(stream: Stream) -> str:
    """Say in a header what was chosen and why; header values are Latin-1 without line ends."""
    reason = " ".join(str(stream.selection.reason).split())
    return (
        "".join(c if c.isprintable() else "?" for c in reason[:500])
        .encode("latin-1", "replace")
        .decode("latin-1")
    )
