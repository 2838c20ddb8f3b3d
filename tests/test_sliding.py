"""The sliding window: what is dropped, what never is, and how often is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.generation import Message, ToolCall
from inference.sliding import reserved_tokens, slide

CALL = (ToolCall("c", "f", "{}"),)
SYSTEM = Message("system", "rules")


def words(turns: tuple[Message, ...]) -> int:
    """A count that is easy to follow: one for each word of what was said."""
    return sum(len(turn.content.split()) for turn in turns)


def chat(*turns: str) -> tuple[Message, ...]:
    """Turns such as "user: hi"."""
    return tuple(Message(role, text) for role, _, text in (turn.partition(": ") for turn in turns))


CHAT = (SYSTEM, *chat("user: a a", "assistant: b b", "user: c c", "assistant: d d", "user: e e"))


@pytest.mark.parametrize(
    ("room", "left"),
    [
        (11, "rules a b c d e"),
        (10, "rules c d e"),
        (7, "rules c d e"),
        (6, "rules e"),
        (3, "rules e"),
        (0, "rules e"),
    ],
)
def test_drops_the_oldest_exchanges(room: int, left: str) -> None:
    """A question goes with its answer, and only as many as need be; the system and the last turn stay."""
    assert [turn.content.split()[0] for turn in slide(CHAT, room, words)] == left.split()


def test_what_fits_is_counted_once() -> None:
    """A chat with room costs one count; a long one about log2 of its exchanges."""
    counted: list[int] = []

    def count(turns: tuple[Message, ...]) -> int:
        counted.append(len(turns))
        return words(turns)

    assert slide(CHAT, 100, count) == CHAT and counted == [6]
    counted.clear()
    long = chat(*["user: a", "assistant: b"] * 500, "user: c")
    assert len(slide(long, 101, count)) == 101 and len(counted) <= 11


def test_results_stay_with_their_calls() -> None:
    """Calls of the last exchange go with their results, oldest first; the question and the last stay."""
    turns = (
        *chat("user: old", "assistant: answer", "user: question"),
        Message("assistant", "one", CALL), Message("tool", "1"), Message("tool", "1"),
        Message("assistant", "two", CALL), Message("tool", "2"),
    )  # fmt: skip
    contents = [[turn.content for turn in slide(turns, room, words)] for room in (8, 7, 5, 1)]
    assert contents[0] == [turn.content for turn in turns]
    assert contents[1] == ["question", "one", "1", "1", "two", "2"]
    assert contents[2] == contents[3] == ["question", "two", "2"]


def test_system_messages_stay_wherever_they_are() -> None:
    """A rule that was given later in the chat outlives the turns around it."""
    turns = (*chat("user: a", "assistant: b"), SYSTEM, *chat("user: c", "assistant: d", "user: e"))
    assert slide(turns, 2, words) == (SYSTEM, Message("user", "e"))


@pytest.mark.parametrize("turns", [(), (SYSTEM,), chat("assistant: a b", "assistant: c"), chat("user: a b")])
def test_nothing_to_drop_is_left_as_it_is(turns: tuple[Message, ...]) -> None:
    """Without an exchange that could go the chat is returned whole, and the engine judges it."""
    assert slide(turns, 0, words) == turns


@given(
    st.lists(st.sampled_from(["user", "assistant", "tool", "system"]), max_size=12).map(
        lambda roles: tuple(Message(role, f"{at} x") for at, role in enumerate(roles))
    ),
    st.integers(0, 30),
)
def test_any_chat_keeps_what_must_stay(turns: tuple[Message, ...], room: int) -> None:
    """Whatever the chat: order is kept, no system message goes, nor the last turn, and it fits if it can."""
    left = slide(turns, room, words)
    assert [turn for turn in turns if turn in left] == list(left)
    assert all(turn in left for turn in turns if turn.role == "system")
    assert not turns or turns[-1] in left
    if words(left) > room:
        assert left == slide(turns, 0, words)
    elif left != turns:
        assert words(turns) > room


@pytest.mark.parametrize(
    ("max_tokens", "context", "reserved"), [(None, 1000, 250), (100, 1000, 100), (900, 1000, 500)]
)
def test_room_for_the_answer(max_tokens: int | None, context: int, reserved: int) -> None:
    """The answer has what it asks for, half of the context at the most, and a quarter by default."""
    assert reserved_tokens(max_tokens, context) == reserved
