"""`inference.api.ollama_models`: what is here, what it is, what is loaded, pulling and deleting."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference import errors
from inference.api import create_app
from inference.api.ollama_shapes import FOR_EVER
from inference.artifacts.sources import Progress
from inference.registry import Registry
from tests.fake_service import MODEL
from tests.ollama_service import ABSENT, BASE, EMBEDDER, SHA, OllamaService, worker

DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "135M",
    "quantization_level": "Q4_1",
}


def client_of(service: OllamaService | None = None) -> FlaskClient:
    """A client of the application over a scripted service."""
    return create_app(service or OllamaService()).test_client()


def loaded(*workers: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `/api/ps` for *workers*."""
    rows: list[dict[str, Any]] = (client_of(OllamaService(workers=list(workers))).get("/api/ps").json or {})[
        "models"
    ]
    return rows


def lines(response: Any) -> list[dict[str, Any]]:
    """The lines of a stream."""
    assert response.mimetype == "application/x-ndjson"
    found = [json.loads(each) for each in response.get_data(as_text=True).splitlines()]
    response.close()
    return found


def test_tags_list_what_is_here() -> None:
    """A model's first variant is its latest, others go by their names; what is not here has no row."""
    rows = (client_of().get("/api/tags").json or {})["models"]
    assert [row["name"] for row in rows] == [
        f"{MODEL}:latest",
        f"{MODEL}:f32",
        f"{BASE}:latest",
        f"{EMBEDDER}:latest",
    ]
    assert rows[0] == {
        "name": f"{MODEL}:latest",
        "model": f"{MODEL}:latest",
        "modified_at": "2023-11-14T22:13:20Z",
        "size": 1000,
        "digest": SHA,
        "details": DETAILS,
    }
    other = rows[1]["details"]
    assert (other["format"], other["quantization_level"], len(rows[1]["digest"])) == ("safetensors", "", 64)
    assert (rows[2]["details"]["format"], rows[2]["details"]["quantization_level"]) == ("mlc", "q4f16_1")
    assert (rows[2]["details"]["family"], rows[2]["details"]["families"]) == ("", [])


def test_every_listed_name_can_be_asked() -> None:
    """Names make the round trip from tags to chat."""
    service = OllamaService()
    client = client_of(service)
    for row in (client.get("/api/tags").json or {})["models"]:
        assert client.post("/api/show", json={"model": row["name"]}).status_code == 200
        body = {"model": row["name"], "keep_alive": "1m"}
        assert client.post("/api/generate", json=body).status_code == 200


def test_show_tells_the_registrys_numbers() -> None:
    """Under GGUF's names, with the template and what can be asked of the model."""
    for asked in ({"model": MODEL}, {"name": "smol:latest"}):
        found = client_of().post("/api/show", json=asked).json or {}
        assert found["details"] == DETAILS
        assert found["model_info"] == {
            "general.architecture": "llama",
            "general.basename": "SmolLM2",
            "general.parameter_count": 135_000_000,
            "llama.context_length": 8192,
            "llama.block_count": 30,
            "llama.embedding_length": 576,
            "llama.attention.head_count": 9,
            "llama.attention.head_count_kv": 3,
            "llama.attention.key_length": 64,
            "llama.vocab_size": 49152,
        }
        assert (found["template"], found["license"]) == ("{{ messages }} {{ tools }}", "Apache-2.0")


def test_capabilities_are_true() -> None:
    """Tools need a place in the template and an engine that reads them: of a loaded model its own word."""

    def shown(name: str, **service: Any) -> list[str]:
        body = client_of(OllamaService(**service)).post("/api/show", json={"model": name}).json or {}
        found: list[str] = body["capabilities"]
        return found

    assert shown(MODEL) == ["completion", "tools"]
    assert shown(MODEL, template="{{ messages }}") == ["completion"]
    assert shown(MODEL, template=None) == ["completion"]
    assert shown(BASE) == ["completion"]
    assert shown(EMBEDDER, template=None) == ["embedding"]
    assert shown(MODEL, workers=[worker(MODEL, "q4", capabilities=("chat",))]) == ["completion"]
    assert shown(MODEL, workers=[worker(MODEL, "f32", capabilities=("chat",))]) == ["completion", "tools"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nobody", "unknown model 'nobody'"),
        (ABSENT, "not on this machine (jetllm pull absent)"),
        (f"{MODEL}:away", "not on this machine"),
        (f"{MODEL}:q9", "has no variant 'q9'"),
    ],
)
def test_show_of_what_is_not_here_is_404(name: str, text: str) -> None:
    """Ollama's own program pulls a model when it is told 404."""
    response = client_of().post("/api/show", json={"model": name})
    assert response.status_code == 404 and text in (response.json or {})["error"]


def test_ps_lists_what_is_loaded() -> None:
    """With the bytes it holds, where they are, its context, and when it leaves."""
    before_s = time.time()
    (row,) = loaded(worker(MODEL, "q4"))
    leaves_s = datetime.fromisoformat(row.pop("expires_at").replace("Z", "+00:00")).timestamp()
    assert before_s + 60 <= leaves_s + 0.001 <= time.time() + 60.002
    assert row == {
        "name": f"{MODEL}:latest",
        "model": f"{MODEL}:latest",
        "size": 180,
        "size_vram": 0,
        "digest": SHA,
        "details": DETAILS,
        "context_length": 1024,
    }


