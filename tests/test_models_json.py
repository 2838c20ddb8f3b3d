"""The shipped models.json and docs/models.md: what is listed, and where every number is from."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from inference.registry import load_registry
from inference.registry.sources import HubSource, PackageDirectory, PackageSource
from inference.registry.spec import ModelSpec, Status, Variant
from inference.selection.tasks import Task

ROOT = Path(__file__).resolve().parent.parent
MODELS = load_registry(ROOT / "models.json").models
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
KEYS = list(MODELS)

OLD_CONTAINER = "dustynv/mlc:r36.4.0"
CONTAINER = "dustynv/mlc:0.20.0-r36.4.0"
GUIDE = ("distilgpt2", "dialogpt-small", "gpt2", "smollm2-135m-instruct", "qwen2.5-0.5b-instruct")
RUN_BY_OUR_TESTS = {"smollm2-135m-instruct", "gemma-3-270m"}
# The architectures that mlc_llm knows (python/mlc_llm/model/model.py at 79d603f) among those listed.
KNOWN_TO_MLC = {"gpt2", "llama", "qwen2", "qwen3", "qwen3_moe", "gemma3", "phi3"}
BITS = {"q4f16_1": 4.5, "Q4_K_M": 4.9, "Q8_0": 8.5, "F16": 16.0}
OVERHEAD_MB = {"mlc": 600, "llamacpp": 500, "transformers": 470}
DECLARED_MB = {
    "distilgpt2": 1500, "dialogpt-small": 2000, "gpt2": 2500, "smollm2-135m-instruct": 1000,
    "qwen2.5-0.5b-instruct": 2500, "gemma-3-270m": 800, "gpt-oss-20b": 14600, "gpt-oss-120b": 66200,
}  # fmt: skip


def section(title: str) -> str:
    """The part of the page under that heading."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> dict[str, list[str]]:
    """The cells after the first of a section's rows, by the model that the first names."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section(title).splitlines() if line
    ]
    return {first.strip("`"): rest for first, *rest in cells if re.fullmatch(r"`[\w.-]+`", first)}


def hub_variants() -> list[tuple[str, str, Variant, HubSource]]:
    """The variants that come from the hub, with the names of their models."""
    return [
        (key, name, variant, variant.source)
        for key, spec in MODELS.items()
        for name, variant in spec.variants.items()
        if isinstance(variant.source, HubSource)
    ]


# What is listed


def test_there_is_a_ladder_of_models() -> None:
    """At least 20 models, the guide's five first among them."""
    assert len(MODELS) >= 20
    assert set(GUIDE) < set(KEYS)


@pytest.mark.parametrize("task", ["conversation", "code", "embedding", "vision"])
def test_each_kind_is_there_in_two_sizes(task: str) -> None:
    """Chat, code, embedding and vision-language: of each kind a smaller and a bigger model."""
    sizes = {spec.parameter_count for spec in MODELS.values() if task in spec.use_cases}
    assert len(sizes) >= 2


@pytest.mark.parametrize("room_mb", [1500, 5500, 13_000, 27_000, 57_000, 117_000])
def test_every_board_has_a_model_that_uses_it(room_mb: int) -> None:
    """What is left to models on boards of 4 to 128 GB takes a chat model that needs over half of it."""
    needs = [spec.memory_requirement for spec in MODELS.values() if "conversation" in spec.use_cases]
    assert max((need for need in needs if need <= room_mb), default=0) > room_mb / 2


def test_names_and_tasks_are_those_in_use() -> None:
    """Use cases are tasks that requests can have; keys and aliases are short, lower-case and unique."""
    tasks = {task.value for task in Task}
    names = Counter(chain(MODELS, *(spec.aliases for spec in MODELS.values())))
    assert {use for spec in MODELS.values() for use in spec.use_cases} <= tasks
    assert [
        name for name, times in names.items() if times > 1 or not re.fullmatch(r"[a-z0-9.-]+", name)
    ] == []


# What an entry says


