"""The OpenAPI document: whole, valid, and true of the routes that it describes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from pydantic import SecretStr

from inference.api import create_app
from inference.api.errors import STATUS_BY_CODE
from inference.api.fields import Strict, read
from inference.api.openapi import routes_of
from inference.api.operations import OPERATIONS
from inference.errors import InvalidRequestError
from tests.fake_service import FakeService, settings_with

METHODS = ("get", "post", "delete", "put", "patch")


@pytest.fixture(scope="module")
def app() -> Flask:
    """An application with every route."""
    return create_app(FakeService(settings_with(state_dir="unused")))


@pytest.fixture(scope="module")
def told(app: Flask) -> dict[str, Any]:
    """The document, as a client gets it."""
    found = app.test_client().get("/openapi.json")
    assert found.status_code == 200 and found.mimetype == "application/json"
    parsed: dict[str, Any] = found.get_json()
    return parsed


def operations(told: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every method, path and operation of the document."""
    for path, item in told["paths"].items():
        yield from ((method, path, item[method]) for method in METHODS if method in item)


def test_every_route_is_described_and_nothing_else(app: Flask, told: dict[str, Any]) -> None:
    """A route that is added without a word about it fails here."""
    routes = set(routes_of(app))
    assert set(OPERATIONS) == routes
    described = {(method.upper(), path) for method, path, _ in operations(told)}
    assert described == {(method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule)) for method, rule in routes}


def test_the_document_is_openapi_3_1(told: dict[str, Any]) -> None:
    """By the validator of its own makers."""
    validator = pytest.importorskip("openapi_spec_validator")
    assert told["openapi"].startswith("3.1")
    validator.validate(told)


def test_references_lead_somewhere_and_names_are_unique(told: dict[str, Any]) -> None:
    """Generators of clients name their functions after operations."""
    text = json.dumps(told)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found: Any = told
        for part in reference.split("/"):
            found = found[part]
        assert found
    names = [operation["operationId"] for _, _, operation in operations(told)]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z][A-Za-z0-9_]+", name) for name in names)
    assert "inference__" not in text


def test_bodies_have_the_bounds_that_are_checked(told: dict[str, Any]) -> None:
    """The document is made of the types that requests are read into."""
    schemas = told["components"]["schemas"]
    chat = schemas["ChatBody"]["properties"]
    assert {"type": "number", "minimum": 0, "maximum": 2} in chat["temperature"]["anyOf"]
    assert schemas["ChatBody"]["required"] == ["messages"]
    assert schemas["BenchBody"]["properties"]["runs"] == {
        "default": 3, "maximum": 10, "minimum": 1, "title": "Runs", "type": "integer",
    }  # fmt: skip
    assert "options" in schemas["OllamaChatBody"]["properties"]


def test_bounds_are_json_schemas_own_words(told: dict[str, Any]) -> None:
    """Nothing of pydantic's own names for bounds is left: no reader of the document knows them."""
    assert not {"ge", "gt", "le", "lt"} & set(_keys(told["components"]["schemas"]))
    options = told["components"]["schemas"]["Options"]["properties"]
    assert options["top_k"]["anyOf"][0] == {"type": "integer", "minimum": -1, "maximum": 1000}


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


BODIES = [(method, rule) for (method, rule), each in OPERATIONS.items() if each.body is not None]


@pytest.mark.parametrize(("method", "rule"), BODIES)
def test_examples_are_accepted(method: str, rule: str) -> None:
    """What a reader copies from the document works; a body of a type has an example."""
    operation = OPERATIONS[method, rule]
    if isinstance(operation.body, type):
        assert operation.example
        assert isinstance(read(operation.body, dict(operation.example)), Strict)


@pytest.mark.parametrize(("method", "rule"), BODIES)
def test_a_body_that_is_none_is_refused(method: str, rule: str, app: Flask) -> None:
    """400 for a list, 415 for a form where JSON must be declared; never a 500."""
    path = re.sub(r"<[^>]+>", "smollm2-135m-instruct", rule)
    client = app.test_client()
    assert client.open(path, method=method, json=[]).status_code == 400
    form = client.open(path, method=method, data="a=b", content_type="application/x-www-form-urlencoded")
    assert form.status_code == (400 if rule.startswith("/api") else 415)


def test_it_says_which_routes_need_a_key(told: dict[str, Any]) -> None:
    """What is marked as open is open, and nothing else is; the document itself is not."""
    keyed = create_app(FakeService(settings_with(api_key=SecretStr("k" * 32)))).test_client()
    for number, (method, path, operation) in enumerate(operations(told)):
        asked, address = re.sub(r"{[^}]+}", "app.js", path), {"REMOTE_ADDR": f"192.0.2.{number}"}
        status = keyed.open(asked, method=method.upper(), environ_base=address).status_code
        assert (status == 401) == (operation.get("security") != []), (method, path, status)
    assert keyed.get("/openapi.json").status_code == 401


def test_every_error_is_described(told: dict[str, Any]) -> None:
    """Each status has its codes, in OpenAI's form, and below /api in Ollama's."""
    responses = told["components"]["responses"]
    for code, status in STATUS_BY_CODE.items():
        assert code in responses[str(status)]["description"].removeprefix("codes: ").split(", ")
        assert responses[f"Ollama{status}"]["content"]["application/json"]["schema"]["$ref"].endswith(
            "OllamaError"
        )
    for method, path, operation in operations(told):
        references = [each["$ref"] for each in operation["responses"].values() if "$ref" in each]
        assert references and all(("Ollama" in each) == path.startswith("/api") for each in references), (
            method,
            path,
        )


def test_streams_are_named_by_their_type(told: dict[str, Any]) -> None:
    """A client sees that an answer may come in pieces."""

    def types(path: str) -> set[str]:
        return set(told["paths"][path]["post"]["responses"]["200"]["content"])

    assert types("/v1/chat/completions") == {"application/json", "text/event-stream"}
    assert types("/api/chat") == {"application/json", "application/x-ndjson"}
    assert types("/jetllm/v1/models/{name}/pull") == {"text/event-stream"}
    assert "202" in told["paths"]["/jetllm/v1/bench"]["post"]["responses"]


def test_unread_fields_are_no_error() -> None:
    """The document allows more than it names, as the bodies do."""
    with pytest.raises(InvalidRequestError):
        read(OPERATIONS["POST", "/jetllm/v1/bench"].body, {"unknown": 1})  # type: ignore[arg-type]
    read(OPERATIONS["POST", "/jetllm/v1/bench"].body, {"model": "m", "unknown": 1})  # type: ignore[arg-type]
