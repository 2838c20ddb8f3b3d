"""The workshop: the private directory in which one rung is built, step by step.

Whatever happens, nothing outside it is written before all steps are done, and what is left of it after
a crash belongs to a lock that nobody holds: the store's sweep takes it away.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build.coherence import incoherence
from inference.artifacts.build.conversation import use_own_tokens
from inference.artifacts.build.memory import COMPILE_BYTES, GEN_CONFIG_BYTES
from inference.artifacts.build.order import Order
from inference.artifacts.build.process import Budget, StepMemoryError, run_step
from inference.artifacts.build.progress import Course
from inference.artifacts.build.recipe import Recipe, bits_per_parameter
from inference.artifacts.build.records import LIBRARY, RECORD, Step
from inference.artifacts.build.stage import Staged, fix, stage
from inference.artifacts.lint.checkpoint import BUILD_CONFIG, CACHES
from inference.artifacts.lint.header import Tensor
from inference.errors import BuildFailedError, CancelledError, DoesNotFitError

_STALL_S = 180.0
_LEAST_S = 900.0
_COMPILE_S = 3600.0
_SLOWEST_BYTES_PER_S = 500_000.0  # a conversion from a memory card that swaps
_MODULE = "mlc_llm"


class VerifyError(BuildFailedError):
    """What was built does not hold what it promises."""

    cached = True


@dataclass(frozen=True)
class Proof:
    """What a new build said when it was loaded.

    Args:
        text: a greedy answer.
        tokens: how many tokens that was.
    """

    text: str
    tokens: int


Prove = Callable[[Path, Order, Callable[[], bool]], Proof]
"""Loads the build in a directory, in a child, lets it answer, and ends the child.

