"""Health and metrics: answers that wait for nothing."""

from __future__ import annotations

from flask import Blueprint, Response, request

from inference.api.body import answer
from inference.api.context import Context

# What a load balancer or a supervisor asks without knowing the key.
OPEN_PATHS = frozenset({"/livez", "/readyz", "/health"})


def health_routes(context: Context) -> Blueprint:
    """Return the routes that supervisors, load balancers and Prometheus ask."""
    routes = Blueprint("health", __name__)
    service = context.service

    @routes.get("/livez")
    def livez() -> Response:
        return answer({"status": "ok"})

    @routes.get("/health")
    def health() -> Response:
        ready, detail = service.readiness()
        return answer({"status": "ok" if ready else detail.get("status")}, 200 if ready else 503)

    @routes.get("/readyz")
    def readyz() -> Response:
        ready, detail = service.readiness()
        response = answer(detail, 200 if ready else 503)
        if not ready:
            response.headers["Retry-After"] = "1"
        return response

    @routes.get("/healthz")
    def healthz() -> Response:
        ready, detail = service.readiness()
        status = service.status()
        body = detail | {"models": status.get("workers", []), "queue": status.get("queue", {})}
        return answer(body, 200 if ready else 503)

    @routes.get("/metrics")
    def metrics() -> Response:
        text, content_type = context.metrics.render(request.headers.get("Accept", ""))
        return Response(text, content_type=content_type)

    return routes
