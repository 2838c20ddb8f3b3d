"""What was measured lapses when anything that it depends on changes, and counts again when that returns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inference.backends import engine_versions
from inference.device.detect import IMAGE_FILE
from inference.inference_engine import InferenceEngine
from tests.measured_machine import (
    IMAGE,
    MEASURED,
    MODEL,
    PREDICTED,
    VARIANT,
    WEIGHTS,
    Machine,
    record,
    shown,
    source_of,
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """An Orin Nano in the image of MLC."""
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def engine(machine: Machine) -> Iterator[InferenceEngine]:
    """Its engine; "one" was measured, and never loaded."""
    with InferenceEngine() as engine:
        engine.record_evidence(record(engine))
        yield engine


@contextmanager
def file_holds(machine: Machine, path: str, text: str) -> Iterator[None]:
    """Within the block, a file of the machine holds *text*."""
    before = (machine.root / path).read_text()
    machine.write(path, text)
    yield
    machine.write(path, before)


def another_board(machine: Machine) -> str:
    """The device tree of an Orin NX 16GB."""
    text = (machine.root / "proc/device-tree/compatible").read_text()
    assert "p3767-0005" in text
    return text.replace("p3767-0005", "p3767-0000")


@pytest.mark.parametrize(
    ("path", "text", "lapse"),
    [
        (
            "var/lib/nvpmodel/status",
            lambda _: "pmode:0000",
            "power_mode: measured with MAXN_SUPER, now 15W",
        ),
        (IMAGE_FILE, lambda _: "mine:1\n", f"image: measured with {IMAGE}, now mine:1"),
        (IMAGE_FILE, lambda _: "", f"image: measured with {IMAGE}, now unknown"),
        (
            "etc/nv_tegra_release",
            lambda m: (m.root / "etc/nv_tegra_release").read_text().replace("REVISION: 4", "REVISION: 5"),
            "l4t: measured with 36.4",
        ),
        ("proc/device-tree/compatible", another_board, "board: measured with orin-nano-8gb, now orin-nx"),
    ],
    ids=["power-mode", "image", "no-image", "l4t", "board"],
)
def test_another_machine(
    machine: Machine, engine: InferenceEngine, path: str, text: Callable[[Machine], str], lapse: str
) -> None:
    """Power mode, image, system and board: what was measured in another one says nothing of this one."""
    assert_counts(engine)
    with file_holds(machine, path, text(machine)):
        assert_lapsed(engine, lapse)
    assert_counts(engine)


def test_another_engine(machine: Machine, engine: InferenceEngine) -> None:
    """An upgrade of the engine's package is noticed while the daemon runs; a downgrade brings it back."""
    assert_counts(engine)
    now = engine_versions()["llamacpp"]
    with machine.another_engine("xllamacpp", "99.1"):
        assert_lapsed(engine, f"engine: measured with {now}, now xllamacpp 99.1")
        assert shown(engine)["engine"] == "xllamacpp 99.1"
    assert_counts(engine)


def test_other_weights_in_the_registry(machine: Machine, engine: InferenceEngine) -> None:
    """The entry names other weights from now on; the former ones come back."""
    assert_counts(engine)
    before = shown(engine)["weights_sha256"]
    machine.register(WEIGHTS[:-1] + b"\1")
    assert engine._service.reload_registry()
    after = shown(engine)["weights_sha256"]
    assert after != before
    assert_lapsed(engine, f"weights: measured with {before[:12]}, now {after[:12]}")
    machine.register()
    assert engine._service.reload_registry()
    assert_counts(engine)


def test_other_weights_on_the_disk(machine: Machine, engine: InferenceEngine) -> None:
    """A file that is no longer the one that was checked is absent, and nothing measured of it counts."""
    assert_counts(engine)
    sha256 = shown(engine)["weights_sha256"]
    (machine.registry.parent / f"{MODEL}.gguf").write_bytes(b"\2" * len(WEIGHTS) + b"more")
    assert_lapsed(engine, f"weights: measured with {sha256[:12]}, now not here")
    assert machine.bring(MODEL) == sha256
    assert_counts(engine)


