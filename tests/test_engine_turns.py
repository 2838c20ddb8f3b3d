"""InferenceEngine's plain values: calls of tools go out as they come back in."""

from __future__ import annotations

from inference.generation import FinishReason, Generation, Message, ToolCall, Usage
from inference.inference_engine import _turn, as_dict

CALL = ToolCall("call_1", "add", '{"a": 1}')
ANSWER = Generation(
    text="",
    finish_reason=FinishReason.TOOL_CALLS,
    usage=Usage(3, 2),
    timings=None,
    logprobs=(),
    model="m",
    variant="v",
    ttft_s=0.1,
    total_s=0.2,
    tool_calls=(CALL,),
    dropped_turns=2,
)


def test_calls_are_plain_values() -> None:
    """A result tells its calls and how many turns were dropped."""
    found = as_dict(ANSWER)
    assert found["tool_calls"] == [{"id": "call_1", "name": "add", "arguments": '{"a": 1}'}]
    assert (found["finish_reason"], found["dropped_turns"]) == ("tool_calls", 2)


def test_what_was_called_goes_back_as_it_came() -> None:
    """The assistant's turn takes the calls as the result has them, the tool's turn the id that it answers."""
    calls = as_dict(ANSWER)["tool_calls"]
    assert _turn({"role": "assistant", "tool_calls": calls}) == Message("assistant", "", (CALL,))
    answer = {"role": "tool", "content": "3", "tool_call_id": "call_1"}
    assert _turn(answer) == Message("tool", "3", (), "call_1")
    assert _turn({"role": "user", "content": "hi"}) == Message("user", "hi")
