"""`inference.runtime.calibration`: what the formula gets wrong, learned, corrected and kept."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from inference.runtime.calibration import Calibration, Observation

ENGINES = {"llamacpp": "engine 1"}
SEEN = Observation(
    model="m",
    variant="v",
    backend="llamacpp",
    engine="engine 1",
    weights_bytes=1000,
    context_tokens=512,
    slots=4,
    prefill_batch_tokens=64,
    prompt_cache_bytes=0,
    formula_bytes=2200,
    later_bytes=0,
    loaded_bytes=2000,
    peak_bytes=2000,
)
WEIGHTS = {("m", "v"): 1000}


def seen(**values: Any) -> Observation:
    return dataclasses.replace(SEEN, **values)


def corrections(*observations: Observation, **engines: str) -> dict[tuple[str, str], int]:
    calibration = Calibration(engines={**ENGINES, **engines})
    for observation in observations:
        calibration.observe(observation)
    return calibration.variant_corrections(WEIGHTS)


@pytest.mark.parametrize(("peak", "correction"), [(2000, -200), (2200, 0), (2500, 300)])
def test_the_correction_is_what_the_formula_missed(peak: int, correction: int) -> None:
    """Without a part that comes later the difference is known exactly, in both directions."""
    assert corrections(seen(peak_bytes=peak)) == {("m", "v"): correction}


@pytest.mark.parametrize(
    ("loaded", "peak", "correction"),
    [
        (1850, 1850, -50),  # the prompt cache, 300, is still empty: 1900 without it were predicted
        (1850, 2000, 0),  # 1900 and a third of the cache, or 1850 and a half: nobody knows
        (1850, 2300, 100),  # more than with a full cache: that much is certain
        (1960, 1960, 60),  # more than predicted without the cache, and it is still to come
        (1960, 2200, 60),  # a cache that fills afterwards hides nothing
    ],
)
def test_a_cache_that_fills_later_is_no_error(loaded: int, peak: int, correction: int) -> None:
    """An early peak is compared without the part that comes later, a late one with it."""
    observation = seen(later_bytes=300, loaded_bytes=loaded, peak_bytes=peak)
    assert corrections(observation) == {("m", "v"): correction}


@pytest.mark.parametrize(("peak", "correction"), [(1000, 0), (2500, 300)])
def test_a_declared_figure_is_only_raised(peak: int, correction: int) -> None:
    """A figure without parts knows nothing of the context: what is small at one may be large at another."""
    assert corrections(seen(later_bytes=None, peak_bytes=peak)) == {("m", "v"): correction}


def test_of_several_contexts_every_peak_stays_predicted() -> None:
    """Too little is dangerous, too much is not."""
    longer = seen(context_tokens=2048, formula_bytes=4200, peak_bytes=4150, loaded_bytes=4150)
    assert corrections(SEEN, longer) == corrections(longer, SEEN) == {("m", "v"): -50}


def test_a_vague_observation_does_not_undo_an_exact_one() -> None:
    """With a prompt cache that is half full nothing is known; what was known before stays."""
    vague = seen(prompt_cache_bytes=300, formula_bytes=2500, later_bytes=300, peak_bytes=2200)
    assert corrections(vague) == {("m", "v"): 0}
    assert corrections(SEEN, vague) == corrections(vague, SEEN) == {("m", "v"): -200}


def test_the_highest_peak_of_many_loads_stays() -> None:
    """A later load that served little does not lower what is known."""
    assert corrections(seen(peak_bytes=2150), seen(peak_bytes=2000)) == {("m", "v"): -50}


def test_figures_of_another_engine_or_other_weights_are_not_used() -> None:
    """An observation counts for the engine and the weights that it was made with."""
    assert corrections(SEEN, llamacpp="engine 2") == {}
    assert corrections(seen(weights_bytes=999)) == {}


def test_a_new_formula_starts_anew() -> None:
    """A peak that belongs to other conditions is not mixed with the new ones."""
    assert corrections(seen(peak_bytes=9000), seen(formula_bytes=2100)) == {("m", "v"): -100}


def test_a_variant_never_loaded_gets_the_largest_error_upwards() -> None:
    """Underestimates of others are feared, overestimates give nothing, declared figures say nothing."""
    calibration = Calibration(engines=ENGINES)
    assert calibration.backend_corrections() == {}
    calibration.observe(SEEN)
    assert calibration.backend_corrections() == {"llamacpp": 0}
    calibration.observe(seen(model="n", peak_bytes=2240))
    calibration.observe(seen(model="o", peak_bytes=2300))
    calibration.observe(seen(model="p", peak_bytes=9000, later_bytes=None))
    calibration.observe(seen(model="q", backend="transformers", engine=""))
    assert calibration.backend_corrections() == {"llamacpp": 100, "transformers": 0}


def test_what_was_learned_survives_a_restart(tmp_path: Path) -> None:
    """The file is written once for one observation, and read back whole."""
    path = tmp_path / "state" / "ledger.json"
    calibration = Calibration(path, ENGINES)
    calibration.observe(SEEN)
    assert calibration.unsaved
    calibration.save()
    assert not calibration.unsaved
    assert Calibration(path, ENGINES).variant_corrections(WEIGHTS) == {("m", "v"): -200}
    assert [item.name for item in path.parent.iterdir()] == ["ledger.json"]


def test_small_growth_is_not_written(tmp_path: Path) -> None:
    """Flash wears: a peak is written again when it has grown by more than a sixty-fourth."""
    calibration = Calibration(tmp_path / "ledger.json", ENGINES)
    calibration.observe(SEEN)
    calibration.save()
    calibration.observe(seen(peak_bytes=2020))
    assert not calibration.unsaved
    calibration.observe(seen(peak_bytes=2040))
    assert calibration.unsaved


def written(**values: Any) -> str:
    return json.dumps({"version": 1, "observations": [{**dataclasses.asdict(SEEN), **values}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\0" * 100,
        "[" * 100_000,
        '{"version": 2, "observations": []}',
        '{"version": 1}',
        written(peak_bytes=-1),
        written(peak_bytes="2000"),
        written(peak_bytes=1.5),
        written(peak_bytes=True),
        written(peak_bytes=10**30),
        written(model=None),
        written(surprise=1),
        written() + " " * 2**20,
        '{"version": 1, "observations": [{}]}',
    ],
    ids=lambda text: text[:40],
)
def test_a_file_that_is_not_as_it_should_be_is_put_aside(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Corrupt, foreign or oversized: kept for a look, not trusted, learned again; never a crash."""
    path = tmp_path / "ledger.json"
    path.write_text(text)
    calibration = Calibration(path, ENGINES)
    assert calibration.observations() == ()
    assert (tmp_path / "ledger.json.broken").read_text() == text and not path.exists()
    assert "put aside" in caplog.text and str(tmp_path) not in caplog.text
    calibration.observe(SEEN)
    calibration.save()
    assert Calibration(path, ENGINES).observations() == (SEEN,)


