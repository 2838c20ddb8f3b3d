"""`python -m benchmarks.memory`: the memory formula against the peak of real workers, as a Markdown section.

Each row is a worker of its own, started by the supervisor as the daemon does it. Every slot is filled
to nearly its whole context at once, and again with other texts where the prompt cache is to be filled
too; then the worker is unloaded, and the peak that the kernel kept of it is what the calibration has
noted. The correction is learned in one row of a model and applied to its other rows. Takes a quarter
of an hour on two cores.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import random
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.run import GEMMA, MIB, SMOLLM2, weights
from inference.backends import LoadOptions
from inference.device.detect import detect
from inference.generation import GenerateRequest
from inference.registry import load_registry
from inference.runtime.calibration import Calibration, Observation, Prediction
from inference.runtime.plan import Limits, Plan
from inference.runtime.supervisor import Supervisor
from inference.runtime.worker import Worker, WorkerSpec
from inference.selection.estimate import estimate_memory, prefill_batch
from inference.settings import load_settings, worker_environment

WORDS = ("sea", "moon", "road", "fire", "stone", "river", "cloud", "tree", "bird", "house", "light", "wind")
ANSWER_TOKENS = 16
LEARNED_AT = (2048, 4, 0)  # context, slots, prompt cache
CACHE_BYTES = 256 * MIB
CASES = [(context, 4, 0, 1) for context in (512, 2048, 8192)] + [(8192, 1, 0, 1), (2048, 4, CACHE_BYTES, 4)]
FORMULA_SHARE, CORRECTED_SHARE = 0.10, 0.05


@dataclass(frozen=True)
class Case:
    """One worker: what it is, and how often all of its slots are filled."""

    model: str
    variant: str
    context_tokens: int
    slots: int
    prompt_cache_bytes: int
    rounds: int

    @property
    def configuration(self) -> tuple[int, int, int]:
        """What `LEARNED_AT` names."""
        return (self.context_tokens, self.slots, self.prompt_cache_bytes)


def main() -> None:
    """Measure every case and print the section for docs/bench-log.md."""
    registry = load_registry(load_settings().registry_path)
    calibration = Calibration()
    for model in (SMOLLM2, GEMMA):
        variants = registry.models[model].variants.items()
        variant = next(name for name, value in variants if value.backend == "llamacpp")
        for context, slots, cache, rounds in CASES:
            _measure(Case(model, variant, context, slots, cache, rounds), calibration)
    print(section(calibration.observations()))


def _measure(case: Case, calibration: Calibration) -> None:
    started_s = time.monotonic()
    supervisor = Supervisor(_limits(), budget=lambda: None, calibration=calibration)
    with contextlib.closing(supervisor):
        lease = supervisor.apply(_plan(case))
        worker = supervisor.wait(lease, lambda: False, started_s + 120)
        for turn in range(case.rounds):
            _fill(worker, case, turn)
        lease.release()
        if not supervisor.unload((case.model, case.variant), 30):
            raise SystemExit(f"{case}: not unloaded in 30 s")
    peak = calibration.observations()[-1].peak_bytes / MIB
    sys.stderr.write(f"{case}: {peak:.1f} MiB, {time.monotonic() - started_s:.0f} s\n")


def _plan(case: Case) -> Plan:
    path, settings = weights(case.model), load_settings()
    spec = load_registry(settings.registry_path).models[case.model]
    size, batch = path.stat().st_size, prefill_batch("llamacpp", settings.prefill_batch_tokens)
    estimate = estimate_memory(
        spec,
        spec.variants[case.variant],
        context_tokens=case.context_tokens,
        slots=case.slots,
        prompt_cache_bytes=case.prompt_cache_bytes,
        weights_bytes=size,
        prefill_batch_tokens=batch,
    )
    options = LoadOptions(
        weights=path,
        context_tokens=case.context_tokens,
        slots=case.slots,
        threads=settings.threads,
        prefill_batch_tokens=batch,
        prompt_cache_bytes=case.prompt_cache_bytes,
        runtime_dir=Path(),
    )
    name = f"{case.model}/{case.variant}"
    return Plan(
        key=(case.model, case.variant),
        spec=WorkerSpec(name, "llamacpp", options.to_dict(), worker_environment()),
        slots=case.slots,
        memory_bytes=estimate.total_bytes,
        prediction=Prediction(estimate.total_bytes, estimate.later_bytes, size),
    )


def _limits() -> Limits:
    return Limits(
        max_loaded_models=1,
        max_queue=32,
        keep_alive_s=-1,
        min_residency_s=0,
        stall_timeout_s=600,
        load_timeout_s=120,
        stop_timeout_s=10,
    )


def _fill(worker: Worker, case: Case, turn: int) -> None:
    """Fill every slot at once with another text: 97 % of the context less the answer."""
    words = int((case.context_tokens - ANSWER_TOKENS) * 0.97)
    prompted: list[int] = []

    def one(slot: int) -> None:
        chance = random.Random(slot + turn * 100)  # noqa: S311 - a text to repeat, not a secret
        text = " ".join(chance.choice(WORDS) for _ in range(words))  # one token each
        request = GenerateRequest(prompt=text, max_tokens=ANSWER_TOKENS, temperature=0, ignore_eos=True)
        for chunk in worker.generate(request, lambda: False):
            if chunk.usage is not None:
                prompted.append(chunk.usage.prompt_tokens)

    threads = [threading.Thread(target=one, args=(slot,)) for slot in range(case.slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(prompted) != case.slots or min(prompted) < 0.9 * case.context_tokens - ANSWER_TOKENS:
        raise SystemExit(f"{case}: the slots were not filled: {prompted} tokens")


def section(observations: tuple[Observation, ...]) -> str:
    """The Markdown section, verdict in its title."""
    rows, missed = [], 0
    for model in (SMOLLM2, GEMMA):
        mine = [seen for seen in observations if seen.model == model]
        correction = next(seen.correction_bytes for seen in mine if _configuration(seen) == LEARNED_AT)
        for seen in mine:
            row, ok = _row(seen, correction)
            rows.append(row)
            missed += not ok
    title = "within its targets" if not missed else f"{missed} of {len(rows)} rows missed"
    device: Any = detect()
    total = (device.memory_total_bytes or 0) / 2**30
    lines = [
        f"## {datetime.date.today().isoformat()}: the llamacpp memory formula, {title}",
        "",
        f"Machine: {device.cpu_model}, {device.cpu_cores} cores, {total:.0f} GiB, "
        f"Linux {platform.release()}; Python {platform.python_version()}; "
        f"batch {prefill_batch('llamacpp', load_settings().prefill_batch_tokens)}. "
        "Command: `python -m benchmarks.memory`.",
        "",
        "MiB. Peak: VmHWM of the worker, all slots filled at once with 97 % of their context. "
        f"Corrected: with the correction learned at {LEARNED_AT[0]} x {LEARNED_AT[1]} alone. "
        f"Targets: the formula within {FORMULA_SHARE:.0%}, corrected within {CORRECTED_SHARE:.0%}.",
        "",
        "| model | context x slots, prompt cache | formula | peak | error | corrected | error | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]
    return "\n".join(lines)


def _configuration(seen: Observation) -> tuple[int, int, int]:
    return (seen.context_tokens, seen.slots, seen.prompt_cache_bytes)


def _row(seen: Observation, correction_bytes: int) -> tuple[str, bool]:
    corrected = seen.formula_bytes + correction_bytes
    error = corrected / seen.peak_bytes - 1
    met = (abs(seen.error) <= FORMULA_SHARE, abs(error) <= CORRECTED_SHARE)
    verdict = "met" if all(met) else ", ".join("met" if each else "**missed**" for each in met)
    label = f"{seen.context_tokens} x {seen.slots}, {seen.prompt_cache_bytes // MIB}"
    cells = (
        seen.model,
        label + (" (learned here)" if _configuration(seen) == LEARNED_AT else ""),
        f"{seen.formula_bytes / MIB:.1f}",
        f"{seen.peak_bytes / MIB:.1f}",
        f"{seen.error:+.1%}",
        f"{corrected / MIB:.1f}",
        f"{error:+.1%}",
        verdict,
    )
    return f"| {' | '.join(cells)} |", all(met)


if __name__ == "__main__":
    main()
