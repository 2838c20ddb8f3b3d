"""Speed: decode against a floor and against the prediction for this machine, and what a miss looks like."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

from phase3 import bench
from phase3.case import Case
from phase3.data import fixed
from phase3.outcome import Outcome, at_least, unfit
from phase3.result import Row
from phase3.target import Environment

FLOOR_TOKENS_PER_S = 10.0
LEAST_SHARE = 0.5
"""Of the prediction, which is within 14 % of published figures (docs/selection.md)."""

CPU_SHARE = 0.15
"""A GPU's engine on a CPU does a tenth of the prediction; the prediction itself is not exact."""

_TINY_TOKENS_PER_S = 500.0
_TINY = "; only the reading of weights is predicted, and a model this small spends more on each token"

HELD_DOWN = 0.9
SAME_RATIO = 0.3
"""How far the share of the prediction may be from the ratio of the clocks that would explain it."""

_CPU_ENGINES = frozenset({"llamacpp", "transformers"})
_SAMPLE_S = 0.25


def speed(case: Case) -> Outcome:
    """Judge the median decode speed of the plan's first lengths, one request at a time."""
    if not case.rows:
        with case.quiet():
            bench.run(case)
    row = next((row for row in case.rows if row.concurrency == 1), None)
    if row is None:
        lengths = " + ".join(map(str, case.plan.grid[0])) if case.plan.grid else "no"
        return unfit(
            f"the context has no room for {lengths} tokens", "load it with more: JETLLM_CONTEXT_TOKENS=1024"
        )
    value, what = _decode_tokens_per_s(row)
    predicted = row.predicted_decode_tokens_per_s
    limit = max(FLOOR_TOKENS_PER_S, LEAST_SHARE * (predicted or 0.0))
    share = f"{value / predicted:.0%} of the predicted {predicted:.1f}" if predicted else "no prediction"
    lengths = f"{row.prompt_tokens} tokens in, {row.output_tokens} out"
    detail = f"{what} of {row.e2e_s.n} requests, {lengths}; {share}"
    if value >= limit:
        return at_least(value, limit, "tokens/s", detail)
    return at_least(value, limit, "tokens/s", detail, _why(case, row, value))


def diagnose(value: float, predicted: float | None, environment: Environment) -> str:
    """Say what *value* tokens/s look like, on a machine that was as *environment* says while it decoded.

    In this order: a prediction that is missed by nine tenths is explained by neither heat nor a power
    mode, which leave a third or more (a GPU at its lowest clock is one that nobody uses); throttling is
    seen and not inferred, and lowers the clocks, so it is not taken for the power mode; a clock ratio
    counts only where it is about the share that was lost.
    """
    if predicted is None:
        return "nothing is predicted for this machine; try a smaller model or a smaller quantization"
    share = value / predicted
    if share >= LEAST_SHARE:
        return (
            f"as fast as this machine allows ({predicted:.1f} tokens/s predicted): "
            "try a smaller model or a smaller quantization"
        )
    both = f"{value:.1f} tokens/s, {share:.0%} of the predicted {predicted:.1f}"
    if share <= CPU_SHARE:
        return f"{both}, {_cpu_fallback(environment)}"
    if environment.throttled:
        by = f" by {', '.join(environment.throttled_by)}" if environment.throttled_by else ""
        return f"{both}: the clocks are held down{by}{_heat(environment)}; cool it, then measure again"
    held = min(_held_down(environment), key=lambda clock: abs(clock[1] - share), default=None)
    if held is not None and abs(held[1] / share - 1) <= SAME_RATIO:
        name, ratio = held
        return (
            f"{both}: looks like the power mode; the {name} clock is at {ratio:.0%} of its most"
            f"{_mode(environment)}. See sudo nvpmodel -q, choose with sudo nvpmodel -m ID (the modes are in "
            "/etc/nvpmodel.conf), and hold the clocks with sudo jetson_clocks"
        )
    tiny = _TINY if predicted > _TINY_TOKENS_PER_S else ""
    return f"{both}: slower than predicted{_mode(environment)}{_load(environment)}{tiny}"


def _decode_tokens_per_s(row: Row) -> tuple[float, str]:
    """The median, and what it is; an answer that comes in one piece only tells the least that it can be."""
    if row.decode_tokens_per_s is not None:
        return row.decode_tokens_per_s.median, "median"
    return row.output_tokens / row.e2e_s.median, "output over the whole time (no piece came alone), median"


def _why(case: Case, row: Row, value: float) -> str:
    return diagnose(value, row.predicted_decode_tokens_per_s, _while_decoding(case, row.output_tokens))


def _while_decoding(case: Case, output_tokens: int) -> Environment:
    """Look at the machine while it generates; its clocks fall as soon as it does not."""
    with ThreadPoolExecutor(1, "diagnosis") as pool:
        prompt = fixed.prompts().base[0]
        running = pool.submit(case.target.generate, prompt=prompt, max_tokens=output_tokens, ignore_eos=True)
        seen = case.target.environment()
        while not wait([running], timeout=_SAMPLE_S).done:
            later = case.target.environment()
            seen = seen if running.done() else later
        running.result()
    return seen


def _cpu_fallback(environment: Environment) -> str:
    if environment.backend in _CPU_ENGINES:
        return (
            f"as a CPU fallback would be; but {environment.backend} is meant to compute on the CPU here. "
            f"Something else has the cores or the memory{_load(environment)}: see top, and JETLLM_THREADS"
        )
    return (
        "looks like CPU fallback: the engine does not use the GPU. Run the container with the NVIDIA runtime "
        "(docker run --runtime nvidia), and see jetllm device: the GPU's load while it generates"
    )


def _held_down(environment: Environment) -> Iterator[tuple[str, float]]:
    """Yield the clocks that are below their most; an engine on the CPU leaves the GPU's low."""
    clocks = [("memory", environment.memory_clock_hz, environment.memory_clock_max_hz)]
    if environment.backend not in _CPU_ENGINES:
        clocks.append(("GPU", environment.gpu_clock_hz, environment.gpu_clock_max_hz))
    for name, now_hz, most_hz in clocks:
        if now_hz and most_hz and now_hz / most_hz < HELD_DOWN:
            yield name, now_hz / most_hz


def _mode(environment: Environment) -> str:
    return f" in power mode {environment.power_mode}" if environment.power_mode else ""


def _heat(environment: Environment) -> str:
    heat = environment.hottest_celsius
    return f" at {heat:.0f} degrees Celsius" if heat is not None else ""


def _load(environment: Environment) -> str:
    load, cores = environment.load_average_1m, environment.cpu_cores or "unknown"
    return f"; load average {load:.1f} on {cores} cores" if load is not None else ""