def test_a_disk_that_refuses_does_not_disturb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written is logged once, and known until the end of the process."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    calibration = Calibration(blocked / "ledger.json", ENGINES)
    calibration.observe(SEEN)
    calibration.save()
    calibration.save()
    assert caplog.text.count("could not be kept") == 1
    assert calibration.variant_corrections(WEIGHTS) == {("m", "v"): -200}


def test_the_number_of_observations_is_limited(tmp_path: Path) -> None:
    """The oldest are forgotten, and the file stays one that is read."""
    path = tmp_path / "ledger.json"
    calibration = Calibration(path, ENGINES)
    for n in range(600):
        calibration.observe(seen(context_tokens=n))
    calibration.save()
    kept = Calibration(path, ENGINES).observations()
    assert [observation.context_tokens for observation in kept] == list(range(88, 600))


def test_threads_share_a_calibration(tmp_path: Path) -> None:
    """Observing, asking and saving at once loses nothing."""
    calibration = Calibration(tmp_path / "ledger.json", ENGINES)

    def work(n: int) -> None:
        for peak in range(2000, 2100):
            calibration.observe(seen(model=f"m{n}", peak_bytes=peak))
            calibration.backend_corrections()
            calibration.save()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {o.model: o.peak_bytes for o in calibration.observations()} == {f"m{n}": 2099 for n in range(4)}
