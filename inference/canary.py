"""The canary: one token of each idle model from time to time; a broken engine shows before a client comes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from inference.errors import JetLLMError
from inference.generation import GenerateRequest
from inference.runtime.worker import Worker

_ASKED = GenerateRequest(prompt="1", max_tokens=1, temperature=0.0, ignore_eos=True, cache_prompt=False)
logger = logging.getLogger(__name__)


class Canary:
    """Asks the workers that *idle* gives, every *interval_s*, in a thread of its own once it is started.

    It takes no lease: a model that nobody uses leaves when its time has come all the same. While an answer
    is waited for, *look* is called, so that the supervisor's watchdog sees a worker that hangs and kills it.
    """

    def __init__(
        self, idle: Callable[[], Iterable[Worker]], look: Callable[[], None], interval_s: float
    ) -> None:
        self._idle = idle
        self._look = look
        self._interval_s = interval_s
        self._failed: dict[Worker, str] = {}  # replaced, never changed: readers take no lock
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask; with an interval of 0 nothing is ever asked."""
        if self._interval_s > 0:
            self._thread = threading.Thread(target=self._run, name="canary", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ask no more; what is asked now is cancelled."""
        self._closed.set()

    def close(self) -> None:
        """Wait for the end of the thread; a worker that hangs has to be killed first."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def failure(self) -> str | None:
        """Return why a model that is loaded gave no token when it was last asked; ``None`` if all did."""
        return next((reason for worker, reason in self._failed.items() if not worker.exited), None)

    def ask(self) -> None:
        """Ask each idle worker once."""
        failed = {worker: reason for worker, reason in self._failed.items() if not worker.exited}
        for worker in self._idle():
            failed.pop(worker, None)
            reason = self._ask(worker)
            if reason is not None and not worker.exited and not self._closed.is_set():
                failed[worker] = f"{worker.spec.name}: the canary got no token: {reason}"
                logger.error("%s", failed[worker])
        self._failed = failed

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self.ask()

    def _ask(self, worker: Worker) -> str | None:
        """Return what was wrong; ``None`` if nothing was."""
        capabilities = (worker.info or {}).get("capabilities", ())
        try:
            if "embed" in capabilities:
                worker.ask("embed", cancelled=self._leaves, inputs=["1"])
                return None
            chunks = list(worker.generate(_ASKED, self._leaves))
        except JetLLMError as error:
            return error.message
        return (
            None if chunks and chunks[-1].finish_reason is not None else "the engine ended without a reason"
        )

    def _leaves(self) -> bool:
        self._look()
        return self._closed.is_set()