It raises LoadFailedError or WorkerCrashedError when the build is not usable.
"""


class Workshop:
    """One rung under way; the caller holds the lock of *directory* and removes it."""

    def __init__(
        self,
        directory: Path,
        order: Order,
        recipe: Recipe,
        *,
        log: Path,
        environment: Mapping[str, str],
        budget_bytes: Callable[[], int | None],
        course: Course,
        cancelled: Callable[[], bool],
    ) -> None:
        self.out = directory / "model"
        self.steps: list[Step] = []
        self.changes: tuple[str, ...] = ()
        self.text = ""
        self.step = "stage"
        self._source = directory / "checkpoint"
        self._store = directory.parent.parent
        self._temporary = directory / "tmp"
        self._order, self._recipe = order, recipe
        self._log, self._environment, self._budget = log, environment, budget_bytes
        self._course, self._cancelled = course, cancelled
        for path in (self.out, self._temporary):
            path.mkdir(parents=True)

    def convert(self, shard_bytes: int | None, expected_bytes: int) -> None:
        """Make MLC's weights of the checkpoint.

        Args:
            shard_bytes: low-memory mode; see `inference.artifacts.build.memory`.
            expected_bytes: of the result, for the progress.
        """
        staged = self._ours("stage", lambda: self._staged())
        staged = self._ours("fix", lambda: fix(staged, shard_bytes=shard_bytes, cancelled=self._cancelled))
        self.changes = staged.changes
        recipe = self._recipe
        self._theirs(
            "gen_config",
            [
                *(str(self._source), "--quantization", recipe.quantization),
                *("--conv-template", recipe.conversation),
                *("--context-window-size", str(recipe.context_tokens)),
                *("--prefill-chunk-size", str(recipe.chunk_tokens)),
                *("--max-batch-size", str(recipe.sequences)),
                *("--output", str(self.out)),
            ],
            _LEAST_S,
            GEN_CONFIG_BYTES,
        )
        self._keep_templates()
        use_own_tokens(self.out)
        self._theirs(
            "convert_weight",
            [
                *(str(self._source), "--quantization", recipe.quantization),
                *("--device", self._order.device, "--output", str(self.out)),
            ],
            _LEAST_S + expected_bytes / _SLOWEST_BYTES_PER_S,
            None,
            lambda: self._course.show(self._written_bytes() / max(1, expected_bytes)),
        )

    def take_converted(self) -> None:
        """Take weights that are converted already, and write our sizes into their configuration."""
        self._ours("stage", self._take_files)
        self._ours("gen_config", self._resize)

    def compile(self) -> None:
        """Compile the library for the order's target."""
        self._theirs(
            "compile",
            [
                *(str(self.out), "--quantization", self._recipe.quantization),
                *("--device", self._order.device, *self._recipe.options),
                *("--output", str(self.out / LIBRARY)),
            ],
            _COMPILE_S,
            COMPILE_BYTES,
        )

    def verify(self, prove: Prove | None) -> None:
        """Check the shards; then, unless it is for another machine, load it and let it speak.

        Raises:
            VerifyError: it is not what it promises.
            JetLLMError: of *prove*.
        """

        def check() -> None:
            check_shards(self.out)
            if prove is None:
                return
            proof = prove(self.out, self._order, self._cancelled)
            problem = incoherence(proof.text, proof.tokens)
            if problem is not None:
                raise VerifyError(f"it does not speak: {problem}; it said {proof.text[:60]!a}")
            self.text = proof.text

        self._ours("verify", check)

    def seal(self, record: Mapping[str, Any]) -> None:
        """Write the record; the directory is then complete."""
        self.step = "publish"
        self._course.begin("publish")
        for path in self.out.iterdir():  # the backend's own note, of another place
            if path.name.startswith("."):
                files.remove(path)
        (self.out / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _staged(self) -> Staged:
        return stage(self._order.checkpoint, self._source, cancelled=self._cancelled)

    def _keep_templates(self) -> None:
        """Copy what MLC leaves behind and the backend looks for."""
        for name in ("chat_template.jinja", "generation_config.json", "special_tokens_map.json"):
            path = self._source / name
            if path.is_file() and not (self.out / name).exists():
                shutil.copyfile(path, self.out / name)

    def _take_files(self) -> None:
        source = self._order.checkpoint
        for path in sorted((*source.iterdir(), *files.entries(source / "params"))):
            if path.is_file() and not path.name.startswith(".") and path.name not in (RECORD, LIBRARY):
                if self._cancelled():
                    raise CancelledError("the build was cancelled")
                self._take(path.resolve(), self.out / path.name)

    def _take(self, source: Path, target: Path) -> None:
        """Take a file of the store without its bytes: such files are never written to; a user's may be."""
        if source.is_relative_to(self._store):
            with suppress(OSError):
                os.link(source, target)
                return
        shutil.copyfile(source, target)

    def _resize(self) -> None:
        path = self.out / BUILD_CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            inner = config["model_config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise VerifyError(f"{BUILD_CONFIG}: not as MLC writes it: {type(error).__name__}") from error
        recipe = self._recipe
        sizes = {"context_window_size": recipe.context_tokens, "prefill_chunk_size": recipe.chunk_tokens}
        config |= sizes
        config["model_config"] = {**inner, **sizes, "max_batch_size": recipe.sequences}
        path.unlink()  # it may be a link to the one that is only read
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")

    def _written_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.out.glob("params_shard_*.bin"))

    def _ours(self, name: str, work: Callable[[], Any]) -> Any:
        self.step = name
        self._course.begin(name)
        wall_s, cpu_s = time.monotonic(), time.thread_time()
        result = work()
        self.steps.append(Step(name, time.monotonic() - wall_s, time.thread_time() - cpu_s, 0))
        return result

    def _theirs(
        self,
        name: str,
        arguments: Sequence[str],
        time_s: float,
        needed_bytes: int | None,
        watch: Callable[[], None] | None = None,
    ) -> None:
        self.step = name
        self._course.begin(name)
        budget_bytes = self._budget()
        if budget_bytes is not None and needed_bytes is not None and needed_bytes > budget_bytes:
            raise DoesNotFitError(
                f"{self._order.model}: {name} needs about {needed_bytes / 2**20:.0f} MiB; "
                f"{budget_bytes / 2**20:.0f} MiB can be given to it now",
                hint="unload models first: jetllm ps",
                details={"needed_bytes": needed_bytes, "budget_bytes": budget_bytes},
            )
        usage = run_step(
            name,
            _MODULE,
            [name, *arguments],
            log=self._log,
            cwd=self._temporary,
            environment={**self._environment, "TMPDIR": str(self._temporary)},
            budget=Budget(budget_bytes, time_s, _STALL_S),
            cancelled=self._cancelled,
            watch=lambda: self._watch(name, watch),
        )
        self.steps.append(Step(name, usage.wall_s, usage.cpu_s, usage.peak_bytes))

    def _watch(self, name: str, watch: Callable[[], None] | None) -> None:
        """Show how far the step is, and end it before it takes what belongs to others.

        The machine's memory may have gone to something else since the step was admitted.
        """
        (watch or self._course.show)()
        if self._budget() == 0:
            raise StepMemoryError(
                f"{name}: ended, because the machine's memory ran short while it worked",
                hint="unload models or end other programs, then build again",
            )


def converted_bytes(headers: Mapping[str, Mapping[str, Tensor]], quantization: str) -> int:
    """Predict the size of the shards that a conversion writes."""
    count = sum(math.prod(each.shape) for tensors in headers.values() for each in tensors.values())
    return round(count * bits_per_parameter(quantization) / 8)


def check_shards(directory: Path) -> int:
    """Return the bytes of all shards, each with the length and the MD5 sum that MLC recorded.

    Raises:
        VerifyError: one is missing, cut, or another.
    """
    cache = next((directory / name for name in CACHES if (directory / name).is_file()), None)
    if cache is None:
        raise VerifyError(f"expected {' or '.join(CACHES)}; found neither")
    try:
        records = json.loads(cache.read_text(encoding="utf-8"))["records"]
        shards = [(str(each["dataPath"]), int(each["nbytes"]), each.get("md5sum")) for each in records]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerifyError(f"{cache.name}: not as MLC writes it: {type(error).__name__}") from error
    for name, size, md5 in shards:
        path = directory / Path(name).name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise VerifyError(f"{name}: expected {size} bytes, got {found if found is not None else 'none'}")
        if md5 is not None and md5 != _md5(path):
            raise VerifyError(f"{name}: its MD5 sum is not the one that MLC recorded")
    return sum(size for _, size, _ in shards)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for block in files.blocks(path):
        digest.update(block)
    return digest.hexdigest()
