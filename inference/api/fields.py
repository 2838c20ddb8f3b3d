"""Fields that bodies are made of: their types with their bounds, and how a body is read."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from inference.errors import InvalidRequestError

MAX_TOKENS = 1_048_576
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICES = 16
MAX_PROMPTS = 256
_MAX_TOKEN_ID = 2**31 - 1
_Body = TypeVar("_Body", bound="Strict")


def _text_of(content: Any) -> Any:
    """Join text parts; a string stays as it is, and what is neither is left to the type check."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('expected a string or parts of {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)


def _prompts(prompt: Any) -> Any:
    """Return the prompts, each a text or a list of token ids."""
    prompts = prompt if isinstance(prompt, list) and not (prompt and _is_token(prompt[0])) else [prompt]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"expected 1 to {MAX_PROMPTS} prompts")
    for one in prompts:
        if not one or not (isinstance(one, str) or (isinstance(one, list) and all(map(_is_token, one)))):
            raise ValueError("expected a text or token ids, or a list of such, none of them empty")
        if len(one) > MAX_TOKENS:
            raise ValueError(f"expected at most {MAX_TOKENS} characters or token ids")
    return prompts


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_TOKEN_ID


def _single(prompt: Any) -> Any:
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise ValueError("expected one string")
        return prompt[0]
    return prompt


def _listed(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _grammar(text: str) -> str:
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise ValueError(f"expected at most {MAX_GRAMMAR_BYTES} bytes of GBNF")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200)]
_Parts = list[dict[str, Any]]
Content = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | _Parts)]
_Tokens = list[Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)]]
Prompts = Annotated[
    list[Any],
    BeforeValidator(_prompts, json_schema_input_type=str | _Tokens | list[str] | list[_Tokens]),
]
Prompt = Annotated[str, BeforeValidator(_single, json_schema_input_type=str | list[str])]
_StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[
    list[_StopText],
    BeforeValidator(_listed, json_schema_input_type=_StopText | list[_StopText]),
    Field(max_length=16),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,7}$")]
TaskName = Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
TokenCount = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
TokenCountOrNone = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
ChoiceCount = Annotated[int, Field(ge=1, le=MAX_CHOICES)]
Grammar = Annotated[str, Field(min_length=1), AfterValidator(_grammar)]


class Strict(BaseModel):
    """A body, or a part of one: frozen, without conversions; unknown fields are left out."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


def read(cls: type[_Body], data: dict[str, Any]) -> _Body:
    """Check *data* against a body's fields.

    Raises:
        InvalidRequestError: the first field at fault is its *param*; texts are never quoted.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in problem["loc"] if part != "[key]")[:200]
    wanted = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "missing":
        raise InvalidRequestError(f"{param}: missing", param=param, hint="docs/api.md lists the fields")
    verb = "" if wanted.startswith("expected") else "expected "
    raise InvalidRequestError(
        f"{param}: {verb}{wanted[0].lower()}{wanted[1:]}, found {_found(problem)}",
        param=param,
        hint="docs/api.md lists the fields and their bounds",
    )


def _found(problem: Any) -> str:
    value = problem["input"]
    if problem["type"] == "literal_error" and isinstance(value, str):
        return repr(value[:32])
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return json.dumps(value)
