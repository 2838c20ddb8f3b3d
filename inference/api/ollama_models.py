"""Ollama's dialect: which models are here, what they are, which are loaded; bringing and deleting them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Blueprint, Response

from inference.api.body import answer, client_left, read_any_object
from inference.api.context import Context
from inference.api.fields import read
from inference.api.ollama_schema import NamedBody, PullBody
from inference.api.ollama_shapes import (
    description,
    error_of,
    held,
    line,
    model_rows,
    pull_line,
    worker_rows,
)
from inference.api.schema import PullBody as NativePullBody
from inference.api.work import pull_job
from inference.errors import ModelInUseError, ModelNotFoundError, ModelNotPulledError
from inference.jobs import DONE, ERROR, Job

_TOOLS = {"llamacpp": ("tools",)}
"""Engines that call tools, for models that are not loaded; a loaded one says so itself."""

_FIRST_S = 1.0  # what fails so soon is still a real HTTP status
_LOOK_S = 0.5
_SUCCESS = {"status": "success"}


def model_routes(routes: Blueprint, context: Context) -> None:
    """Add the routes of models to *routes*."""
    service = context.service

    @routes.get("/tags")
    def tags() -> Response:
        specs = service.registry.models
        return answer({"models": model_rows(_models(context, specs), specs)})

    @routes.get("/ps")
    def running() -> Response:
        specs = service.registry.models
        models = {model["id"]: model for model in _models(context, specs)}
        return answer({"models": worker_rows(service.status()["workers"], models, specs)})

    @routes.post("/show")
    def show() -> Response:
        return answer(_shown(context, read(NamedBody, read_any_object())))

    @routes.post("/pull")
    def pull() -> Response:
        body = read(PullBody, read_any_object())
        name, variant = body.choice
        job, _ = pull_job(context, name, NativePullBody(variant=variant))
        if body.stream is False:
            return _awaited(context, job)
        return _told(context, job, _digest(service.model(name), variant))

    @routes.delete("/delete")
    def delete() -> Response:
        name, variant = read(NamedBody, read_any_object()).choice
        with context.permit():
            _delete(context, name, variant)
        return Response(status=200)


def _models(context: Context, specs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models that *specs* has, too: the registry may be read anew at any time."""
    return [model for model in context.service.models() if model["id"] in specs]


def _shown(context: Context, body: NamedBody) -> dict[str, Any]:
    name, wanted = body.choice
    model = context.service.model(name)
    here = held(model)
    if wanted is not None and wanted not in model["variants"]:
        raise ModelNotFoundError(
            f"{model['id']} has no variant {wanted!r}", hint=f"its variants: {', '.join(model['variants'])}"
        )
    if not here or (wanted is not None and wanted not in here):
        raise ModelNotPulledError(
            f"{body.asked}: its weights are not on this machine", hint=f"jetllm pull {model['id']}"
        )
    variant = wanted or here[0]
    spec = context.service.registry.get(model["id"])[1]
    template = context.service.chat_template(model["id"], variant)
    return description(model, variant, spec, template, _capabilities(context, model, variant, template))


def _capabilities(context: Context, model: dict[str, Any], variant: str, template: str | None) -> list[str]:
    """Return what a client may ask of the model: of tools only where its template has a place for them."""
    key = (model["id"], variant)
    rows = context.service.status()["workers"]
    loaded = next((row for row in rows if (row["model"], row["variant"]) == key), None)
    backend = model["variants"][variant]["backend"]
    able = _TOOLS.get(backend, ()) if loaded is None else loaded["capabilities"]
    found = ["embedding"] if "embedding" in model["use_cases"] else ["completion"]
    return [*found, "tools"] if "tools" in able and "tools" in (template or "") else found


def _delete(context: Context, name: str, variant: str | None) -> None:
    """Delete a model; one that is loaded and idle leaves first, as Ollama's clients expect."""
    try:
        context.service.delete(name, variant=variant)
    except ModelInUseError:
        model = context.service.model(name)["id"]
        rows = [row for row in context.service.status()["workers"] if row["model"] == model]
        if not rows or any(row["leases"] or row["pinned"] for row in rows):
            raise
        context.service.unload(model)
        context.service.delete(name, variant=variant)


def _digest(model: dict[str, Any], variant: str | None) -> str | None:
    """Return the hash of what a pull brings: without a *variant* it is the first that runs here."""
    variants = model["variants"]
    usable = [name for name, each in variants.items() if each["usable"]]
    chosen = variant or next(iter(usable or variants), None)
    digest: str | None = variants[chosen]["digest"] if chosen in variants else None
    return digest


def _awaited(context: Context, job: Job) -> Response:
    """Answer once the job has ended."""
    left = client_left()
    with context.permit():
        while not (job.wait(_LOOK_S) or left() or context.stopping.is_set()):
            pass
    if job.last is not None and job.last.kind == ERROR:
        raise job.last.value
    return answer(_SUCCESS)


def _told(context: Context, job: Job, digest: str | None) -> Response:
    """Answer with a line for each progress of a job; it goes on when the client leaves."""
    with contextlib.ExitStack() as held_open:
        held_open.enter_context(context.permit())
        first = job.next(0, _FIRST_S)
        if first is not None and first.kind == ERROR:
            raise first.value
        response = Response(_lines(job, digest, client_left()), mimetype="application/x-ndjson")
        response.call_on_close(held_open.pop_all().close)
    response.headers["Cache-Control"] = "no-cache"
    response.headers["X-Accel-Buffering"] = "no"
    response.headers["X-JetLLM-Job"] = job.id
    return response


def _lines(job: Job, digest: str | None, gone: Callable[[], bool]) -> Iterator[bytes]:
    after = 0
    yield line({"status": "pulling manifest"})
    while not gone():
        event = job.next(after, _LOOK_S)
        if event is None:
            continue
        after = event.number
        if event.kind == ERROR:
            yield line(error_of(event.value))
            return
        if event.kind == DONE:
            yield line(_SUCCESS)
            return
        yield line(pull_line(event.value, digest))
