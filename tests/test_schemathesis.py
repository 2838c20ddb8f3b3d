"""Requests that schemathesis makes of the OpenAPI document, against a real daemon: never a 5xx.

What is asked keeps to the document, or breaks it on purpose. Half of the requests name the one model that
is here, so that they reach its engine: SmolLM2 with a context of 64 tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from inference.api.operations import OPERATIONS
from tests.daemon_process import MODEL, DaemonProcess

schemathesis = pytest.importorskip("schemathesis")

POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE

DOCUMENT = "/openapi.json"
EXAMPLES = {POSITIVE: 8, NEGATIVE: 4}
TIMEOUT_S = 30


def _cases() -> Iterator[Any]:
    """Every operation as the document wants it, and those that take something as it does not."""
    for (method, rule), operation in OPERATIONS.items():
        if rule == DOCUMENT:  # it is what all of this is made of
            continue
        label = f"{method} {rule.replace('<path:', '{').replace('<', '{').replace('>', '}')}"
        yield pytest.param(label, POSITIVE, id=label)
        if operation.body is not None or operation.query or "<" in rule:
            yield pytest.param(label, NEGATIVE, id=f"{label}, broken")


# What a request may ask for at most: this is no test of endurance.
MOST = {"n": 2, "best_of": 2, "runs": 1, "prompt_tokens": 16, "max_tokens": 8, "concurrency": 2}


class Asked(DaemonProcess):
    """A daemon, and what its model said at first."""

    text = ""


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A daemon that may fetch nothing, with SmolLM2 as a file of the user's and a model that is not here."""
    directory = tmp_path_factory.mktemp("schemathesis")
    source = {"type": "file", "path": str(smollm2_path)}
    absent = {"type": "url", "url": "https://models.example/m", "sha256": "0" * 64, "bytes": 1}
    shared = {"parameters": "135M", "memory_requirement": 300, "container": None, "status": "experimental"}
    models = {
        MODEL: {
            **shared, "name": "SmolLM2", "use_cases": ["conversation", "text_generation"],
            "variants": {"llamacpp-q4_1": {"backend": "llamacpp", "source": source}},
        },
        "org/absent": {
            **shared, "name": "Absent", "use_cases": ["conversation"],
            "variants": {"q4": {"backend": "llamacpp", "source": absent}},
        },
    }  # fmt: skip
    registry = directory / "models.json"
    registry.write_text(json.dumps({"models": models}))
    limits = {"context_tokens": 64, "slots": 2, "request_timeout_s": 20, "offline": True}
    asked = Asked(directory / "state", registry=registry, cache_dir=directory / "store", **limits)
    with asked as started:
        asked.text = said(started)
        yield asked


def said(daemon: DaemonProcess) -> str:
    """What the model answers greedily, with no help of an earlier prompt."""
    status, answer = daemon.chat("Hi", cache_prompt=False)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def operations(daemon: Asked) -> dict[str, Any]:
    """The operations of the daemon's document, by method and path."""
    schema = schemathesis.openapi.from_url(f"{daemon.url}{DOCUMENT}")
    return {each.ok().label: each.ok() for each in schema.get_all_operations()}


@pytest.mark.parametrize(("label", "mode"), list(_cases()))
def test_no_request_is_a_server_error(
    label: str, mode: Any, daemon: Asked, operations: dict[str, Any]
) -> None:
    """Whatever is sent: an answer of the form that the document has for its status, and none above 499."""
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.response_schema_conformance,
    ]

    @settings(
        max_examples=EXAMPLES[mode],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations[label].as_strategy(mode), known=st.booleans())
    def ask(case: Any, known: bool) -> None:
        aim(case, known=known)
        response = case.call(base_url=daemon.url, timeout=TIMEOUT_S)
        case.validate_response(response, checks=checks)

    ask()


def aim(case: Any, *, known: bool) -> None:
    """Bound what is computed, and name the model that is here."""
    if isinstance(case.body, dict):
        case.body.pop("keep_alive", None)  # 0 would unload the model each time
        for name, most in MOST.items():
            value = case.body.get(name)
            if isinstance(value, int) and value > most and not isinstance(value, bool):
                case.body[name] = most
        if known and "model" in case.body:
            tokens = MOST["max_tokens"]
            case.body |= {"model": MODEL, "max_tokens": tokens, "options": {"num_predict": tokens}}
    if known and "name" in (case.path_parameters or {}):
        case.path_parameters["name"] = MODEL


def test_the_daemon_is_as_it_was(daemon: Asked) -> None:
    """After all that: the same process, ready, nothing running, and the model answers as before."""
    assert daemon.process.poll() is None and daemon.ask("GET", "/readyz")[0] == 200
    assert said(daemon) == daemon.text
    status = daemon.ask("GET", "/jetllm/v1/status")[1]
    metrics = daemon.ask("GET", "/metrics")[1]
    for route in ("/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"):
        assert f'jetllm_requests_total{{code="200",model="{MODEL}",route="{route}"}}' in metrics
    assert status["queue"] == {"waiting": 0, "running": 0} and os.getpid() != status["pid"]
