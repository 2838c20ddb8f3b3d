"""The registry as seen from this machine: what is here, what was measured of it, what does not run on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import inference.catalog
from inference.backends import engine_versions
from inference.catalog import Catalog
from inference.choice import with_available
from inference.device.detect import Device, detect
from inference.measurements import FILE
from inference.registry import content_sha256, load_registry
from inference.selection.selector import select
from inference.selection.tasks import Task
from inference.settings import load_settings

WEIGHTS_BYTES = 1_000_000
SHA256 = hashlib.sha256(b"\0" * WEIGHTS_BYTES).hexdigest()


def entry(weights: Path, **values: Any) -> dict[str, Any]:
    """One model whose weights are a file of the user's."""
    source = {"type": "file", "path": str(weights), "sha256": SHA256, "bytes": WEIGHTS_BYTES}
    return {
        "name": "Mine",
        "parameters": "100M",
        "memory_requirement": 600,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation"],
        "variants": {"gguf": {"backend": "llamacpp", "source": source}},
        **values,
    }


def machine(**values: Any) -> Device:
    """A machine that is none."""
    return dataclasses.replace(
        detect(Path("/nonexistent")), board="orin-nano-8gb", l4t="36.4.3", power_mode="25W", **values
    )


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A catalog of two models on a machine of known identity; nothing is remembered between worlds."""
    models = {}
    for name in ("one", "two"):
        weights = tmp_path / f"{name}.gguf"
        weights.write_bytes(b"\0" * WEIGHTS_BYTES)
        models[name] = entry(weights)
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": models}))
    monkeypatch.setattr(inference.catalog, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(inference.catalog, "detect", machine)
    settings = load_settings({"registry": str(path), "cache_dir": str(tmp_path / "cache")})
    catalog = Catalog(settings, load_registry(path), machine())
    for name in models:
        catalog.store.record_verified(tmp_path / f"{name}.gguf", SHA256)
    return catalog


def measure(tmp_path: Path, model: str, **values: Any) -> None:
    """Write what the harness would: a record of this machine, or of another one."""
    record = {
        "version": 1,
        "model": model,
        "variant": "gguf",
        "board": "orin-nano-8gb",
        "l4t": "36.4.3",
        "power_mode": "25W",
        "engine": engine_versions()["llamacpp"],
        "weights_sha256": SHA256,
        "decode_tokens_per_s": 33.0,
        **values,
    }
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    with (state / FILE).open("a") as file:
        file.write(json.dumps({**record, "sha256": content_sha256(record)}) + "\n")


def chosen(catalog: Catalog, speed: str) -> tuple[str, str | None]:
    """The choice for a conversation, and where its speed comes from."""
    selection = select(catalog.world(()), model=None, variant=None, task=Task.CONVERSATION, speed=speed)
    return selection.model, selection.candidates[0].tokens_per_s_source


def test_what_was_measured_decides(catalog: Catalog, tmp_path: Path) -> None:
    """Evidence that appears while the daemon runs changes the choice, and is named as its source."""
    assert chosen(catalog, "fast")[0] == "one"
    measure(tmp_path, "one", decode_tokens_per_s=20.0)
    measure(tmp_path, "two", decode_tokens_per_s=30.0)
    assert chosen(catalog, "fast") == ("two", "measured")
    measure(tmp_path, "one", decode_tokens_per_s=40.0)
    assert chosen(catalog, "fast") == ("one", "measured")


@pytest.mark.parametrize(
    "other",
    [
        {"board": "agx-orin-64gb"},
        {"power_mode": "15W"},
        {"l4t": "36.4.4"},
        {"engine": "xllamacpp 0.0"},
        {"weights_sha256": "1" * 64},
        {"image": "dustynv/mlc:r36.4.0"},
        {"version": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_was_measured_elsewhere_does_not_count(
    catalog: Catalog, tmp_path: Path, other: dict[str, Any]
) -> None:
    """Another board, power mode, system, engine, image or weights: not this machine's figure."""
    measure(tmp_path, "two", **other)
    assert catalog.world(()).evidence == {}


def test_garbled_evidence_is_told_briefly(
    catalog: Catalog, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file of garbage costs a few lines of the log and none of its sound records."""
    measure(tmp_path, "two")
    with (tmp_path / "state" / FILE).open("a") as file:
        file.write("{\n" * 1000)
    assert list(catalog.world(()).evidence) == [("two", "gguf")]
    assert len(caplog.records) == 6
    assert "1000 such lines" in caplog.text


def test_another_power_mode_is_noticed(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bandwidth, and with it every predicted speed, follows the mode without a restart."""
    assert catalog.world(()).bandwidth_bytes_per_s is None
    monkeypatch.setattr(inference.catalog, "detect", lambda: machine(bandwidth_bytes_per_s=68e9))
    assert catalog.world(()).bandwidth_bytes_per_s == 68e9


def test_weights_that_come_and_go_are_noticed(catalog: Catalog, tmp_path: Path) -> None:
    """Another process may bring or remove weights at any time."""
    before = catalog.world(()).weights_bytes
    assert before == {("one", "gguf"): WEIGHTS_BYTES, ("two", "gguf"): WEIGHTS_BYTES}
    assert catalog.world(()).weights_bytes is before
    (tmp_path / "one.gguf").unlink()
    assert catalog.world(()).weights_bytes == {("two", "gguf"): WEIGHTS_BYTES}


def test_a_container_for_another_system_is_incompatible(tmp_path: Path) -> None:
    """An MLC variant whose image does not run on the board's L4T says so; other engines do not care."""
    spec = entry(tmp_path / "x.gguf", container="dustynv/mlc:r36.4.0")
    spec["variants"]["mlc"] = {"backend": "mlc"}
    path = tmp_path / "models.json"
    path.write_text(json.dumps({"models": {"one": spec}}))
    settings = load_settings({"registry": str(path)})
    old = dataclasses.replace(machine(), l4t="35.3.1")
    world = Catalog(settings, load_registry(path), old).world(())
    assert list(world.incompatible) == [("one", "mlc")]
    assert "built for L4T 36.4" in world.incompatible["one", "mlc"]
    assert Catalog(settings, load_registry(path), machine()).world(()).incompatible == {}


def test_assumed_memory_keeps_a_reserve_of_its_own_size(catalog: Catalog) -> None:
    """6 % of a large machine would leave a small one nothing: the reserve is that of the assumed memory."""
    world = catalog.world(())
    assumed = with_available(world, 2_000_000_000, load_settings({}))
    assert assumed.memory.reserve_bytes <= 512 * 2**20
    assert assumed.memory.budget_bytes == 2_000_000_000 - assumed.memory.reserve_bytes
    assert assumed.memory.cgroup_headroom_bytes is None and assumed.residents == ()
