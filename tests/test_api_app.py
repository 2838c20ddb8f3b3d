"""The application: errors, guards, health and the appliance's own routes."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference import errors
from inference.api import Limits, create_app
from inference.api.errors import STATUS_BY_CODE, without_directories
from inference.errors import JetLLMError
from tests.fake_service import MODEL, FakeService, settings_with

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def client_of(service: FakeService | None = None, **settings: Any) -> FlaskClient:
    """A client without a network."""
    service = service or FakeService(settings=settings_with(**settings))
    return create_app(service).test_client()


def _codes(cls: type[JetLLMError]) -> set[str]:
    """The codes of the daemon's errors; those of the host and of the tools of containers/ meet no request."""
    own = set() if cls.__module__.startswith(("inference.appliance.", "containers.")) else {cls.code}
    return own.union(*(_codes(child) for child in cls.__subclasses__()))


# Errors

ONLY_AT_START = {"already_running", "address_in_use", "unsafe_bind", "invalid_settings", "invalid_registry"}
ONLY_IN_THE_COMMAND_LINE = {"no_daemon", "daemon_lost"}


def test_every_code_has_a_status() -> None:
    """An error that a request can meet has a status of its own; nothing falls through to 500."""
    assert _codes(JetLLMError) - ONLY_AT_START - ONLY_IN_THE_COMMAND_LINE - set(STATUS_BY_CODE) == set()


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidRequestError("x"), 400, "invalid_request_error"),
        (errors.InvalidSchemaError("x"), 400, "invalid_request_error"),
        (errors.ContextLengthExceededError("x"), 400, "invalid_request_error"),
        (errors.ModelNotFoundError("x"), 404, "invalid_request_error"),
        (errors.ModelNotPulledError("x"), 404, "invalid_request_error"),
        (errors.DoesNotFitError("x"), 422, "invalid_request_error"),
        (errors.NoUsableBackendError("x"), 422, "invalid_request_error"),
        (errors.UnsafeArtifactError("x"), 422, "invalid_request_error"),
        (errors.LoadFailedError("x"), 422, "invalid_request_error"),
        (errors.QueueFullError("x"), 429, "rate_limit_error"),
        (errors.WorkerCrashedError("x"), 502, "server_error"),
        (errors.DownloadError("x"), 502, "server_error"),
        (errors.LoadingError("x"), 503, "server_error"),
        (errors.MemoryPressureError("x"), 503, "server_error"),
        (errors.DrainingError("x"), 503, "server_error"),
        (errors.BackendTimeoutError("x"), 504, "server_error"),
        (errors.InsufficientStorageError("x"), 507, "server_error"),
    ],
)
def test_error_becomes_its_status(error: JetLLMError, status: int, kind: str) -> None:
    """Each code has its status, in OpenAI's shape with our hint and the request's id."""
    error.hint, error.param = "do this", "model"
    response = client_of(FakeService(before=(error,))).post("/v1/chat/completions", json=CHAT)
    assert response.status_code == status
    assert response.content_type == "application/json"
    assert response.get_json() == {
        "error": {"message": "x", "type": kind, "param": "model", "code": error.code, "hint": "do this"},
        "request_id": response.headers["X-Request-Id"],
    }
    assert ("Retry-After" in response.headers) == (status in (429, 503))


def test_hopeless_errors_are_not_repeated_by_clients() -> None:
    """A 5xx that a retry cannot heal tells the client not to try again."""
    response = client_of(FakeService(before=(errors.InsufficientStorageError("x"),))).post(
        "/v1/chat/completions", json=CHAT
    )
    assert response.headers["X-Should-Retry"] == "false"


def test_retry_after_is_rounded_up() -> None:
    """Retry-After is whole seconds, at least one."""
    for seconds, header in ((0.2, "1"), (2.1, "3"), (None, "1")):
        service = FakeService(before=(errors.LoadingError("x", retry_after_s=seconds),))
        response = client_of(service).post("/v1/chat/completions", json=CHAT)
        assert response.headers["Retry-After"] == header


