"""`inference.api.embeddings` and `inference.api.tokens`: bodies, answers and refusals."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from inference.api import create_app
from inference.generation import EmbedRequest, Message
from tests.fake_service import MODEL, FakeService

PATH = "/v1/embeddings"


def post(path: str, body: dict[str, Any], service: FakeService | None = None) -> tuple[int, Any]:
    """Send *body*; return the status and the answer."""
    response = create_app(service or FakeService()).test_client().post(path, json=body)
    return response.status_code, response.get_json()


def test_embeddings_have_openais_shape() -> None:
    """Vectors in the order of the inputs, the model that made them, and the tokens that were read."""
    status, body = post(PATH, {"input": ["a", "b"], "model": MODEL})
    assert status == 200
    assert body == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0, 0.1]},
            {"object": "embedding", "index": 1, "embedding": [1.0, 1.0, 0.1]},
        ],
        "model": MODEL,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }


def test_base64_is_little_endian_float32() -> None:
    """The form that the openai package asks for."""
    _, body = post(PATH, {"input": ["a", "b"], "encoding_format": "base64"})
    raw = base64.b64decode(body["data"][1]["embedding"])
    assert len(raw) == 12
    assert struct.unpack("<3f", raw) == pytest.approx((1.0, 1.0, 0.1), abs=1e-7)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_input_is_a_text_or_tokens_or_a_list_of_such(given: Any, inputs: Any) -> None:
    """The four forms of OpenAI, told apart by what is in the list."""
    service = FakeService()
    assert post(PATH, {"input": given, "model": "auto", "variant": "q4"}, service)[0] == 200
    assert service.calls == [("embed", EmbedRequest(inputs=inputs, variant="q4"))]


@pytest.mark.parametrize(
    "given",
    ["", [], [""], [[]], ["a", ""], [1, "a"], [["a"]], [[1], 2], [1.5], [True], [-1], [2**31], None, {}, 7],
)
def test_an_input_that_is_none_is_refused(given: Any) -> None:
    """Empty texts, mixed lists and what is no token: 400, and its field is named."""
    status, body = post(PATH, {"input": given})
    assert status == 400
    assert body["error"]["param"].startswith("input")
    assert body["error"]["type"] == "invalid_request_error"


def test_at_most_2048_inputs_are_taken() -> None:
    """One more is refused, and so is a format or a length of vectors that there is not."""
    assert post(PATH, {"input": ["a"] * 2048})[0] == 200
    status, body = post(PATH, {"input": ["a"] * 2049})
    assert (status, body["error"]["param"]) == (400, "input")
    assert "1 to 2048 inputs" in body["error"]["message"]
    assert post(PATH, {"input": "a", "encoding_format": "hex"})[0] == 400
    assert post(PATH, {"input": "a", "dimensions": 0})[0] == 400
    assert post(PATH, {"model": MODEL})[1]["error"]["message"] == "input: missing"


def test_vectors_are_not_cut() -> None:
    """The model's own length may be asked for, any other is refused by name."""
    assert post(PATH, {"input": "a", "dimensions": 3})[0] == 200
    status, body = post(PATH, {"input": "a", "dimensions": 2})
    assert (status, body["error"]["param"]) == (400, "dimensions")
    assert "makes vectors of 3, not of 2" in body["error"]["message"]


def test_tokens_go_there_and_back() -> None:
    """A text becomes tokens, and tokens the text."""
    service = FakeService()
    status, body = post("/jetllm/v1/tokenize", {"model": "auto", "text": "hé"}, service)
    assert (status, body) == (200, {"model": MODEL, "variant": "q4", "tokens": [104, 233]})
    status, body = post("/jetllm/v1/detokenize", {"model": MODEL, "tokens": [104, 233]}, service)
    assert (status, body) == (200, {"model": MODEL, "variant": "q4", "text": "hé"})
    assert service.calls == [("tokenize", None), ("detokenize", MODEL)]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "text"),
        ("tokenize", {"text": ["a"]}, "text"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("detokenize", {"tokens": [2**31]}, "tokens.0"),
        ("count_tokens", {}, "messages"),
        ("count_tokens", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ("count_tokens", {"messages": []}, "messages"),
        ("count_tokens", {"prompt": 7}, "prompt"),
    ],
)
def test_what_has_no_tokens_is_refused(path: str, body: dict[str, Any], param: str) -> None:
    """400 with the field at fault."""
    status, answer = post(f"/jetllm/v1/{path}", body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_prompts_and_chats_are_counted() -> None:
    """The request is the one that would be generated from, its tools included."""
    service = FakeService()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    chat = {"model": MODEL, "messages": [{"role": "developer", "content": "a"}], "tools": [tool]}
    status, body = post("/jetllm/v1/count_tokens", chat, service)
    assert (status, body) == (200, {"model": MODEL, "variant": "q4", "tokens": 3, "context_tokens": 512})
    assert post("/jetllm/v1/count_tokens", {"prompt": "a"}, service)[0] == 200
    first, second = service.requests
    assert first.messages == (Message("system", "a"),)
    assert [each["function"]["name"] for each in first.tools] == ["f"]
    assert (second.prompt, second.model, second.messages) == ("a", None, None)
    assert post("/jetllm/v1/count_tokens", {"prompt": "a", "tools": [tool]})[0] == 400
