"""The OpenAPI document of all routes, generated from the types that bodies are read into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, Response, current_app
from pydantic import TypeAdapter

import inference
from inference.api.answers import NAMED, TEXT, TYPED, Schema, one_of, ref, shape
from inference.api.errors import STATUS_BY_CODE
from inference.api.health import OPEN_PATHS
from inference.api.operations import JSON, NDJSON, OPERATIONS, SSE, Operation
from inference.api.page import PAGE_PATHS
from inference.api.shapes import to_bytes

_PARAMETER = re.compile(r"<(?:path:)?(\w+)>")
_MODULE = re.compile(r"inference__(?:\w+?)__(?=[A-Z])")
_PARAMETERS = {
    "name": "a model's name or alias; it may hold slashes",
    "job_id": "the id of a job, as the header X-JetLLM-Job and the list of jobs have it",
    "asset": "a file's name",
}
_ABOUT = (
    "Language models on this machine, in three dialects: OpenAI's below `/v1`, Ollama's below `/api`, and "
    "the appliance's own below `/jetllm/v1`. Unknown fields of a body are ignored; numbers have bounds."
)
# Of each event of a stream; the field that says what its data is has jobs only.
_EVENT = shape({"data": TEXT}, event=one_of("progress", "done", "error"))
_TAGS = {
    "/v1": "OpenAI",
    "/jetllm": "Appliance",
    "/api": "Ollama",
    "/": "Health and page",
}


def openapi_routes() -> Blueprint:
    """Return the route of the document; it needs the key where there is one, as what it describes does."""
    routes = Blueprint("openapi", __name__)
    made: list[bytes] = []

    @routes.get("/openapi.json")
    def openapi() -> Response:
        if not made:
            made.append(to_bytes(document(current_app)))
        return Response(made[0], mimetype=JSON)

    return routes


def document(app: Flask) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of *app*: of each of its routes, and of nothing else."""
    schemas, bodies = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for method, rule in sorted(routes_of(app)):
        operation = OPERATIONS[method, rule]
        path = paths.setdefault(_PARAMETER.sub(r"{\1}", rule), {})
        path[method.lower()] = _operation(method, rule, operation, bodies)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "JetLLM",
            "version": inference.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "tags": [{"name": name} for name in _TAGS.values()],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": dict(_failures()),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "made by jetllm keys add; without any, loopback asks for none",
                }
            },
        },
    }


def routes_of(app: Flask) -> Iterator[tuple[str, str]]:
    """Yield method and rule of every route, without the HEAD that each GET has."""
    for rule in app.url_map.iter_rules():
        yield from ((method, rule.rule) for method in rule.methods or () if method not in ("HEAD", "OPTIONS"))


def _schemas() -> tuple[dict[str, Any], dict[type, Schema]]:
    """Return all schemas by name, and for each body's type the reference to its own."""
    bodies = {o.body for o in OPERATIONS.values() if isinstance(o.body, type)}
    inputs: list[Any] = [
        (kind.__module__ + kind.__name__, "validation", TypeAdapter(kind))
        for kind in sorted(bodies, key=lambda kind: kind.__module__ + kind.__name__)
    ]
    inputs += [(name, "serialization", TypeAdapter(kind)) for name, kind in TYPED.items()]
    found, rest = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    plain = json.loads(_named(json.dumps([{key: value for (key, _), value in found.items()}, rest])))
    by_key, definitions = plain[0], plain[1].get("$defs", {})
    named = {name: by_key[name] for name in TYPED if by_key[name] != ref(name)}
    schemas = {**definitions, **named, **json.loads(json.dumps(NAMED))}
    return dict(sorted(schemas.items())), {kind: by_key[kind.__module__ + kind.__name__] for kind in bodies}


def _named(text: str) -> str:
    """Shorten the names that pydantic gives to types of the same name: Ollama's say so."""
    return _MODULE.sub("", text.replace("inference__api__ollama_schema__", "Ollama"))


def _operation(method: str, rule: str, operation: Operation, bodies: dict[type, Schema]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": _operation_id(method, rule),
        "tags": [next(tag for prefix, tag in _TAGS.items() if rule.startswith(prefix))],
        "responses": _responses(rule, operation),
    }
    if parameters := [*_path_parameters(rule), *_query_parameters(operation)]:
        found["parameters"] = parameters
    if operation.body is not None:
        schema = bodies[operation.body] if isinstance(operation.body, type) else dict(operation.body)
        content = {"schema": schema} | ({"example": operation.example} if operation.example else {})
        found["requestBody"] = {"required": True, "content": {JSON: content}}
    if rule in OPEN_PATHS | PAGE_PATHS or rule.startswith("/ui/"):
        found["security"] = []
    return found


def _operation_id(method: str, rule: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", _PARAMETER.sub(r"by_\1", rule))
    return "_".join([method.lower(), *words])


def _path_parameters(rule: str) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(rule):
        schema = {"type": "string", "minLength": 1, "maxLength": 200}
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS[name],
            "schema": schema,
        }


def _query_parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, text in (operation.query or {}).items():
        yield {
            "name": name,
            "in": "query",
            "description": text,
            "schema": {"type": "string", "maxLength": 200},
        }


def _responses(rule: str, operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {} if operation.answer is None else {JSON: {"schema": dict(operation.answer)}}
    content |= {kind: {"schema": _EVENT if kind == SSE else TEXT} for kind in operation.types}
    good: dict[str, Any] = {"description": _described(operation)}
    if content:
        good["content"] = content
    found = {str(operation.status): good}
    for status, schema in (operation.other or {}).items():
        found[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {JSON: {"schema": dict(schema)}},
        }
    kind = "Ollama" if rule.startswith("/api") else ""
    for status in operation.errors:
        found.setdefault(str(status), {"$ref": f"#/components/responses/{kind}{status}"})
    return dict(sorted(found.items()))


def _described(operation: Operation) -> str:
    if SSE in operation.types:
        return "Done; as server-sent events where they were asked for"
    return "Done; a JSON object a line where it is streamed" if NDJSON in operation.types else "Done"


def _failures() -> Iterator[tuple[str, Any]]:
    """Yield the response of every status with an error, in both forms."""
    for status in sorted(set(STATUS_BY_CODE.values())):
        codes = [code for code, each in STATUS_BY_CODE.items() if each == status]
        for prefix, name in (("", "Error"), ("Ollama", "OllamaError")):
            yield f"{prefix}{status}", {"description": _codes(codes), "content": _error_content(name)}


def _codes(codes: Iterable[str]) -> str:
    return "codes: " + ", ".join(codes)


def _error_content(name: str) -> dict[str, Any]:
    return {JSON: {"schema": ref(name)}}
