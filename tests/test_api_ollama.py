"""`inference.api.ollama`: what chats, texts and embeddings look like, line by line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.api import Limits, create_app
from inference.api.ollama import API_VERSION
from inference.api.ollama_shapes import durations
from inference.api.record import Clock
from inference.errors import WorkerCrashedError
from inference.generation import Chunk, FinishReason, GenerateRequest, Message, Timings, ToolCall, Usage
from tests.fake_service import MODEL, Gate, end, logprob, settings_with
from tests.http_server import servers
from tests.ollama_service import BASE, EMBEDDER, OllamaService
from tests.test_server_clients import leave

ASK = [{"role": "user", "content": "hi"}]
COUNTS = {"prompt_eval_count": 10, "eval_count": 3}
NANOSECONDS = {"prompt_eval_duration": 300_000_000, "eval_duration": 100_000_000}


def client_of(service: OllamaService | None = None) -> FlaskClient:
    """A client of the application over a scripted service."""
    return create_app(service or OllamaService()).test_client()


def lines(response: Any) -> list[dict[str, Any]]:
    """The lines of an answer, without the times that differ from run to run."""
    assert (response.status_code, response.mimetype) == (200, "application/x-ndjson")
    found = [json.loads(each) for each in response.get_data(as_text=True).splitlines()]
    response.close()
    for each in found:
        if "error" not in each:
            assert each.pop("created_at").endswith("Z")
    return found


def request_of(body: dict[str, Any], path: str = "/api/chat") -> GenerateRequest:
    """What the service is asked for *body*."""
    service = OllamaService()
    response = client_of(service).post(path, json={"model": MODEL, **body})
    assert response.status_code == 200, response.get_data(as_text=True)
    return service.requests[0]


def refusal_of(body: dict[str, Any], path: str = "/api/chat") -> tuple[int, str]:
    """The status and the text with which *body* is refused."""
    response = client_of().post(path, json={"model": MODEL, **body})
    assert list(response.json or {}) == ["error"]
    return response.status_code, (response.json or {})["error"]


def test_a_chat_streams_lines_by_default() -> None:
    """A line for each piece of text, then one without text that says why it ended, counts and durations."""
    *pieces, last = lines(client_of().post("/api/chat", json={"model": MODEL, "messages": ASK}))
    assert pieces == [
        {"model": MODEL, "message": {"role": "assistant", "content": text}, "done": False}
        for text in ("Hel", "lo ", "wörld")
    ]
    assert last.pop("total_duration") >= last.pop("load_duration") >= 0
    assert last == {
        "model": MODEL,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        **COUNTS,
        **NANOSECONDS,
    }


def test_a_chat_comes_whole_on_request() -> None:
    """`stream` false gives one object with the text and the numbers."""
    body = {"model": MODEL, "messages": ASK, "stream": False}
    response = client_of().post("/api/chat", json=body)
    assert response.mimetype == "application/json" and response.headers["X-JetLLM-Dropped-Turns"] == "0"
    found = response.json or {}
    assert found["message"] == {"role": "assistant", "content": "Hello wörld"}
    assert (found["done"], found["done_reason"], found["eval_count"]) == (True, "stop", 3)


def test_a_text_has_a_response_in_place_of_a_message() -> None:
    """`/api/generate` streams `response`, and ends with an empty one."""
    response = client_of().post("/api/generate", json={"model": MODEL, "prompt": "hi"})
    found = lines(response)
    assert [each["response"] for each in found] == ["Hel", "lo ", "wörld", ""]
    assert "message" not in found[0] and found[-1]["done_reason"] == "stop"
    assert "X-JetLLM-Dropped-Turns" not in response.headers
    assert response.headers["X-JetLLM-Selection"].startswith("the only model")


def test_a_limit_that_was_reached_is_the_reason() -> None:
    """`done_reason` is length where the text was cut off."""
    service = OllamaService(script=(Chunk("a"), end(FinishReason.LENGTH)))
    found = lines(client_of(service).post("/api/chat", json={"model": MODEL, "messages": ASK}))
    assert found[-1]["done_reason"] == "length"


def test_durations_are_nanoseconds() -> None:
    """Of 2 s until the first text the engine read 0.5 s; the rest was waited for a place or a load."""
    clock, usage = Clock(started_s=10.0, first_text_s=12.0), Usage(20, 5)
    assert durations(clock, 14.0, usage, Timings(prefill_s=0.5, decode_s=1.75)) == {
        "total_duration": 4_000_000_000,
        "load_duration": 1_500_000_000,
        "prompt_eval_count": 20,
        "prompt_eval_duration": 500_000_000,
        "eval_count": 5,
        "eval_duration": 1_750_000_000,
    }
    timed_by_us = durations(clock, 14.0, usage, None)
    assert [timed_by_us[f"{name}_duration"] for name in ("load", "prompt_eval", "eval")] == [0, 2e9, 2e9]


def test_an_error_after_the_headers_is_the_last_line() -> None:
    """Nothing says "done" of an answer that broke off."""
    service = OllamaService(script=(Chunk("a"), WorkerCrashedError("it died", hint="ask again")))
    found = lines(client_of(service).post("/api/chat", json={"model": MODEL, "messages": ASK}))
    assert found[-1] == {"error": "it died (ask again)"}
    assert [each.get("done") for each in found] == [False, None]
    assert service.running == 0


def test_errors_have_a_status_and_one_text() -> None:
    """Before the headers an error is an HTTP status, for what Flask refuses as well."""
    client = client_of()
    unknown = client.post("/api/chat", json={"model": "nobody", "messages": ASK})
    assert unknown.status_code == 404 and "unknown model 'nobody'" in (unknown.json or {})["error"]
    assert client.get("/api/chat").json == {"error": "GET is not allowed here (use POST)"}
    assert client.get("/api/blobs/x").status_code == 404
    assert list(client.post("/api/chat", data="{").json or {}) == ["error"]


@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest", f"{MODEL}:q4"])
def test_names_come_back_as_they_were_written(name: str) -> None:
    """A tag may name a variant; latest, which Ollama's clients append, leaves it open."""
    service = OllamaService()
    first = lines(client_of(service).post("/api/chat", json={"model": name, "messages": ASK}))[0]
    assert first["model"] == name
    assert service.requests[0].model == MODEL
    assert service.requests[0].variant == ("q4" if name.endswith("q4") else None)


