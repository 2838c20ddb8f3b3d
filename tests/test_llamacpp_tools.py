"""Tools with llama.cpp: schemas of calls, calls in pieces, and a real engine whose template has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.backends import LoadOptions
from inference.backends._llamacpp_tools import ALIVE, Calls, constrained, in_silence
from inference.backends.llamacpp import Backend
from inference.errors import InvalidRequestError, InvalidSchemaError
from inference.generation import Chunk, FinishReason, GenerateRequest, Message, ToolCall, Usage
from tests.gguf_template import with_template

CITY = {"type": "string", "enum": ["Paris", "Rome"]}
ASKED = (Message("user", "What is the weather in Rome?"),)


def tool(name: str, **schema: Any) -> dict[str, Any]:
    """A tool whose arguments are an object of *schema*."""
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **schema}}}


WEATHER = tool("get_weather", properties={"city": CITY}, required=["city"])


def schema_of(*tools: dict[str, Any], choice: str = "required") -> Any:
    """What the text of a call must be."""
    return constrained(GenerateRequest(messages=ASKED, tools=tools, tool_choice=choice)).json_schema


def test_a_call_is_one_of_the_tools() -> None:
    """Each tool is an alternative of its name and its arguments; what a schema leaves open is closed."""
    first, second = schema_of(WEATHER, tool("open", additionalProperties=True))["anyOf"]
    assert first["properties"]["name"] == {"const": "get_weather"}
    assert first["properties"]["arguments"] == {
        "type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False,
    }  # fmt: skip
    assert second["properties"]["arguments"]["additionalProperties"] is True


def test_a_name_leaves_one_tool() -> None:
    """A chosen function is the only alternative; one that there is not is refused."""
    (only,) = schema_of(WEATHER, tool("other"), choice="other")["anyOf"]
    assert only["properties"]["name"] == {"const": "other"}
    with pytest.raises(InvalidRequestError, match="missing"):
        schema_of(WEATHER, choice="missing")


def test_references_follow_their_schema() -> None:
    """A schema that lies deeper still finds its own definitions."""
    referring = tool("b", properties={"c": {"$ref": "#/$defs/C"}}, **{"$defs": {"C": CITY}})
    arguments = schema_of(WEATHER, referring)["anyOf"][1]["properties"]["arguments"]
    assert arguments["properties"]["c"] == {"$ref": "#/anyOf/1/properties/arguments/$defs/C"}


def test_a_constrained_call_is_told_at_its_end() -> None:
    """While it is written only life is shown; then the call comes with counts and reason."""
    found: list[Chunk] = []
    take = in_silence(found.append)
    for text in ('{"name":"get_', 'weather","arguments":{"city":"Zürich"}}'):
        take(Chunk(text))
    take(Chunk("", finish_reason=FinishReason.STOP, usage=Usage(3, 2)))
    *before, last = found
    assert before == [ALIVE, ALIVE] and (last.text, last.usage) == ("", Usage(3, 2))
    (call,) = last.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Zürich"})
    assert last.finish_reason is FinishReason.TOOL_CALLS and call.id.startswith("call_")


def test_half_a_call_is_text() -> None:
    """A call that the token limit cut off is given as what was written."""
    found: list[Chunk] = []
    take = in_silence(found.append)
    take(Chunk('{"name":"get'))
    take(Chunk("_", finish_reason=FinishReason.LENGTH))
    assert found[-1] == Chunk('{"name":"get_', finish_reason=FinishReason.LENGTH)


def delta(index: int, **call: Any) -> dict[str, Any]:
    """A chunk of the server with a piece of a call."""
    return {"choices": [{"delta": {"tool_calls": [{"index": index, **call}]}}]}


def test_pieces_become_calls() -> None:
    """Pieces are joined by their index; a call without an id gets one, one without arguments none."""
    calls = Calls()
    assert calls.read(delta(0, id="x", function={"name": "a", "arguments": ""}))
    assert calls.read(delta(1, function={"name": "b"}))
    assert calls.read(delta(0, function={"arguments": '{"n":'}))
    assert calls.read(delta(0, function={"arguments": "1}"}))
    others: list[Any] = [[], [{"delta": {"content": "x"}}], [{"text": "x"}]]
    assert not any(calls.read({"choices": choices}) for choices in others)
    first, second = calls.whole()
    assert first == ToolCall("x", "a", '{"n":1}')
    assert (second.name, second.arguments) == ("b", "{}") and second.id.startswith("call_")


@pytest.fixture(scope="module")
def engines(
    smollm2_path: Path, gemma_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Backend]]:
    """SmolLM2 with a template that has tools, SmolLM2 as it is, and Gemma 3, with small contexts."""
    tools = with_template(smollm2_path, tmp_path_factory.mktemp("tools") / "tools.gguf")
    loaded = {}
    for name, weights in (("tools", tools), ("smollm2", smollm2_path), ("gemma", gemma_path)):
        options = LoadOptions(
            weights=weights,
            context_tokens=512,
            slots=1,
            threads=None,
            prefill_batch_tokens=64,
            prompt_cache_bytes=0,
            runtime_dir=tmp_path_factory.mktemp(name),
        )
        loaded[name] = Backend(options)
    yield loaded
    for backend in loaded.values():
        backend.close()


@pytest.fixture
def caller(engines: dict[str, Backend]) -> Backend:
    """The one that has tools."""
    return engines["tools"]


def generate(backend: Backend, **fields: Any) -> list[Chunk]:
    """What comes of a chat with a tool."""
    request = {"messages": ASKED, "tools": (WEATHER,), "temperature": 0.0, "max_tokens": 64, **fields}
    return list(backend.generate(GenerateRequest(**request), lambda: False))


def test_the_template_decides(engines: dict[str, Backend]) -> None:
    """The same weights have tools with a template that shows them, and none with their own."""
    assert [name for name, engine in engines.items() if "tools" in engine.capabilities] == ["tools"]


def test_a_required_call_is_made(caller: Backend) -> None:
    """The engine's grammar leaves nothing but a call whose arguments are as declared."""
    *before, last = generate(caller, tool_choice="required", stop=("get",))
    (call,) = last.tool_calls
    assert (call.name, last.finish_reason) == ("get_weather", FinishReason.TOOL_CALLS)
    assert json.loads(call.arguments) in ({"city": "Paris"}, {"city": "Rome"})
    assert not any(chunk.text for chunk in (*before, last))
    assert last.usage is not None and last.usage.completion_tokens > 5


