"""The gauges: static facts and live readings, whatever a source does."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

import inference.gauges
from inference.device.detect import detect
from inference.device.memory import read_memory
from inference.errors import SettingsError
from inference.gauges import Gauges
from inference.settings import load_settings
from tests.conftest import wait_until

HERE = dataclasses.replace(detect(), in_container=False)


def test_facts_and_readings_stand_apart() -> None:
    """The picture has static and live; live has memory and telemetry, and nothing of jtop unless asked."""
    gauges = Gauges(load_settings({}), HERE)
    try:
        picture = gauges.picture(HERE, read_memory())
    finally:
        gauges.close()
    assert picture["static"] == HERE.to_dict()
    assert set(picture["live"]) == {"memory", "telemetry"}
    assert picture["live"]["telemetry"] is not None


def test_a_driver_that_hangs_costs_its_readings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that never returns: telemetry is null in time, the facts and the memory are there."""
    go_on = threading.Event()

    def hang(root: Path = Path("/")) -> None:
        go_on.wait()

    monkeypatch.setattr(inference.gauges, "read_telemetry", hang)
    monkeypatch.setattr(inference.gauges, "_PATIENCE_S", 0.05)
    gauges = Gauges(load_settings({}), HERE)
    try:
        picture = gauges.picture(HERE, read_memory())
        assert picture["live"]["telemetry"] is None
        assert picture["live"]["memory"]["available_bytes"]
    finally:
        go_on.set()
        gauges.close()


def test_absent_jetson_stats_is_null_with_its_reason() -> None:
    """The second source that is asked for and not installed: null, why, and everything else as before."""
    gauges = Gauges(load_settings({"jtop": True}), HERE)
    try:
        wait_until(lambda: "no reading yet" not in str(gauges.picture(HERE, read_memory())["live"]), "why")
        live = gauges.picture(HERE, read_memory())["live"]
    finally:
        gauges.close()
    assert live["jtop"] is None
    assert "jtop" in live["jtop_reason"] or "jetson" in live["jtop_reason"]
    assert live["telemetry"] is not None


def test_jetson_stats_is_refused_in_a_container() -> None:
    """Its socket would give the container the host."""
    with pytest.raises(SettingsError, match="jtop: expected false in a container"):
        Gauges(load_settings({"jtop": True}), dataclasses.replace(HERE, in_container=True))