@pytest.mark.parametrize(
    "defect", [KeyError("my prompt"), errors.InternalError("/root/x broke"), errors.RegistryError("r")]
)
def test_defect_is_only_an_internal_error(defect: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """A defect of ours says "internal error" and an id; the log has the id and the place, no prompt."""
    with caplog.at_level(logging.ERROR):
        response = client_of(FakeService(before=(defect,))).post("/v1/chat/completions", json=CHAT)
    body = response.get_json()
    assert response.status_code == 500
    assert (body["error"]["message"], body["error"]["code"]) == ("internal error", "internal_error")
    assert body["request_id"] in caplog.text
    assert "my prompt" not in caplog.text and "Traceback" not in caplog.text
    if isinstance(defect, KeyError):
        assert "KeyError at fake_service.py:" in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/root/.cache/jetllm/sha256/ab.gguf: truncated", "ab.gguf: truncated"),
        ("cannot read '/srv/m/x.gguf' (or ~/m/y.gguf)", "cannot read 'x.gguf' (or y.gguf)"),
        ("POST /jetllm/v1/models/load, then /v1/models", "POST /jetllm/v1/models/load, then /v1/models"),
        ("20 tokens/s; 3 / 4; http://127.0.0.1:8080/v1/x", "20 tokens/s; 3 / 4; http://127.0.0.1:8080/v1/x"),
        ("org/model and ./models.json", "org/model and ./models.json"),
    ],
)
def test_errors_hold_no_directories(text: str, shown: str) -> None:
    """Where files lie on the machine does not leave it."""
    assert without_directories(text) == shown
    service = FakeService(before=(errors.LoadFailedError(text, hint=text),))
    error = client_of(service).post("/v1/chat/completions", json=CHAT).get_json()["error"]
    assert (error["message"], error["hint"]) == (shown, shown)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/nope", "/v1/../etc/passwd", "/V1/models", "/%00"])
