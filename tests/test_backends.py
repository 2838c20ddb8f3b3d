"""How backends are found, and the text that they share."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inference.backends
from inference.backends import LoadOptions, engine_versions, installed_backends, open_backend
from inference.backends._checkpoint import refusal
from inference.backends._text import StoppingText, cut_at_stop
from inference.errors import NoUsableBackendError
from inference.generation import GenerateRequest, Usage

ROOT = Path(__file__).resolve().parent.parent

OPTIONS = LoadOptions(
    weights=Path("weights.gguf"),
    context_tokens=2048,
    slots=4,
    threads=None,
    prefill_batch_tokens=256,
    prompt_cache_bytes=0,
    runtime_dir=Path("private"),
)


def test_options_cross_the_wire_unchanged() -> None:
    """LoadOptions survive JSON, paths included."""
    assert LoadOptions.from_dict(json.loads(json.dumps(OPTIONS.to_dict()))) == OPTIONS


@pytest.mark.parametrize("name", ["vllm", "", "_text", "../llamacpp", "os", "transformers.x", "Transformers"])
def test_only_modules_of_the_package_are_backends(name: str) -> None:
    """A name from a registry can open backend modules and nothing else."""
    with pytest.raises(NoUsableBackendError, match="backend: expected one of llamacpp"):
        open_backend(name, OPTIONS)


def test_missing_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend without its packages is not installed, and opening it says which they are."""
    (tmp_path / "absent.py").write_text(
        '"""Absent."""\nREQUIRES = ("sys", "no_such_engine")\nimport no_such_engine\n'
    )
    monkeypatch.setattr(inference.backends, "__path__", [str(tmp_path)])
    assert installed_backends() == frozenset()
    with pytest.raises(NoUsableBackendError, match="packages that are not installed: no_such_engine"):
        open_backend("absent", OPTIONS)


def test_engine_versions_are_those_of_the_packages() -> None:
    """Every installed backend says which packages in which versions it runs on."""
    found = engine_versions()
    assert set(found) == installed_backends()
    assert re.fullmatch(r"xllamacpp \d[\w.]+", found["llamacpp"])


@pytest.mark.parametrize(("package", "text"), [("yaml", r"PyYAML \d[\w.]+"), ("nowhere", "nowhere")])
def test_a_package_is_found_by_what_it_is_imported_as(package: str, text: str) -> None:
    """A distribution of another name counts; one that is not installed has no version."""
    assert re.fullmatch(text, inference.backends._versioned(package))


def test_looking_for_backends_imports_no_engine() -> None:
    """The daemon may ask what is installed; only a worker imports an engine."""
    script = (
        "import sys; from inference.backends import installed_backends; print(*installed_backends());"
        "engines = {'xllamacpp', 'torch', 'transformers', 'mlc_llm'}; assert not engines & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) <= {"llamacpp", "mlc", "transformers"}


def test_documented_backend_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend of docs/adding-a-backend.md is found by its file name, loads and generates."""
    document = (ROOT / "docs" / "adding-a-backend.md").read_text(encoding="utf-8")
    source = document.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "echo.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(inference.backends, "__path__", [str(tmp_path)])
    assert installed_backends() == {"echo"}
    backend = open_backend("echo", replace(OPTIONS, weights=tmp_path))
    chunks = list(backend.generate(GenerateRequest(prompt="one two"), lambda: False))
    assert [chunk.text for chunk in chunks] == ["one", "two", ""]
    assert chunks[-1].usage == Usage(prompt_tokens=2, completion_tokens=2)
    backend.close()


def read_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_text_is_whole_up_to_the_stop_string(text: str, stop: list[str]) -> None:
    """However text is cut into tokens, its pieces join to what comes before the first stop string."""
    text = text.replace("\N{REPLACEMENT CHARACTER}", "")
    growing = StoppingText(read_bytes, tuple(stop))
    pieces = []
    for byte in text.encode():
        pieces.append(growing.feed(byte))
        if growing.stopped:
            break
    pieces.append(growing.rest())
    shown = "".join(pieces)
    assert shown == text[: len(shown)]
    assert growing.shown_chars == len(shown)
    assert growing.stopped == any(word in text for word in stop)
    assert growing.stopped or shown == text
    assert not any(word in shown for word in stop)


def test_token_is_read_with_the_one_before_it() -> None:
    """Decoders that drop the first token's space (SentencePiece) do not lose the others' spaces."""
    words = [" one", " two", " three"]
    growing = StoppingText(lambda tokens: "".join(words[token] for token in tokens).lstrip(), ())
    assert [growing.feed(token) for token in range(3)] == ["one", " two", " three"]


def test_incomplete_character_is_never_shown() -> None:
    """A character whose last byte never comes is left out, not replaced."""
    growing = StoppingText(read_bytes, ())
    assert [growing.feed(byte) for byte in "a€".encode()[:-1]] == ["a", "", ""]
    assert growing.rest() == ""


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("plain", (5, False)),
        ("one STOP two", (4, True)),
        ("one ST", (4, False)),
        ("one STO STO", (8, False)),
        ("one END STOP", (4, True)),
    ],
)
def test_cut_at_stop(text: str, cut: tuple[int, bool]) -> None:
    """Text is shown up to the first stop string, or to what may become one."""
    assert cut_at_stop(text, ("STOP", "END")) == cut


def test_refusal_shows_the_name_and_no_path() -> None:
    """Why a load failed is told in one line in which no directory of the machine appears."""
    weights = Path("/srv/secret/models/tiny")
    error = OSError("no config.json in /srv/secret/models/tiny, /srv/secret/models/other\nread more")
    assert refusal(weights, error).message == (
        "tiny: transformers cannot load it: OSError: no config.json in tiny, other"
    )