def test_auto_names_the_model_that_served() -> None:
    """What JetLLM chose is in the answer, and what follows "auto:" is not a variant."""
    for asked in ("auto", "auto:latest"):
        service = OllamaService()
        service.registry = type("Any", (), {"models": service.registry.models})
        service.model = lambda name: {}  # type: ignore[method-assign]
        response = client_of(service).post("/api/generate", json={"model": asked, "prompt": "hi"})
        assert lines(response)[0]["model"] == MODEL
        assert (service.requests[0].model, service.requests[0].variant) == ("auto", None)


def test_options_become_the_request() -> None:
    """Each option has its field; those of Ollama's engine alone are ignored."""
    options = {
        "num_predict": 12.0,
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 7,
        "stop": "\n",
        "repeat_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "num_ctx": 131072,
        "num_gpu": 99,
        "mirostat": 2,
    }
    request = request_of({"messages": ASK, "options": options, "keep_alive": "1h30m"})
    assert (request.max_tokens, request.temperature, request.top_k, request.top_p) == (12, 0, 5, 0.5)
    assert (request.min_p, request.seed, request.stop) == (0.1, 7, ("\n",))
    penalties = (request.repetition_penalty, request.presence_penalty, request.frequency_penalty)
    assert penalties == (1.1, 0.5, -0.5)
    assert request.keep_alive_s == 5400


