"""What was measured of a build for MLC counts for that build, and for one that is made anew of the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import inference.catalog
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.test_building import fake_mlc, home, service

__all__ = ["fake_mlc", "home", "service"]

MODEL, VARIANT = "tiny", "mlc-q4f16_1"


@pytest.fixture(autouse=True)
def _look_always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inference.catalog, "_LOOK_AGAIN_S", 0.0)
    yield


def shown(service: Service) -> dict[str, Any]:
    """What is shown of the build."""
    found: dict[str, Any] = service.model(MODEL)["variants"][VARIANT]
    return found


def test_a_build_is_known_by_its_key(service: Service) -> None:
    """The hash is the build's key; other limits make another build, and what was measured lapses."""
    assert shown(service)["weights_sha256"] is None
    key = service.build(MODEL)["key"]
    assert shown(service)["weights_sha256"] == key
    service.load(MODEL)
    (worker,) = service.status()["workers"]
    assert worker["packages"] == shown(service)["engine"] == "mlc_llm"
    service.unload(MODEL)
    machine = service.device()["static"]
    service.measurements.record(
        {
            "model": MODEL,
            "variant": VARIANT,
            **{name: machine[name] for name in ("board", "l4t", "power_mode", "image")},
            "engine": worker["packages"],
            "weights_sha256": key,
            "decode_tokens_per_s": 50.0,
        }
    )
    assert shown(service)["measured"]["decode_tokens_per_s"] == 50.0
    assert service.build(MODEL, force=True)["key"] == key
    assert shown(service)["lapsed"] is None
    other = build_service(load_settings({"slots": 16}))
    try:
        assert shown(other)["lapsed"] == [f"weights: measured with {key[:12]}, now not here"]
        again = other.build(MODEL)["key"]
        assert again != key
        assert shown(other)["lapsed"] == [f"weights: measured with {key[:12]}, now {again[:12]}"]
    finally:
        other.close()
    assert shown(service)["measured"] is not None
