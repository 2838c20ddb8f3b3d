"""Request bodies: bounds, contradictions, and what becomes of each field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.api.schema import ChatBody, CompletionBody, LoadBody, read
from inference.errors import InvalidRequestError, InvalidSchemaError
from inference.generation import GenerateRequest, Message, ToolCall

USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> GenerateRequest:
    """Read a chat."""
    return read(ChatBody, {"messages": USER, **fields}).to_request()


def completion(**fields: Any) -> GenerateRequest:
    """Read a completion."""
    return read(CompletionBody, {"prompt": "hi", **fields}).to_request()


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    """A tool in OpenAI's form."""
    function = {"name": name} if parameters is None else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def named(name: str) -> dict[str, Any]:
    """The choice of one tool."""
    return {"type": "function", "function": {"name": name}}


TOOL = tool("add", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})


def nested(levels: int) -> dict[str, Any]:
    """A schema with that many levels."""
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


def test_defaults_are_unset() -> None:
    """A silent request leaves every choice to the model, its task and the engine."""
    assert chat() == GenerateRequest(messages=(Message("user", "hi"),))
    assert completion() == GenerateRequest(prompt="hi")


def test_null_is_absent() -> None:
    """Clients that send null for what they do not set are understood."""
    names = [name for name in ChatBody.model_fields if name != "messages"]
    assert chat(**dict.fromkeys(names)) == chat()
    names = [name for name in CompletionBody.model_fields if name != "prompt"]
    assert completion(**dict.fromkeys(names)) == completion()


def test_every_field_arrives() -> None:
    """Each field reaches the request under its name, in its unit."""
    request = chat(
        model="m", variant="v", task="code", speed="fast", max_tokens=5, temperature=0, top_p=1, top_k=0,
        min_p=0.5, frequency_penalty=-2, presence_penalty=2, repetition_penalty=1.1,
        logit_bias={"7": -100, "8": 1.5}, seed=3, stop=["a", "b"], logprobs=True, top_logprobs=20,
        ignore_eos=True, cache_prompt=False, response_format={"type": "json_object"},
    )  # fmt: skip
    assert request == GenerateRequest(
        model="m", variant="v", task="code", speed="fast", messages=(Message("user", "hi"),), max_tokens=5,
        temperature=0, top_p=1, top_k=0, min_p=0.5, frequency_penalty=-2, presence_penalty=2,
        repetition_penalty=1.1, logit_bias={7: -100, 8: 1.5}, seed=3, stop=("a", "b"), logprobs=True,
        top_logprobs=20, ignore_eos=True, cache_prompt=False, json_schema={},
    )  # fmt: skip


def test_auto_is_no_name() -> None:
    """The model "auto" leaves the choice to the selector."""
    assert chat(model="auto").model is None


