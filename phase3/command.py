"""The command line of the harness: which models, how much, and where the reports go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.inference_engine import InferenceEngine, JetLLMError
from phase3 import evidence, output, result
from phase3.engine_target import EngineTarget
from phase3.http_target import HttpTarget, models_of
from phase3.measured import MeasuredTarget
from phase3.output import Written
from phase3.plan import FULL, QUICK, Plan, soak
from phase3.progress import Shown
from phase3.report import compare, comparison_markdown
from phase3.result import ReportError
from phase3.runner import run
from phase3.target import TargetError

EXIT_PASS, EXIT_FAIL, EXIT_UNFIT, EXIT_ERROR = 0, 1, 2, 3
_WORST_FIRST = (EXIT_ERROR, EXIT_FAIL, EXIT_UNFIT, EXIT_PASS)
_EPILOG = """\
exit codes: 0 passed, 1 a gate failed, 2 this machine or command cannot judge, 3 the harness itself failed

examples:
  %(prog)s --model smollm2-135m-instruct
  %(prog)s --model smollm2-135m-instruct --quick --out /tmp/reports
  %(prog)s --model gemma-3-270m --url http://board:8080 --api-key-file key.txt
  %(prog)s --compare old/report.json new/report.json
"""


@dataclass(frozen=True)
class _Asked:
    model: str | None
    variant: str | None
    url: str | None
    api_key: str | None
    plan: Plan
    out: Path
    keeps_evidence: bool
    as_json: bool
    compare: tuple[Path, ...]


def main(argv: Sequence[str] | None = None, prog: str = "test_comprehensive.py") -> int:
    """Run the harness as *argv* says and return the exit code."""
    try:
        asked = _asked(argv, prog)
        if len(asked.compare) > 1:
            return _compared(*asked.compare)
        return _checked(asked)
    except (TargetError, JetLLMError, ReportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_UNFIT
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return EXIT_UNFIT


def _asked(argv: Sequence[str] | None, prog: str) -> _Asked:
    given = _parser(prog).parse_args(argv)
    plan = soak(given.soak) if given.soak is not None else QUICK if given.quick else FULL
    return _Asked(
        given.model or given.name,
        given.variant,
        given.url,
        given.api_key_file.read_text().strip() if given.api_key_file else None,
        plan,
        given.out,
        not given.no_evidence,
        given.json,
        tuple(given.compare or ()),
    )


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Prove a model on this machine: does it load, fit, make sense, how fast is it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="the model; by default every one that is here and can run")
    add("--model", metavar="NAME", help="the same")
    add("--variant", metavar="V", help="one of its variants; by default the one that would be chosen")
    add("--url", help="of a running daemon; by default the model runs in this process's own workers")
    add("--api-key-file", type=_file, metavar="FILE", help="the daemon's key")
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="no leaks, no cycles, a small benchmark")
    much.add_argument("--full", action="store_true", help="everything (the default)")
    much.add_argument(
        "--soak", type=_minutes, metavar="MINUTES", help="everything, then a mixed load for so long"
    )
    add(
        "--out",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="where reports go; by default ./reports",
    )
    add(
        "--compare", nargs="+", type=_file, metavar="REPORT", help="an earlier report.json; two: compare only"
    )
    add("--no-evidence", action="store_true", help="do not tell the registry what was measured")
    add("--json", action="store_true", help="print the summary as JSON")
    return parser


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return path


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes <= 100_000:
        raise argparse.ArgumentTypeError(f"expected minutes, such as 30, got {text!r}")
    return minutes


def _compared(old: Path, new: Path, *more: Path) -> int:
    if more:
        raise ReportError(f"--compare: expected one report or two, got {2 + len(more)}")
    sys.stdout.write(comparison_markdown(compare(result.load(old), result.load(new))) + "\n")
    return EXIT_PASS


def _checked(asked: _Asked) -> int:
    old = result.load(asked.compare[0]) if asked.compare else None
    written: list[Written] = []
    refused: list[str] = []
    with _targets(asked) as targets:
        for target in targets:
            try:
                written.append(_one(target, asked, old))
            except TargetError as error:
                refused.append(str(error))
                sys.stderr.write(f"error: {error}\n")
            if written and written[-1].report.partial:
                break
    _print(written, asked)
    codes = {result.exit_code(one.report) for one in written} | ({EXIT_UNFIT} if refused else set())
    return next((code for code in _WORST_FIRST if code in codes), EXIT_UNFIT)


def _one(target: MeasuredTarget, asked: _Asked, old: result.Report | None) -> Written:
    output.prepare(asked.out)
    with Shown(target.model) as shown:
        report = run(target, asked.plan, listener=shown)
    written = output.write(report, asked.out, old)
    if asked.keeps_evidence:
        _keep(target, written)
    return written


def _keep(target: MeasuredTarget, written: Written) -> None:
    """Tell the registry; a report that it does not take is a report all the same."""
    record = evidence.record_of(written.report, written.folder / "report.json")
    if record is None:
        return
    try:
        target.record_evidence(record)
    except TargetError as error:
        sys.stderr.write(f"no evidence kept: {error}\n")
    else:
        sys.stderr.write(evidence.shown(record) + "\n")


def _print(written: Sequence[Written], asked: _Asked) -> None:
    if asked.as_json:
        sys.stdout.write(json.dumps([output.summary(one) for one in written], indent=2) + "\n")
        return
    for one in written:
        sys.stdout.write(f"{output.summary_line(one)}\n    {one.folder / 'report.html'}\n")


@contextmanager
def _targets(asked: _Asked) -> Iterator[Iterator[MeasuredTarget]]:
    """Yield the targets, one at a time; the engine ends with the block."""
    if asked.url is not None:
        url, key = asked.url, asked.api_key
        names = [asked.model] if asked.model else _able(models_of(url, key))
        yield (HttpTarget(url, name, asked.variant, api_key=key) for name in names)
        return
    with InferenceEngine() as engine:
        names = [asked.model] if asked.model else _able(engine.models())
        yield (EngineTarget(engine, name, asked.variant) for name in names)


def _able(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the models of which a variant is here and can run; say which are left out.

    Raises:
        TargetError: there is none.
    """
    able = [str(row["id"]) for row in rows if any(map(_is_able, row["variants"].values()))]
    if not able:
        raise TargetError("no model is here that can run on this machine", hint="jetllm pull MODEL")
    left_out = len(rows) - len(able)
    if left_out:
        sys.stderr.write(f"{len(able)} models; {left_out} more are not here or cannot run: jetllm models\n")
    return able


def _is_able(variant: Mapping[str, Any]) -> bool:
    return bool(variant["pulled"] and variant["built"] and variant["usable"] and not variant["quarantined"])
