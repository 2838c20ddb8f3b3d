"""The transcript: how a conversation is written out for a base model, which only continues text.

Instructions come first, then a line for each turn, then the name of who is to speak:

    You are terse.

    User: What is the capital of France?
    Assistant: Paris.
    User: And of Italy?
    Assistant:
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from contextlib import closing

from inference.errors import UnsupportedParameterError
from inference.generation import Chunk, GenerateRequest, Message

_SPEAKERS = {"user": "User", "assistant": "Assistant", "tool": "Tool"}
STOPS = tuple(f"\n{speaker}:" for speaker in _SPEAKERS.values())


def written_out(request: GenerateRequest) -> GenerateRequest:
    """Return *request*, which has messages, as a prompt to be continued up to the next turn.

    Raises:
        UnsupportedParameterError: it has tools, or calls of tools.
    """
    turns = request.messages or ()
    if request.tools or any(turn.tool_calls for turn in turns):
        raise UnsupportedParameterError(
            "tools: the model is a base model, which calls none",
            hint="name a model that follows instructions, or leave out the tools",
            param="tools",
        )
    stop = (*request.stop, *(text for text in STOPS if text not in request.stop))
    return dataclasses.replace(request, messages=None, prompt=_text(turns), stop=stop)


def _text(turns: Sequence[Message]) -> str:
    system = "".join(f"{turn.content}\n\n" for turn in turns if turn.role == "system" and turn.content)
    lines = [f"{_SPEAKERS[turn.role]}: {turn.content}" for turn in turns if turn.role in _SPEAKERS]
    if turns and turns[-1].role == "assistant":
        return system + "\n".join(lines)  # its own last words, which go on
    return system + "\n".join([*lines, "Assistant:"])


def trimmed(chunks: Generator[Chunk, None, None]) -> Generator[Chunk, None, None]:
    """Yield an answer's chunks without the white space that parts it from "Assistant:"."""
    begun = False
    with closing(chunks):
        for chunk in chunks:
            if begun:
                yield chunk
                continue
            text = chunk.text.lstrip()
            begun = bool(text)
            if text or chunk.logprobs or chunk.finish_reason is not None:
                yield dataclasses.replace(chunk, text=text)
