"""The builder, with the fake mlc_llm's real processes."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.build import (
    Build,
    Builder,
    BuildProgress,
    Order,
    Proof,
    Target,
    find_engine,
    order_for,
)
from inference.artifacts.build.process import StepMemoryError
from inference.artifacts.store import Store
from inference.errors import BuildFailedError, CancelledError, DoesNotFitError, LoadFailedError
from inference.registry import ModelSpec
from inference.registry.sources import FileSource
from inference.registry.spec import Variant
from inference.settings import worker_environment
from tests.mlc_checkpoints import make_gpt2, make_llama

FAKE = Path(__file__).parent / "fake_mlc"
TARGET = Target("cpu", None, "x86_64", "a processor", None)
SPEC = ModelSpec.model_validate(
    {
        "name": "Tiny",
        "parameters": "1M",
        "memory_requirement": 100,
        "container": None,
        "status": "experimental",
        "use_cases": ("conversation",),
        "context_length": 256,
        "chat": "embedded",
    },
    strict=False,
)


@pytest.fixture(autouse=True)
def fake_mlc(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake is what this process, and every child of it, finds."""
    monkeypatch.syspath_prepend(str(FAKE))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return make_llama(tmp_path / "llama")


def says(text: str = "The capital of France is Paris.") -> Callable[..., Proof]:
    return lambda path, order, cancelled: Proof(text, 8)


def builder(
    store: Store,
    prove: Callable[..., Proof] | None = None,
    budget: Callable[[], int | None] = lambda: None,
) -> Builder:
    environment = {**worker_environment(), "PYTHONPATH": str(FAKE)}
    return Builder(
        store,
        find_engine(store.root),
        prove=prove or says(),
        environment=environment,
        budget_bytes=budget,
    )


def order(store: Store, checkpoint: Path, quantization: str | None = "q4f16_1", **changes: Any) -> Order:
    variant = Variant(
        backend="mlc", quantization=quantization, source=FileSource(type="file", path=str(checkpoint))
    )
    spec = SPEC.model_copy(update=changes)
    return order_for(
        store, "tiny", spec, "mlc", variant, checkpoint=checkpoint, slots=4, target=TARGET, device="cpu"
    )


