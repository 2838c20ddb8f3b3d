"""The appliance's own dialect: status, device, models, jobs, evidence, bench and the explained choice."""

from __future__ import annotations

from flask import Blueprint, Response, g, request

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context
from inference.api.feed import feed, row_of
from inference.api.native_schema import BenchBody
from inference.api.schema import BuildBody, LoadBody, PullBody, SelectBody, UnloadBody, read
from inference.api.work import bench_job, build_job, load_job, pull_job
from inference.errors import InvalidRequestError
from inference.jobs import Job

_CANCEL_S = 1.0
_EVENTS = "text/event-stream"
_MAX_NAME = 200


def native_routes(context: Context) -> Blueprint:
    """Return the routes under ``/jetllm/v1``."""
    routes = Blueprint("native", __name__, url_prefix="/jetllm/v1")
    _install_views(routes, context)
    _install_models(routes, context)
    _install_jobs(routes, context)
    return routes


def _install_views(routes: Blueprint, context: Context) -> None:
    service = context.service

    @routes.get("/status")
    def status() -> Response:
        return answer(service.status() | {"jobs": len([j for j in context.jobs.all() if j.ended_s is None])})

    @routes.get("/device")
    def device() -> Response:
        return answer(service.device())

    @routes.get("/models")
    def models() -> Response:
        return answer({"models": service.models()})

    @routes.get("/evidence")
    def evidence() -> Response:
        measurements = service.measurements
        rows = measurements.rows(_asked("model"))
        return answer({"evidence": rows, "skipped": measurements.skipped()})

    @routes.post("/evidence")
    def record_evidence() -> Response:
        record = read_object()
        return answer(service.measurements.record(record))

    @routes.post("/bench")
    def bench() -> Response:
        body = read(BenchBody, read_object())
        return _told(context, bench_job(context, body), stream=body.stream is not False)

    @routes.post("/select")
    def select() -> Response:
        body = read(SelectBody, read_object())
        with context.permit():
            selection = service.select(body.to_request(), context_tokens=body.context_tokens)
            return answer(selection.to_dict())


def _install_models(routes: Blueprint, context: Context) -> None:
    service = context.service

    @routes.post("/models/load")
    def load() -> Response:
        body = read(LoadBody, read_object())
        if body.stream:
            return _told(context, load_job(context, body))
        left = client_left()
        with context.permit():
            return answer(
                service.load(
                    body.model,
                    variant=body.variant,
                    pin=body.pin,
                    keep_alive_s=body.keep_alive,
                    building=lambda _: None,
                    cancelled=lambda: left() or context.stopping.is_set(),
                )
            )

    @routes.post("/models/unload")
    def unload() -> Response:
        body = read(UnloadBody, read_object())
        with context.permit():
            return answer(service.unload(body.model))

    @routes.post("/models/<path:name>/pull")
    def pull(name: str) -> Response:
        body = read(PullBody, read_object())
        return _told(context, pull_job(context, name, body), stream=body.stream is not False)

    @routes.post("/models/<path:name>/build")
    def build(name: str) -> Response:
        body = read(BuildBody, read_object())
        return _told(context, build_job(context, name, body), stream=body.stream is not False)

    @routes.get("/models/<path:name>")
    def model(name: str) -> Response:
        return answer(service.model(name))

    @routes.delete("/models/<path:name>")
    def delete(name: str) -> Response:
        with context.permit():
            return answer(service.delete(name, variant=_asked("variant")))


def _install_jobs(routes: Blueprint, context: Context) -> None:
    @routes.get("/jobs")
    def jobs() -> Response:
        return answer({"jobs": [row_of(job, g.request_id) for job in context.jobs.all()]})

    @routes.get("/jobs/<job_id>")
    def job(job_id: str) -> Response:
        found = context.jobs.get(job_id)
        wanted = request.accept_mimetypes.best_match(("application/json", _EVENTS))
        if wanted == _EVENTS:
            return feed(context, found, started=False)
        return answer(row_of(found, g.request_id))

    @routes.delete("/jobs/<job_id>")
    def cancel(job_id: str) -> Response:
        found = context.jobs.get(job_id)
        found.asked_to_end.set()
        with context.permit():
            found.wait(_CANCEL_S)
        return answer(row_of(found, g.request_id))


def _told(context: Context, begun: tuple[Job, bool], *, stream: bool = True) -> Response:
    """Answer with the job's events, or, where nobody wants to watch, with the job itself."""
    job, started = begun
    if stream:
        return feed(context, job, started=started)
    response = answer(row_of(job, g.request_id), 202)
    response.headers["X-JetLLM-Job"] = job.id
    return response


def _asked(name: str) -> str | None:
    """Return a value of the query; ``None`` where it is left out or empty.

    Raises:
        InvalidRequestError: it is too long for a name.
    """
    value = request.args.get(name)
    if value is not None and len(value) > _MAX_NAME:
        raise InvalidRequestError(f"{name}: expected at most {_MAX_NAME} characters", param=name)
    return value or None
