"""Sampling defaults: whose value holds, by task."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.generation import GenerateRequest
from inference.registry import ModelSpec
from inference.selection.tasks import Task
from inference.shaping import DEFAULTS, shaped

SAMPLING = {"code": {"temperature": 0.1, "top_k": 5}, "conversation": {"min_p": 0.1}}


def spec(**sampling: Any) -> ModelSpec:
    """A model with these defaults."""
    entry = {
        "name": "M",
        "parameters": "1M",
        "memory_requirement": 1,
        "container": None,
        "sampling": sampling,
    }
    return ModelSpec.model_validate_json(json.dumps({**entry, "status": "planned", "use_cases": ["code"]}))


def test_the_registry_wins() -> None:
    """What a model's entry says of the task holds, and nothing of ours beside it."""
    found = shaped(GenerateRequest(prompt="x"), spec(**SAMPLING), Task.CODE)
    assert (found.temperature, found.top_k, found.top_p) == (0.1, 5, None)
    found = shaped(GenerateRequest(prompt="x"), spec(**SAMPLING), Task.CONVERSATION)
    assert (found.temperature, found.min_p) == (None, 0.1)


@pytest.mark.parametrize(
    ("task", "temperature", "top_p"),
    [
        (Task.CODE, 0.2, 0.95),
        (Task.QUESTION_ANSWERING, 0.2, 0.9),
        (Task.SUMMARIZATION, 0.2, 0.9),
        (Task.TRANSLATION, 0.2, 0.9),
        (Task.CREATIVE_WRITING, 1.0, 0.95),
        (Task.CONVERSATION, 0.7, 0.95),
        (Task.TEXT_GENERATION, None, None),
        (Task.VISION, None, None),
    ],
)
def test_each_task_has_its_own(task: Task, temperature: float | None, top_p: float | None) -> None:
    """Code and facts are sampled close to the likeliest, stories freely; a raw text as the engine does."""
    for entry in (None, spec()):
        found = shaped(GenerateRequest(prompt="x"), entry, task)
        assert (found.temperature, found.top_p) == (temperature, top_p)


@pytest.mark.parametrize(
    "fields",
    [{"temperature": 0.0}, {"temperature": 1.5}, {"top_p": 0.5}, {"top_k": 0}, {"min_p": 0.0},
     {"repetition_penalty": 1.0}],
)  # fmt: skip
def test_a_request_that_says_anything_is_left_alone(fields: dict[str, Any]) -> None:
    """Temperature 0 stays greedy, whatever penalties the model's entry has."""
    request = GenerateRequest(prompt="x", **fields)
    strict = spec(code={"temperature": 0.9, "repetition_penalty": 1.3})
    assert shaped(request, strict, Task.CODE) is request


def test_an_entry_may_name_kinds_of_tasks() -> None:
    """ "factual" stands for questions, summaries and translations; the task's own name wins."""
    entry = spec(factual={"temperature": 0.3}, translation={"temperature": 0.4})
    temperatures = [
        shaped(GenerateRequest(prompt="x"), entry, task).temperature
        for task in (Task.QUESTION_ANSWERING, Task.SUMMARIZATION, Task.TRANSLATION, Task.CODE)
    ]
    assert temperatures == [0.3, 0.3, 0.4, 0.2]


def test_only_names_that_a_request_has() -> None:
    """Every default is a field of the request."""
    for values in DEFAULTS.values():
        assert GenerateRequest(**values).temperature == values["temperature"]  # type: ignore[arg-type]
