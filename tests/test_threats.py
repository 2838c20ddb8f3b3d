"""The threats of an appliance on a network, each tried on every route that there is.

What a route does with them in detail is tested where the guard is: test_api_auth.py, test_keys.py,
test_server_requests.py and test_api_strict_json.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from pydantic import SecretStr

from inference.api import create_app, ollama_schema
from inference.api.auth import keys_of
from inference.api.fields import read
from inference.api.openapi import document
from inference.api.operations import OPERATIONS
from inference.errors import InvalidRequestError
from inference.service import build_service
from inference.settings import load_settings
from tests.fake_service import MODEL, FakeService, settings_with
from tests.scripted_service import scripted_backend, scripted_registry

ROUTES = [(method, re.sub(r"<[^>]+>", MODEL, rule)) for method, rule in OPERATIONS]
CHANGING = [(method, path) for method, path in ROUTES if method != "GET"]
FOREIGN = {"Origin": "https://evil.example"}


UNSHOWN = {"EmbedBody.dimensions", "Options.num_predict", "Options.top_k", "Options.seed"}


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    """A client of the machine itself."""
    return create_app(FakeService(settings_with(state_dir="unused"))).test_client()


def code(response: Any) -> str:
    """What the error is, in either dialect."""
    error = response.get_json()["error"]
    return str(error if isinstance(error, str) else error["code"])


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_name_that_was_rebound_is_refused(client: FlaskClient, method: str, path: str) -> None:
    """T2: a browser that was told that evil.example is 127.0.0.1 still says whom it means."""
    assert client.open(path, method=method, headers={"Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_page_of_another_origin_is_refused(client: FlaskClient, method: str, path: str, kind: str) -> None:
    """T3: whatever type it sends, also where Ollama's clients send none; and nothing allows it to."""
    refused = client.open(path, method=method, data=b"{}", content_type=kind, headers=FOREIGN)
    assert refused.status_code == 403
    asked = client.open(path, method="OPTIONS", headers={**FOREIGN, "Access-Control-Request-Method": method})
    for response in (refused, asked):
        assert not [name for name in response.headers.keys() if name.lower().startswith("access-control")]  # noqa: SIM118


@pytest.mark.parametrize(("method", "path"), [each for each in CHANGING if not each[1].startswith("/api")])
def test_what_a_form_can_send_is_refused(client: FlaskClient, method: str, path: str) -> None:
    """T3: a type that a page may send without asking first is not read, with or without an Origin."""
    if method == "DELETE":
        pytest.skip("a form sends no DELETE, and a page has to ask first")
    assert client.open(path, method=method, data=b"{}", content_type="text/plain").status_code == 415


