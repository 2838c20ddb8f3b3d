"""The choice on every fixture board, against a file that a reader can follow.

`python -m tests.test_golden` writes the file anew; read the difference before you commit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.decisions import decide
from inference.device.detect import detect
from inference.device.images import backends_for
from inference.device.memory import read_memory
from inference.errors import JetLLMError
from inference.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
BOARDS = TESTS / "fixtures" / "devices"
GOLDEN = TESTS / "golden" / "selections.md"
ASKED: tuple[dict[str, Any], ...] = (
    {"task": "conversation", "speed": "fast"},
    {"task": "conversation", "speed": "balanced"},
    {"task": "conversation", "speed": "quality"},
    {"task": "code", "speed": "balanced"},
    {"task": "text_generation", "speed": "balanced"},
    {"task": "translation", "speed": "balanced"},
    {"task": "embedding", "speed": "balanced"},
    {"task": "vision", "speed": "balanced"},
    {"task": "conversation", "speed": "balanced", "context_tokens": 16384},
)
EXAMPLES = (
    "orin-nano-4gb",
    "orin-nano-8gb-super",
    "orin-nx-16gb",
    "agx-orin-32gb",
    "agx-orin-64gb",
    "agx-thor-t5000",
    "x86-none",
)
HEAD = """# What is chosen on each board

For every tree under tests/fixtures/devices: what `jetllm select --root DIR` answers with the shipped
models.json and the default settings. Written by `python -m tests.test_golden`, checked by the test of
that name.
"""


def test_choices_on_every_board_are_the_golden_ones() -> None:
    """A change of registry, formulas or rules that changes a choice shows here, before it lands."""
    assert report() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("board", EXAMPLES)
def test_the_examples_of_the_readme_are_what_is_chosen(board: str) -> None:
    """README.md shows a worked example for a board of each size; each is a choice of now."""
    assert example(board) in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def example(board: str) -> str:
    """Return the row of README.md for one board."""
    root = BOARDS / board
    budget = read_memory(root).budget_bytes
    assert budget is not None
    _, _, chosen, _, _, _, why = row(root, {"task": "conversation", "speed": "balanced"})
    engine = "MLC" if "mlc" in backends_for(detect(root)) else "no MLC"
    return f"| {board}, {engine} | {gib(budget)} | {chosen} | {why} |"


def report() -> str:
    """Return the golden file's text."""
    return "\n".join([HEAD, *(line for board in boards() for line in section(board))])


def boards() -> list[Path]:
    return sorted(path for path in BOARDS.iterdir() if path.is_dir())


def section(board: Path) -> Iterator[str]:
    device, memory = detect(board), read_memory(board)
    speed = device.bandwidth_bytes_per_s
    facts = (
        device.board or "no Jetson",
        f"L4T {device.l4t}" if device.l4t else "no L4T",
        f"mode {device.power_mode}" if device.power_mode else "mode unknown",
        f"{speed / 1e9:.0f} GB/s" if speed else "bandwidth unknown",
        "memory unknown" if memory.budget_bytes is None else f"{gib(memory.budget_bytes)} for models",
        f"engines: {', '.join(sorted(backends_for(device)))}",
    )
    yield f"## {board.name}\n"
    yield "; ".join(facts) + ".\n"
    yield "| task | speed | chosen | context | memory | tokens/s | why |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from (f"| {' | '.join(row(board, asked))} |" for asked in ASKED)
    yield ""


def row(board: Path, asked: dict[str, Any]) -> tuple[str, ...]:
    needs = f", {asked['context_tokens']} tokens" if "context_tokens" in asked else ""
    task = f"{asked['task']}{needs}"
    try:
        chosen = decide(load_settings(environ={}), asked, root=board)
    except JetLLMError as error:
        return task, asked["speed"], "nothing", "", "", "", f"{error.message} ({error.hint})"
    speed = chosen["tokens_per_s"]
    return (
        task,
        asked["speed"],
        f"{chosen['model']}/{chosen['variant']}",
        str(chosen["context_tokens"]),
        gib(chosen["memory_bytes"]),
        "unknown" if speed is None else f"{speed:.0f}",
        chosen["reason"].partition(": ")[2],
    )


def gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"


if __name__ == "__main__":
    GOLDEN.write_text(report(), encoding="utf-8")
