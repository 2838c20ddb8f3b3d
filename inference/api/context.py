"""What the routes share: the service, its metrics, permits for work, and the end of it all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from inference.api.errors import ShuttingDownError
from inference.api.limits import Limits
from inference.api.metrics import Metrics
from inference.errors import CancelledError, QueueFullError
from inference.generation import Chunk, Embeddings, EmbedRequest, GenerateRequest, Generation
from inference.jobs import Jobs
from inference.settings import Settings

EXTENSION = "jetllm"


class Stream(Protocol):
    """A generation under way; it holds a worker until it is closed or exhausted."""

    @property
    def model(self) -> str:
        """Name in the registry."""

    @property
    def variant(self) -> str:
        """Which way of running it."""

    @property
    def selection(self) -> Any:
        """The decision that led here: *reason*, *task*, *speed*."""

    @property
    def system_fingerprint(self) -> str:
        """What would have to be equal for the text to be equal."""

    @property
    def request_id(self) -> str:
        """The service's own name for this generation."""

    @property
    def dropped_turns(self) -> int:
        """How many turns of the chat were left out to make it fit."""

    @property
    def result(self) -> Generation | None:
        """The whole, once exhausted."""

    def __iter__(self) -> Iterator[Chunk]: ...

    def close(self) -> None:
        """Stop the computation; harmless when there is none."""


class Service(Protocol):
    """The use cases that the API offers; inference/service.py has them."""

    @property
    def settings(self) -> Settings:
        """Settings in force."""

    @property
    def registry(self) -> Any:
        """The models that may be named."""

    @property
    def measurements(self) -> Any:
        """What the harness measured here: *rows*, *skipped*, *record*."""

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Stream:
        """Return once the first text, or the end, is there."""

    def embed(self, request: EmbedRequest, cancelled: Callable[[], bool]) -> Embeddings:
        """Return a vector for each input."""

    def tokenize(self, model: str | None, text: str, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Return the tokens of a text, and whose they are."""

    def detokenize(
        self, model: str | None, ids: Sequence[int], cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        """Return the text of tokens."""

    def count_tokens(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """Return how many tokens would be read of a request, and how many there may be."""

    def models(self) -> list[dict[str, Any]]:
        """Describe every registered model."""

    def model(self, name: str) -> dict[str, Any]:
        """Describe one model by name or alias."""

    def chat_template(self, name: str, variant: str) -> str | None:
        """Return the template that the weights bring along."""

    def load(
        self,
        name: str,
        *,
        variant: str | None,
        pin: bool | None,
        keep_alive_s: float | None,
        building: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Return once the model is ready; what has to be built for it tells its progress."""

    def unload(self, name: str) -> dict[str, Any]:
        """Return once its memory is back."""

    def delete(self, name: str, *, variant: str | None) -> dict[str, Any]:
        """Return once what is here of a model, or of a variant, is gone."""

    def pull(
        self,
        name: str,
        *,
        variant: str | None,
        progress: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Return once its weights are here."""

    def build(
        self,
        name: str,
        *,
        variant: str | None,
        force: bool,
        progress: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, Any]:
        """Return the record of its build, once it stands."""

    def select(self, request: GenerateRequest, *, context_tokens: int | None = None) -> Any:
        """Return the decision, with every candidate."""

    def status(self) -> dict[str, Any]:
        """Return a snapshot that waits for nothing."""

    def device(self) -> dict[str, Any]:
        """Describe the machine."""

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        """Whether work can be accepted, and why not."""

    def begin_drain(self) -> None:
        """Refuse new work from now on."""


class Context:
    """One per application.

    *stopping* is set when the drain is over: work still under way then ends with an error.
    """

    def __init__(self, service: Service, limits: Limits) -> None:
        self.service = service
        self.settings = service.settings
        self.limits = limits
        self.metrics = Metrics(service)
        self.stopping = threading.Event()
        self.jobs = Jobs(self.stopping)
        self._permits = threading.Semaphore(work_places(self.settings) + limits.spare_threads // 2)

    @contextlib.contextmanager
    def permit(self) -> Iterator[None]:
        """Hold one of the threads that may work; the others stay free for health and status.

        Raises:
            QueueFullError: all of them are taken.
        """
        if not self._permits.acquire(blocking=False):
            raise QueueFullError("too many requests are open at once", retry_after_s=1.0)
        try:
            yield
        finally:
            self._permits.release()

    def cause_of(self, error: Exception) -> Exception:
        """Tell work that this daemon broke off from work whose client left."""
        if isinstance(error, CancelledError) and self.stopping.is_set():
            return ShuttingDownError(
                "the daemon stopped before the work was done",
                hint="send it again once /readyz answers 200",
                retry_after_s=self.settings.drain_timeout_s,
            )
        return error

    def model_label(self, name: str | None) -> str:
        """Return a metric label for a requested name; clients must not be able to invent labels."""
        if name is None or name.partition(":")[0] == "auto":
            return "auto"
        return name if name in self.service.registry.models else "unknown"


def work_places(settings: Settings) -> int:
    """Return how many requests may compute or wait to compute."""
    return settings.max_loaded_models * settings.slots + settings.max_queue
