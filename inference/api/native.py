"""The appliance's own dialect: status, device, models, evidence and the explained choice."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from inference.api.body import answer, client_left, read_object
from inference.api.context import Context
from inference.api.feed import Cancelled, Tell, feed
from inference.api.schema import BuildBody, LoadBody, PullBody, SelectBody, UnloadBody, read


def native_routes(context: Context) -> Blueprint:
    """Return the routes under ``/jetllm/v1``."""
    routes = Blueprint("native", __name__, url_prefix="/jetllm/v1")
    service = context.service

    @routes.get("/status")
    def status() -> Response:
        return answer(service.status())

    @routes.get("/device")
    def device() -> Response:
        return answer(service.device())

    @routes.get("/models")
    def models() -> Response:
        return answer({"models": service.models()})

    @routes.get("/evidence")
    def evidence() -> Response:
        measurements = service.measurements
        rows = measurements.rows(request.args.get("model"))
        return answer({"evidence": rows, "skipped": measurements.skipped()})

    @routes.post("/evidence")
    def record_evidence() -> Response:
        return answer(service.measurements.record(read_object()))

    @routes.post("/models/load")
    def load() -> Response:
        body = read(LoadBody, read_object())
        left = client_left()
        with context.permit():
            return answer(
                service.load(
                    body.model,
                    variant=body.variant,
                    pin=body.pin,
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

        def work(tell: Tell, cancelled: Cancelled) -> dict[str, str]:
            with context.permit():
                pulled = service.pull(name, variant=body.variant, progress=tell, cancelled=cancelled)
                return {key: pulled[key] for key in ("model", "variant")}

        return feed(context, work)

    @routes.post("/models/<path:name>/build")
    def build(name: str) -> Response:
        body = read(BuildBody, read_object())

        def work(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
            with context.permit():
                built = service.build(
                    name,
                    variant=body.variant,
                    force=bool(body.force),
                    progress=tell,
                    cancelled=cancelled,
                )
                shown = ("model", "variant", "key", "recipe", "steps", "failures", "text", "parameters_bytes")
                return {key: built[key] for key in shown}

        return feed(context, work)

    @routes.post("/select")
    def select() -> Response:
        body = read(SelectBody, read_object())
        with context.permit():
            selection = service.select(body.to_request(), context_tokens=body.context_tokens)
            return answer(selection.to_dict())

    return routes
