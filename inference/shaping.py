"""Sampling defaults: how a task is sampled where the request is silent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inference.generation import GenerateRequest
from inference.registry import ModelSpec
from inference.selection.tasks import Task

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

# Code: Chen et al. 2021 (Codex), figure 5: 0.2 gives the best first answer, with a nucleus of 0.95.
# Factual: the values by which SmolLM2's authors run it; what is asked for has one right answer.
# Creative: Holtzman et al. 2020: pure sampling from a nucleus of 0.95 comes nearest to human text.
# Chat: between them; Qwen2.5's generation_config.json has 0.7.
# A raw text to be continued has none: its next token may be what is measured.
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "code": {"temperature": 0.2, "top_p": 0.95},
    "factual": {"temperature": 0.2, "top_p": 0.9},
    "creative": {"temperature": 1.0, "top_p": 0.95},
    "chat": {"temperature": 0.7, "top_p": 0.95},
}
_KINDS: Mapping[Task, str] = {
    Task.CODE: "code",
    Task.QUESTION_ANSWERING: "factual",
    Task.SUMMARIZATION: "factual",
    Task.TRANSLATION: "factual",
    Task.CREATIVE_WRITING: "creative",
    Task.CONVERSATION: "chat",
}


def shaped(request: GenerateRequest, spec: ModelSpec | None, task: Task) -> GenerateRequest:
    """Return *request* with the registry's sampling for *task*, or ours, if it sets none itself.

    A request that sets one of the fields is taken to mean what it says, and the engine's defaults hold
    for the others: temperature 0 stays greedy, whatever penalty a model's entry has.
    """
    if any(getattr(request, name) is not None for name in _FIELDS):
        return request
    kind = _KINDS.get(task)
    values = _declared(spec, task.value) or _declared(spec, kind) or DEFAULTS.get(kind or "", {})
    return dataclasses.replace(request, **values) if values else request


def _declared(spec: ModelSpec | None, name: str | None) -> dict[str, Any]:
    """What a model's entry says under the name of a task, or of a kind of tasks."""
    sampling = None if spec is None or name is None else spec.sampling.get(name)
    return {} if sampling is None else sampling.model_dump(exclude_none=True)