def test_a_call_of_the_models_own_is_read(caller: Backend) -> None:
    """With "auto" what the model writes in its template's form comes as a call, and no text of it."""
    turns = [
        turn
        for city in ("Paris", "Rome", "Paris")
        for turn in (
            Message("user", f"Weather in {city}?"),
            Message("assistant", "", (ToolCall("c", "get_weather", json.dumps({"city": city})),)),
        )
    ]
    asked = (*turns, Message("user", "Weather in Rome?"))
    *before, last = generate(caller, messages=asked, tool_choice="auto")
    assert not any(chunk.text for chunk in before)
    (call,) = last.tool_calls
    assert call.name == "get_weather" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
    assert last.finish_reason is FinishReason.TOOL_CALLS


def test_calls_and_results_are_in_the_prompt(caller: Backend) -> None:
    """The template shows the model what was called, and what came of it."""
    call = ToolCall("call_1", "get_weather", '{"city": "Rome"}')
    turns = (*ASKED, Message("assistant", "", (call,)), Message("tool", "sunny", (), "call_1"))
    read = caller.detokenize(caller.prompt_tokens(GenerateRequest(messages=turns, tools=(WEATHER,))))
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>' in read
    assert "<tool_response>\nsunny\n</tool_response>" in read and "<tools>" in read


def test_a_schema_that_cannot_be_enforced_names_tools(caller: Backend) -> None:
    """A schema beyond the grammar is refused under the name of the field that has it."""
    bad = tool("bad", properties={"x": {"type": "string", "pattern": "(?<=a)b"}}, required=["x"])
    with pytest.raises(InvalidSchemaError) as caught:
        generate(caller, tools=(bad,), tool_choice="required")
    assert caught.value.param == "tools"
