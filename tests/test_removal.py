"""The removal of a model from this machine: what goes, what stays, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.api import create_app
from inference.errors import (
    InvalidRequestError,
    JetLLMError,
    ModelInUseError,
    ModelNotFoundError,
    ModelNotPulledError,
)
from inference.service import Service, build_service
from inference.settings import load_settings
from tests.conftest import wait_until
from tests.test_store_service import put_build

A, B, C = b"first weights", b"second weights", b"weights of two"
Start = Callable[..., Service]


def source_of(content: bytes) -> dict[str, Any]:
    """A source of *content*, which nothing fetches."""
    digest = hashlib.sha256(content).hexdigest()
    return {"type": "url", "url": "https://models.example/m", "sha256": digest, "bytes": len(content)}


def entry(**sources: dict[str, Any]) -> dict[str, Any]:
    """A model with a variant of each source."""
    return {
        "name": "Tiny",
        "parameters": "1M",
        "memory_requirement": 100,
        "container": None,
        "status": "experimental",
        "use_cases": ["conversation"],
        "variants": {name: {"backend": "llamacpp", "source": source} for name, source in sources.items()},
    }


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start services over a store with three blobs, one of which two models share."""
    (tmp_path / "own.gguf").write_bytes(b"the user's own")
    models = {
        "one": entry(a=source_of(A), b=source_of(B), shared=source_of(C)),
        "two": {**entry(shared=source_of(C)), "aliases": ["deux"]},
        "own": entry(file={"type": "file", "path": str(tmp_path / "own.gguf")}),
        "absent": entry(a=source_of(b"never pulled")),
    }
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    for content in (A, B, C):
        blob(tmp_path, content).parent.mkdir(parents=True, exist_ok=True)
        blob(tmp_path, content).write_bytes(content)
    made: list[Service] = []

    def go(**values: Any) -> Service:
        paths = {"cache_dir": tmp_path / "store", "registry": tmp_path / "models.json"}
        made.append(build_service(load_settings({**paths, **values})))
        return made[-1]

    yield go
    for service in made:
        service.close()


def blob(directory: Path, content: bytes) -> Path:
    """Where the store below *directory* keeps *content*."""
    return directory / "store" / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"


def refused(kind: type[JetLLMError], delete: Callable[[], object]) -> JetLLMError:
    """The error that *delete* ends in."""
    with pytest.raises(kind) as caught:
        delete()
    return caught.value


def test_a_model_goes_with_all_that_is_its_own(start: Start, tmp_path: Path) -> None:
    """Weights of every variant, builds, and the beginning of a download; what others share stays."""
    service = start()
    build = put_build(service._catalog.store, "one")
    part = tmp_path / "store" / "staging" / blob(tmp_path, A).name / "partial" / "m"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"first")
    record_bytes = (build / "build.json").stat().st_size
    answer = service.delete("one")
    assert answer == {
        "model": "one",
        "variants": ["a", "b", "shared"],
        "freed_bytes": len(A) + len(B) + len(b"first"),
    }
    assert record_bytes and build.exists(), "a build of a variant that is not registered is nobody's"
    assert [blob(tmp_path, each).exists() for each in (A, B, C)] == [False, False, True]
    assert not part.exists()
    (row,) = [each for each in service.models() if each["id"] == "two"]
    assert row["pulled"] is True


def test_builds_go_with_their_variant(start: Start, tmp_path: Path) -> None:
    """What was made for this machine of its checkpoint is the variant's, too."""
    registry = json.loads((tmp_path / "models.json").read_text())
    checkpoint = {"type": "hub", "repo": "owner/name", "revision": "a" * 40}
    registry["models"]["one"]["variants"]["mlc"] = {
        "backend": "mlc", "quantization": "q4f16_1", "source": checkpoint,
    }  # fmt: skip
    (tmp_path / "models.json").write_text(json.dumps(registry))
    snapshot = tmp_path / "store" / "hub" / "owner--name" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    service = start()
    build = put_build(service._catalog.store, "one")
    size_bytes = 2 + (build / "build.json").stat().st_size
    assert service.delete("one", variant="mlc")["freed_bytes"] == size_bytes
    assert not build.exists() and not snapshot.exists() and blob(tmp_path, A).exists()


