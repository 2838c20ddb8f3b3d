"""Calibration: what the memory formula gets wrong, learned from workers that were observed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError, with_config

from inference.artifacts.files import write_atomic
from inference.runtime.policy import Key

logger = logging.getLogger(__name__)

_VERSION = 1
_MOST_OBSERVATIONS = 512  # the oldest are forgotten first
_MOST_FILE_BYTES = 2**20
_SAVED_AGAIN_AT = 1 / 64  # growth of a peak below this share is not worth a write

_Text = Annotated[str, Field(max_length=512)]
_Count = Annotated[int, Field(ge=0, le=2**60, strict=True)]


@dataclass(frozen=True)
class Prediction:
    """What the formula alone says of a load, without any correction.

    Args:
        later_bytes: the part of *formula_bytes* that is taken with use and not by loading: the prompt
            cache, a slot's own buffers, a KV cache that grows. ``None`` when the parts are unknown.
        weights_bytes: the size of the weights, by which other weights of the same name are told.
    """

    formula_bytes: int
    later_bytes: int | None
    weights_bytes: int


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class Observation:
    """The most that workers of one variant in one configuration were seen to hold.

    Args:
        engine: the engine's version, as the daemon knows it without loading it.
        loaded_bytes: resident right after the load.
        peak_bytes: the most that was ever resident.
    """

    model: _Text
    variant: _Text
    backend: _Text
    engine: _Text
    weights_bytes: _Count
    context_tokens: _Count
    slots: _Count
    prefill_batch_tokens: _Count
    prompt_cache_bytes: _Count
    formula_bytes: _Count
    later_bytes: _Count | None
    loaded_bytes: _Count
    peak_bytes: _Count

    @property
    def key(self) -> Key:
        """(model, variant)."""
        return (self.model, self.variant)

    @property
    def bounds_bytes(self) -> tuple[int, int]:
        """The least and the most that the formula's figure can be off by, given what was seen.

        Nobody knows how much of *later_bytes* a worker has taken so far. So the whole formula must not be
        below the peak, the formula without that part not below what the load alone took and not above the
        peak. With the parts unknown the figure does not depend on the context either: it is only raised.
        """
        if self.later_bytes is None:
            raised = max(0, self.peak_bytes - self.formula_bytes)
            return raised, raised
        certain = self.formula_bytes - self.later_bytes
        least = max(self.peak_bytes - self.formula_bytes, self.loaded_bytes - certain)
        return least, max(self.peak_bytes, self.loaded_bytes) - certain

    @property
    def correction_bytes(self) -> int:
        """What to add to the formula's figure, were this all that was ever seen."""
        return _smallest_within([self.bounds_bytes])

    @property
    def error(self) -> float:
        """How far the formula was off, as a share of the peak; positive is too high."""
        return (self.formula_bytes - self.peak_bytes) / max(1, self.peak_bytes)

    def merged(self, other: Observation) -> Observation:
        """Keep the higher figures, if both were made under the same conditions; else this one."""
        if _conditions(self) != _conditions(other):
            return self
        return dataclasses.replace(
            self,
            loaded_bytes=max(self.loaded_bytes, other.loaded_bytes),
            peak_bytes=max(self.peak_bytes, other.peak_bytes),
        )


@with_config({"extra": "forbid"})
@dataclass(frozen=True)
class _File:
    version: Annotated[int, Field(ge=_VERSION, le=_VERSION, strict=True)]
    observations: list[Observation]


_Slot = tuple[str, str, int, int, int, int]  # what one observation is kept for
_FILE = TypeAdapter(_File)