@pytest.mark.parametrize("key", KEYS)
def test_an_entry_is_complete(key: str) -> None:
    """Nothing that the selector or a reader needs is null: licence, shape, architecture, chat, variants."""
    spec = MODELS[key]
    shape = (spec.layers, spec.heads, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
    assert None not in (*shape, spec.context_length, spec.license, spec.architecture, spec.chat)
    assert spec.variants
    assert (spec.heads or 0) % (spec.kv_heads or 1) == 0
    assert not (spec.chat == "none" and "code" in spec.use_cases)


@pytest.mark.parametrize("key", KEYS)
def test_no_status_claims_what_nobody_has_run(key: str) -> None:
    """Experimental is what our tests run; all else is planned, and no quality is given."""
    status = Status.EXPERIMENTAL if key in RUN_BY_OUR_TESTS else Status.PLANNED
    assert MODELS[key].status is status
    assert MODELS[key].quality is None


@pytest.mark.parametrize("key", KEYS)
def test_the_container_is_the_one_of_mlc(key: str) -> None:
    """An entry with an mlc variant names the newest image, the guide's keep theirs, others need none."""
    spec = MODELS[key]
    runs_on_mlc = any(variant.backend == "mlc" for variant in spec.variants.values())
    newest = CONTAINER if runs_on_mlc else None
    assert spec.container == (OLD_CONTAINER if key in GUIDE else newest)
    assert spec.architecture in KNOWN_TO_MLC or not runs_on_mlc


@pytest.mark.parametrize("key", KEYS)
def test_every_engine_has_a_variant_or_the_page_says_why_not(key: str) -> None:
    """mlc, llamacpp and transformers; where mlc is missing the notes say why."""
    spec = MODELS[key]
    backends = {variant.backend for variant in spec.variants.values()}
    assert "transformers" in backends
    assert "llamacpp" in backends or key in ("distilgpt2", "dialogpt-small", "gpt2")
    assert "mlc" in backends or "No mlc variant" in (spec.notes or "")


def test_history_is_carried() -> None:
    """The two that crashed in nano_llm:r36.2.0 say so, why, and what to use; GPT-2 says what MLC needs."""
    smollm, qwen = (MODELS[key].notes or "" for key in GUIDE[3:])
    for notes in (smollm, qwen):
        assert notes.startswith("Incompatible in nano_llm:r36.2.0: its MLC is of February 2024")
        assert f"Use {OLD_CONTAINER}, or the llamacpp" in notes
    assert "no lm_head.weight" in smollm
    assert "'Model type qwen2 not supported'" in qwen
    assert all("rename pass" in (MODELS[key].notes or "") for key in GUIDE[:3])


# Nothing made up: sources


def test_nothing_of_the_hub_is_pinned_unseen() -> None:
    """A revision, hash or size of the hub is null: nobody has seen it; the first pull records it."""
    for _, _, variant, source in hub_variants():
        assert source.revision is None
        assert all(file.sha256 is None and file.bytes is None for file in variant.files)


def test_gguf_files_fit_their_variant() -> None:
    """The file's name holds the quantization of its variant, and the variant is named after both."""
    for key, name, variant, _ in hub_variants():
        if variant.backend == "llamacpp":
            quantization = variant.quantization or ""
            assert name == f"llamacpp-{quantization.lower()}", key
            assert all(quantization.lower() in file.name.lower() for file in variant.files), key


def test_repositories_are_named_on_the_page() -> None:
    """Every repository but the original checkpoint, and every package, has its source on the page."""
    named = section("Where the weights come from")
    for key, name, variant, source in hub_variants():
        if variant.backend != "transformers":
            assert re.search(rf"^\| `{re.escape(key)}` \| {re.escape(source.repo)} \|", named, re.M), (
                key,
                name,
            )
        for file in variant.files[:1]:
            assert file.name in named
    for spec in MODELS.values():
        for variant in spec.variants.values():
            if isinstance(variant.source, PackageSource | PackageDirectory):
                assert f"{variant.source.bytes:,}" in named
                assert variant.source.sha256[:8] in named


@pytest.mark.parametrize("key", KEYS)
def test_every_shape_number_has_its_source(key: str) -> None:
    """The page repeats the shape of each entry, and names where it was read."""
    spec = MODELS[key]
    *numbers, source = rows("Shape")[key]
    shape = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
    assert numbers == [str(number) for number in (*shape, spec.context_length, spec.heads)]
    assert len(source) > 5


def test_abbreviated_sources_are_explained() -> None:
    """Every [source] of the tables is spelled out, with the commit at which it was read."""
    used = set(re.findall(r"\[([\w-]+)\](?!\()", PAGE))
    explained = dict(re.findall(r"^- \[([\w-]+)\]: ((?:.|\n  )+)", PAGE, re.M))
    assert used == explained.keys()
    assert [name for name, text in explained.items() if not re.search(r"\([0-9a-f]{7}\)", text)] == []


def test_every_licence_has_its_source() -> None:
    """The table of licences has each licence that an entry names."""
    stated = section("Licences")
    assert {spec.license for spec in MODELS.values() if not _is_stated(spec.license or "", stated)} == set()


def _is_stated(name: str, text: str) -> bool:
    """Whether the table states that licence; the two of Llama share a row."""
    return all(part in text for part in (name.split(" Community")[0], name.rpartition(" ")[2]))


# Nothing made up: arithmetic


@pytest.mark.parametrize("key", KEYS)
def test_parameters_follow_from_the_shape(key: str) -> None:
    """The large terms of the shape give the text part within 2 %, and all parts the entry's count."""
    spec = MODELS[key]
    mlp_size, experts, output, text, sees, parameters = rows("Parameters")[key]
    count = int(text.replace(",", "")) + int(sees.replace(",", "") or 0)
    large = large_terms(spec, int(mlp_size) * int(experts), outputs=2 if output == "own" else 1)
    assert large == pytest.approx(int(text.replace(",", "")), rel=0.02)
    assert parameters == spec.parameters
    # 117M is the guide's and Microsoft's name of GPT-2's smallest size
    assert spec.parameter_count == pytest.approx(count, rel=0.07 if key == "dialogpt-small" else 0.013)


def large_terms(spec: ModelSpec, mlp_size: int, *, outputs: int) -> int:
    """Attention, MLPs and vocabulary; norms, biases, routers and positions are left out."""
    assert spec.layers and spec.heads and spec.kv_heads and spec.head_dim
    assert spec.hidden_size and spec.vocab_size
    gated = spec.architecture not in ("gpt2", "bert")
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.heads + spec.kv_heads)
    mlp = (3 if gated else 2) * spec.hidden_size * mlp_size
    return spec.layers * (attention + mlp) + outputs * spec.vocab_size * spec.hidden_size


