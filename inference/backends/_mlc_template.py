"""The chat template of a checkpoint: a stranger's program, run where it can read and change nothing."""

from __future__ import annotations

import datetime
import functools
import inspect
import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference.errors import InvalidRequestError
from inference.generation import Message

_TIME_LIMIT_S = 2.0
_MAX_CHARACTERS = 4_000_000
_MAX_TEMPLATE_BYTES = 256 * 1024
_MAX_NUMBER = 100_000
_MAX_GROWTH_PAGES = 128 * 2**20 // resource.getpagesize()
_WIDE = re.compile(r"\d{5}|\*|:[^}]*\{")  # a width as such, or one that is given beside
_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """Renders messages; made by `find_template`."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.filters = {
            name: _guarded(name, function) for name, function in environment.filters.items()
        }
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}
        self._template = environment.from_string(source)
        self._names = dict(names)

    def render(self, messages: Sequence[Message], limit_s: float = _TIME_LIMIT_S) -> str:
        """Return the prompt that ends where the assistant begins.

        Raises:
            InvalidRequestError: the template refuses the messages, fails, or takes too long.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        pieces: list[str] = []
        characters = 0
        try:
            with _Deadline(limit_s):
                for piece in self._template.generate(
                    messages=turns, add_generation_prompt=True, **self._names
                ):
                    pieces.append(piece)
                    characters += len(piece)
                    _bound(characters)
        except Exception as error:  # a program of a stranger raises what it likes
            said = (str(error).splitlines() or [""])[0]
            raise InvalidRequestError(
                f"messages: the model's chat template refuses them: {said or type(error).__name__}",
                param="messages",
            ) from error
        return "".join(pieces)


def find_template(directory: Path) -> ChatTemplate | None:
    """Return the template of the checkpoint in *directory*; ``None`` when it has none.

    chat_template.jinja wins over tokenizer_config.json, as in transformers.

    Raises:
        jinja2.TemplateError, ValueError: there is one that cannot be used.
    """
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    own = directory / "chat_template.jinja"
    source = own.read_text(encoding="utf-8") if own.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((one["template"] for one in source if one.get("name") == "default"), None)
    if not source:
        return None
    if len(source.encode()) > _MAX_TEMPLATE_BYTES:
        raise ValueError(f"the chat template has more than {_MAX_TEMPLATE_BYTES} bytes")
    return ChatTemplate(source, {name: _token_text(config[name]) for name in _NAMES if config.get(name)})


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox of jinja2, in which one operation cannot take all memory either."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse powers, and texts and lists repeated into great length."""
        if operator == "**":
            raise jinja2.TemplateRuntimeError("powers are not for chat templates")
        for one, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple) and isinstance(times, int):
                _bound(len(one) * times)
        if operator == "%" and isinstance(left, str):
            _check_sizes("format", [left])
        return super().call_binop(context, operator, left, right)

    def call(self, context: jinja2.runtime.Context, function: Any, *args: Any, **named: Any) -> Any:
        """Refuse a method that would make a great text of small ones."""
        # jinja2 wraps format and format_map of a text.
        owner = getattr(inspect.unwrap(function) if callable(function) else function, "__self__", None)
        if isinstance(owner, str):
            _check_sizes(function.__name__, [owner, *args, *named.values()])
        return super().call(context, function, *args, **named)


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # with the attribute that says what is passed beside the value
    def checked(*args: Any, **named: Any) -> Any:
        _check_sizes(name, [*args, *named.values()])
        return function(*args, **named)

    return checked


def _check_sizes(name: str, values: Sequence[Any]) -> None:
    """Refuse what one call would fill the memory with: no other thread can stop it then."""
    for value in values:
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise jinja2.TemplateRuntimeError(f"{name}: {value} is more than {_MAX_NUMBER}")
        if name in ("format", "format_map") and isinstance(value, str) and _WIDE.search(value):
            raise jinja2.TemplateRuntimeError(f"{name}: a field is too wide")
    if name in ("replace", "join"):
        _bound(math.prod(max(1, len(value)) for value in values if isinstance(value, str | list)) // 64)


class _Deadline:
    """Raises inside the block, at the next line that Python runs, when its time or its memory is over."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    def __enter__(self) -> None:
        self._end_s = time.monotonic() + self._limit_s
        self._memory = os.open("/proc/self/statm", os.O_RDONLY)
        self._before_pages = self._pages()
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        os.close(self._memory)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > self._end_s:
            raise jinja2.TemplateRuntimeError(f"it takes longer than {self._limit_s:g} s")
        if self._pages() - self._before_pages > _MAX_GROWTH_PAGES:
            raise jinja2.TemplateRuntimeError("it takes too much memory")
        return self._trace

    def _pages(self) -> int:
        return int(os.pread(self._memory, 64, 0).split()[1])  # resident


def _bound(characters: int) -> None:
    if characters > _MAX_CHARACTERS:
        raise jinja2.TemplateRuntimeError(f"it makes more than {_MAX_CHARACTERS} characters")


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
