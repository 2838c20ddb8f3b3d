"""`InferenceEngine` tells what the daemon tells: choice, machine, models, and a conversation's stream."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.inference_engine import InferenceEngine, JetLLMError
from tests.test_service import MODEL

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hi"}]


def test_a_conversation_streams_what_chat_answers(smollm2_path: Path) -> None:
    """`stream_chat` gives the pieces of what `chat` gives whole."""
    options = {"max_tokens": 8, "temperature": 0.0, "model": MODEL}
    with InferenceEngine(context_tokens=1024) as engine:
        with engine.stream_chat(CHAT, **options) as stream:
            pieces = [chunk.text for chunk in stream]
        assert "".join(pieces) == engine.chat(CHAT, **options)["text"] and len(pieces) > 2


def test_the_engine_explains_and_describes(smollm2_path: Path) -> None:
    """`select`, `device` and `model` give what the API shows, without loading anything."""
    with InferenceEngine(context_tokens=1024) as engine:
        chosen = engine.select("smollm2")
        assert (chosen["model"], chosen["variant"], chosen["pulled"]) == (MODEL, "llamacpp-q4_1", True)
        assert engine.select("smollm2", "llamacpp-q4_1")["model"] == MODEL
        entry = engine.model("smollm2")
        assert entry == next(model for model in engine.models() if model["id"] == MODEL)
        weights = {name: variant["weights_sha256"] for name, variant in entry["variants"].items()}
        assert entry["chat"] == "embedded" and smollm2_path.name.endswith(str(weights["llamacpp-q4_1"]))
        assert weights["transformers"] is None  # not here: no hash of it counts
        assert engine.device()["static"]["cpu_cores"]
        assert engine.status()["workers"] == []


def test_the_engine_pulls_and_builds(smollm2_path: Path) -> None:
    """`pull` finds what is here, `build` says of what is not for MLC that there is nothing to build."""
    with InferenceEngine(cache_dir=smollm2_path.parents[1]) as engine:
        assert engine.pull(MODEL, "llamacpp-q4_1")["path"] == str(smollm2_path)
        with pytest.raises(JetLLMError):
            engine.build(MODEL, "llamacpp-q4_1")
