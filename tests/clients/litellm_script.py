"""LiteLLM as a program uses it: asks the daemon in several ways and prints what came as JSON.

usage: python -m tests.clients.litellm_script URL MODEL EMBEDDING_MODEL
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

QUESTION = [{"role": "user", "content": "Name three animals that live in the sea."}]


def main(url: str, model: str, embedding_model: str) -> None:
    """Ask through OpenAI's dialect and through Ollama's."""
    litellm: Any = importlib.import_module("litellm")
    openai = {"api_base": f"{url}/v1", "api_key": "none"}
    ways = {
        "openai": {"model": f"openai/{model}", **openai},
        "ollama_chat": {"model": f"ollama_chat/{model}", "api_base": url},
        "ollama": {"model": f"ollama/{model}", "api_base": url},
    }
    told: dict[str, Any] = {name: ask(litellm, way) for name, way in ways.items()}
    told["embedding/openai"] = embed(litellm, {"model": f"openai/{embedding_model}", **openai})
    told["embedding/ollama"] = embed(litellm, {"model": f"ollama/{embedding_model}", "api_base": url})
    sys.stdout.write(json.dumps(told))


def embed(litellm: Any, way: dict[str, str]) -> dict[str, Any]:
    """Return the vectors of two texts; an error is told instead."""
    try:
        answer = litellm.embedding(**way, input=["A cat sits on the mat.", "Interest rates rose."])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"vectors": [item["embedding"] for item in answer.data]}


def ask(litellm: Any, way: dict[str, str]) -> dict[str, Any]:
    """Whole, streamed and asynchronously; an error is told instead of an answer."""
    asked = {**way, "messages": QUESTION, "temperature": 0, "max_tokens": 24, "timeout": 60}
    try:
        whole = litellm.completion(**asked)
        parts = [part.choices[0].delta.content or "" for part in litellm.completion(**asked, stream=True)]
        waited = asyncio.run(litellm.acompletion(**asked))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "whole": whole.choices[0].message.content,
        "streamed": "".join(parts),
        "parts": len([part for part in parts if part]),
        "async": waited.choices[0].message.content,
        "reason": whole.choices[0].finish_reason,
        "tokens": whole.usage.completion_tokens,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
