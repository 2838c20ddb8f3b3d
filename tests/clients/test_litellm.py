"""LiteLLM: the openai/ and the ollama providers, whole, streamed and asynchronous."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="make test-clients"),
]


@pytest.fixture(scope="module")
def told(play: Callable[..., Any], embedding_model: str) -> Any:
    """What litellm_script.py printed: LiteLLM keeps threads and sockets, so it has its own process."""
    return play("litellm_script", embedding_model)


@pytest.mark.parametrize("provider", ["openai", "ollama_chat", "ollama"])
def test_every_provider_gives_one_answer_in_three_ways(told: Any, provider: str) -> None:
    """Whole, streamed and awaited are the same greedy text, in parts that arrive one by one."""
    answer = told[provider]
    assert "error" not in answer, answer["error"]
    assert answer["whole"] == answer["streamed"] == answer["async"]
    assert len(answer["whole"].split()) > 3 and answer["parts"] > 3
    assert answer["reason"] in ("stop", "length") and answer["tokens"] > 0


def test_both_dialects_say_the_same(told: Any) -> None:
    """A conversation gets the same greedy answer through OpenAI's dialect and through Ollama's."""
    assert told["openai"]["whole"] == told["ollama_chat"]["whole"]


def test_both_dialects_embed_alike(told: Any) -> None:
    """Two texts, two vectors, the same through both."""
    by_openai, by_ollama = told["embedding/openai"], told["embedding/ollama"]
    assert "error" not in by_openai, by_openai["error"]
    assert "error" not in by_ollama, by_ollama["error"]
    assert len(by_openai["vectors"]) == 2
    for one, other in zip(by_openai["vectors"], by_ollama["vectors"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
