"""The /metrics page: what is counted, under which labels, in both formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from inference.api import create_app
from inference.api.device_metrics import DeviceMetrics
from inference.device import read_telemetry
from inference.errors import DoesNotFitError, WorkerCrashedError
from inference.generation import Chunk
from inference.service import build_service
from inference.settings import load_settings
from tests.fake_service import MODEL, FakeService
from tests.scripted_service import MODEL as SCRIPTED
from tests.scripted_service import scripted_backend, scripted_registry

FIXTURES = Path(__file__).parent / "fixtures" / "devices"

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
parse_openmetrics: Any = openmetrics.text_string_to_metric_families  # untyped upstream
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}
CHAT_ROUTE = "/v1/chat/completions"


def samples(client: FlaskClient) -> dict[tuple[Any, ...], float]:
    """Every sample by name and label values, sorted by label name."""
    text = client.get("/metrics", headers=OPENMETRICS).get_data(as_text=True)
    return {
        (s.name, *(value for _, value in sorted(s.labels.items()))): s.value
        for family in parse_openmetrics(text)
        for s in family.samples
    }


def test_requests_are_counted_by_model_route_and_code() -> None:
    """A good answer counts under the model that served it; a stream once, at its end."""
    client = create_app(FakeService()).test_client()
    client.post(CHAT_ROUTE, json=CHAT)
    streamed = client.post(CHAT_ROUTE, json={**CHAT, "stream": True})
    streamed.get_data()
    streamed.close()
    found = samples(client)
    assert found["jetllm_requests_total", "200", MODEL, CHAT_ROUTE] == 2
    assert found["jetllm_prompt_tokens_total", MODEL] == 20
    assert found["jetllm_generated_tokens_total", MODEL] == 6


def test_finished_generations_are_timed() -> None:
    """Time to first token, mean time between tokens and the whole are one observation a request."""
    client = create_app(FakeService()).test_client()
    client.post(CHAT_ROUTE, json=CHAT)
    client.post(CHAT_ROUTE, json={**CHAT, "stream": True}).get_data()
    found = samples(client)
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_seconds"):
        assert found[f"jetllm_{name}_count", MODEL] == 2


def test_failures_are_counted_with_their_status() -> None:
    """A refusal, a crash inside a stream and a stream that its client left have their own codes."""
    cases = (
        (FakeService(before=(DoesNotFitError("x"),)), "422", "auto"),
        (FakeService(script=(Chunk("a"), WorkerCrashedError("x"))), "502", MODEL),
    )
    for service, code, model in cases:
        client = create_app(service).test_client()
        response = client.post(CHAT_ROUTE, json={**CHAT, "stream": True})
        response.get_data()
        response.close()
        assert samples(client)["jetllm_requests_total", code, model, CHAT_ROUTE] == 1
    client = create_app(FakeService()).test_client()
    left = client.post(CHAT_ROUTE, json={**CHAT, "stream": True})
    next(iter(left.response))
    left.close()
    assert samples(client)["jetllm_requests_total", "499", MODEL, CHAT_ROUTE] == 1


def test_clients_cannot_invent_labels() -> None:
    """Unknown models and unknown paths share one label each."""
    client = create_app(FakeService()).test_client()
    for number in range(5):
        client.post(CHAT_ROUTE, json={**CHAT, "model": f"invented-{number}"})
        client.get(f"/invented/{number}")
        client.open("/livez", method=f"INVENTED{number}")
    text = client.get("/metrics").get_data(as_text=True)
    assert "nvented" not in text
    found = samples(client)
    assert found["jetllm_requests_total", "404", "unknown", CHAT_ROUTE] == 5
    assert found["jetllm_requests_total", "404", "", "unmatched"] == 5


def test_gauges_come_from_the_service() -> None:
    """Queue, memory, workers and counters are read from one snapshot at each scrape."""
    found = samples(create_app(FakeService()).test_client())
    assert found["jetllm_requests_running",] == 0 and found["jetllm_requests_queued",] == 3
    assert found["jetllm_memory_available_bytes",] == 4096
    assert found["jetllm_memory_predicted_bytes", MODEL] == 200
    assert found["jetllm_memory_observed_bytes", MODEL] == 180
    assert (
        found["jetllm_model_state", MODEL, "ready"] == 1 and found["jetllm_model_state", MODEL, "failed"] == 0
    )
    assert found["jetllm_model_state", "org/planned", "absent"] == 1
    assert found["jetllm_model_loads_total", MODEL, "ok"] == 2
    assert found["jetllm_worker_restarts_total", "sigsegv", MODEL] == 1
    assert any(key[0] == "jetllm_build_info" and key[-1] == "0.1.0" for key in found)


@pytest.mark.parametrize(("headers", "parse"), [({}, parse_text), (OPENMETRICS, parse_openmetrics)])
def test_both_formats_parse(headers: dict[str, str], parse: Any) -> None:
    """Prometheus' own parsers read both; names have our prefix and no colon."""
    client = create_app(FakeService()).test_client()
    client.post(CHAT_ROUTE, json=CHAT)
    response = client.get("/metrics", headers=headers)
    families = list(parse(response.get_data(as_text=True)))
    assert all(f.name.startswith("jetllm_") and ":" not in f.name and f.documentation for f in families)
    assert len(families) >= 15
    assert ("openmetrics" in response.content_type) == bool(headers)