def numbers(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number of a schema, with the way to it."""
    if isinstance(schema, list):
        for each in schema:
            yield from numbers(each, where)
    elif isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield where, schema
        for key, value in schema.items():
            if key not in ("example", "default", "enum"):
                yield from numbers(value, f"{where}.{key}" if key not in ("anyOf", "properties") else where)


def test_every_number_of_a_request_has_bounds(client: FlaskClient) -> None:
    """T9: no field takes a number that is only limited by what an engine does with it."""
    told = document(client.application)
    bodies = {
        name: schema
        for name, schema in told["components"]["schemas"].items()
        if name.endswith(("Body", "Options", "Turn", "Message")) or name in ("Sampling", "ResponseFormat")
    }
    assert {"ChatBody", "CompletionBody", "OllamaChatBody", "Options", "BenchBody", "LoadBody"} <= set(bodies)
    found = [each for name, schema in bodies.items() for each in numbers(schema, name)]
    assert len(found) > 30
    unbound = [
        where
        for where, schema in found
        if not (
            {"minimum", "exclusiveMinimum"} & set(schema) and {"maximum", "exclusiveMaximum"} & set(schema)
        )
        and where not in UNSHOWN
        # Beyond a year it is for ever.
        and not where.endswith("keep_alive")
    ]
    assert unbound == []


@pytest.mark.parametrize("where", sorted(UNSHOWN))
@pytest.mark.parametrize("value", [10**19, -(10**19), 1e300])
def test_bounds_that_the_document_cannot_show_are_kept(where: str, value: float) -> None:
    """T9: Ollama's whole numbers may be written with a point, and are bounded all the same."""
    body, _, name = where.partition(".")
    with pytest.raises(InvalidRequestError):
        read(getattr(ollama_schema, body), {name: value})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_is_not_known_does_not_reach_an_engine(path: str) -> None:
    """T9: a parameter of some engine's own changes nothing of what is asked of it."""
    service = FakeService()
    client = create_app(service).test_client()
    body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    foreign = {"typical_p": 0.5, "mirostat": 2, "lora": [{"id": 1}], "extra_body": {"x": 1}, "n_probs": 10**9}
    assert (
        client.post(path, json=body).status_code
        == client.post(path, json={**body, **foreign}).status_code
        == 200
    )
    first, second = service.requests
    assert first == second


DEEP: Any = {}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    "constraint",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": DEEP}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(3000))}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "a" * 600}}}},
        {"grammar": 'root ::= "' + "x" * 70_000 + '"'},
    ],
    ids=["bytes", "depth", "nodes", "pattern", "grammar"],
)
def test_a_constraint_beyond_the_bounds_is_refused(client: FlaskClient, constraint: dict[str, Any]) -> None:
    """T10: before it reaches anything that compiles it."""
    refused = client.post("/v1/completions", json={"prompt": "hi", **constraint})
    assert (refused.status_code, code(refused) in ("invalid_schema", "invalid_value", "invalid_json")) == (
        400,
        True,
    )


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    """A client of a whole service, whose one model is scripted."""
    directory = tmp_path_factory.mktemp("machine")
    paths = {"state_dir": directory / "state", "cache_dir": directory / "cache"}
    registry = scripted_registry(directory)
    with scripted_backend():
        service = build_service(load_settings({**paths, "registry": registry, "offline": True}))
        client = create_app(service).test_client()
        client.get("/jetllm/v1/device")  # what reads the gauges has a thread from now on
        yield client
        service.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_names_are_looked_up_and_never_joined_to_a_path(machine: FlaskClient, method: str, path: str) -> None:
    """T4: a model or file that climbs out of its directory is one that there is not."""
    for name in ("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "/etc/passwd", "a" * 5000):
        asked = machine.open(path.replace(MODEL, name), method=method, json={"model": name})
        assert asked.status_code < 500 and b"root:" not in asked.data


def test_nothing_tells_a_key_or_a_path(tmp_path: Path) -> None:
    """T13, T17: of the keys of a running service no answer has a character, nor of where things lie."""
    state, cache = tmp_path / "state-of-the-art", tmp_path / "cache-of-the-art"
    secret = "the-key-of-the-settings"  # noqa: S105 - that it is kept is what is tested
    settings = load_settings(
        {
            "api_key": SecretStr(secret),
            "state_dir": state,
            "cache_dir": cache,
            "registry": scripted_registry(tmp_path),
        }
    )
    key = keys_of(settings).add("laptop")
    digest = json.loads((state / "keys.json").read_text())["keys"][0]["sha256"]
    with scripted_backend():
        service = build_service(settings)
        try:
            client = create_app(service).test_client()
            headers = {"Authorization": f"Bearer {key}"}
            asked = [path for method, path in ROUTES if method == "GET"]
            told = "".join(client.get(path, headers=headers).get_data(as_text=True) for path in asked)
            wrong = client.get("/v1/models", headers={"Authorization": f"Bearer {key[:-1]}"})
        finally:
            service.close()
    assert wrong.status_code == 401 and '"queue"' in told and '"available_bytes"' in told
    for hidden in (secret, key, key[7:], digest, state.name, cache.name):
        assert hidden not in told + wrong.get_data(as_text=True), hidden
