"""Tools over HTTP: what reaches the service, and how a call comes back."""

from __future__ import annotations

import dataclasses
from typing import Any

from inference.api import create_app
from inference.generation import Chunk, FinishReason, ToolCall
from tests.fake_service import FakeService, FakeStream, end
from tests.test_api_openai import CHAT, events_of

PATH = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLS = (ToolCall("call_1", "add", '{"a": 1}'), ToolCall("call_2", "add", "{}"))
LAST = dataclasses.replace(end(FinishReason.TOOL_CALLS), tool_calls=CALLS)
SHOWN = [
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "call_2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
]


def post(service: FakeService, **fields: Any) -> Any:
    """Send a chat with tools."""
    return create_app(service).test_client().post(PATH, json={**CHAT, "tools": TOOLS, **fields})


def test_a_call_has_openais_shape() -> None:
    """The message has the calls and no content, and the reason says so."""
    service = FakeService(script=(LAST,))
    choice = post(service, tool_choice="required").get_json()["choices"][0]
    assert choice["message"] == {
        "role": "assistant", "content": None, "refusal": None, "tool_calls": SHOWN,
    }  # fmt: skip
    assert choice["finish_reason"] == "tool_calls"
    assert (service.requests[0].tools, service.requests[0].tool_choice) == (tuple(TOOLS), "required")


def test_text_before_a_call_is_kept() -> None:
    """What the model said before it called is the content."""
    message = post(FakeService(script=(Chunk("I add."), LAST))).get_json()["choices"][0]["message"]
    assert (message["content"], message["tool_calls"]) == ("I add.", SHOWN)


def test_without_a_call_nothing_changes() -> None:
    """A model that was offered tools and answers in words answers as ever."""
    choice = post(FakeService()).get_json()["choices"][0]
    assert "tool_calls" not in choice["message"] and choice["finish_reason"] == "stop"


def test_calls_are_streamed_as_one_delta() -> None:
    """The role, then all calls with index, id, name and arguments, then the reason."""
    events = events_of(post(FakeService(script=(LAST,)), stream=True).get_data(as_text=True))
    deltas = [(e["choices"][0]["delta"], e["choices"][0]["finish_reason"]) for e in events[:-1]]
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"tool_calls": [{"index": 0, **SHOWN[0]}, {"index": 1, **SHOWN[1]}]}, None),
        ({}, "tool_calls"),
    ]
    assert events[-1] == "[DONE]"


class Sliding(FakeService):
    """A service that drops two turns."""

    def generate(self, *arguments: Any) -> FakeStream:
        """As ever, but fewer turns were read."""
        stream = super().generate(*arguments)
        stream.dropped_turns = 2
        return stream


def test_dropped_turns_are_told_three_times() -> None:
    """A request that slides is told how many turns went: in a header, the body, and the last event."""
    response = post(Sliding(), tools=None, context_overflow="slide")
    assert response.headers["X-JetLLM-Dropped-Turns"] == "2"
    assert response.get_json()["jetllm"] == {"dropped_turns": 2}
    streamed = post(Sliding(), tools=None, context_overflow="slide", stream=True)
    assert streamed.headers["X-JetLLM-Dropped-Turns"] == "2"
    *before, last, _ = events_of(streamed.get_data(as_text=True))
    assert last["jetllm"] == {"dropped_turns": 2} and all("jetllm" not in event for event in before)


def test_who_does_not_slide_is_told_nothing() -> None:
    """Without the wish there is neither the header nor the field."""
    for fields in ({}, {"context_overflow": "error"}):
        response = post(FakeService(), **fields)
        assert "X-JetLLM-Dropped-Turns" not in response.headers and "jetllm" not in response.get_json()
