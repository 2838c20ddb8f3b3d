"""The training of the task classifier: labelled prompts in, inference/selection/tasks.json out.

A multinomial logistic regression over the features of `inference.selection.prompt`, fitted by stochastic
gradient descent with one learning rate per weight (AdaGrad). The order of the prompts is drawn from a
fixed seed, so the same prompts give the same file.

    python scripts/train_tasks.py            write the weights
    python scripts/train_tasks.py --check    how right is it on one author's prompts, trained on the others'?
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "tests" / "fixtures" / "tasks" / "train.jsonl"
WEIGHTS = ROOT / "inference" / "selection" / "tasks.json"

TASKS = (
    "translation",
    "summarization",
    "code",
    "creative_writing",
    "text_generation",
    "conversation",
    "question_answering",
)
EPOCHS = 12
LEARNING_RATE = 0.1
L2 = 2e-4
FIRST_GRADIENT_SQUARE = 0.1  # keeps the first steps of a weight small
MIN_PROMPTS = 3  # a word that fewer prompts have says nothing
SEED = 1
_BIAS = "bias"


@dataclass(frozen=True)
class Example:
    """One labelled prompt, seen as its features."""

    source: str
    task: int
    features: tuple[str, ...]


def main() -> int:
    """Train on all prompts and write the weights, or check across the authors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="cross-validate by author instead of writing")
    examples = read_examples(PROMPTS)
    if parser.parse_args().check:
        sys.stdout.writelines(f"{line}\n" for line in check(examples))
    else:
        WEIGHTS.write_text(render(train(examples)), encoding="utf-8")
    return 0


def read_examples(path: Path) -> list[Example]:
    """The labelled prompts of a JSON-lines file with *prompt*, *task* and *source*."""
    from inference.selection.prompt import features

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Example(row["source"], TASKS.index(row["task"]), tuple(features(row["prompt"]))) for row in rows]


def train(examples: Sequence[Example]) -> dict[str, list[float]]:
    """The weights by feature, one number per task; ``bias`` is the feature that all prompts have."""
    counts = Counter(feature for example in examples for feature in example.features)
    known = sorted(feature for feature, count in counts.items() if count >= MIN_PROMPTS)
    weights = {feature: [0.0] * len(TASKS) for feature in (*known, _BIAS)}
    squares = {feature: [FIRST_GRADIENT_SQUARE] * len(TASKS) for feature in weights}
    prepared = [(e.task, [f for f in (*e.features, _BIAS) if f in weights]) for e in examples]
    order = random.Random(SEED)  # noqa: S311 - an order, not a secret
    for _ in range(EPOCHS):
        order.shuffle(prepared)
        for task, active in prepared:
            step([weights[f] for f in active], [squares[f] for f in active], task)
    return weights


def step(weights: list[list[float]], squares: list[list[float]], task: int) -> None:
    """Move the weights of one prompt's features towards its task."""
    errors = softmax([sum(column) for column in zip(*weights, strict=True)])
    errors[task] -= 1.0
    for row, square in zip(weights, squares, strict=True):
        for index, error in enumerate(errors):
            gradient = error + L2 * row[index]
            square[index] += gradient * gradient
            row[index] -= LEARNING_RATE * gradient / math.sqrt(square[index])


def softmax(scores: Sequence[float]) -> list[float]:
    """Scores as probabilities."""
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def render(weights: dict[str, list[float]]) -> str:
    """The file of weights: hundredths, one feature a line, sorted; rows of zeros are left out."""
    rounded = {name: [round(100 * value) for value in row] for name, row in sorted(weights.items())}
    bias = rounded.pop(_BIAS)
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(row, separators=(',', ':'))}"
        for name, row in rounded.items()
        if any(row)
    ]
    rows = ",\n".join(lines)
    return (
        f'{{\n "tasks": {json.dumps(TASKS)},\n "bias": {json.dumps(bias)},\n "weights": {{\n{rows}\n }}\n}}\n'
    )


def check(examples: Sequence[Example]) -> Iterator[str]:
    """Per author: how many of the prompts are right after training on everybody else's."""
    for source in sorted({example.source for example in examples}):
        own = [example for example in examples if example.source == source]
        weights = train([example for example in examples if example.source != source])
        right = sum(guess(weights, example.features) == example.task for example in own)
        yield f"{source}: {right} of {len(own)} right ({100 * right / len(own):.1f} %)"


def guess(weights: dict[str, list[float]], features: Sequence[str]) -> int:
    """The index of the likeliest task."""
    rows = [weights[feature] for feature in (*features, _BIAS) if feature in weights]
    scores = [sum(column) for column in zip(*rows, strict=True)]
    return scores.index(max(scores))


if __name__ == "__main__":
    sys.exit(main())
