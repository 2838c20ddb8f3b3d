"""Generating on a real service: names that choose, turns that slide, defaults of a task, transcripts.

SmolLM2 follows instructions; Gemma 3 270M is a base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.api import create_app
from inference.errors import (
    ContextLengthExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedParameterError,
)
from inference.generation import GenerateRequest, Message
from inference.selection.tasks import Task
from inference.service import Service, build_service
from inference.settings import load_settings

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CONTEXT = 256


@pytest.fixture(scope="module")
def service(
    smollm2_path: Path, gemma_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service with a small context that may hold both models; its SmolLM2 has defaults for code."""
    directory = tmp_path_factory.mktemp("generating")
    registry = json.loads(load_settings().registry_path.read_text(encoding="utf-8"))
    registry["models"][SMOLLM2]["sampling"] = {"code": {"temperature": 0}}
    path = directory / "models.json"
    path.write_text(json.dumps(registry))
    made = build_service(
        load_settings(
            {
                "registry": str(path),
                "state_dir": str(directory / "state"),
                "context_tokens": CONTEXT,
                "keep_alive_s": -1,
                "min_residency_s": 0,
                "offline": True,
            }
        )
    )
    for model in (SMOLLM2, GEMMA):
        made.load(model)
    yield made
    made.close()


def answer(service: Service, **fields: Any) -> Any:
    """Generate greedily; return the result."""
    with service.generate(GenerateRequest(**{"max_tokens": 8, "temperature": 0.0, **fields})) as stream:
        for _ in stream:
            pass
    assert stream.result is not None
    return stream.result


def turns(*contents: str, system: str = "Answer in a word.") -> tuple[Message, ...]:
    """A chat of the user and the assistant in turn, after a rule."""
    spoken = [Message(("user", "assistant")[at % 2], text) for at, text in enumerate(contents)]
    return (Message("system", system), *spoken)


LONG = turns(*(f"Number {at}: {'word ' * 15}" for at in range(21)))


def test_auto_names_choose_by_speed_or_task(service: Service) -> None:
    """What comes after "auto:" is the speed or the task; the answer names the model that served."""
    fast = service.select(GenerateRequest(model="auto:fast", prompt="x"))
    assert fast.speed == "fast"
    assert service.select(GenerateRequest(model="auto:quality", prompt="x")).speed == "quality"
    code = service.select(GenerateRequest(model="auto:code", messages=turns("hi")))
    assert (code.task, code.speed) == (Task.CODE, service.settings.speed)
    found = answer(service, model="auto:conversation", messages=turns("Hello"))
    assert found.model == SMOLLM2


@pytest.mark.parametrize("name", ["auto:", "auto:turbo", "auto:Fast", "auto:fast:code"])
def test_unknown_auto_names_list_the_known(service: Service, name: str) -> None:
    """A wrong suffix is a 404 that lists every right one."""
    for call in (service.generate, service.select):
        with pytest.raises(ModelNotFoundError) as caught:
            call(GenerateRequest(model=name, prompt="x"))
        known = str(caught.value.hint)
        assert all(
            f"auto:{word}" in known for word in ("fast", "balanced", "quality", *(t.value for t in Task))
        )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "auto:fast", "speed": "quality"}, "speed"),
        ({"model": "auto:code", "task": "translation"}, "task"),
        ({"model": "auto:embedding"}, "task"),
        ({"context_overflow": "slide"}, "context_overflow"),
    ],
)
def test_contradictions_are_refused(service: Service, fields: dict[str, Any], param: str) -> None:
    """A request that says two things, or what a text cannot have, is a 400 that names the field."""
    with pytest.raises(InvalidRequestError) as caught:
        service.generate(GenerateRequest(prompt="x", **fields))
    assert caught.value.param == param


def test_long_chats_slide(service: Service) -> None:
    """The oldest exchanges go, as few as leave the answer its room; the rest is read as if sent alone."""
    with pytest.raises(ContextLengthExceededError):
        answer(service, model=SMOLLM2, messages=LONG)
    slid = answer(service, model=SMOLLM2, messages=LONG, context_overflow="slide")
    gone = slid.dropped_turns
    assert gone > 0 and gone % 2 == 0 and slid.usage.prompt_tokens <= CONTEXT - 8
    alone = answer(service, model=SMOLLM2, messages=(LONG[0], *LONG[1 + gone :]))
    assert (slid.text, slid.usage.prompt_tokens) == (alone.text, alone.usage.prompt_tokens)
    one_less = (LONG[0], *LONG[1 + gone - 2 :])
    assert service.count_tokens(GenerateRequest(model=SMOLLM2, messages=one_less))["tokens"] > CONTEXT - 8


