"""The transcript: what a base model reads of a conversation, and where its answer ends."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from inference.errors import UnsupportedParameterError
from inference.generation import Chunk, FinishReason, GenerateRequest, Message, TokenLogprob, ToolCall
from inference.transcript import STOPS, trimmed, written_out

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def text_of(*turns: tuple[str, str]) -> str | None:
    """The prompt of these turns."""
    return written_out(GenerateRequest(messages=tuple(Message(*turn) for turn in turns))).prompt


def test_a_chat_is_written_out() -> None:
    """Instructions first, a line for each turn, then the name of who is to speak, without a space."""
    assert text_of(("user", "Hi")) == "User: Hi\nAssistant:"
    turns = (("system", "Be terse."), ("user", "Hi"), ("assistant", "Ho"), ("tool", "3"), ("user", "So?"))
    assert text_of(*turns) == "Be terse.\n\nUser: Hi\nAssistant: Ho\nTool: 3\nUser: So?\nAssistant:"
    assert text_of(("user", "Hi"), ("assistant", "It is")) == "User: Hi\nAssistant: It is"
    assert text_of(("system", ""), ("user", "Hi")) == "User: Hi\nAssistant:"


def test_the_next_turn_ends_the_answer() -> None:
    """The names of the speakers are stop strings, after the caller's own."""
    request = GenerateRequest(messages=(Message("user", "Hi"),), stop=("END", "\nUser:"), temperature=0)
    written = written_out(request)
    assert written.stop == ("END", "\nUser:", "\nAssistant:", "\nTool:")
    assert (written.messages, written.temperature) == (None, 0)
    assert set(STOPS) <= set(written.stop)


@pytest.mark.parametrize(
    "fields",
    [{"tools": (TOOL,)}, {"messages": (Message("assistant", "", (ToolCall("c", "f", "{}"),)),)}],
)
def test_tools_are_refused(fields: dict[str, object]) -> None:
    """A base model calls nothing, and says so."""
    with pytest.raises(UnsupportedParameterError):
        written_out(GenerateRequest(**{"messages": (Message("user", "Hi"),), **fields}))  # type: ignore[arg-type]


def chunks(*texts: str) -> Generator[Chunk, None, None]:
    """These texts, then an end."""
    yield from map(Chunk, texts)
    yield Chunk("", finish_reason=FinishReason.STOP)


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        ((" Paris", " is"), ["Paris", " is", ""]),
        ((" ", "\n", " a", " b"), ["a", " b", ""]),
        (("a",), ["a", ""]),
        ((" ",), [""]),
    ],
)
def test_the_answer_begins_with_a_word(texts: tuple[str, ...], shown: list[str]) -> None:
    """White space after "Assistant:" is no part of the answer; later white space is."""
    assert [chunk.text for chunk in trimmed(chunks(*texts))] == shown


def test_probabilities_are_kept() -> None:
    """The token that was only white space keeps its probability."""
    item = TokenLogprob(" ", -0.5)
    found = list(trimmed(c for c in (Chunk(" ", (item,)), Chunk("a"))))
    assert [(c.text, c.logprobs) for c in found] == [("", (item,)), ("a", ())]


def test_closing_stops_the_engine() -> None:
    """Who leaves early ends what is behind it."""
    ended = []

    def engine() -> Generator[Chunk, None, None]:
        try:
            yield Chunk("a")
            yield Chunk("b")
        finally:
            ended.append(True)

    source = engine()
    stream = trimmed(source)
    next(stream)
    stream.close()
    assert ended == [True]
