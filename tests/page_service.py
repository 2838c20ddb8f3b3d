"""A fake service for the page's tests: models, workers and a board in the form of the real one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from inference.device import description, read_memory, read_telemetry
from inference.device.detect import detect
from inference.generation import Chunk
from tests.fake_service import MODEL, FakeService, FakeStream, Gate, end

HERE = "org/on-disk"
AWAY = "org/planned"
SCRIPT = (Chunk("It is **quite** "), Chunk("blue."), end())
_BOARDS = Path(__file__).parent / "fixtures" / "devices"


def variant_row(**values: Any) -> dict[str, Any]:
    """A variant as the API describes it."""
    usual = {
        "backend": "llamacpp",
        "quantization": "q4",
        "pulled": False,
        "bytes": None,
        "built": True,
        "usable": True,
        "memory_requirement": 1000.0,
        "quarantined": None,
        "status": "experimental",
        "status_source": "declared",
        "engine": None,
        "weights_sha256": None,
        "measured": None,
        "lapsed": None,
    }
    return {**usual, **values}


def model_row(model: str, **values: Any) -> dict[str, Any]:
    """A model as the API describes it, with one variant."""
    pulled = bool(values.get("pulled"))
    usual = {
        "id": model,
        "name": model.upper(),
        "status": "experimental",
        "status_source": "declared",
        "declared_status": "experimental",
        "parameters": "135M",
        "use_cases": ["conversation"],
        "license": None,
        "context_length": None,
        "chat": "chatml",
        "memory_requirement": 1000.0,
        "container": None,
        "aliases": [],
        "issue": None,
        "notes": None,
        "pulled": False,
        "usable": True,
        "variants": {"q4": variant_row(pulled=pulled)},
        "state": "absent",
        "created": 0,
    }
    return {**usual, **values}


def worker_row(model: str, **values: Any) -> dict[str, Any]:
    """A worker as the status shows it, as far as the page reads it."""
    usual = {
        "model": model,
        "variant": "q4",
        "state": "ready",
        "pinned": False,
        "progress": None,
        "memory_predicted_bytes": 2 * 2**30,
        "memory_observed_bytes": 3 * 2**29,
    }
    return {**usual, **values}


def board(name: str = "orin-nano-8gb") -> dict[str, Any]:
    """The picture of a machine of tests/fixtures/devices."""
    root = _BOARDS / name
    return description(detect(root), read_memory(root), read_telemetry(root))


MEASURED = {
    "decode_tokens_per_s": 41.5,
    "prefill_tokens_per_s": 300.0,
    "ttft_s": 0.25,
    "memory_bytes": 2**30,
    "quality": None,
    "measured_at": "2026-11-20T10:00:00Z",
    "issue": None,
}
RECORD = {
    "model": MODEL,
    "variant": "q4",
    "measured_at": "2026-11-20T10:00:00Z",
    "status": "verified",
    "decode_tokens_per_s": 41.5,
    "memory_bytes": 2**30,
    "issue": None,
    "counts": False,
    "lapsed": ["power_mode: was 15W, is 7W"],
}


_STATUS = {"status": "verified", "status_source": "measured"}


def _rows() -> list[dict[str, Any]]:
    proven = {"q4": variant_row(pulled=True, bytes=98_000_000, measured=MEASURED, **_STATUS)}
    return [
        model_row(AWAY),
        model_row(HERE, pulled=True),
        model_row(MODEL, name="SmolLM2", pulled=True, state="ready", variants=proven, **_STATUS),
    ]


@dataclass
class PageService(FakeService):
    """What the page asks, beside what the fake service has."""

    script: tuple[Any, ...] = SCRIPT
    rows: list[dict[str, Any]] = field(default_factory=_rows)
    workers: list[dict[str, Any]] = field(default_factory=lambda: [worker_row(MODEL)])
    building: tuple[Any, ...] = ()
    machine: dict[str, Any] = field(default_factory=board)
    measurements: Any = field(
        default_factory=lambda: SimpleNamespace(rows=lambda model: [RECORD], skipped=lambda: [])
    )

    def models(self) -> list[dict[str, Any]]:
        """What the test gave."""
        return self.rows

    def status(self) -> dict[str, Any]:
        """With the workers that the test gave."""
        memory = self.machine["live"]["memory"]
        return {**super().status(), "workers": self.workers, "memory": memory}

    def device(self) -> dict[str, Any]:
        """What the test gave."""
        return self.machine

    def select(self, request: Any, *, context_tokens: int | None = None) -> Any:
        """One that is chosen and one that is not."""
        usual = {"variant": "q4", "memory_bytes": 2**30, "tokens_per_s": 40.0}
        chosen = {**usual, "model": MODEL, "verdict": "chosen", "reason": ""}
        lost = {**usual, "model": HERE, "verdict": "lost", "reason": "smaller", "tokens_per_s": None}
        return SimpleNamespace(to_dict=lambda: {"model": MODEL, "candidates": [chosen, lost]})

    def load(self, name: str, **options: Any) -> dict[str, Any]:
        """As the fake service; then it is loaded."""
        loaded = super().load(name, **options)
        self._becomes(name, "ready", [worker_row(name)])
        return loaded

    def unload(self, name: str) -> dict[str, Any]:
        """As the fake service; then it is not loaded."""
        self._becomes(name, "absent", [])
        return super().unload(name)

    def build(self, name: str, *, progress: Any, cancelled: Any, **options: Any) -> dict[str, Any]:
        """Tell and wait as scripted in *building*, then be built."""
        self.calls.append(("build", name, options["variant"]))
        for step in self.building:
            if isinstance(step, Gate):
                step.wait(cancelled)
            else:
                progress(step)
        self.row(name)["variants"]["q4"]["built"] = True
        shown = ("key", "recipe", "steps", "failures", "text", "parameters_bytes")
        return {"model": name, "variant": "q4", **dict.fromkeys(shown)}

    def _becomes(self, name: str, state: str, workers: list[dict[str, Any]]) -> None:
        self.row(name)["state"] = state
        self.workers = [each for each in self.workers if each["model"] != name] + workers

    def row(self, name: str) -> dict[str, Any]:
        """The row of a model, to be changed."""
        return next(row for row in self.rows if row["id"] == name)

    def generate(self, request: Any, cancelled: Any) -> FakeStream:
        """As the fake service, with a reason in the real one's form."""
        stream = super().generate(request, cancelled)
        stream.selection.reason = f"{MODEL}/q4: best task fit (conversation); 40 tokens/s measured"
        return stream