def listing(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_checkpoint_becomes_a_build(store: Store, llama: Path) -> None:
    """All steps run, what is left can be loaded, its record says how it came to be."""
    seen: list[BuildProgress] = []
    before = listing(llama)
    build = builder(store).build(order(store, llama), progress=seen.append)
    names = {path.name for path in build.path.iterdir()}
    assert {"mlc-chat-config.json", "tensor-cache.json", "lib.so", "build.json", "tokenizer.json"} <= names
    config = json.loads((build.path / "mlc-chat-config.json").read_text())
    assert (config["context_window_size"], config["prefill_chunk_size"]) == (256, 256)
    assert [step.name for step in build.steps] == [
        "stage", "fix", "gen_config", "convert_weight", "compile", "verify",
    ]  # fmt: skip
    assert build.text == "The capital of France is Paris." and build.is_whole
    assert {each.step for each in seen} >= {"convert_weight", "compile", "verify", "publish"}
    assert listing(llama) == before
    assert not list(store.staging.glob("*"))
    assert build.parameters_bytes == sum(p.stat().st_size for p in build.path.glob("params_shard_*"))


def test_what_stands_is_not_built_again(store: Store, llama: Path) -> None:
    """The second time costs a look; `force` builds anew."""
    first = builder(store).build(order(store, llama))
    assert builder(store).build(order(store, llama)).created_s == first.created_s
    assert builder(store).find(order(store, llama)) is not None
    again = builder(store).build(order(store, llama), force=True)
    assert again.created_s > first.created_s and again.key == first.key


def test_a_changed_checkpoint_is_another_build(store: Store, llama: Path) -> None:
    """The key follows the content, not the path."""
    first = builder(store).build(order(store, llama))
    path = llama / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 10000', '"rope_theta": 20000', 1) + " ")
    assert builder(store).find(order(store, llama)) is None
    assert order(store, llama).content != first.recipe.checkpoint


def test_gpt2_is_renamed_on_a_copy(store: Store, tmp_path: Path) -> None:
    """The prefix of transformers goes, the checkpoint itself stays as it was."""
    checkpoint = make_gpt2(tmp_path / "gpt2", prefixed=True)
    before = listing(checkpoint)
    build = builder(store).build(order(store, checkpoint, chat="none"))
    assert any("transformer." in change for change in build.changes)
    assert listing(checkpoint) == before


def test_a_rung_that_does_not_speak_gives_way_to_the_next(store: Store, llama: Path) -> None:
    """Gibberish is a failure; it is remembered, and shown with the rung that holds."""
    said = {"q4f16_ft": "!" * 48, "q4f16_1": "\N{REPLACEMENT CHARACTER}" * 20}

    def prove(path: Path, order: Order, cancelled: Callable[[], bool]) -> Proof:
        config = json.loads((path / "mlc-chat-config.json").read_text())
        return Proof(said.get(config["quantization"], "Paris, of course."), 8)

    build = builder(store, prove).build(order(store, llama, "q4f16_ft"))
    assert build.recipe.quantization == "q4f32_1"
    assert [(f.quantization, f.step) for f in build.failures] == [
        ("q4f16_ft", "verify"),
        ("q4f16_1", "verify"),
    ]
    found = builder(store, prove).find(order(store, llama, "q4f16_ft"))
    assert found is not None and found.key == build.key
    assert found.failures == build.failures


def test_what_failed_for_good_is_not_tried_again(store: Store, llama: Path) -> None:
    """A negative cache with the reason; `force` tries all the same."""
    tried: list[str] = []

    def prove(path: Path, order: Order, cancelled: Callable[[], bool]) -> Proof:
        tried.append(json.loads((path / "mlc-chat-config.json").read_text())["quantization"])
        raise LoadFailedError("Cannot find parameter in cache: model.embed_tokens.q_weight")

    for _ in range(2):
        with pytest.raises(BuildFailedError, match="q4f32_1: verify: Cannot find parameter") as raised:
            builder(store, prove).build(order(store, llama))
        assert [each["quantization"] for each in raised.value.details["failures"]] == [
            "q4f16_1", "q4f32_1", "q0f16",
        ]  # fmt: skip
    assert tried == ["q4f16_1", "q4f32_1", "q0f16"]
    with pytest.raises(BuildFailedError):
        builder(store, prove).build(order(store, llama), force=True)
    assert len(tried) == 6
    assert not list(store.staging.glob("*"))


def test_what_a_step_said_last_is_the_reason(store: Store, tmp_path: Path) -> None:
    """The compiler's own words, and its log is kept."""
    checkpoint = make_llama(tmp_path / "odd", model_type="novelty")
    with pytest.raises(BuildFailedError, match="novelty") as raised:
        builder(store).build(order(store, checkpoint))
    assert "gen_config" in raised.value.message
    logs = list((store.root / "logs").glob("*.log"))
    assert len(logs) == 3 and all("novelty" in log.read_text() for log in logs)


def test_a_cancelled_build_leaves_nothing(store: Store, llama: Path) -> None:
    """Whenever it is cancelled: no build, no staging, and the next one succeeds."""
    for step in ("stage", "gen_config", "convert_weight", "compile", "verify"):
        reached = threading.Event()

        def note(progress: BuildProgress, step: str = step, reached: threading.Event = reached) -> None:
            if progress.step == step:
                reached.set()

        with pytest.raises(CancelledError):
            builder(store, _cancellable).build(order(store, llama), progress=note, cancelled=reached.is_set)
        assert not list(store.staging.glob("*")) and not list((store.root / "builds").glob("*"))
    assert builder(store).build(order(store, llama)).is_whole


def _cancellable(path: Path, order: Order, cancelled: Callable[[], bool]) -> Proof:
    if cancelled():
        raise CancelledError("the build was cancelled")
    return Proof("Paris, of course.", 4)


def test_a_machine_without_memory_is_told_before(store: Store, llama: Path) -> None:
    """The refusal names both numbers, and nothing was begun."""
    with pytest.raises(DoesNotFitError) as raised:
        builder(store, budget=lambda: 10 * 2**20).build(order(store, llama))
    assert "MiB" in raised.value.message
    assert not list(store.staging.glob("*"))


def test_a_step_ends_when_the_machines_memory_is_gone(store: Store, llama: Path) -> None:
    """Whoever took it: the build gives way, nothing is left behind, and nobody concludes anything."""
    reached: list[str] = []

    def note(progress: BuildProgress) -> None:
        reached.append(progress.step)

    with pytest.raises(StepMemoryError, match="convert_weight"):
        builder(store, budget=lambda: 0 if "convert_weight" in reached[-1:] else 2**34).build(
            order(store, llama), progress=note
        )
    assert not list(store.staging.glob("*")) and not list((store.root / "failed").glob("*"))
    assert builder(store).build(order(store, llama)).is_whole


def test_converted_weights_are_only_compiled(store: Store, llama: Path, tmp_path: Path) -> None:
    """A repository of MLC's own has no checkpoint: its weights are taken as they are."""
    first = builder(store).build(order(store, llama))
    converted = tmp_path / "mlc"
    converted.mkdir()
    for path in first.path.iterdir():
        if path.name not in ("lib.so", "build.json"):
            (converted / path.name).write_bytes(path.read_bytes())
    build = builder(store).build(order(store, converted, "q4f16_1"))
    assert [step.name for step in build.steps] == ["stage", "gen_config", "compile", "verify"]
    assert build.parameters_bytes == first.parameters_bytes
    assert (build.path / "lib.so").is_file()


def test_damaged_converted_weights_are_refused(store: Store, llama: Path, tmp_path: Path) -> None:
    """The engine would not notice: it compares lengths only."""
    first = builder(store).build(order(store, llama))
    converted = tmp_path / "mlc"
    converted.mkdir()
    for path in first.path.iterdir():
        if path.name not in ("lib.so", "build.json"):
            (converted / path.name).write_bytes(path.read_bytes())
    shard = next(converted.glob("params_shard_*"))
    data = bytearray(shard.read_bytes())
    data[7] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(BuildFailedError, match="MD5"):
        builder(store).build(order(store, converted, "q4f16_1"))


def test_a_portable_build_is_no_build_of_this_machine(store: Store, llama: Path) -> None:
    """It has weights and no library; building it here afterwards makes it whole."""
    portable = builder(store).build(order(store, llama), portable=True)
    assert portable.portable and not (portable.path / "lib.so").exists()
    assert builder(store).find(order(store, llama)) is None
    whole = builder(store).build(order(store, llama))
    assert whole.is_whole and (whole.path / "lib.so").is_file()


@pytest.fixture
def eight(store: Store, llama: Path) -> Iterator[list[Build]]:
    found: list[Build] = []
    threads = [
        threading.Thread(target=lambda: found.append(builder(store).build(order(store, llama))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    yield found


def test_eight_askers_build_once(eight: list[Build]) -> None:
    """All get the same build."""
    assert len(eight) == 8 and len({build.created_s for build in eight}) == 1


def test_the_identity_of_an_engine_is_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed line of mlc_llm is another engine."""
    package = tmp_path / "mlc_llm"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    (package / "libmlc_llm.so").write_bytes(b"one")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = find_engine(tmp_path / "store")
    assert find_engine(tmp_path / "store") == first and first.files == 2
    (package / "libmlc_llm.so").write_bytes(b"two")
    os.utime(package / "libmlc_llm.so", ns=(1, 1))
    second = find_engine(tmp_path / "store")
    (package / "__init__.py").write_text("a = 2\n")
    assert len({first.identity, second.identity, find_engine(tmp_path / "store").identity}) == 3