def test_options_below_zero_mean_none() -> None:
    """-1 is no limit, and a seed of -1 is none; so is a limit of 0 or of -2."""
    for limit in (-1, -2, 0):
        request = request_of({"messages": ASK, "options": {"num_predict": limit, "seed": -1, "top_k": -1}})
        assert (request.max_tokens, request.seed, request.top_k) == (None, None, 0)


def test_defaults_are_the_models() -> None:
    """A request without options sets nothing but what Ollama does with a context that is full."""
    request = request_of({"messages": ASK, "options": None, "format": "", "think": False, "template": ""})
    assert request == GenerateRequest(
        model=MODEL, messages=(Message("user", "hi"),), context_overflow="slide"
    )
    assert request_of({"messages": ASK, "truncate": False}).context_overflow == "error"


def test_formats_constrain_the_text() -> None:
    """ "json" is any object; a schema is a schema, and one beyond the bounds is refused."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert request_of({"messages": ASK, "format": "json"}).json_schema == {}
    assert request_of({"messages": ASK, "format": schema}).json_schema == schema
    assert refusal_of({"messages": ASK, "format": {"$ref": "http://x"}})[0] == 400
    assert refusal_of({"messages": ASK, "format": "xml"})[0] == 400


def test_a_prompt_is_a_turn_unless_it_is_raw() -> None:
    """The system text goes before it; raw goes to the model as it is, and to a base model everything."""
    path = "/api/generate"
    turned = request_of({"prompt": "hi", "system": "be kind"}, path)
    assert turned.messages == (Message("system", "be kind"), Message("user", "hi"))
    assert request_of({"prompt": "hi", "system": "be kind", "raw": True}, path).prompt == "hi"
    base = OllamaService()
    base.generate = base.note  # type: ignore[method-assign]
    for system, prompt in (("", "Once"), ("Tales.", "Tales.\n\nOnce")):
        client_of(base).post(path, json={"model": BASE, "prompt": "Once", "system": system})
        assert base.requests[-1].prompt == prompt


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "images cannot"),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}, "images cannot be read yet"),
        ("/api/generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/api/chat", {"messages": ASK, "think": True}, "think: expected none"),
        ("/api/chat", {"messages": ASK, "think": "high"}, "think: expected none"),
        ("/api/chat", {"messages": ASK, "keep_alive": "soon"}, "keep_alive: expected seconds"),
        ("/api/chat", {"messages": ASK, "options": {"temperature": "hot"}}, "options.temperature"),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ("/api/chat", {"model": None, "messages": ASK}, "model: missing"),
        ("/api/copy", {"source": "a", "destination": "b"}, "cannot be copied"),
        ("/api/create", {"from": "a"}, "cannot be created"),
        ("/api/push", {}, "cannot be pushed"),
    ],
)
def test_what_cannot_be_done_is_refused(path: str, body: dict[str, Any], text: str) -> None:
    """Nothing is left out in silence: 400, and a text that names the field or the reason."""
    status, error = refusal_of(body, path)
    assert status == 400 and text in error


def test_tools_are_offered_and_called() -> None:
    """A call comes in a line before the last, its arguments an object; the reason is still "stop"."""
    calls = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "now", "not json"))
    last = Chunk(finish_reason=FinishReason.TOOL_CALLS, usage=Usage(10, 3), tool_calls=calls)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    service = OllamaService(script=(last,))
    body = {"model": MODEL, "messages": ASK, "tools": [tool]}
    found = lines(client_of(service).post("/api/chat", json=body))
    assert [each["done"] for each in found] == [False, True]
    assert found[0]["message"]["tool_calls"] == [
        {"id": "call_1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "call_2", "function": {"index": 1, "name": "now", "arguments": {"arguments": "not json"}}},
    ]
    assert found[1]["done_reason"] == "stop" and "tool_calls" not in found[1]["message"]
    assert service.requests[0].tools[0]["function"]["name"] == "add"
    assert service.requests[0].tool_choice == "auto"


def test_answers_of_tools_find_their_calls() -> None:
    """Ollama's tools answer by name or in order; the engines want ids."""
    called = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("f", "g", "f")]
    answers = [
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_name": "f", "content": "3"},
        {"role": "tool", "tool_call_id": "other", "content": "4"},
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": called}
    request = request_of({"messages": [*ASK, turn, *answers]})
    made = (request.messages or ())[1].tool_calls
    assert [(call.name, call.arguments) for call in made] == [
        ("f", '{"x": 1}'),
        ("g", '{"x": 1}'),
        ("f", '{"x": 1}'),
    ]
    assert len({call.id for call in made}) == 3
    found = [message.tool_call_id for message in (request.messages or ())[2:]]
    assert found == [made[1].id, made[0].id, made[2].id, "other"]


def test_logprobs_are_told_on_request() -> None:
    """Token, probability, bytes, and as many alternatives."""
    service = OllamaService(script=(Chunk("a", logprobs=(logprob("a", -0.5, ("b", -1.5)),)), end()))
    body = {"model": MODEL, "messages": ASK, "logprobs": True, "top_logprobs": 1}
    first = lines(client_of(service).post("/api/chat", json=body))[0]
    assert first["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": [98]}],
        }
    ]
    assert (service.requests[0].logprobs, service.requests[0].top_logprobs) == (True, 1)


