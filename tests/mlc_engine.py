"""The mlc backend in this process, on the fake engine: fixtures, and what the tests do with it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.backends import BackendProtocol, open_backend
from inference.generation import GenerateRequest
from tests.conftest import DEADLINE_S
from tests.mlc_model import FAKE, load_options, make_model

Load = Callable[..., Any]


def never() -> bool:
    return False


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """mlc_llm is the fake one while a test runs, and unknown after it."""
    monkeypatch.syspath_prepend(str(FAKE))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mlc_llm"]:
        del sys.modules[name]


@pytest.fixture
def load(tmp_path: Path, fake_engine: None) -> Iterator[Load]:
    """Load a fake model: a mapping of options, and the model's script as keywords."""
    loaded: list[BackendProtocol] = []

    def start(options: dict[str, Any] | None = None, **script: Any) -> Any:
        weights = make_model(tmp_path / f"model-{len(loaded)}", **script)
        loaded.append(open_backend("mlc", load_options(weights, **(options or {}))))
        return loaded[-1]

    yield start
    for backend in loaded:
        backend.close()


def run(backend: Any, cancelled: Callable[[], bool] = never, **request: Any) -> tuple[str, list[Any]]:
    """Return the text and the chunks."""
    chunks: list[Any] = list(backend.generate(GenerateRequest(**request), cancelled))
    return "".join(chunk.text for chunk in chunks), chunks


def side_by_side(backend: Any, requests: list[dict[str, Any]]) -> list[Any]:
    """Run all requests at once; return what `run` returns of each."""
    results: list[Any] = [None] * len(requests)

    def work(number: int) -> None:
        results[number] = run(backend, **requests[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    return results
