"""References: what a model says and loses in its reference precision, to hold a quantized one against.

``python -m phase3.references MODEL`` measures the variant of MODEL that runs in the transformers backend,
whose precision that is, and writes it into data/references.json of this tree.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from inference.inference_engine import InferenceEngine, JetLLMError
from phase3 import sample
from phase3.case import Case
from phase3.engine_target import EngineTarget
from phase3.plan import FULL
from phase3.target import TargetError

GOLDEN_CHARACTERS = 240
"""About 48 tokens of English: as much of an answer as is kept."""

_FILE = "references.json"
_BACKEND = "transformers"


@dataclass(frozen=True)
class Reference:
    """One model in its reference precision.

    Args:
        paragraph_bits_per_byte: on the fixed text, one for each paragraph.
        texts: the beginnings of its greedy answers, by prompt.
        engine: with its version and precision.
        weights_sha256: of the file that was read; a GGUF file's quantized weights are unpacked to
            that precision, and what the quantization lost before that is lost in the reference too.
        measured_at: date, as 2026-11-21.
    """

    paragraph_bits_per_byte: list[float]
    texts: dict[str, str]
    engine: str
    weights_sha256: str
    measured_at: str

    def bits_per_byte(self, paragraphs: int | None = None) -> float:
        """Return the loss on so many of the first paragraphs together, by default on all."""
        return sample.joined(self.paragraph_bits_per_byte[:paragraphs])


def reference_of(model: str) -> Reference | None:
    """Return the reference of the registered name *model*; None if nobody measured one."""
    found = _read()["models"].get(model)
    return None if found is None else Reference(**found)


def reference_from(case: Case) -> dict[str, Any]:
    """Return the JSON form of the reference that *case* measured.

    Raises:
        ValueError: its sample was not taken, or lacks what a reference needs.
    """
    loaded, losses = case.loaded, [y for _, y in case.series.get(sample.LOSSES, ())]
    if loaded is None or not case.replies or len(losses) < len(sample.paragraphs()):
        raise ValueError("expected a loaded model, its answers and the loss on all paragraphs")
    if loaded.engine is None or loaded.weights_sha256 is None:
        raise ValueError("expected the engine's version and the hash of the weights")
    return asdict(
        Reference(
            paragraph_bits_per_byte=[round(loss, 4) for loss in losses],
            texts={prompt: reply.text[:GOLDEN_CHARACTERS] for prompt, reply in case.replies.items()},
            engine=loaded.engine,
            weights_sha256=loaded.weights_sha256,
            measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        )
    )


def with_reference(text: str, model: str, found: dict[str, Any]) -> str:
    """Return the file's *text* with *model*'s reference in it."""
    data = json.loads(text)
    data["models"] = dict(sorted({**data["models"], model: found}.items()))
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the reference of a model and write it down; 0 when that is done."""
    parser = argparse.ArgumentParser(prog="python -m phase3.references", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a model with a variant of the transformers backend")
    parser.add_argument("--file", type=Path, default=Path(__file__).parent / "data" / _FILE)
    chosen = parser.parse_args(arguments)
    try:
        model, found = _measured(chosen.model)
        chosen.file.write_text(with_reference(chosen.file.read_text("utf-8"), model, found), "utf-8")
    except (TargetError, JetLLMError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    summary = f"{Reference(**found).bits_per_byte():.4f} bits per byte, {len(found['texts'])} texts"
    sys.stdout.write(f"{chosen.file}: {model}: {summary}\n")
    return 0


def _measured(model: str) -> tuple[str, dict[str, Any]]:
    with InferenceEngine() as engine:
        target = EngineTarget(engine, model, _variant(engine, model))
        case = Case(target, FULL, before=target.environment())
        target.load()
        case.loaded = target.environment()
        sample.take(case)
        return target.model, reference_from(case)


def _variant(engine: InferenceEngine, model: str) -> str:
    """Return the first variant of *model* in the reference precision's backend."""
    rows: dict[str, Any] = engine.model(model)["variants"]
    for name, row in rows.items():
        if row["backend"] == _BACKEND:
            return name
    raise ValueError(
        f"{model}: expected a variant of the {_BACKEND} backend, got {', '.join(rows) or 'none'}"
    )


@cache
def _read() -> dict[str, Any]:
    text = resources.files("phase3.data").joinpath(_FILE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
