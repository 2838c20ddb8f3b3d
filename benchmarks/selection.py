"""`python -m benchmarks.selection`: how long a choice among 1,000 models of 3 variants takes.

Memory, residents and the request change from call to call; the registry stays. The first call, which
prepares the registry, and the full explanation are timed apart.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.device.memory import Memory
from inference.registry import ModelSpec, Registry
from inference.selection.selector import Resident, World, select
from inference.selection.tasks import Task

MODELS, CALLS, ROUNDS, TARGET_MS = 1_000, 300, 5, 5.0
GIB = 2**30
TASKS = [task for task in Task if task.value not in ("embedding", "vision")]
USES = ["conversation", "text_generation", "code", "summarization", "translation", "creative_writing"]


def main() -> None:
    """Time it and print a Markdown table; exit code 1 when a median is not below the target."""
    rng = random.Random(1)  # noqa: S311 - repeatable, not secret
    print(f"| {MODELS} models x 3 variants; {ROUNDS} rounds of {CALLS} calls, ms | mixed | all alike |")
    print("| --- | --- | --- |")
    columns = [measure(rng, alike=False), measure(rng, alike=True)]
    for name in columns[0]:
        print(f"| {name} | {' | '.join(shown(column[name]) for column in columns)} |")
    sys.exit(any(max(column["median of each round"]) >= TARGET_MS for column in columns))


def measure(rng: random.Random, *, alike: bool) -> dict[str, list[float]]:
    """Time one registry; *alike* is the worst case, where no comparison leaves fewer to compare."""
    models = {f"model-{number}": spec(rng, number, alike=alike) for number in range(MODELS)}
    registry = Registry(models, Path("models.json"))
    first = [timed_ms(lambda: choose(rng, Registry(models, registry.path))) for _ in range(ROUNDS)]
    rounds = [[timed_ms(lambda: choose(rng, registry)) for _ in range(CALLS)] for _ in range(ROUNDS)]
    explained = [timed_ms(lambda: choose(rng, registry).candidates) for _ in range(20)]
    return {
        "median of each round": [statistics.median(values) for values in rounds],
        "p99 of each round": [statistics.quantiles(values, n=100)[98] for values in rounds],
        "with the full explanation, median": [statistics.median(explained)],
        "the first call of a registry, median": [statistics.median(first)],
    }


def shown(values: list[float]) -> str:
    """Milliseconds, as a cell."""
    return ", ".join(f"{value:.2f}" for value in values)


def spec(rng: random.Random, number: int, *, alike: bool) -> ModelSpec:
    """A model of any size, with a variant for each engine; a tenth of them have a measured quality."""
    if alike:
        rng = random.Random(1)  # noqa: S311
    millions = rng.choice([135, 360, 500, 1_000, 1_700, 3_000, 7_000, 8_000, 14_000])
    entry = {
        "name": f"Model {number}",
        "parameters": f"{millions + (0 if alike else number)}M",
        "memory_requirement": millions,
        "container": None,
        "status": "experimental",
        "use_cases": USES if alike else rng.sample(USES, 3),
        "chat": "embedded" if alike else rng.choice(["embedded", "none"]),
        "context_length": rng.choice([2048, 8192, 32768]),
        "layers": rng.choice([16, 28, 32]),
        "kv_heads": 8,
        "head_dim": 64,
        "hidden_size": 2048,
        "vocab_size": 32000,
        "quality": rng.choice([None] * 9 + [0.5]),
        "variants": {
            "mlc": {"backend": "mlc", "quantization": "q4f16_1"},
            "llamacpp": {"backend": "llamacpp", "quantization": "Q4_K_M"},
            "transformers": {"backend": "transformers"},
        },
    }
    return ModelSpec.model_validate_json(json.dumps(entry))


def choose(rng: random.Random, registry: Registry) -> Any:
    """Select for a random request in a random state of the machine; the world is made before."""
    available = rng.randrange(6 * GIB, 60 * GIB)
    names = rng.sample(list(registry.models), 2)
    world = World(
        registry=registry,
        backends=frozenset({"mlc", "llamacpp", "transformers"}),
        weights_bytes=_WEIGHTS,
        memory=Memory(64 * GIB, available, None, 4 * GIB, available - 4 * GIB),
        residents=tuple(Resident(name, "mlc", "ready", True, GIB, 4096) for name in names),
        bandwidth_bytes_per_s=204.8e9,
        slots=4,
        context_tokens=4096,
        prompt_cache_bytes=256 * 2**20,
        container=True,
    )
    return select(
        world,
        model=None,
        variant=None,
        task=rng.choice(TASKS),
        speed=rng.choice(["fast", "balanced", "quality"]),
        chat=rng.random() < 0.5,
        context_tokens=rng.choice([None, None, 1000, 6000]),
    )


_WEIGHTS = {
    (f"model-{n}", variant): 10**9 for n in range(MODELS) for variant in ("mlc", "llamacpp", "transformers")
}


def timed_ms(work: Callable[[], Any]) -> float:
    """Run it; how long it took."""
    start_s = time.perf_counter()
    work()
    return (time.perf_counter() - start_s) * 1e3


if __name__ == "__main__":
    main()