@pytest.mark.parametrize(
    ("path", "empty"),
    [("/api/chat", {"messages": []}), ("/api/chat", {}), ("/api/generate", {"prompt": ""})],
)
def test_without_text_a_model_is_loaded(path: str, empty: dict[str, Any]) -> None:
    """One object says so; how long it is to stay goes with it."""
    service = OllamaService()
    body = {"model": f"{MODEL}:latest", **empty, "keep_alive": "10m"}
    found = client_of(service).post(path, json=body).json or {}
    assert (found["done"], found["done_reason"], found["model"]) == (True, "load", f"{MODEL}:latest")
    assert service.calls == [("load", MODEL, None, None, 600.0)]


def test_without_text_and_keep_alive_a_model_is_unloaded() -> None:
    """keep_alive 0 in any form ends it now; -1 and null load it."""
    for zero in (0, "0", "0s", 0.0):
        service = OllamaService()
        body = {"model": MODEL, "keep_alive": zero}
        assert (client_of(service).post("/api/generate", json=body).json or {})["done_reason"] == "unload"
        assert service.calls == [("unload", MODEL)]
    for kept, expected in ((-1, (-1.0,)), (None, ())):
        service = OllamaService()
        client_of(service).post("/api/generate", json={"model": MODEL, "keep_alive": kept})
        assert service.calls == [("load", MODEL, None, None, *expected)]


def test_vectors_come_for_each_input() -> None:
    """One text or several; `dimensions` cuts them to unit length again."""
    service = OllamaService()
    client = client_of(service)
    body = {"model": EMBEDDER, "input": ["a", "b"], "keep_alive": 5}
    found = client.post("/api/embed", json=body).json or {}
    assert found["embeddings"] == [[0.6, 0.8, 0.0]] * 2
    assert (found["model"], found["prompt_eval_count"]) == (EMBEDDER, 7)
    assert found["total_duration"] >= found["load_duration"] >= 0
    assert service.embedded[0].inputs == ("a", "b")
    assert (service.embedded[0].model, service.embedded[0].keep_alive_s) == (EMBEDDER, 5.0)
    cut = client.post("/api/embed", json={"model": EMBEDDER, "input": "a", "dimensions": 1}).json or {}
    assert cut["embeddings"] == [[1.0]]


def test_the_old_route_gives_one_vector() -> None:
    """`/api/embeddings` takes a prompt."""
    response = client_of().post("/api/embeddings", json={"model": EMBEDDER, "prompt": "a"})
    assert response.json == {"embedding": [0.6, 0.8, 0.0]}