def test_unknown_fields_are_ignored() -> None:
    """Fields of other servers and of later versions do no harm."""
    assert chat(user="u", metadata={"a": [1]}, n_ctx=10**9, mirostat="x") == chat()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**40), ("max_tokens", True),
        ("max_tokens", 1.0), ("max_tokens", "5"), ("max_completion_tokens", 0),
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", True), ("temperature", "1"),
        ("top_p", 0), ("top_p", 1.1), ("top_k", -1), ("top_k", 1001), ("top_k", 1.5),
        ("min_p", -0.1), ("min_p", 1.1), ("frequency_penalty", 2.1), ("presence_penalty", -2.1),
        ("repetition_penalty", 0), ("repetition_penalty", 2.1), ("seed", 2**63), ("seed", -(2**63) - 1),
        ("seed", 1.5), ("n", 17), ("n", 0), ("n", True), ("stop", ""), ("stop", ["a"] * 17),
        ("stop", ["a" * 257]), ("stop", [1]), ("stop", 1), ("stream", 1), ("stream", "true"),
        ("stream_options", True), ("logprobs", 1), ("top_logprobs", 21), ("top_logprobs", -1),
        ("logit_bias", []), ("speed", "warp"), ("task", "Robert'); DROP"), ("model", ""),
        ("model", "m" * 201), ("model", 5), ("grammar", ""), ("grammar", "x" * 65537),
        ("ignore_eos", 1), ("cache_prompt", "no"), ("response_format", "json"), ("messages", []),
        ("messages", "hi"), ("messages", [{}]), ("messages", USER * 4097), ("context_overflow", "drop"),
        ("parallel_tool_calls", 1), ("tool_choice", "always"), ("tool_choice", 1), ("tool_choice", {}),
        ("tools", {}), ("tools", [{}]), ("tools", [TOOL] * 129), ("tools", [TOOL, TOOL]),
    ],
)  # fmt: skip
def test_out_of_bounds_names_the_field(field: str, value: Any) -> None:
    """A value of the wrong type or out of range is refused, and *param* says where."""
    with pytest.raises(InvalidRequestError) as caught:
        chat(**{field: value})
    assert caught.value.code == "invalid_value"
    assert caught.value.param is not None and caught.value.param.split(".")[0] == field
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(n): 0 for n in range(1025)}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages.0.content"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= []"}, "grammar"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"functions": [{}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": named("other")}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{**TOOL, "type": "retrieval"}]}, "tools.0.type"),
        ({"tools": [tool("a b")]}, "tools.0.function.name"),
        ({"tools": [tool("x" * 65)]}, "tools.0.function.name"),
        ({"tools": [tool("none")]}, "tools.0.function.name"),
        ({"tools": [TOOL, tool("b", {"type": "array"})]}, "tools.1.function.parameters"),
        ({"tools": [tool("b", {"properties": []})]}, "tools.0.function.parameters"),
        ({"tools": [tool("b", {"properties": {"x": nested(33)}})]}, "tools.0.function.parameters"),
        ({"tools": [tool(f"t{n}", {"description": "x" * 60_000}) for n in range(5)]}, "tools"),
        ({"tools": [TOOL], "grammar": "root ::= []"}, "grammar"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
            "messages.0.tool_calls.0.function",
        ),
    ],
)
def test_contradictions_name_the_field(fields: dict[str, Any], param: str) -> None:
    """Nested values and contradictory fields are named with their path."""
    with pytest.raises(InvalidRequestError) as caught:
        chat(**fields)
    assert caught.value.param == param and str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"suffix": "x"}, {"best_of": 2}, {"best_of": 2, "n": 3}, {"context_overflow": "cut"}]
)
def test_completions_refuse_what_is_not_served(fields: dict[str, Any]) -> None:
    """What is not there yet is refused, never silently left out."""
    with pytest.raises(InvalidRequestError) as caught:
        completion(**fields)
    assert caught.value.param == next(iter(fields))


@pytest.mark.parametrize(
    "prompt",
    ["", 5, None, [], [""], ["a", ""], ["a", 5], [5, "a"], [[]], [[1], "a", [True]], [-1], [1.0], [2**31],
     [[1, -1]], ["a"] * 257, {"a": 1}],
)  # fmt: skip
def test_prompts_are_texts_or_token_ids(prompt: Any) -> None:
    """A prompt is a text or token ids, or a list of such; anything else is refused as what it is."""
    with pytest.raises(InvalidRequestError) as caught:
        completion(prompt=prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "texts", "ids"),
    [
        ("hi", ["hi"], [None]),
        (["hi"], ["hi"], [None]),
        (["a", "b"], ["a", "b"], [None, None]),
        ([5, 6], [None], [(5, 6)]),
        ([[5], [6, 7]], [None, None], [(5,), (6, 7)]),
        (["a", [1]], ["a", None], [None, (1,)]),
    ],
)
def test_every_prompt_is_a_request(prompt: Any, texts: list[str], ids: list[Any]) -> None:
    """Texts and token ids each make a request, in their order."""
    requests = read(CompletionBody, {"prompt": prompt, "echo": True}).to_requests()
    assert ([r.prompt for r in requests], [r.prompt_ids for r in requests]) == (texts, ids)
    assert all(r.echo for r in requests)


def test_n_repeats_with_seeds_that_go_on() -> None:
    """Each choice has a seed of its own, so that they differ; each prompt begins with the one given."""
    requests = read(ChatBody, {"messages": USER, "n": 3, "seed": 2**32 - 2}).to_requests()
    assert [r.seed for r in requests] == [2**32 - 2, 2**32 - 1, 0]
    requests = read(CompletionBody, {"prompt": ["a", "b"], "n": 2, "best_of": 2, "seed": 7}).to_requests()
    assert [(r.prompt, r.seed) for r in requests] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    assert [r.seed for r in read(ChatBody, {"messages": USER, "n": 2}).to_requests()] == [None, None]


def test_choices_are_bounded() -> None:
    """One request makes 256 choices at the most, over all its prompts."""
    body = read(CompletionBody, {"prompt": ["a"] * 16, "n": 16})
    assert len(body.to_requests()) == 256
    with pytest.raises(InvalidRequestError) as caught:
        read(CompletionBody, {"prompt": ["a"] * 17, "n": 16}).to_requests()
    assert caught.value.param == "n"


def test_missing_field_is_named() -> None:
    """A body without its one required field says so."""
    with pytest.raises(InvalidRequestError, match="messages: missing"):
        read(ChatBody, {})
    with pytest.raises(InvalidRequestError, match="model: missing"):
        read(LoadBody, {})


