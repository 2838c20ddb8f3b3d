"""OpenAI's dialect: chats, completions and the list of models."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Blueprint, Response, g, request

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context
from inference.api.errors import body_of
from inference.api.record import Clock, Record, reason_of
from inference.api.schema import ChatBody, CompletionBody, read
from inference.api.series import Series, Tally
from inference.api.shapes import ChatShape, CompletionShape, Shape, event
from inference.errors import InternalError
from inference.generation import GenerateRequest


def openai_routes(context: Context) -> Blueprint:
    """Return the routes under ``/v1``."""
    routes = Blueprint("openai", __name__, url_prefix="/v1")

    @routes.post("/chat/completions")
    def chat() -> Response:
        body = read(ChatBody, read_object())
        return _generate(context, body.to_requests(), body, ChatShape, "chatcmpl-")

    @routes.post("/completions")
    def completions() -> Response:
        body = read(CompletionBody, read_object())
        return _generate(context, body.to_requests(), body, CompletionShape, "cmpl-")

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
    wanted: list[GenerateRequest],
    body: ChatBody | CompletionBody,
    shape_class: type[Shape],
    id_prefix: str,
) -> Response:
    g.model = context.model_label(wanted[0].model)
    left = client_left()
    slides = wanted[0].context_overflow == "slide"
    with contextlib.ExitStack() as held:
        held.enter_context(context.permit())
        series = Series(context.service, wanted, lambda: left() or context.stopping.is_set())
        held.callback(series.close)
        first = series.first
        g.model = first.model
        shape = functools.partial(
            shape_class,
            completion_id=id_prefix + first.request_id,
            created=int(time.time()),
            model=first.model,
            fingerprint=first.system_fingerprint,
            logprobs=wanted[0].logprobs,
            include_usage=body.include_usage,
            extras={"jetllm": {"dropped_turns": first.dropped_turns}} if slides else None,
        )
        clock = Clock(g.started_s, time.monotonic())
        if body.stream:
            response = _streamed(context, series, shape, clock, held.pop_all().close)
        else:
            response = _whole(context, series, shape, clock)
    response.headers["X-JetLLM-Selection"] = reason_of(first)
    if slides:
        response.headers["X-JetLLM-Dropped-Turns"] = str(first.dropped_turns)
    return response


def _whole(context: Context, series: Series, shape_of: Callable[..., Shape], clock: Clock) -> Response:
    tally, choices = Tally(), []
    for index, stream in enumerate(series):
        for _ in stream:
            pass
        choices.append(shape_of(index=index).choice(tally.add(stream)))
    clock.observe(context, series.first.model, tally.usage)
    return Response(shape_of().body(choices, tally.usage, tally.timings), mimetype="application/json")


def _streamed(
    context: Context,
    series: Series,
    shape_of: Callable[..., Shape],
    clock: Clock,
    release: Callable[[], None],
) -> Response:
    g.counted_elsewhere = True
    record = Record(context, series.first.model, str(request.url_rule), clock)
    response = Response(_events(series, shape_of, record, g.request_id), mimetype="text/event-stream")
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(release)  # runs even if the client left before the first event
    response.call_on_close(record.close)
    return response


def _events(
    series: Series, shape_of: Callable[..., Shape], record: Record, request_id: str
) -> Iterator[bytes]:
    """Turn chunks into events, each as soon as it is there; an error ends them without [DONE]."""
    tally = Tally()
    try:
        for index, stream in enumerate(series):
            shape, last = shape_of(index=index), None
            opening = shape.opening()
            for chunk in stream:
                if chunk.text or chunk.logprobs:
                    yield opening + shape.piece(chunk)
                    opening = b""
                if chunk.finish_reason is not None:
                    last = chunk
            if last is None:
                raise InternalError("the stream ended without a reason")
            yield opening + shape.ending(last)
            tally.add(stream)
        yield shape.closing(tally.usage)
        record.done(tally.usage)
    except Exception as error:
        yield event(body_of(record.failed(error, request_id), request_id))