@pytest.mark.parametrize("key", [key for key in KEYS if key not in DECLARED_MB])
def test_memory_requirement_follows_the_page(key: str) -> None:
    """Weights, a cache of 4096 tokens and an overhead for the first variant, rounded up to 100 MB."""
    spec = MODELS[key]
    variant = next(iter(spec.variants.values()))
    assert spec.layers and spec.kv_heads and spec.head_dim and spec.context_length
    weights = spec.parameter_count * BITS[variant.quantization or ""] / 8
    cache = 4 * spec.layers * spec.kv_heads * spec.head_dim * min(4096, spec.context_length)
    hundreds = (weights + cache) / 1e8 + OVERHEAD_MB[variant.backend] / 100
    assert spec.memory_requirement == math.ceil(hundreds) * 100


@pytest.mark.parametrize("key", [key for key in KEYS if key not in GUIDE[:3]])
def test_float32_declares_its_own_memory(key: str) -> None:
    """Transformers computes in four bytes on a CPU, whatever the entry's first variant takes."""
    spec = MODELS[key]
    assert spec.layers and spec.kv_heads and spec.head_dim and spec.context_length
    cache = 8 * spec.layers * spec.kv_heads * spec.head_dim * min(4096, spec.context_length)
    hundreds = (4 * spec.parameter_count + cache) / 1e8 + OVERHEAD_MB["transformers"] / 100
    assert spec.variants["transformers"].memory_requirement == math.ceil(hundreds) * 100


@pytest.mark.parametrize(("key", "megabytes"), DECLARED_MB.items())
def test_declared_memory_is_explained(key: str, megabytes: int) -> None:
    """What the formula does not give is the guide's, measured, or computed on the page."""
    assert MODELS[key].memory_requirement == megabytes
    assert key in GUIDE[:3] or str(megabytes) in section("Memory")
    assert [MODELS[name].min_available_memory for name in GUIDE[:3]] == [None, 2500, 4000]