def test_unknown_path_is_a_json_404(path: str) -> None:
    """What is not there is not there in JSON."""
    response = client_of().get(path)
    assert (response.status_code, response.get_json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("OPTIONS", "/v1/models", "GET"),
        ("TRACE", "/livez", "GET"),
    ],
)
def test_wrong_method_is_a_json_405(method: str, path: str, allowed: str) -> None:
    """The methods that work are named; there is no OPTIONS, because there is no CORS."""
    response = client_of().open(path, method=method)
    assert (response.status_code, response.get_json()["error"]["code"]) == (405, "method_not_allowed")
    assert allowed in response.headers["Allow"]
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "data", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=b", 415, "unsupported_media_type"),
        ({}, b"{}", 415, "unsupported_media_type"),
        ({"Content-Type": "application/json; charset=utf-16"}, b"{}", 415, "unsupported_media_type"),
        (
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
            b"{}",
            415,
            "unsupported_media_type",
        ),
        ({"Content-Type": "application/json"}, b"", 400, "invalid_json"),
        ({"Content-Type": "application/json"}, b"[" * 100_000, 400, "invalid_json"),
        ({"Content-Type": "application/json; charset=UTF-8"}, b"{}", 400, "invalid_value"),
        ({"Content-Type": "application/json"}, b" " * (2**20 + 1), 413, "body_too_large"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/jetllm/v1/models/load"])
def test_body_that_is_not_plain_json_is_refused(
    path: str, headers: dict[str, str], data: bytes, status: int, code: str
) -> None:
    """Only UTF-8 JSON is read, and only where it is declared, which web pages cannot do to others."""
    response = client_of().post(path, data=data, headers=headers)
    assert (response.status_code, response.get_json()["error"]["code"]) == (status, code)


def test_request_id_of_the_client_is_kept_when_harmless() -> None:
    """A client finds its own id again; a strange one is replaced."""
    client = client_of()
    assert client.get("/livez", headers={"X-Request-Id": "abc-1.2_3"}).headers["X-Request-Id"] == "abc-1.2_3"
    for strange in ("a b", "x" * 65, "<script>"):
        assert (
            client.get("/livez", headers={"X-Request-Id": strange}).headers["X-Request-Id"].startswith("req_")
        )


# Guards


def test_foreign_host_is_refused_on_every_route() -> None:
    """DNS rebinding: a Host that is not ours is a 421, whatever the path and key."""
    for path in ("/livez", "/v1/models", "/nope"):
        response = client_of().get(path, headers={"Host": "evil.example"})
        assert (response.status_code, response.get_json()["error"]["code"]) == (421, "host_not_allowed")


def test_foreign_origin_is_refused_on_every_route() -> None:
    """A page of another origin gets a 403; a page served from here does not."""
    client = client_of()
    for origin in ("http://evil.example", "null", "http://localhost:3000", "http://localhost.evil.example"):
        response = client.post("/v1/chat/completions", json=CHAT, headers={"Origin": origin})
        assert (response.status_code, response.get_json()["error"]["code"]) == (403, "origin_not_allowed")
    same = {"Host": "localhost:8080", "Origin": "http://localhost:8080"}
    assert client.post("/v1/chat/completions", json=CHAT, headers=same).status_code == 200


def test_key_guards_everything_but_health() -> None:
    """With a key set, only the probes answer without it."""
    client = client_of(api_key="k" * 32)
    for path in ("/livez", "/readyz", "/health"):
        assert client.get(path).status_code == 200
    for path in ("/healthz", "/metrics", "/v1/models", "/jetllm/v1/status", "/nope"):
        response = client.get(path)
        assert (response.status_code, response.get_json()["error"]["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {'k' * 32}"}).status_code == 200


def test_wrong_keys_are_rate_limited() -> None:
    """The 21st wrong key within a minute is a 429 that says when to come back."""
    client = client_of(api_key="k" * 32)
    statuses = [
        client.get("/v1/models", headers={"Authorization": "Bearer no"}).status_code for _ in range(21)
    ]
    assert statuses == [401] * 20 + [429]
    response = client.get("/v1/models")
    assert (
        response.get_json()["error"]["code"] == "rate_limited" and int(response.headers["Retry-After"]) <= 60
    )
    assert client.get("/livez").status_code == 200


# Health and the appliance's own routes


def test_readiness_follows_the_service() -> None:
    """/readyz is 200 only when work can be accepted; /livez is 200 as long as anything answers."""
    service = FakeService()
    client = client_of(service)
    assert client.get("/readyz").get_json()["status"] == "ready"
    assert client.get("/health").get_json() == {"status": "ok"}
    service.ready = False
    response = client.get("/readyz")
    assert (response.status_code, response.get_json()["status"]) == (503, "loading")
    assert client.get("/health").status_code == client.get("/healthz").status_code == 503
    service.begin_drain()
    assert client.get("/readyz").get_json()["status"] == "draining"
    assert client.get("/livez").status_code == 200


def test_healthz_details_every_worker() -> None:
    """/healthz adds the workers and the queue."""
    body = client_of().get("/healthz").get_json()
    assert body["models"][0]["model"] == MODEL and body["queue"]["waiting"] == 3


def test_native_routes_show_the_service() -> None:
    """Status, device and models are what the service says; the jobs that run are counted beside it."""
    service = FakeService()
    client = client_of(service)
    status = json.loads(json.dumps(service.status() | {"jobs": 0}))
    assert client.get("/jetllm/v1/status").get_json() == status
    assert client.get("/jetllm/v1/device").get_json() == service.device()
    assert client.get("/jetllm/v1/models").get_json() == {"models": service.models()}


def test_load_and_unload_pass_their_arguments() -> None:
    """Loading takes a model, a variant and a pin; unloading a model."""
    service = FakeService()
    client = client_of(service)
    body = {"model": MODEL, "variant": "q4", "pin": True}
    assert client.post("/jetllm/v1/models/load", json=body).get_json() == {"model": MODEL, "state": "ready"}
    assert client.post("/jetllm/v1/models/load", json={"model": MODEL}).status_code == 200
    assert client.post("/jetllm/v1/models/unload", json={"model": MODEL}).get_json()["freed_bytes"] == 5
    assert service.calls == [("load", MODEL, "q4", True), ("load", MODEL, None, None), ("unload", MODEL)]


def test_load_that_fails_is_not_a_server_error() -> None:
    """Weights that an engine refuses will be refused again: 422, which clients do not repeat."""
    service = FakeService(load_error=errors.LoadFailedError("tensor data is cut off"))
    response = client_of(service).post("/jetllm/v1/models/load", json={"model": MODEL})
    assert (response.status_code, response.get_json()["error"]["code"]) == (422, "load_failed")


def test_numbers_of_an_error_are_told() -> None:
    """What would make a model fit is for programs too; an error without numbers has no details."""
    found = {"needed_bytes": 5, "would_fit_if": [{"kind": "evict", "models": ["a"]}]}
    error = client_of(FakeService(before=(errors.DoesNotFitError("x", details=found),))).post(
        "/v1/chat/completions", json=CHAT
    )
    assert error.get_json()["error"]["details"] == found
    plain = client_of(FakeService(before=(errors.DoesNotFitError("x"),))).post(
        "/v1/chat/completions", json=CHAT
    )
    assert "details" not in plain.get_json()["error"]


def test_select_explains_chats_and_prompts() -> None:
    """The decision can be asked for without generating."""
    service = FakeService()
    client = client_of(service)
    assert client.post("/jetllm/v1/select", json={**CHAT, "task": "code"}).get_json()["reason"] == "fits"
    assert client.post("/jetllm/v1/select", json={"prompt": "def f():", "speed": "fast"}).status_code == 200
    assert (service.requests[0].task, service.requests[1].prompt) == ("code", "def f():")
    assert service.streams == []
    both = {**CHAT, "prompt": "def f():"}
    assert client.post("/jetllm/v1/select", json=both).get_json()["error"]["param"] == "messages"
    assert client.post("/jetllm/v1/select", json={"task": "code"}).status_code == 200
    needing = {"task": "code", "context_tokens": 0}
    assert client.post("/jetllm/v1/select", json=needing).get_json()["error"]["param"] == "context_tokens"


def test_permits_are_given_back_after_errors() -> None:
    """A refused request leaves its place to the next one."""
    service = FakeService(
        before=(errors.DoesNotFitError("x"),),
        settings=settings_with(slots=1, max_loaded_models=1, max_queue=0),
    )
    client = create_app(service, limits=Limits(spare_threads=0)).test_client()
    for _ in range(3):
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 422
        assert client.post("/v1/chat/completions", json={**CHAT, "stream": True}).status_code == 422
