"""What the supervisor is given: its limits, and what to load."""

from __future__ import annotations

from dataclasses import dataclass

from inference.runtime.calibration import Prediction
from inference.runtime.policy import Key
from inference.runtime.worker import WorkerSpec


@dataclass(frozen=True)
class Limits:
    """The supervisor's settings; see `inference.settings.Settings` for their meaning."""

    max_loaded_models: int
    max_queue: int
    keep_alive_s: float
    min_residency_s: float
    stall_timeout_s: float
    load_timeout_s: float
    stop_timeout_s: float


@dataclass(frozen=True)
class Plan:
    """What to load, and what it is predicted to take.

    Args:
        memory_bytes: with the corrections that are known; this is reserved.
        prediction: the formula's figure without them; without it nothing is learned from the load.
    """

    key: Key
    spec: WorkerSpec
    slots: int
    memory_bytes: int
    pinned: bool = False
    prediction: Prediction | None = None