def test_other_weights_of_which_nobody_gave_the_hash(machine: Machine) -> None:
    """A file of the user's is known by its size and time of change; of the same size it may be another."""
    machine.register(hashed=False)
    with InferenceEngine() as engine:
        engine.record_evidence(record(engine))
        assert_counts(engine)
        weights = machine.registry.parent / f"{MODEL}.gguf"
        times = weights.stat()
        weights.write_bytes(b"\3" * len(WEIGHTS))
        assert_lapsed(engine, "weights: measured with ")
        weights.write_bytes(WEIGHTS)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert_counts(engine)


def test_several_changes_are_all_named(machine: Machine, engine: InferenceEngine) -> None:
    """Whoever brings one condition back sees what is still missing."""
    machine.write(IMAGE_FILE, "mine:1\n")
    machine.write("var/lib/nvpmodel/status", "pmode:0000")
    lapsed = shown(engine)["lapsed"]
    assert [text.partition(":")[0] for text in lapsed] == ["power_mode", "image"]
    row = engine.evidence(MODEL)[0]
    assert (row["counts"], row["lapsed"]) == (False, lapsed)


def test_what_counts_outweighs_what_lapsed(machine: Machine, engine: InferenceEngine) -> None:
    """A model that was measured anew shows the new figures, and the old ones stay on record."""
    machine.write("var/lib/nvpmodel/status", "pmode:0000")
    engine.record_evidence(record(engine, decode_tokens_per_s=12.0, status="experimental", issue="slow"))
    assert shown(engine)["measured"]["decode_tokens_per_s"] == 12.0 and shown(engine)["lapsed"] is None
    assert (engine.model(MODEL)["status"], shown(engine)["measured"]["issue"]) == ("experimental", "slow")
    assert [row["counts"] for row in engine.evidence()] == [False, True]
    machine.write("var/lib/nvpmodel/status", "pmode:0002")
    assert shown(engine)["measured"]["decode_tokens_per_s"] == 33.0
    assert [row["counts"] for row in engine.evidence()] == [True, False]


def test_a_verdict_of_incompatible_lapses_too(machine: Machine, engine: InferenceEngine) -> None:
    """A model that failed with one engine is tried again with the next one."""
    engine.record_evidence(record(engine, status="incompatible", issue="it says nothing that makes sense"))
    assert engine.model(MODEL)["status"] == "incompatible"
    auto = {c["model"]: c for c in engine.select()["candidates"]}
    assert auto[MODEL]["verdict"] == "rejected" and "measured" in auto[MODEL]["reason"]
    with machine.another_engine("xllamacpp", "99.2"):
        assert engine.model(MODEL)["status"] == "experimental"
        assert {c["model"]: c for c in engine.select()["candidates"]}[MODEL]["verdict"] != "rejected"


def assert_counts(engine: InferenceEngine) -> None:
    """The measurement is shown, decides the status, and the selector goes by it."""
    entry, variant = engine.model(MODEL), shown(engine)
    assert (entry["status"], entry["status_source"], entry["declared_status"]) == (
        "verified",
        MEASURED,
        "experimental",
    )
    assert variant["lapsed"] is None and variant["measured"]["decode_tokens_per_s"] == 33.0
    assert source_of(engine) == MEASURED
    assert [row["counts"] for row in engine.evidence(MODEL)] == [True]
    assert next(e for e in engine.models() if e["id"] == MODEL)["variants"][VARIANT] == variant


def assert_lapsed(engine: InferenceEngine, start: str) -> None:
    """It is not used for anything, and what changed is said."""
    entry, variant = engine.model(MODEL), shown(engine)
    assert (entry["status"], entry["status_source"]) == ("experimental", "declared")
    assert variant["measured"] is None and len(variant["lapsed"]) == 1
    assert variant["lapsed"][0].startswith(start)
    assert source_of(engine) in (PREDICTED, None)
    row = engine.evidence(MODEL)[0]
    assert (row["counts"], row["lapsed"]) == (False, variant["lapsed"])
    assert next(e for e in engine.models() if e["id"] == MODEL)["variants"][VARIANT] == variant
