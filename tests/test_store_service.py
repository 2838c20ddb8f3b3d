"""The store under a running service: what it loads or pins stays, and the quota is the setting's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build.recipe import Recipe, Target
from inference.artifacts.build.records import Build
from inference.artifacts.store import Store
from inference.catalog import Catalog
from inference.device.detect import detect
from inference.errors import InsufficientStorageError, ModelNotPulledError
from inference.registry import load_registry
from inference.service import Service
from inference.settings import load_settings
from tests.conftest import wait_until
from tests.wheels import failure

MODEL = "smollm2-135m-instruct"
Make = Callable[..., tuple[Service, Catalog]]


@pytest.fixture
def make(smollm2_path: Path, tmp_path: Path) -> Iterator[Make]:
    """Make services with a store of the test's own, in which the real weights are."""
    blob = tmp_path / "store" / "blobs" / smollm2_path.name
    blob.parent.mkdir(parents=True)
    shutil.copyfile(smollm2_path, blob)  # a hard link would share the locks of whoever else uses the weights
    made: list[Service] = []

    def go(**values: Any) -> tuple[Service, Catalog]:
        settings = load_settings({"cache_dir": tmp_path / "store", "context_tokens": 256, **values})
        catalog = Catalog(settings, load_registry(settings.registry_path), detect())
        made.append(Service(settings, catalog))
        return made[-1], catalog

    yield go
    for service in made:
        service.close()


def test_a_loaded_model_is_in_use_until_it_is_unloaded(make: Make) -> None:
    """The worker's hold is what counts, and falls with the worker; then the model may go, and is absent."""
    service, catalog = make()
    store = catalog.store
    service.load(MODEL)
    assert [each.in_use for each in store.usage()] == [True]
    failure(InsufficientStorageError, lambda: store.make_room(1))
    service.unload(MODEL)
    wait_until(lambda: not store.usage()[0].in_use, "the worker's end")
    assert len(store.make_room(1)) == 1
    failure(ModelNotPulledError, lambda: service.load(MODEL))


def put_build(store: Store, model: str) -> Path:
    """A build of *model*, as far as its record says."""
    target = Target("cuda")
    recipe = Recipe("0" * 64, "q4f16_1", 4096, 512, 4, "chatml", "engine", target)
    path = store.root / "builds" / recipe.key
    path.mkdir(parents=True, exist_ok=True)
    build = Build(path, model, "mlc", recipe, 1, False, (), (), "text", (), 0.0)
    (path / "build.json").write_text(json.dumps(build.to_dict()))
    return path


def test_a_model_that_the_settings_pin_is_never_removed(make: Make) -> None:
    """By any of its names, with every build of it, and though nobody has it loaded."""
    _, catalog = make(pin=MODEL, store_quota_bytes=10**9)
    store = catalog.store
    assert store.quota_bytes == 10**9
    put_build(store, MODEL)
    failure(InsufficientStorageError, lambda: store.make_room(1))
    build = put_build(store, "another")
    assert store.make_room(1) == [build]
