"""The matrix: each planted defect is caught by the check that should catch it, and by no other.

As a program it prints the matrix as a Markdown table.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from inference.inference_engine import InferenceEngine
from phase3 import runner, watch
from phase3.checks import CHECKS
from phase3.engine_target import EngineTarget
from phase3.measured import Ask, Exchange, Piece
from phase3.plan import Plan
from phase3.result import Finding, Report
from tests.model_script import DEFECTS, ModelScript
from tests.scripted_service import MODEL, board_tree, leaking_loads, model_registry, scripted_backend

# Growth is looked for with as few readings as are still judged, and with more of them where it is planted
# and where nothing is.
PLAN = Plan("quick", ((16, 24),), (1, 2), runs=5, generations=16, cycles=2)
THOROUGH = replace(PLAN, mode="full", generations=200, cycles=13)
USUAL = ModelScript(ttft_s=0.001)
HEALTHY_SPEED = 0.9
READ_EVERY_S = 0.02  # five readings of memory lie within a tenth of the usual second


class LosingTarget(EngineTarget):
    """A way to the model on which streams lose a piece."""

    @contextmanager
    def _exchange(self, ask: Ask) -> Iterator[Exchange]:
        with super()._exchange(ask) as exchange:
            yield replace(exchange, pieces=_without_third(exchange.pieces)) if ask.stream else exchange


def _without_third(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for number, piece in enumerate(pieces):
        yield replace(piece, text="") if number == 2 and piece.end is None else piece


@dataclass(frozen=True)
class Planted:
    """Something wrong, and the check that is to catch it.

    Args:
        speed: how many times as fast as predicted the model decodes.
        predicted_tokens_per_s: of the model; more of it where it decodes slowly, to save time.
        clocks: of a board that the machine is taken for, as a share of the highest; ``None``: this machine.
        leaks_loads: whether the service leaks with each load.
        says: what the finding's diagnosis is to contain.
    """

    what: str
    caught_by: str | None
    script: ModelScript = USUAL
    speed: float = HEALTHY_SPEED
    predicted_tokens_per_s: float = 1000.0
    clocks: float | None = None
    plan: Plan = PLAN
    target: type[EngineTarget] = EngineTarget
    leaks_loads: bool = False
    says: str = ""


_BY_CHECK = {
    "gibberish": "coherence",
    "loop": "coherence",
    "special_tokens": "coherence",
    "no_template": "chat_template",
    "nondeterministic": "greedy",
    "ignores_stop": "stop",
    "ignores_max_tokens": "length",
    "ignores_seed": "seed",
    "torn_unicode": "unicode",
    "truncates_context": "context",
    "slot_never_frees": "cancel",
    "mixes_slots": "concurrency",
    "fails_under_load": "concurrency",
    "leak": "leak_generations",
    "memory_hog": "memory",
    "slow_unload": "unload",
    "keeps_memory": "unload",
    "refuses_to_load": "load",
    "wears_out": "cycles",
}
_SCRIPTS = {
    "slow_unload": replace(USUAL, unload_s=6.0),
}
_PLANS = {
    "leak": replace(PLAN, generations=200),
    "slow_unload": replace(PLAN, cycles=1),
    "wears_out": replace(PLAN, cycles=3),
}
MATRIX = (
    Planted("healthy", None, plan=THOROUGH),
    Planted("healthy, on a board", None, clocks=1.0),
    *(
        Planted(
            defect,
            _BY_CHECK[defect],
            replace(_SCRIPTS.get(defect, USUAL), defect=defect),
            plan=_PLANS.get(defect, PLAN),
            clocks=1.0 if defect == "keeps_memory" else None,
        )
        for defect in DEFECTS
    ),
    Planted("stream loses text", "streaming", target=LosingTarget),
    Planted(
        "CPU fallback (10 % speed)", "speed", speed=0.1, predicted_tokens_per_s=4000, says="CPU fallback"
    ),
    Planted(
        "power mode (40 % clocks)",
        "speed",
        speed=0.4,
        predicted_tokens_per_s=1200,
        clocks=0.4,
        says="looks like the power mode",
    ),
    Planted("leak of each load", "leak_cycles", plan=THOROUGH, leaks_loads=True),
)


def examined(planted: Planted, directory: Path) -> Report:
    """Run all checks on a model with something wrong."""
    root = Path("/") if planted.clocks is None else board_tree(directory, clocks=planted.clocks)
    registry = model_registry(
        directory,
        planted.script,
        speed=planted.speed,
        predicted_tokens_per_s=planted.predicted_tokens_per_s,
        root=root,
    )
    settings: dict[str, Any] = {"context_tokens": 256, "keep_alive_s": -1, "state_dir": directory / "state"}
    with (
        leaking_loads(planted.leaks_loads),
        scripted_backend(root, alone=True),
        mock.patch.object(watch, "_READ_EVERY_S", READ_EVERY_S),
        InferenceEngine(registry=registry, **settings) as engine,
    ):
        return runner.run(planted.target(engine, MODEL), planted.plan)


def blamed(report: Report) -> list[str]:
    """The checks that found something, in their order; what cannot be judged is no finding."""
    return [finding.check for finding in report.findings if finding.verdict in ("fail", "error")]


@pytest.mark.harness
@pytest.mark.parametrize("planted", MATRIX, ids=lambda planted: planted.what)
def test_is_caught_by_its_check_and_by_no_other(planted: Planted, tmp_path: Path) -> None:
    """Through the real service and a real worker; a healthy model passes everything."""
    report = examined(planted, tmp_path)
    found = {finding.check: finding for finding in report.findings}
    assert blamed(report) == [planted.caught_by] * (planted.caught_by is not None), _told(report)
    if planted.caught_by is not None:
        assert planted.says in (found[planted.caught_by].diagnosis or ""), found[planted.caught_by]


def test_every_check_has_a_defect() -> None:
    """A check that nothing was planted for is not proven; those that judge the machine have tests apart."""
    caught = {planted.caught_by for planted in MATRIX}
    assert {check.name for check in CHECKS} - caught == {"container", "environment", "soak"}


def _told(report: Report) -> str:
    return "\n".join(map(_line, report.findings))


def _line(finding: Finding) -> str:
    return f"{finding.check}: {finding.verdict} {finding.value} {finding.detail} {finding.diagnosis or ''}"


def table() -> Iterator[str]:
    """Yield the lines of the matrix."""
    yield "| planted | caught by | found | seconds |"
    yield "| --- | --- | --- | --- |"
    for planted in MATRIX:
        with tempfile.TemporaryDirectory() as directory:
            started_s = time.monotonic()
            report = examined(planted, Path(directory))
            took_s = time.monotonic() - started_s
        found = [finding for finding in report.findings if finding.check in blamed(report)]
        said = "; ".join(finding.detail or "" for finding in found).replace("|", "\\|")
        yield f"| {planted.what} | {', '.join(blamed(report)) or 'nothing'} | {said[:160]} | {took_s:.1f} |"


if __name__ == "__main__":
    for line in table():
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
