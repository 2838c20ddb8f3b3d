"""Backends: one module per engine, found by name; this file is the contract that they keep.

A backend module has a ``class Backend`` whose constructor takes `LoadOptions` and loads, and a
literal tuple ``REQUIRES`` with the packages that its engine needs, if any. Only the worker imports such a
module, so it may import its engine at the top; everybody else learns from ``REQUIRES``, which is
read without running the file. docs/adding-a-backend.md has an example.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from inference.errors import NoUsableBackendError
from inference.generation import Chunk, GenerateRequest

Capability = Literal[
    "chat", "completion", "logprobs", "score", "json_schema", "grammar", "seed", "embed", "tokenize", "tools"
]

_MODULE_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class LoadOptions:
    """What a backend loads, and within which limits.

    Args:
        weights: a file or a directory, complete and checked.
        context_tokens: tokens that one sequence may have, prompt and answer together.
        slots: sequences computed at once; an engine that cannot says so in its own ``slots``.
        threads: CPU threads; ``None`` leaves the choice to the backend.
        prefill_batch_tokens: tokens of a prompt between two looks at ``cancelled``.
        prompt_cache_bytes: memory for the KV caches of finished prompts; 0 is none.
        device: the engine's own name of a device ("cuda:0"); ``None`` leaves the choice to it.
        memory_bytes: what was reserved for it in the ledger; an engine that allocates up front keeps within.
        runtime_dir: a private directory (0700) for sockets and temporaries.
        embeds: whether it is to make vectors of texts, and no texts.
    """

    weights: Path
    context_tokens: int
    slots: int
    threads: int | None
    prefill_batch_tokens: int
    prompt_cache_bytes: int
    runtime_dir: Path
    device: str | None = None
    memory_bytes: int | None = None
    embeds: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads back."""
        paths = {"weights": str(self.weights), "runtime_dir": str(self.runtime_dir)}
        return dataclasses.asdict(self) | paths

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LoadOptions:
        """Rebuild options that crossed the wire."""
        paths = {name: Path(data[name]) for name in ("weights", "runtime_dir")}
        return cls(**{**data, **paths})


class BackendProtocol(Protocol):
    """A loaded model.

    *slots* and *context_tokens* are what the engine granted, which may be less than the options
    asked for. *engine* names the engine and its version: "llama.cpp b1234 (xllamacpp 2026.1)".
    A request with ``echo`` reaches only a backend with the capability "score".
    """

    capabilities: frozenset[Capability]
    slots: int
    context_tokens: int
    engine: str

    def __init__(self, options: LoadOptions) -> None:
        """Load, so that the next call generates at full speed.

        Raises:
            LoadFailedError: the engine refused the weights; the message has its reason.
            UnsafeArtifactError: the weights are of a kind that is never loaded.
        """

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Yield prefill chunks if the engine can, text chunks, and exactly one last chunk.

        With ``request.echo`` the prompt's text comes first, and with ``logprobs`` each of its tokens
        has its probability given those before it, by the model's bare distribution.

        The last chunk has *finish_reason*, *usage* and *timings*, and may have text. Up to *slots*
        threads may call this at once. The stream ends early, without a last chunk, soon after
        *cancelled* returns true or the iterator is closed; *cancelled* is quick and any thread of
        the backend may call it.

        Raises:
            InvalidRequestError: the request asks for what this backend cannot do.
            ContextLengthExceededError: *details* has "prompt_tokens" and "context_tokens".
            JetLLMError: anything else, at the latest from the iterator's ``next``.
        """

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of *text* as it stands, without added special tokens."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; what is no whole character becomes U+FFFD."""

    def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """Return the ids that the model would read of *request*, its chat template and all.

        Raises:
            InvalidRequestError: the request asks for what this backend cannot do.
        """

    def embed(
        self, inputs: Sequence[str | Sequence[int]], cancelled: Callable[[], bool]
    ) -> tuple[list[list[float]], int]:
        """Return a vector of unit length for each input, and how many tokens were read.

        Only a backend with the capability "embed" is asked; one that was loaded to embed has neither
        "chat" nor "completion". Token lists get what the model puts around a text, as texts do.

        Raises:
            ContextLengthExceededError: an input is longer than the context.
        """

    def close(self) -> None:
        """Stop what runs and release the weights; a second call does nothing."""


class PushBackend(BackendProtocol, Protocol):
    """A backend whose engine calls back: the worker then saves one change of threads per token."""

    def push(
        self, request: GenerateRequest, cancelled: Callable[[], bool], emit: Callable[[Chunk], None]
    ) -> None:
        """Do as `generate` does, giving each chunk to *emit*, on any thread, before this returns."""


def iterate(
    push: Callable[[GenerateRequest, Callable[[], bool], Callable[[Chunk], None]], None],
    request: GenerateRequest,
    cancelled: Callable[[], bool],
) -> Iterator[Chunk]:
    """Make a `PushBackend`'s ``generate`` of its ``push``, which runs on a thread of its own."""
    items: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def run() -> None:
        try:
            push(request, lambda: closed.is_set() or cancelled(), items.put)
        except BaseException as error:
            items.put(error)
        else:
            items.put(None)

    thread = threading.Thread(target=run, name="push", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()


def open_backend(name: str, options: LoadOptions) -> BackendProtocol:
    """Load *options.weights* with the backend module called *name*.

    Raises:
        NoUsableBackendError: there is no such module, or its engine is not installed.
        JetLLMError: whatever the module's constructor raises.
    """
    missing = _missing_packages(name)
    if missing:
        raise NoUsableBackendError(
            f"backend '{name}' needs packages that are not installed: {', '.join(missing)}",
            hint="docs/adding-a-backend.md says where each engine comes from",
        )
    backend: BackendProtocol = importlib.import_module(f"{__name__}.{name}").Backend(options)
    return backend


def installed_backends() -> frozenset[str]:
    """Return the backends whose engine is installed here; imports no engine."""
    return frozenset(name for name in _names() if not _missing_packages(name))


def engine_versions() -> dict[str, str]:
    """Return the packages and versions behind each installed backend; imports no engine."""
    return {name: engine_version(name) for name in sorted(installed_backends())}


def engine_version(name: str) -> str:
    """Return the packages and versions behind one installed backend; its own name where it needs none.

    The daemon says so of an engine that it never loads, and the worker of the one that it has loaded:
    what is equal ran the same engine.
    """
    return ", ".join(map(_versioned, _requires(name))) or name


def packages_of(name: str) -> tuple[str, ...]:
    """Return the packages that a backend's engine needs; none for one that needs none."""
    return _requires(name)


def _versioned(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        # The distribution may be called otherwise than the package, as nightly builds are.
        names = importlib.metadata.packages_distributions().get(package, [])
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) or package


def _names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if _MODULE_NAME.fullmatch(m.name))


def _missing_packages(name: str) -> list[str]:
    if name not in _names():
        raise NoUsableBackendError(
            f"backend: expected one of {', '.join(_names())}, got {name!r}",
            hint="correct the variant's backend in models.json",
        )
    return [package for package in _requires(name) if importlib.util.find_spec(package) is None]


def _requires(name: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(f"{__name__}.{name}")
    if spec is None or spec.origin is None:
        return ()
    for statement in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "REQUIRES":
            return tuple(ast.literal_eval(statement.value))
    return ()
