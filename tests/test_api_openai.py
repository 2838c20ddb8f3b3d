"""OpenAI's dialect: bodies, events, log-probabilities and lists, field by field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.api import create_app
from inference.errors import BackendTimeoutError, CancelledError, WorkerCrashedError
from inference.generation import Chunk, FinishReason, Timings, Usage
from tests.fake_service import MODEL, FakeService, end, logprob

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"prompt": "hi"}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 3,
    "total_tokens": 13,
    "prompt_tokens_details": {"cached_tokens": 4},
}
# 6 prompt tokens computed in 0.3 s are 20 a second; 3 generated in 0.1 s are 30.
TIMINGS = {
    "cache_n": 4, "prompt_n": 6, "prompt_ms": 300.0, "prompt_per_second": 20.0,
    "predicted_n": 3, "predicted_ms": 100.0, "predicted_per_second": 30.0,
}  # fmt: skip


def client_of(*script: Any) -> FlaskClient:
    """A client of a service that plays *script*."""
    return create_app(FakeService(script=script) if script else FakeService()).test_client()


def events_of(text: str) -> list[Any]:
    """The values of a stream's events; [DONE] stays a string."""
    assert text.endswith("\n\n")
    lines = text[:-2].split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def stream(path: str, body: dict[str, Any], *script: Any, **fields: Any) -> list[Any]:
    """Ask for a stream and return its events."""
    response = client_of(*script).post(path, json={**body, "stream": True, **fields})
    assert response.status_code == 200
    return events_of(response.get_data(as_text=True))


def test_chat_has_openais_shape() -> None:
    """A whole chat: message, reason, usage, timings, fingerprint and the model that served it."""
    response = client_of().post("/v1/chat/completions", json=CHAT)
    body = response.get_json()
    assert isinstance(body.pop("created"), int)
    assert body == {
        "id": "chatcmpl-gen1",
        "object": "chat.completion",
        "model": MODEL,
        "system_fingerprint": "fp_fake",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello wörld", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
        "timings": TIMINGS,
    }


def test_completion_has_openais_shape() -> None:
    """A whole completion differs in its choice only."""
    body = client_of().post("/v1/completions", json=COMPLETION).get_json()
    assert (body["id"], body["object"], body["usage"]) == ("cmpl-gen1", "text_completion", USAGE)
    assert body["choices"] == [{"index": 0, "text": "Hello wörld", "logprobs": None, "finish_reason": "stop"}]


def test_chosen_model_is_told_in_a_header() -> None:
    """What was chosen and why is one line of Latin-1, streamed or not."""
    for fields in ({}, {"stream": True}):
        response = client_of().post("/v1/chat/completions", json={**CHAT, **fields})
        assert response.headers["X-JetLLM-Selection"] == "the only model that fits: ?"


def test_chat_stream_has_openais_events() -> None:
    """Role first, then text, then an empty delta with the reason, then [DONE]."""
    events = stream("/v1/chat/completions", CHAT)
    assert events.pop() == "[DONE]"
    deltas = [(e["choices"][0]["delta"], e["choices"][0]["finish_reason"]) for e in events]
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo "}, None),
        ({"content": "wörld"}, None),
        ({}, "stop"),
    ]
    assert {e["object"] for e in events} == {"chat.completion.chunk"}
    assert {(e["id"], e["model"], e["system_fingerprint"]) for e in events} == {
        ("chatcmpl-gen1", MODEL, "fp_fake")
    }
    assert len({e["created"] for e in events}) == 1 and all("usage" not in e for e in events)
    assert [e.get("timings") for e in events] == [None] * 4 + [TIMINGS]


def test_completion_stream_has_openais_events() -> None:
    """Completions stream text without a role."""
    events = stream("/v1/completions", COMPLETION)
    assert events.pop() == "[DONE]"
    assert [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events] == [
        ("Hel", None), ("lo ", None), ("wörld", None), ("", "stop"),
    ]  # fmt: skip
    assert {e["object"] for e in events} == {"text_completion"}


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_usage_comes_in_a_chunk_of_its_own(path: str, body: dict[str, Any]) -> None:
    """With include_usage the last chunk has no choices and the counts; the others have usage null."""
    *events, last, done = stream(path, body, stream_options={"include_usage": True})
    assert done == "[DONE]" and (last["choices"], last["usage"]) == ([], USAGE)
    assert all(event["usage"] is None for event in events)


def test_stream_headers() -> None:
    """Proxies are told not to buffer, and nobody to cache."""
    response = client_of().post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    assert (response.headers["Cache-Control"], response.headers["X-Accel-Buffering"]) == ("no-cache", "no")
    assert response.headers["X-Request-Id"].startswith("req_")


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WorkerCrashedError("killed by SIGSEGV"), "backend_crashed"),
        (BackendTimeoutError("silent for 30 s"), "backend_timeout"),
        (CancelledError("unloaded"), "cancelled"),
        (ValueError("secret"), "internal_error"),
    ],
)
def test_error_in_a_stream_is_its_last_event(
    path: str, body: dict[str, Any], error: Exception, code: str
) -> None:
    """After the first token an error is an event, and nothing after it looks like a good end."""
    events = stream(path, body, Chunk("one"), error)
    assert events[-1]["error"]["code"] == code and events[-1]["request_id"].startswith("req_")
    assert "[DONE]" not in events and "secret" not in json.dumps(events)
    assert all(e["choices"][0]["finish_reason"] is None for e in events[:-1])


