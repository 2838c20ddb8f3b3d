"""Ollama's dialect over the real service: what it says of real weights, without loading them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.api import create_app
from inference.artifacts.files import sha256_of
from inference.service import build_service
from inference.settings import load_settings
from tests.daemon_process import MODEL
from tests.gguf_template import TOOL_MODEL, tool_registry
from tests.test_embedding import registry_in

MINE = "mine"


@pytest.fixture
def client(smollm2_path: Path, tmp_path: Path) -> Iterator[FlaskClient]:
    """A client of a service with SmolLM2, in a store of its own, and as a file of the user's."""
    shipped = json.loads(load_settings().registry_path.read_text())["models"][MODEL]
    variants = {name: v for name, v in shipped["variants"].items() if v["backend"] == "llamacpp"}
    mine = {"gguf": {"backend": "llamacpp", "source": {"type": "file", "path": str(smollm2_path)}}}
    models = {MODEL: {**shipped, "variants": variants}, MINE: {**shipped, "aliases": [], "variants": mine}}
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    place = tmp_path / "cache" / smollm2_path.relative_to(smollm2_path.parents[1])
    place.parent.mkdir(parents=True)
    shutil.copy(smollm2_path, place)
    settings = load_settings(
        {
            "registry": tmp_path / "models.json",
            "cache_dir": tmp_path / "cache",
            "offline": True,
            "keep_alive_s": -1,
            "port": 0,
        }
    )
    service = build_service(settings)
    try:
        yield create_app(service).test_client()
    finally:
        service.close()


def tags(client: FlaskClient) -> dict[str, dict[str, Any]]:
    """The rows of `/api/tags` by name."""
    return {row["name"]: row for row in (client.get("/api/tags").json or {})["models"]}


def test_tags_say_what_is_on_the_disk(client: FlaskClient, smollm2_path: Path) -> None:
    """Bytes and hash of the very file; of one without a declared hash a mark of its own."""
    rows = tags(client)
    row = rows[f"{MODEL}:latest"]
    assert (row["size"], row["digest"]) == (smollm2_path.stat().st_size, sha256_of(smollm2_path))
    assert row["details"]["quantization_level"] == "Q4_1" and row["details"]["family"] == "llama"
    assert len(rows[f"{MINE}:latest"]["digest"]) == 64


def test_show_knows_the_template(client: FlaskClient) -> None:
    """It is the file's own, and has no place for tools: nothing is promised."""
    found = client.post("/api/show", json={"model": MODEL}).json or {}
    assert "<|im_start|>" in found["template"]
    assert found["capabilities"] == ["completion"]
    assert found["model_info"]["llama.context_length"] == 8192


def test_tools_are_promised_where_the_template_has_them(smollm2_path: Path, tmp_path: Path) -> None:
    """The same weights with a template that shows the model its tools."""
    settings = {"registry": tool_registry(tmp_path, smollm2_path), "offline": True, "port": 0}
    service = build_service(load_settings(settings))
    try:
        client = create_app(service).test_client()
        found = client.post("/api/show", json={"model": TOOL_MODEL}).json or {}
    finally:
        service.close()
    assert found["capabilities"] == ["completion", "tools"]


def test_what_is_deleted_is_gone(client: FlaskClient) -> None:
    """From the list, and 404 from then on; a file of the user's is refused and stays."""
    assert client.delete("/api/delete", json={"model": MODEL}).status_code == 200
    assert list(tags(client)) == [f"{MINE}:latest"]
    assert client.post("/api/show", json={"model": MODEL}).status_code == 404
    assert client.delete("/api/delete", json={"model": MODEL}).status_code == 404
    refused = client.delete("/api/delete", json={"model": MINE})
    assert refused.status_code == 400 and "never deleted" in (refused.json or {})["error"]


def test_what_is_here_is_pulled_at_once(client: FlaskClient) -> None:
    """Nothing is fetched twice."""
    response = client.post("/api/pull", json={"model": MODEL})
    told = [json.loads(each) for each in response.get_data(as_text=True).splitlines()]
    response.close()
    assert told[-1] == {"status": "success"}


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[FlaskClient]:
    """A client of a service with tiny models, one of which makes vectors."""
    registry = registry_in(tmp_path)
    settings = load_settings({"registry": registry, "context_tokens": 64, "min_residency_s": 0, "port": 0})
    service = build_service(settings)
    try:
        yield create_app(service).test_client()
    finally:
        service.close()


def test_vectors_are_the_engines(tiny: FlaskClient) -> None:
    """Of unit length, the same as through OpenAI's dialect; the old route gives the first of them."""
    body = {"model": "bert:latest", "input": ["abc def", "x"], "keep_alive": "7m"}
    found = tiny.post("/api/embed", json=body).json or {}
    ours = tiny.post("/v1/embeddings", json={"model": "bert", "input": ["abc def", "x"]}).json or {}
    assert found["embeddings"] == [pytest.approx(row["embedding"], abs=1e-6) for row in ours["data"]]
    assert found["model"] == "bert:latest" and found["prompt_eval_count"] > 0
    old = tiny.post("/api/embeddings", json={"model": "bert", "prompt": "abc def"}).json or {}
    assert old["embedding"] == pytest.approx(found["embeddings"][0], abs=1e-6)
    cut = tiny.post("/api/embed", json={**body, "dimensions": 2}).json or {}
    assert [len(vector) for vector in cut["embeddings"]] == [2, 2]
    assert math.hypot(*cut["embeddings"][0]) == pytest.approx(1)
    (row,) = (tiny.get("/jetllm/v1/status").json or {})["workers"]
    assert row["keep_alive_s"] == 420
    assert (
        tiny.post("/v1/embeddings", json={"model": "bert", "input": "x", "keep_alive": -1})
    ).status_code == 200
    assert (tiny.get("/jetllm/v1/status").json or {})["workers"][0]["keep_alive_s"] == -1


def test_a_model_that_makes_no_vectors_says_so(tiny: FlaskClient) -> None:
    """400 or 404 with one text, never a 500."""
    response = tiny.post("/api/embed", json={"model": "chat", "input": "x"})
    assert response.status_code == 400 and list(response.json or {}) == ["error"]
    shown = tiny.post("/api/show", json={"model": "bert"}).json or {}
    assert shown["capabilities"] == ["embedding"]