class Calibration:
    """Observations, kept in a file. Threads may share one; only `save` touches the disk.

    Args:
        path: the file; ``None`` keeps nothing. One that cannot be read is put aside, not trusted.
        engines: the version of each backend's engine that is installed now. Figures of another version
            are not used; those of a backend that is not named are kept under an empty version.
    """

    def __init__(self, path: Path | None = None, engines: Mapping[str, str] | None = None) -> None:
        self._path = path
        self._engines = dict(engines or {})
        self._lock = threading.Lock()
        self._seen: dict[_Slot, Observation] = {}
        self._saved_peaks: dict[_Slot, int] = {}
        for observation in _read(path) if path is not None else []:
            self._seen[_slot(observation)] = observation
            self._saved_peaks[_slot(observation)] = observation.peak_bytes
        self.unsaved = False

    def engine(self, backend: str) -> str:
        """The version under which observations of *backend* count now."""
        return self._engines.get(backend, "")

    def observe(self, observation: Observation) -> None:
        """Remember what a worker was seen to hold; the highest figures of the same conditions stay."""
        slot = _slot(observation)
        with self._lock:
            known = self._seen.pop(slot, None)
            kept = observation if known is None else observation.merged(known)
            self._seen[slot] = kept
            while len(self._seen) > _MOST_OBSERVATIONS:
                self._seen.pop(next(iter(self._seen)))
            changed = known is None or _conditions(known) != _conditions(kept)
            saved = self._saved_peaks.get(slot, 0)
            if changed or kept.peak_bytes - saved > saved * _SAVED_AGAIN_AT:
                self._saved_peaks[slot] = kept.peak_bytes
                self.unsaved = True

    def observations(self) -> tuple[Observation, ...]:
        """What was seen with the engines that are installed now, the latest last."""
        with self._lock:
            return tuple(seen for seen in self._seen.values() if seen.engine == self.engine(seen.backend))

    def variant_corrections(self, weights_bytes: Mapping[Key, int]) -> dict[Key, int]:
        """Bytes to add to the formula's figure of variants that were loaded, at any context.

        Never so few that a peak that was seen would not have been predicted.

        Args:
            weights_bytes: the sizes now; a variant whose weights have another size is left out.
        """
        found: dict[Key, list[tuple[int, int]]] = {}
        for seen in self.observations():
            if weights_bytes.get(seen.key) == seen.weights_bytes:
                found.setdefault(seen.key, []).append(seen.bounds_bytes)
        return {key: _smallest_within(bounds) for key, bounds in found.items()}

    def backend_corrections(self) -> dict[str, int]:
        """Bytes to add for variants that were never loaded: the backend's largest error upwards, or 0.

        What a variant with unknown parts was seen to hold says nothing of the formula, and is left out.
        """
        found: dict[str, int] = {}
        for seen in self.observations():
            if seen.later_bytes is not None:
                found[seen.backend] = max(found.get(seen.backend, 0), seen.correction_bytes)
        return found

    def save(self) -> None:
        """Write what is not on the disk yet; a disk that refuses is logged, and serving goes on."""
        with self._lock:
            due, self.unsaved = self.unsaved, False
            observations = [dataclasses.asdict(seen) for seen in self._seen.values()]
        if self._path is None or not due:
            return
        text = json.dumps({"version": _VERSION, "observations": observations}, indent=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, text.encode())
        except OSError as error:
            logger.warning("what was learned of memory could not be kept: %s", error)


def _smallest_within(bounds: list[tuple[int, int]]) -> int:
    """Return the number nearest to 0 within all *bounds*: a larger change would be a guess.

    Where they contradict each other the lower bounds win: too little is dangerous, too much is not.
    """
    return max(max(least for least, _ in bounds), min(0, min(most for _, most in bounds)))


def _conditions(seen: Observation) -> Observation:
    return dataclasses.replace(seen, loaded_bytes=0, peak_bytes=0)


def _slot(seen: Observation) -> _Slot:
    return (
        seen.model,
        seen.variant,
        seen.context_tokens,
        seen.slots,
        seen.prefill_batch_tokens,
        seen.prompt_cache_bytes,
    )


def _read(path: Path) -> list[Observation]:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE_BYTES + 1)
        if len(data) > _MOST_FILE_BYTES:
            raise ValueError(f"larger than {_MOST_FILE_BYTES} bytes")
        return _FILE.validate_json(data).observations
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("what was learned of memory cannot be read, and is learned again: %s", error)
    except (ValidationError, ValueError) as error:
        logger.warning(
            "%s: not as it should be, put aside and learned again: %s", path.name, _first_line(error)
        )
        with contextlib.suppress(OSError):  # a read-only disk: the next start finds it again
            path.replace(path.with_name(f"{path.name}.broken"))
    return []


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]
    return str(error)[:200]