def test_process_wide_registry_is_not_used() -> None:
    """Two applications in one process do not share or clash."""
    create_app(FakeService())
    create_app(FakeService())
    assert not any(family.name.startswith("jetllm") for family in REGISTRY.collect())


NAMES = (
    "requests_total requests_running requests_queued time_to_first_token_seconds inter_token_latency_seconds "
    "e2e_request_seconds queue_seconds prompt_tokens_total generated_tokens_total model_state "
    "model_loads_total model_load_seconds swap_seconds admission_decisions_total memory_available_bytes "
    "memory_predicted_bytes memory_observed_bytes worker_restarts_total power_watts energy_joules_total "
    "temperature_celsius gpu_load_ratio throttle_events_total build_info"
)


class Board(FakeService):
    """A Jetson whose power is as a test says, and whose counters are those of the real service."""

    total_watts: float | None = 10.0

    def device(self) -> dict[str, Any]:
        """What the files of an Orin Nano tell, with another power."""
        telemetry = read_telemetry(FIXTURES / "orin-nano-8gb").to_dict()
        telemetry["power"]["total_watts"] = self.total_watts
        return {"live": {"telemetry": telemetry}}


def test_every_documented_name_is_there() -> None:
    """Dashboards are written against names: a family is there even before its first sample."""
    text = create_app(FakeService()).test_client().get("/metrics", headers=OPENMETRICS).get_data(as_text=True)
    found = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in parse_openmetrics(text)
    }
    assert found == {f"jetllm_{name}" for name in NAMES.split()}


def test_the_machine_is_read_at_each_scrape() -> None:
    """Base units and the kernel's own names; a sensor that is off has no sample."""
    found = samples(create_app(Board()).test_client())
    assert found["jetllm_power_watts", "VDD_SOC"] == pytest.approx(2.514944)
    assert found["jetllm_temperature_celsius", "gpu-thermal"] == pytest.approx(95.375)
    assert ("jetllm_temperature_celsius", "cv0-thermal") not in found
    assert found["jetllm_gpu_load_ratio",] == pytest.approx(0.987)
    assert found["jetllm_throttle_events_total", "under_voltage"] == 3
    assert found["jetllm_throttle_events_total", "average_current"] == 12
    assert not any(
        key[0].startswith("jetllm_energy") for key in samples(create_app(FakeService()).test_client())
    )


def test_energy_is_power_over_time() -> None:
    """At the mean of two readings; while no power is known, nothing is added."""
    board, times = Board(), iter((100.0, 110.0, 130.0))
    collector = DeviceMetrics(board.device, lambda: next(times))

    def joules() -> list[float]:
        family = next(each for each in collector.collect() if each.name == "jetllm_energy_joules")
        return [sample.value for sample in family.samples]

    assert joules() == [0.0]
    board.total_watts = 20.0
    assert joules() == [150.0]
    board.total_watts = None
    assert joules() == [150.0]
    board.total_watts = 20.0
    assert joules() == [550.0]


def test_waits_and_loads_are_timed_where_they_happen(tmp_path: Path) -> None:
    """A load counts once, however many wait for it; a refusal counts with its reason."""
    registry = scripted_registry(tmp_path)
    with scripted_backend():
        service = build_service(load_settings({"registry": registry, "cache_dir": tmp_path / "store"}))
        try:
            client = create_app(service).test_client()
            body = {"prompt": "hi", "max_tokens": 2, "model": SCRIPTED}
            assert [client.post("/v1/completions", json=body).status_code for _ in range(2)] == [200, 200]
            client.post("/v1/completions", json={**body, "model": "none"})
            found = samples(client)
        finally:
            service.close()
    assert found["jetllm_queue_seconds_count", SCRIPTED] == 2
    assert found["jetllm_queue_seconds_bucket", "+Inf", SCRIPTED] == 2
    assert found["jetllm_model_load_seconds_count", SCRIPTED] == 1
    assert 0 < found["jetllm_model_load_seconds_sum", SCRIPTED] < 30
    assert ("jetllm_swap_seconds_count", SCRIPTED) not in found
    assert found["jetllm_admission_decisions_total", "to_load", "admitted"] == 1
    assert found["jetllm_admission_decisions_total", "loaded", "admitted"] == 1
    assert found["jetllm_admission_decisions_total", "model_not_found", "refused"] == 1
