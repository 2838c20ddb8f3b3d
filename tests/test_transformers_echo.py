"""The echo of the transformers backend: one pass over a text, in steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.backends import open_backend
from inference.backends._echo import to_bytes
from inference.generation import Chunk, GenerateRequest
from tests.tiny_gpt2 import load_options, make_tiny_gpt2

EXTRA = "needs the extra 'transformers': make test-transformers"
torch = pytest.importorskip("torch", reason=EXTRA)
pytest.importorskip("transformers", reason=EXTRA)
pre_tokenizers = pytest.importorskip("tokenizers.pre_tokenizers", reason=EXTRA)
pytestmark = pytest.mark.transformers

GOLDEN = Path(__file__).parent / "data" / "score_smollm2.json"


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A tiny random GPT-2, of which every byte is a token."""
    loaded = open_backend("transformers", load_options(make_tiny_gpt2(tmp_path_factory.mktemp("tiny"))))
    yield loaded
    loaded.close()


def run(backend: Any, prompt: str, **options: Any) -> list[Chunk]:
    asked = {"echo": True, "logprobs": True, "max_tokens": 0, "temperature": 0.0, **options}
    return list(backend.generate(GenerateRequest(prompt=prompt, **asked), lambda: False))


def test_an_echo_has_the_probability_of_every_token(backend: Any) -> None:
    """In steps or at once, pieces of characters too: what one pass over the whole text says."""
    prompt = "naïve € " * 9
    tokens = backend.tokenize(prompt)
    with torch.no_grad():
        logits = backend._model(torch.tensor([tokens])).logits[0]
    expected = torch.log_softmax(logits, dim=-1)[range(len(tokens) - 1), tokens[1:]].tolist()
    chunks = run(backend, prompt, top_logprobs=1)
    first, *others = (item for chunk in chunks for item in chunk.logprobs)
    assert "".join(chunk.text for chunk in chunks) == prompt
    assert len(tokens) == 99 == chunks[-1].usage.prompt_tokens  # type: ignore[union-attr]
    assert first.logprob is None
    assert [item.logprob for item in others] == pytest.approx(expected, abs=1e-4)
    assert b"".join(bytes(item.token_bytes or ()) for item in (first, *others)) == prompt.encode()
    assert all("\N{REPLACEMENT CHARACTER}" not in chunk.text for chunk in chunks)


def test_an_echo_ends_when_its_caller_leaves(backend: Any) -> None:
    """Between two steps it is noticed; there is no last chunk, and the next caller is served."""
    asked = GenerateRequest(prompt="x" * 120, echo=True, logprobs=True, max_tokens=0)
    told: list[Chunk] = []
    for chunk in backend.generate(asked, lambda: bool(told)):
        told.append(chunk)
    assert [chunk.text for chunk in told] == ["x"]
    assert run(backend, "Hello", max_tokens=3, ignore_eos=True)[-1].usage.completion_tokens == 3  # type: ignore[union-attr]


def test_a_score_of_real_weights_is_the_golden_one(
    smollm2_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SmolLM2 out of its GGUF, in float32: what other engines are compared with."""
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)  # the bar for GGUF tensors leaves a thread behind
    golden = json.loads(GOLDEN.read_text())
    loaded = open_backend("transformers", load_options(smollm2_path, prefill_batch_tokens=256))
    first, *others = (item for chunk in run(loaded, golden["text"]) for item in chunk.logprobs)
    assert [item.token for item in (first, *others)] == golden["tokens"]
    assert [item.logprob for item in others] == pytest.approx(golden["logprobs"][1:], abs=0.001)
    loaded.close()


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_bytes_of_byte_level_tokens_are_those_of_the_text(text: str) -> None:
    """GPT-2's character for each byte, as its own table has it: one token a byte gives the text back."""
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    [(symbols, _)] = alphabet.pre_tokenize_str(text)
    assert to_bytes(list(symbols), text) == tuple(bytes([byte]) for byte in text.encode())