def test_sliding_leaves_room_for_half_of_the_context(service: Service) -> None:
    """Who wants more tokens has more turns dropped, until half of the context is the answer's."""
    few = answer(service, model=SMOLLM2, messages=LONG, context_overflow="slide", max_tokens=8)
    with service.generate(
        GenerateRequest(model=SMOLLM2, messages=LONG, context_overflow="slide", max_tokens=100_000)
    ) as many:
        assert many.dropped_turns > few.dropped_turns


def test_a_chat_that_fits_is_not_touched(service: Service) -> None:
    """Sliding costs a chat with room nothing."""
    short = turns("Hello")
    slid = answer(service, model=SMOLLM2, messages=short, context_overflow="slide")
    assert slid.dropped_turns == 0 and slid.text == answer(service, model=SMOLLM2, messages=short).text


def test_a_last_turn_that_is_too_long_is_refused(service: Service) -> None:
    """What cannot be dropped and does not fit is the usual 400, with both counts."""
    long = turns("Hi", "Ho", "word " * 400)
    for model in (SMOLLM2, GEMMA):
        with pytest.raises(ContextLengthExceededError) as caught:
            answer(service, model=model, messages=long, context_overflow="slide")
        assert caught.value.details["prompt_tokens"] > caught.value.details["context_tokens"] == CONTEXT


def test_base_models_answer_a_chat_as_a_transcript(service: Service) -> None:
    """A base model continues a plain transcript, whatever template its file holds, up to the next turn."""
    chat = turns("What is the capital of France?", "Paris.", "And of Italy?")
    text = (
        "Answer in a word.\n\nUser: What is the capital of France?\nAssistant: Paris.\n"
        "User: And of Italy?\nAssistant:"
    )
    found = answer(service, model=GEMMA, messages=chat, max_tokens=24)
    raw = answer(
        service, model=GEMMA, prompt=text, stop=("\nUser:", "\nAssistant:", "\nTool:"), max_tokens=24
    )
    assert found.usage.prompt_tokens == raw.usage.prompt_tokens
    assert found.text == raw.text.lstrip() and found.text and "User:" not in found.text


def test_base_models_slide_too(service: Service) -> None:
    """What is counted is the transcript."""
    slid = answer(service, model=GEMMA, messages=LONG, context_overflow="slide")
    assert slid.dropped_turns > 0 and slid.usage.prompt_tokens <= CONTEXT - 8


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA])
def test_tools_need_a_template_that_has_them(service: Service, model: str) -> None:
    """Tools are refused where the model would never see them; so are calls of earlier turns."""
    with pytest.raises(UnsupportedParameterError) as caught:
        answer(service, model=model, messages=turns("Hi"), tools=(TOOL,), tool_choice="auto")
    assert caught.value.param == "tools" and caught.value.hint


def test_defaults_of_the_task_reach_the_engine(service: Service) -> None:
    """The registry's temperature 0 for code makes two answers equal; what the caller says undoes it."""

    def wrote(**fields: Any) -> str:
        asked = {"model": SMOLLM2, "messages": turns("Write a function."), "temperature": None, **fields}
        text: str = answer(service, max_tokens=16, **asked).text
        return text

    greedy = wrote(temperature=0.0)
    assert [wrote(task="code"), wrote(task="code", seed=7)] == [greedy, greedy]
    assert {wrote(task="code", temperature=2.0, seed=seed) for seed in range(3)} != {greedy}


def test_what_slid_is_told_over_http(service: Service) -> None:
    """Through the routes: the header and the field, and the model that served."""
    body = {
        "model": SMOLLM2,
        "messages": [{"role": turn.role, "content": turn.content} for turn in LONG],
        "max_tokens": 4,
        "context_overflow": "slide",
    }
    response = create_app(service).test_client().post("/v1/chat/completions", json=body)
    found = response.get_json()
    assert (response.status_code, found["model"]) == (200, SMOLLM2)
    assert response.headers["X-JetLLM-Dropped-Turns"] == str(found["jetllm"]["dropped_turns"]) != "0"