def test_stream_that_just_ends_is_an_error() -> None:
    """An end without a reason is a defect, not a good end."""
    assert stream("/v1/chat/completions", CHAT, Chunk("one"))[-1]["error"]["code"] == "internal_error"


def test_error_in_a_whole_answer_is_a_status() -> None:
    """Without streaming an error after the first token can still be a status."""
    response = client_of(Chunk("one"), WorkerCrashedError("killed")).post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.get_json()["error"]["code"]) == (502, "backend_crashed")


def test_every_stream_is_closed() -> None:
    """Whatever the end, the worker's slot is free afterwards."""
    for script in ((Chunk("a"), end()), (Chunk("a"), WorkerCrashedError("x")), (Chunk("a"),)):
        service = FakeService(script=script)
        client = create_app(service).test_client()
        client.post("/v1/chat/completions", json=CHAT).close()
        client.post("/v1/chat/completions", json={**CHAT, "stream": True}).close()
        assert service.running == 0 and all(s.closed.is_set() for s in service.streams)


def test_empty_generation_has_a_role_and_an_end() -> None:
    """A model that says nothing still gives a well-formed stream."""
    events = stream("/v1/chat/completions", CHAT, end(FinishReason.LENGTH))
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert (events[1]["choices"][0]["finish_reason"], events[2]) == ("length", "[DONE]")


@pytest.mark.parametrize(
    "text", ['"quotes" \\ /', "line\nbreak\r\n\u2028", "data: [DONE]\n\n", "\u0000\x1f", "安😀", "\ud83d"]
)
def test_any_text_survives_the_stream(text: str) -> None:
    """Text cannot break an event, and half a surrogate pair cannot break UTF-8."""
    last = Chunk(text, finish_reason=FinishReason.STOP, usage=Usage(1, 1), timings=Timings(0, 0))
    shown = text.encode("utf-8", "replace").decode()
    events = stream("/v1/chat/completions", CHAT, Chunk(text), last)
    assert [e["choices"][0]["delta"].get("content") for e in events[1:3]] == [shown, shown]
    body = client_of(Chunk(text), last).post("/v1/chat/completions", json=CHAT).get_json()
    assert body["choices"][0]["message"]["content"] == shown * 2
    assert body["timings"]["predicted_per_second"] is None


LOGPROB_SCRIPT = (
    Chunk("Hi", logprobs=(logprob("Hi", -0.5, ("Hi", -0.5), ("Yo", -1.5)),)),
    Chunk(" é", logprobs=(logprob(" é", -0.25),)),
    end(tokens=2),
)
CHAT_LOGPROBS = [
    {
        "token": "Hi", "logprob": -0.5, "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
            {"token": "Yo", "logprob": -1.5, "bytes": [89, 111]},
        ],
    },
    {"token": " é", "logprob": -0.25, "bytes": [32, 195, 169], "top_logprobs": []},
]  # fmt: skip


def test_chat_logprobs() -> None:
    """Chats list each token with its bytes and alternatives, streamed with its text or whole."""
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
    body = client_of(*LOGPROB_SCRIPT).post("/v1/chat/completions", json=asked).get_json()
    assert body["choices"][0]["logprobs"] == {"content": CHAT_LOGPROBS, "refusal": None}
    events = stream("/v1/chat/completions", asked, *LOGPROB_SCRIPT)
    assert [e["choices"][0]["logprobs"]["content"] for e in events[1:3]] == [[item] for item in CHAT_LOGPROBS]


def test_completion_logprobs() -> None:
    """Completions have parallel lists; offsets are characters from the start of the text."""
    asked = {**COMPLETION, "logprobs": 2}
    body = client_of(*LOGPROB_SCRIPT).post("/v1/completions", json=asked).get_json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["Hi", " é"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{"Hi": -0.5, "Yo": -1.5}, {}],
        "text_offset": [0, 2],
    }
    events = stream("/v1/completions", asked, *LOGPROB_SCRIPT)
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in events[:2]] == [[0], [2]]


def test_list_has_the_models_that_can_answer() -> None:
    """The list names what can be asked now; extras have a key of their own."""
    body = client_of().get("/v1/models").get_json()
    extras = {"name": "SmolLM2", "state": "ready", "pulled": True, "usable": True}
    card = {"id": MODEL, "object": "model", "created": 7, "owned_by": "jetllm", "jetllm": extras}
    assert body == {"object": "list", "data": [card]}
    assert client_of().get(f"/v1/models/{MODEL}").get_json() == card


def test_model_ids_may_hold_slashes() -> None:
    """A registered model is described even before it was pulled."""
    assert client_of().get("/v1/models/org/planned").get_json()["jetllm"]["pulled"] is False


def test_unknown_model_suggests_another() -> None:
    """An unknown name is a 404 with a suggestion, in a request as in the list."""
    client = client_of()
    asked = client.post("/v1/chat/completions", json={**CHAT, "model": "smolm2"})
    for response in (asked, client.get("/v1/models/smolm2")):
        error = response.get_json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "did you mean" in error["hint"]