def test_one_variant_goes_alone(start: Start, tmp_path: Path) -> None:
    """By the model's alias as well; a second time there is nothing left of it."""
    service = start()
    assert service.delete("one", variant="b") == {"model": "one", "variants": ["b"], "freed_bytes": len(B)}
    assert [blob(tmp_path, each).exists() for each in (A, B, C)] == [True, False, True]
    again = refused(ModelNotPulledError, lambda: service.delete("one", variant="b"))
    assert again.hint == "what is here: jetllm models"
    assert service.delete("deux") == {"model": "two", "variants": ["shared"], "freed_bytes": 0}
    assert refused(ModelNotFoundError, lambda: service.delete("one", variant="x")).param == "variant"
    refused(ModelNotFoundError, lambda: service.delete("three"))
    refused(ModelNotPulledError, lambda: service.delete("absent"))


def test_a_file_of_the_users_is_never_deleted(start: Start, tmp_path: Path) -> None:
    """It was not brought by JetLLM; the error says whose it is."""
    error = refused(InvalidRequestError, lambda: start().delete("own"))
    assert "a file of yours" in error.message
    assert (tmp_path / "own.gguf").read_bytes() == b"the user's own"


@pytest.mark.parametrize("setting", ["pin", "preload"])
def test_what_the_settings_keep_is_not_deleted(start: Start, tmp_path: Path, setting: str) -> None:
    """By any of its names; the next start would want it again."""
    service = start(**{setting: ("deux",)})
    error = refused(ModelInUseError, lambda: service.delete("two"))
    assert setting in error.message and setting in str(error.hint)
    assert blob(tmp_path, C).exists()


def test_what_another_process_uses_stays_and_so_does_the_rest(start: Start, tmp_path: Path) -> None:
    """All is looked at before anything goes: a model is not left half deleted."""
    service = start()
    with service._catalog.store.hold(blob(tmp_path, B)):
        error = refused(ModelInUseError, lambda: service.delete("one"))
    assert "another process" in error.message
    assert all(blob(tmp_path, each).exists() for each in (A, B, C))
    assert service.delete("one")["freed_bytes"] == len(A) + len(B)


def test_what_is_unsound_goes_with_its_reason(start: Start, tmp_path: Path) -> None:
    """After that the model is simply not here, and may be pulled again."""
    service = start()
    store = service._catalog.store
    store.quarantine(blob(tmp_path, A), "damaged")
    assert service.delete("one", variant="a")["freed_bytes"] == len(A) + len("damaged")
    assert list((tmp_path / "store" / "quarantine").iterdir()) == []
    (row,) = [each for each in service.models() if each["id"] == "one"]
    assert row["variants"]["a"]["quarantined"] is None


def test_a_loaded_model_is_refused_over_http(smollm2_path: Path, tmp_path: Path) -> None:
    """409 with the next step; once that is done, 200 with the bytes, and then 404."""
    model = "smollm2-135m-instruct"
    held = tmp_path / "store" / "blobs" / smollm2_path.name
    held.parent.mkdir(parents=True)
    shutil.copyfile(
        smollm2_path, held
    )  # no link: a lock on it would be one on the original, which others use
    service = build_service(load_settings({"cache_dir": tmp_path / "store", "context_tokens": 256}))
    try:
        client = create_app(service).test_client()
        path = f"/jetllm/v1/models/{model}"
        service.load(model)
        refusal = client.delete(path)
        assert refusal.status_code == 409
        error = refusal.get_json()["error"]
        assert (error["code"], error["hint"]) == ("model_in_use", f"unload it first: jetllm unload {model}")
        service.unload(model)
        wait_until(lambda: not service.status()["workers"] or service.status()["workers"][0]["pid"] is None)
        answer = client.delete(f"{path}?variant=llamacpp-q4_1").get_json()
        assert (answer["model"], answer["freed_bytes"]) == (model, smollm2_path.stat().st_size), answer
        assert not held.exists() and smollm2_path.exists()
        assert client.delete(path).status_code == 404
        assert client.delete(f"{path}?variant=").status_code == 404
    finally:
        service.close()