def test_tools_arrive() -> None:
    """Tools reach the engine in OpenAI's form, and the choice as a word or as a name."""
    request = chat(tools=[{**TOOL, "strict": True}, tool("bare", None)])
    assert request.tools == (TOOL, tool("bare", {"type": "object", "properties": {}}))
    assert request.tool_choice == "auto"
    assert chat(tools=[TOOL], tool_choice="required").tool_choice == "required"
    assert chat(tools=[TOOL], tool_choice=named("add"), parallel_tool_calls=False).tool_choice == "add"


def test_tools_may_be_refused_by_the_client() -> None:
    """Tools that the client forbids to call do no harm."""
    assert chat(tools=[TOOL], tool_choice="none") == chat()
    assert chat(tools=[], tool_choice="auto") == chat(functions=[{}], tool_choice="none") == chat()


def test_calls_and_their_results_arrive() -> None:
    """What the assistant called and what came of it are turns of the chat."""
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [*USER, {"role": "assistant", "content": None, "tool_calls": [called]},
             {"role": "tool", "content": "3", "tool_call_id": "c1"}]  # fmt: skip
    assert chat(messages=turns).messages == (
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("c1", "add", '{"a": 1}'),)),
        Message("tool", "3", (), "c1"),
    )


def test_parts_are_joined() -> None:
    """Text parts are one text, a developer is a system, and an empty assistant turn is allowed."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts}, {"role": "assistant", "content": None}])
    assert request.messages == (Message("system", "ab"), Message("assistant", ""))


def test_max_completion_tokens_wins() -> None:
    """The newer name of the limit is the one that counts."""
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


@pytest.mark.parametrize(
    ("seed", "mapped"), [(0, 0), (5, 5), (-1, 2**32 - 1), (2**32 + 1, 1), (2**63 - 1, 2**32 - 1)]
)
def test_seed_is_mapped_to_32_bits(seed: int, mapped: int) -> None:
    """Any 64-bit seed is taken; engines have 32 bits."""
    assert chat(seed=seed).seed == mapped


def test_completion_logprobs_is_a_count() -> None:
    """Completions ask for alternatives by number; 0 still asks for the token's own."""
    assert (completion(logprobs=0).logprobs, completion(logprobs=0).top_logprobs) == (True, 0)
    assert (completion(logprobs=5).logprobs, completion(logprobs=5).top_logprobs) == (True, 5)


def test_stop_may_be_one_text() -> None:
    """One stop text needs no list; 16 texts of 256 characters are allowed."""
    assert chat(stop="x").stop == ("x",)
    assert len(chat(stop=["y" * 256] * 16).stop) == 16


def test_schema_arrives() -> None:
    """A JSON schema within bounds reaches the engine as it is."""
    schema = {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"type": "string"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert chat(response_format=wanted).json_schema == schema
    assert chat(response_format={"type": "text"}).json_schema is None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"description": "x" * 65536}, "bytes"),
        (nested(33), "deeper than 32"),
        ({"enum": [0] * 2000}, "2000 nodes"),
        ({"type": "string", "pattern": "a" * 513}, "pattern longer"),
        ({"patternProperties": {"a" * 513: {}}}, "pattern longer"),
        ({"items": [{"anyOf": [{"pattern": "a" * 513}]}]}, "pattern longer"),
        ({"$ref": "http://169.254.169.254/latest"}, "another document"),
        ({"$ref": "file:///etc/passwd"}, "another document"),
    ],
)
def test_schema_out_of_bounds_is_refused(schema: dict[str, Any], reason: str) -> None:
    """Schemas that could crash or stall an engine are refused before one sees them."""
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    with pytest.raises(InvalidSchemaError, match=reason) as caught:
        chat(response_format=wanted)
    assert caught.value.param == "response_format.json_schema.schema"


def test_schema_at_the_bounds_is_accepted() -> None:
    """32 levels, 2000 nodes and 512 characters are allowed."""
    for schema in (nested(32), {"enum": [0] * 1998}, {"pattern": "a" * 512}):
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        assert chat(response_format=wanted).json_schema == schema


def test_errors_do_not_quote_texts() -> None:
    """Numbers are shown as found; texts, which may be prompts, only by their length."""
    with pytest.raises(InvalidRequestError, match="expected greater than or equal to 1, found -1"):
        chat(max_tokens=-1)
    with pytest.raises(InvalidRequestError) as caught:
        chat(messages=[{"role": "user", "content": {"text": "secret"}}], stop=["secret" * 100])
    assert "secret" not in json.dumps(caught.value.to_dict())