def test_vectors_of_nothing_load_the_model() -> None:
    """An empty text is a preload, as Ollama has it."""
    for path, body, empty in (
        ("/api/embed", {"input": ""}, {"embeddings": []}),
        ("/api/embed", {"input": []}, {"embeddings": []}),
        ("/api/embeddings", {}, {"embedding": []}),
    ):
        service = OllamaService()
        found = client_of(service).post(path, json={"model": EMBEDDER, **body}).json or {}
        assert empty.items() <= found.items()
        assert service.calls == [("load", EMBEDDER, None, None)]


def test_a_program_need_not_declare_json_but_a_web_page_must() -> None:
    """curl -d as Ollama's manual has it works; what a browser sends so is refused."""
    client, body = client_of(), json.dumps({"model": MODEL, "prompt": "hi"})
    form = "application/x-www-form-urlencoded"
    assert client.post("/api/generate", data=body, content_type=form).status_code == 200
    assert client.post("/api/generate", data=body).status_code == 200
    for mark in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://localhost"}):
        response = client.post("/api/generate", data=body, content_type=form, headers=mark)
        assert response.status_code == 415
    plain = client.post("/v1/completions", data=body, content_type=form)
    assert plain.status_code == 415


def test_the_version_is_one_of_ollamas() -> None:
    """VS Code wants at least 0.6.4 in numbers."""
    assert client_of().get("/api/version").json == {"version": API_VERSION}
    assert tuple(map(int, API_VERSION.split("."))) >= (0, 6, 4)


def test_the_root_says_that_ollama_runs() -> None:
    """To programs in plain text, without a key; to browsers it is the page."""
    service = OllamaService(settings=OllamaService().settings.model_copy(update={"api_key": None}))
    client = client_of(service)
    for accept in ("*/*", "", "application/json"):
        response = client.get("/", headers={"Accept": accept})
        assert (response.mimetype, response.text) == ("text/plain", "Ollama is running")
    assert client.head("/").status_code == 200
    page = client.get("/", headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.mimetype == "text/html"


def test_requests_are_counted() -> None:
    """By model and route, a stream by how it ended."""
    client = client_of(OllamaService(script=(Chunk("a"), end())))
    lines(client.post("/api/chat", json={"model": MODEL, "messages": ASK}))
    client.post("/api/generate", json={"model": MODEL, "keep_alive": 0})
    text = client.get("/metrics").get_data(as_text=True)
    for route in ("/api/chat", "/api/generate"):
        assert f'code="200",model="{MODEL}",route="{route}"' in text


@pytest.mark.parametrize("how", ["close", "reset"])
def test_leaving_ends_a_stream(how: str) -> None:
    """A client that goes in the middle frees the slot, and is counted as gone."""
    gate = Gate()
    service = OllamaService(script=(Chunk("Hel"), gate, end()))
    with servers() as start:
        running = start(service, Limits())
        with running.connect() as client:
            client.post("/api/chat", {"model": MODEL, "messages": ASK})
            client.read_until(b"Hel")
            assert gate.entered.wait(5)
            leave(client, how)
            assert gate.left.wait(5) and service.streams[0].closed.wait(5)
        with running.connect() as other:
            assert other.get("/api/ps")[0] == 200


def test_a_daemon_that_stops_says_so_in_the_stream() -> None:
    """The last line is the error."""
    gate = Gate()
    service = OllamaService(script=(Chunk("Hel"), gate, end()), settings=settings_with(drain_timeout_s=0.2))
    with servers() as start:
        running = start(service, Limits())
        with running.connect() as client:
            client.post("/api/chat", {"model": MODEL, "messages": ASK})
            client.read_until(b"Hel")
            running.server.shutdown()
            assert b'{"error":"the daemon stopped before the work was done' in client.read_all()