def test_ps_tells_variants_apart() -> None:
    """Two of one model go by their variants; what is still loading has no row, nor what is not registered."""
    rows = loaded(
        worker(MODEL, "q4"),
        worker(MODEL, "f32", on_gpu=True, memory_observed_bytes=None),
        worker(BASE, "mlc", state="starting"),
        worker("former", "v"),
    )
    assert [(row["name"], row["size"], row["size_vram"]) for row in rows] == [
        (f"{MODEL}:q4", 180, 0),
        (f"{MODEL}:f32", 200, 200),
    ]


def test_ps_says_when_a_model_leaves() -> None:
    """One at work counts from now; one that is pinned, or kept for ever, never does."""
    (busy,) = loaded(worker(MODEL, "q4", leases=1, expires_in_s=None))
    leaves_s = datetime.fromisoformat(busy["expires_at"].replace("Z", "+00:00")).timestamp()
    assert 299 < leaves_s - time.time() < 301
    for kept in ({"pinned": True, "expires_in_s": None}, {"keep_alive_s": -1.0, "expires_in_s": None}):
        assert loaded(worker(MODEL, "q4", **kept))[0]["expires_at"] == FOR_EVER


def test_a_pull_tells_its_progress() -> None:
    """Lines with the hash of what is fetched, bytes done and in all, and in the end success."""
    pulling = (
        Progress("wait", 0, None, None, None),
        Progress("download", 50, 100, 10.0, 5.0),
        Progress("check", 100, 100, None, None),
    )
    service = OllamaService(pulling=pulling)
    response = client_of(service).post("/api/pull", json={"model": f"{MODEL}:latest"})
    job = response.headers["X-JetLLM-Job"]
    found = lines(response)
    assert job.startswith("job_")
    assert found[0] == {"status": "pulling manifest"} and found[-1] == {"status": "success"}
    told = {"status": "pulling abababababab", "digest": f"sha256:{SHA}", "total": 100, "completed": 50}
    assert told in found
    assert {"status": "verifying sha256 digest"} in found
    assert service.calls == [("pull", MODEL, None)]


def test_a_pull_of_a_variant_has_its_hash() -> None:
    """A tag names what is fetched; where no hash is known there is none."""
    pulling = (Progress("download", 50, None, 10.0, None),)
    for tag, told in (
        ("away", {"status": "pulling cdcdcdcdcdcd", "digest": f"sha256:{'cd' * 32}", "completed": 50}),
        ("f32", {"status": "pulling weights", "completed": 50}),
    ):
        service = OllamaService(pulling=pulling)
        assert told in lines(client_of(service).post("/api/pull", json={"model": f"{MODEL}:{tag}"}))
        assert service.calls == [("pull", MODEL, tag)]


def test_a_pull_can_be_awaited() -> None:
    """`stream` false answers once it is done, or with the status of what went wrong."""
    body = {"model": MODEL, "stream": False}
    assert client_of().post("/api/pull", json=body).json == {"status": "success"}
    full = OllamaService(pulling=(errors.InsufficientStorageError("the disk is full"),))
    response = client_of(full).post("/api/pull", json=body)
    assert (response.status_code, response.json) == (507, {"error": "the disk is full"})


def test_pulls_fail_with_a_status_or_a_line() -> None:
    """At once it is a status; later, after progress, the last line."""
    assert client_of().post("/api/pull", json={"model": "nobody"}).status_code == 404
    full = OllamaService(pulling=(errors.InsufficientStorageError("the disk is full"),))
    assert client_of(full).post("/api/pull", json={"model": MODEL}).status_code == 507
    half = Progress("download", 50, 100, 10.0, 5.0)
    cut = OllamaService(pulling=(half, errors.DownloadError("cut off", hint="again")))
    found = lines(client_of(cut).post("/api/pull", json={"model": MODEL}))
    assert found[-1] == {"error": "cut off (again)"} and {"status": "success"} not in found


def test_deleting_maps_to_the_store() -> None:
    """A name deletes the model, a tag that variant; the answer has no body."""
    service = OllamaService()
    client = client_of(service)
    assert client.delete("/api/delete", json={"model": MODEL}).status_code == 200
    assert client.delete("/api/delete", json={"name": f"{MODEL}:q4"}).get_data() == b""
    assert service.calls == [("delete", MODEL, None), ("delete", MODEL, "q4")]


def test_deleting_ends_an_idle_worker_first() -> None:
    """Ollama deletes what is loaded; a model that works, or is pinned, is refused with 409."""
    in_use = errors.ModelInUseError("it is loaded", hint="unload it")
    service = OllamaService(refusals=[in_use], workers=[worker(MODEL, "q4")])
    assert client_of(service).delete("/api/delete", json={"model": MODEL}).status_code == 200
    assert service.calls == [("delete", MODEL, None), ("unload", MODEL), ("delete", MODEL, None)]
    for busy in ([worker(MODEL, "q4", leases=1)], [worker(MODEL, "q4", pinned=True)], []):
        service = OllamaService(refusals=[in_use], workers=busy)
        response = client_of(service).delete("/api/delete", json={"model": MODEL})
        assert (response.status_code, response.json) == (409, {"error": "it is loaded (unload it)"})
        assert len(service.calls) == 1


def test_a_model_that_just_left_the_registry_has_no_row() -> None:
    """The registry is read anew at any time: what was described a moment ago may be gone."""
    service = OllamaService(workers=[worker(MODEL, "q4"), worker(BASE, "mlc")])
    described = service.models()
    service.models = lambda: described  # type: ignore[method-assign]
    remaining = {name: spec for name, spec in service.registry.models.items() if name == BASE}
    service.registry = Registry(remaining, Path("models.json"))
    client = client_of(service)
    for path in ("/api/tags", "/api/ps"):
        assert [row["name"] for row in (client.get(path).json or {})["models"]] == [f"{BASE}:latest"]
