"""Metrics: what /metrics tells Prometheus, in a registry of its own."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from inference.api.device_metrics import DeviceMetrics
from inference.generation import Usage

MODEL_STATES = ("absent", "queued", "starting", "ready", "stopping", "failed")
_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_REQUEST_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_DURATIONS = {
    "queue_seconds": "Wait of a request for its turn, the load of its model included",
    "model_load_seconds": "Start of a worker to its readiness",
    "swap_seconds": "Request to readiness of a model for which another had to leave",
}


class _Observed(Protocol):
    @property
    def registry(self) -> Any: ...

    def status(self) -> dict[str, Any]: ...

    def device(self) -> dict[str, Any]: ...


class Metrics:
    """Counters of this process, and gauges read from the service's snapshot at each scrape."""

    def __init__(self, service: _Observed) -> None:
        self._registry = registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "jetllm_requests",
            "Answered requests by served model, route and status; a stream counts at its end",
            ["model", "route", "code"],
            registry=registry,
        )
        self._ttft = _histogram(
            registry, "time_to_first_token_seconds", "Arrival to first text", _TTFT_BUCKETS_S
        )
        self._token = _histogram(
            registry,
            "inter_token_latency_seconds",
            "Mean time between the tokens of a request, one observation per request",
            _TOKEN_BUCKETS_S,
        )
        self._request = _histogram(
            registry, "e2e_request_seconds", "Arrival to last text", _REQUEST_BUCKETS_S
        )
        self._prompt_tokens = _tokens(registry, "prompt_tokens", "Tokens of prompts")
        self._generated_tokens = _tokens(registry, "generated_tokens", "Tokens generated")
        registry.register(_Snapshot(service))
        registry.register(DeviceMetrics(service.device))

    def count(self, model: str, route: str, code: int) -> None:
        """Count one answered request."""
        self._requests.labels(model, route, str(code)).inc()

    def observe(self, model: str, *, ttft_s: float, total_s: float, usage: Usage) -> None:
        """Record one finished generation."""
        self._ttft.labels(model).observe(ttft_s)
        self._request.labels(model).observe(total_s)
        if usage.completion_tokens > 1:
            self._token.labels(model).observe((total_s - ttft_s) / (usage.completion_tokens - 1))
        self._prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self._generated_tokens.labels(model).inc(usage.completion_tokens)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, OpenMetrics when *accept* asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _histogram(registry: CollectorRegistry, name: str, text: str, buckets: Iterable[float]) -> Histogram:
    return Histogram(f"jetllm_{name}", text, ["model"], registry=registry, buckets=tuple(buckets))


def _tokens(registry: CollectorRegistry, name: str, text: str) -> Counter:
    return Counter(f"jetllm_{name}", text, ["model"], registry=registry)


class _Snapshot:
    """Collects from one `status` per scrape."""

    def __init__(self, service: _Observed) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._service.status()
        workers = status.get("workers", [])
        counters = status.get("counters", {})
        build = _gauge("build_info", "Version of the daemon and of Python", ["version", "python"])
        build.add_metric([str(status.get("version")), platform.python_version()], 1)
        yield build
        queue = status.get("queue", {})
        yield _plain("requests_running", "Requests that compute now", queue.get("running"))
        yield _plain("requests_queued", "Requests that wait for a slot", queue.get("waiting"))
        yield _plain(
            "memory_available_bytes",
            "Memory that can be given to programs",
            status.get("memory", {}).get("available_bytes"),
        )
        yield _states(self._service.registry.models, workers)
        yield _worker_bytes("memory_predicted_bytes", "Memory that a worker was predicted to need", workers)
        yield _worker_bytes("memory_observed_bytes", "Memory that a worker was seen to need", workers)
        yield _counter(
            "model_loads", "Loads by outcome", ("model", "result"), counters.get("model_loads_total")
        )
        restarts = counters.get("worker_restarts_total")
        yield _counter("worker_restarts", "Restarts by cause", ("model", "cause"), restarts)
        decisions = counters.get("admission_decisions_total")
        yield _counter(
            "admission_decisions", "Requests admitted and refused", ("result", "reason"), decisions
        )
        for name, text in _DURATIONS.items():
            yield _durations(name, text, counters.get(name))


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"jetllm_{name}", text, labels=labels)


def _plain(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    gauge = _gauge(name, text, [])
    if value is not None:
        gauge.add_metric([], value)
    return gauge


def _states(models: Iterable[str], workers: Iterable[Mapping[str, Any]]) -> GaugeMetricFamily:
    gauge = _gauge("model_state", "1 for the state that a model is in, 0 for the others", ["model", "state"])
    current = dict.fromkeys(models, "absent") | {worker["model"]: worker["state"] for worker in workers}
    for model, state in current.items():
        for name in MODEL_STATES:
            gauge.add_metric([model, name], float(name == state))
    return gauge


def _worker_bytes(name: str, text: str, workers: Iterable[Mapping[str, Any]]) -> GaugeMetricFamily:
    gauge = _gauge(name, text, ["model"])
    totals: dict[str, int] = {}
    for worker in workers:
        if worker.get(name) is not None:
            totals[worker["model"]] = totals.get(worker["model"], 0) + worker[name]
    for model, total in totals.items():
        gauge.add_metric([model], total)
    return gauge


def _counter(
    name: str, text: str, labels: tuple[str, str], rows: Iterable[Mapping[str, Any]] | None
) -> CounterMetricFamily:
    counter = CounterMetricFamily(f"jetllm_{name}", text, labels=labels)
    for row in rows or ():
        counter.add_metric([row[label] for label in labels], row["value"])
    return counter


def _durations(name: str, text: str, rows: Iterable[Mapping[str, Any]] | None) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"jetllm_{name}", text, labels=["model"])
    for row in rows or ():
        buckets = [("+Inf" if bound is None else str(float(bound)), count) for bound, count in row["buckets"]]
        family.add_metric([row["model"]], buckets, row["sum_s"])
    return family
