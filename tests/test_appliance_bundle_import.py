"""A release's models come into a store whole, once, and answer there as they did where it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inference.appliance.bundle import check_bundle
from inference.artifacts.build.recipe import Recipe, Target
from inference.artifacts.build.records import Build, Builds
from inference.artifacts.cargo import Sum, take
from inference.artifacts.store import Store
from inference.bundling import Bundling, Chosen
from inference.cli import main
from inference.errors import InvalidRequestError, ModelNotFoundError, ModelNotPulledError, UnsafeArtifactError
from inference.inference_engine import InferenceEngine
from inference.registry import EvidenceRecord, append_evidence, load_evidence, load_registry
from inference.settings import Settings, load_settings
from tests.dying import killed_at_each_step
from tests.release_parts import make_image

MODEL, VARIANT = "smollm2-135m-instruct", "llamacpp-q4_1"
COMMIT = "c" * 40
RECIPE = Recipe("0" * 64, "q4f16_1", 256, 64, 4, "chatml", "engine", Target("cuda", "8.7", "aarch64"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _cargo() -> dict[str, bytes]:
    """One of each: a file, a directory known by its list, a snapshot with its records, a build."""
    parts = {"config.json": b"{}", "sub/model.safetensors": b"tensors"}
    listed = "".join(f"{_sha256(data)}  {name}\n" for name, data in sorted(parts.items()))
    build = Build(Path(), "tiny", "mlc", RECIPE, 7, False, (), (), "text", (), 0.0)
    snapshot = f"hub/owner--repo/{COMMIT}"
    record = {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in parts.items()}
    return {
        f"blobs/sha256-{_sha256(b'weights')}": b"weights",
        **{f"blobs/sha256-{_sha256(listed.encode())}/{name}": data for name, data in parts.items()},
        **{f"{snapshot}/{name}": data for name, data in parts.items()},
        f"{snapshot}.json": json.dumps({"repo": "owner/repo", "revision": COMMIT, "files": record}).encode(),
        "hub/owner--repo/pinned.json": json.dumps({"revision": COMMIT}).encode(),
        f"builds/{RECIPE.key}/build.json": json.dumps(build.to_dict()).encode(),
        f"builds/{RECIPE.key}/lib.so": b"library",
    }


def _put(directory: Path, cargo: dict[str, bytes]) -> dict[str, Sum]:
    """Write *cargo* below *directory*; return what a manifest says of it."""
    for name, data in cargo.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {name: Sum(len(data), _sha256(data)) for name, data in cargo.items()}


def _content(root: Path) -> dict[str, bytes]:
    """What a store has, its locks aside."""
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("locks/")}


def _settled(root: Path) -> dict[str, bytes]:
    """What of a store is to be used."""
    return {name: data for name, data in _content(root).items() if not name.startswith("staging/")}


def _registry(path: Path, **variants: Any) -> Path:
    entry = {
        "name": "Tiny",
        "parameters": "1M",
        "memory_requirement": 100,
        "container": None,
        "status": "experimental",
        "use_cases": ["text_generation"],
        "variants": variants,
    }
    path.write_text(json.dumps({"models": {"tiny": entry}}))
    return path


class TestStore:
    """`cargo.take`: into the store, at the same paths."""

    def test_everything_is_there_and_is_found(self, tmp_path: Path) -> None:
        """As if it had been pulled and built here; a second time copies nothing."""
        store, sums = Store(tmp_path / "store"), _put(tmp_path / "bundle", _cargo())
        size = sum(each.bytes for each in sums.values())
        assert take(store, tmp_path / "bundle", sums, lambda _: None) == (size, 0)
        assert _content(store.root) == _cargo()
        assert take(store, tmp_path / "bundle", sums, lambda _: None) == (0, size)
        assert Builds(store.root).find(RECIPE.key) is not None
        path = _registry(tmp_path / "models.json", hub=_HUB)
        variant = load_registry(path).models["tiny"].variants["hub"]
        assert store.path_of("tiny", variant) == store.root / f"hub/owner--repo/{COMMIT}"
        assert store.is_intact(store.root, variant)

    def test_whenever_it_is_killed_a_build_is_whole_or_absent(self, tmp_path: Path) -> None:
        """And the next import completes it, and leaves nothing behind."""
        cargo = {name: data for name, data in _cargo().items() if name.startswith("builds/")}
        sums, root = _put(tmp_path / "bundle", cargo), tmp_path / "store"
        kills = 0
        for _ in killed_at_each_step(
            lambda step: take(Store(root), tmp_path / "bundle", sums, lambda _: step()), root
        ):
            kills += 1
            assert _settled(root) in ({}, cargo)
            take(Store(root), tmp_path / "bundle", sums, lambda _: None)
            assert _content(root) == cargo and not any((root / "staging").iterdir())
            shutil.rmtree(root)
        assert kills > 20

    def test_an_import_that_is_killed_again_and_again_ends(self, tmp_path: Path) -> None:
        """Each goes on with what the ones before have taken, which is whole."""
        cargo = _cargo()
        sums, root = _put(tmp_path / "bundle", cargo), tmp_path / "store"
        for _ in killed_at_each_step(
            lambda step: take(Store(root), tmp_path / "bundle", sums, lambda _: step()), root
        ):
            assert _settled(root).items() <= cargo.items()
        assert _content(root) == cargo and not any((root / "staging").iterdir())

    def test_what_is_damaged_here_is_replaced(self, tmp_path: Path) -> None:
        """Though it has the right size; what is sound stays as it is."""
        cargo = _cargo()
        store, sums = Store(tmp_path / "store"), _put(tmp_path / "bundle", cargo)
        take(store, tmp_path / "bundle", sums, lambda _: None)
        for name in (f"blobs/sha256-{_sha256(b'weights')}", f"builds/{RECIPE.key}/lib.so"):
            (store.root / name).write_bytes(b"WEIGHTS"[: len(cargo[name])])
        kept = (store.root / f"hub/owner--repo/{COMMIT}/config.json").stat().st_ino
        take(store, tmp_path / "bundle", sums, lambda _: None)
        assert _content(store.root) == cargo
        assert (store.root / f"hub/owner--repo/{COMMIT}/config.json").stat().st_ino == kept

    @pytest.mark.parametrize(
        "name",
        [
            "locks/x.lock",
            "staging/x/y",
            "blobs/weights.gguf",
            f"blobs/sha256-{'0' * 64}",
            f"blobs/sha256-{'0' * 64}/model.safetensors",
            f"builds/{'0' * 64}/lib.so",
            "builds/build.json",
            f"hub/{COMMIT}",
            "hub/owner--repo/main/config.json",
            "x",
        ],
    )
    def test_what_the_store_has_nothing_for_is_refused(self, tmp_path: Path, name: str) -> None:
        """Other places, names that are not those of the content, builds of another key."""
        store, sums = Store(tmp_path / "store"), _put(tmp_path / "bundle", {name: b"evil"})
        with pytest.raises(UnsafeArtifactError):
            take(store, tmp_path / "bundle", sums, lambda _: None)
        assert _content(store.root) == {}

    def test_another_file_than_the_listed_one_is_refused(self, tmp_path: Path) -> None:
        """Though it was checked a moment before: it is copied and checked in one."""
        cargo = _cargo()
        store, sums = Store(tmp_path / "store"), _put(tmp_path / "bundle", cargo)
        name = f"builds/{RECIPE.key}/lib.so"
        (tmp_path / "bundle" / name).write_bytes(b"LIBRARY")
        with pytest.raises(UnsafeArtifactError, match=r"lib\.so: it is not the file"):
            take(store, tmp_path / "bundle", sums, lambda _: None)
        assert not (store.root / "builds").exists() and not any(store.staging.iterdir())


_HUB = {"backend": "transformers", "source": {"type": "hub", "repo": "owner/repo"}}


@contextmanager
def machine(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A machine of its own, below *directory*; its state is kept there, too."""
    with monkeypatch.context() as patch:
        patch.setenv("JETLLM_CACHE_DIR", str(directory / "cache"))
        patch.setenv("JETLLM_STATE_DIR", str(directory / "state"))
        yield load_settings()


class TestBundling:
    """What goes along of a machine, and what comes to one beside the weights."""

    @pytest.fixture
    def bundling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundling]:
        """A machine with one of each."""
        _put(tmp_path / "cache", _cargo())
        mine = tmp_path / "mine.gguf"
        mine.write_bytes(b"mine")
        variants = {
            "url": {
                "backend": "llamacpp",
                "source": {"type": "url", "url": "https://example.org/x.gguf", "sha256": "1" * 64},
            },
            "blob": {
                "backend": "llamacpp",
                "source": {
                    "type": "url",
                    "url": "https://example.org/y.gguf",
                    "sha256": _sha256(b"weights"),
                },
            },
            "hub": _HUB,
            "mlc": {"backend": "mlc", "source": {"type": "hub", "repo": "owner/repo"}},
            "file": {"backend": "llamacpp", "source": {"type": "file", "path": str(mine)}},
        }
        monkeypatch.setenv("JETLLM_REGISTRY", str(_registry(tmp_path / "models.json", **variants)))
        with machine(tmp_path, monkeypatch) as settings:
            yield Bundling(settings)

    def test_a_model_is_its_first_variant_that_is_here(self, bundling: Bundling) -> None:
        """Or the one that is named; each once."""
        assert bundling.choose(["tiny", "TINY", "tiny/blob"]) == [Chosen("tiny", "blob")]
        assert bundling.choose(["tiny/mlc"]) == [Chosen("tiny", "mlc")]
        for name in ("other", "tiny/other", "other/blob"):
            with pytest.raises(ModelNotFoundError):
                bundling.choose([name])

    def test_files_go_along_at_their_paths_in_the_store(self, bundling: Bundling) -> None:
        """Of a snapshot with its records; of a variant for MLC its builds."""
        wanted = {
            "blob": "blobs/sha256-" + _sha256(b"weights"),
            "hub": "hub/owner--repo/",
            "mlc": f"builds/{RECIPE.key}/",
        }
        for variant, beginning in wanted.items():
            with bundling.cargo([Chosen("tiny", variant)]) as found:
                assert found.keys() == {name for name in _cargo() if name.startswith(beginning)}
                assert all(path.read_bytes() == _cargo()[name] for name, path in found.items())

    def test_what_is_not_in_the_store_cannot_go_along(self, bundling: Bundling) -> None:
        """Weights that are not here, and files of the user's own."""
        with pytest.raises(ModelNotPulledError), bundling.cargo([Chosen("tiny", "url")]):
            pass
        refused = pytest.raises(InvalidRequestError, match="a file of yours")
        with refused, bundling.cargo([Chosen("tiny", "file")]):
            pass

    def test_evidence_and_registry_come_once(self, bundling: Bundling, tmp_path: Path) -> None:
        """Measurements are added to those that are there, each once; the registry is the release's."""
        record = EvidenceRecord.model_validate(
            {
                "version": 1,
                "model": "tiny",
                "variant": "blob",
                "measured_at": "2026-11-21T00:00:00Z",
                "jetllm": "0.1.0",
                "decode_tokens_per_s": 10.0,
            }
        )
        brought, mine = tmp_path / "brought.jsonl", tmp_path / "state/evidence.jsonl"
        append_evidence(brought, record)
        append_evidence(brought, replace_model(record, "other"))
        append_evidence(mine, record)
        parts: dict[str, Any] = {
            "registry": tmp_path / "models.json",
            "evidence": brought,
            "progress": lambda _: None,
        }
        taken = [bundling.take(tmp_path, {}, **parts) for _ in range(2)]
        assert [(each.evidence, each.registry) for each in taken] == [(1, True), (0, False)]
        assert [each.model for each in load_evidence(mine).records] == ["tiny", "other"]
        assert load_registry(tmp_path / "state/models.json").names() == ["tiny"]

    def test_what_is_no_evidence_is_not_taken(self, bundling: Bundling, tmp_path: Path) -> None:
        """Nor is anything else of that release."""
        (tmp_path / "brought.jsonl").write_text("{}\n")
        with pytest.raises(UnsafeArtifactError, match="evidence"):
            bundling.take(
                tmp_path,
                {},
                registry=tmp_path / "models.json",
                evidence=tmp_path / "brought.jsonl",
                progress=lambda _: None,
            )
        assert not (tmp_path / "state").exists()


def replace_model(record: EvidenceRecord, model: str) -> EvidenceRecord:
    """The same measurement, of another model."""
    return record.model_copy(update={"model": model})


def jetllm(*words: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, smollm2_path: Path) -> Path:
    """A release of a small image and SmolLM2, as a .tar."""
    home = tmp_path_factory.mktemp("release")
    make_image(home / "image.tar")
    for words in (
        ("keygen", home / "release"),
        ("golden", "--model", MODEL, "-o", home / "golden.json"),
        (
            *("create", "--version", "1.0.0", "--image", home / "image.tar", "--model", MODEL),
            *("--key", home / "release", "-o", home / "jetllm.tar"),
        ),
    ):
        made = jetllm("bundle", *words)
        assert made.exit_code == 0, made.output
    return home


class TestCommands:
    """`jetllm bundle keygen`, `create`, `verify`, `import`, with a real model."""

    def test_from_one_machine_to_another(
        self, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Create, verify, import: there the model gives the golden text, greedily, and nothing was pulled."""
        release, trusted = home / "jetllm.tar", ("--trusted", home / "release.pub")
        shown = jetllm("bundle", "verify", release, *trusted)
        assert shown.exit_code == 0 and "signed by release" in shown.output and MODEL in shown.output
        golden = json.loads(jetllm("bundle", "verify", release, *trusted, "--json").stdout)["golden"]
        assert golden == json.loads((home / "golden.json").read_text())
        with machine(tmp_path, monkeypatch):
            for copied in (98_362_432, 0):
                taken = json.loads(jetllm("bundle", "import", release, *trusted, "--json").stdout)
                assert taken["copied_bytes"] == copied
            assert [path.name for path in (tmp_path / "cache").iterdir() if path.name[0] == "."] == []
            with InferenceEngine(offline=True, context_tokens=1024) as engine:
                answer = engine.generate(
                    golden[0]["prompt"],
                    model=MODEL,
                    raw=True,
                    temperature=0.0,
                    max_tokens=len(golden[0]["tokens"]),
                )
        assert answer["text"] == golden[0]["text"] and answer["variant"] == VARIANT
        assert len(golden[0]["tokens"]) > 4

    def test_one_changed_byte_or_another_key_is_told(self, home: Path, tmp_path: Path) -> None:
        """In one line and a hint, with exit code 1, by `verify` and `import` alike."""
        jetllm("bundle", "keygen", tmp_path / "other")
        with (home / "jetllm.tar").open("r+b") as file:
            file.seek(50_000_000)
            byte = file.read(1)
            file.seek(50_000_000)
            file.write(bytes([byte[0] ^ 1]))
        try:
            for command in ("verify", "import"):
                for key in (home / "release.pub", tmp_path / "other.pub"):
                    told = jetllm("bundle", command, home / "jetllm.tar", "--trusted", key)
                    assert told.exit_code == 1 and "error: " in told.output and "hint: " in told.output
        finally:
            with (home / "jetllm.tar").open("r+b") as file:
                file.seek(50_000_000)
                file.write(byte)

    def test_a_release_for_another_machine_is_refused(self, home: Path, tmp_path: Path) -> None:
        """Unless its models are wanted all the same; its golden tokens come from the board then."""
        make_image(tmp_path / "image.tar", "aarch64", {"org.jetllm.l4t": "36.4"})
        words: tuple[object, ...] = ("bundle", "create", "--version", "1", "--image", tmp_path / "image.tar")
        words += ("--model", f"{MODEL}/{VARIANT}", "--key", home / "release", "-o", tmp_path / "board")
        refused = jetllm(*words)
        assert refused.exit_code == 1 and "jetllm bundle golden" in refused.output
        made = jetllm(*words, "--golden", home / "golden.json")
        assert made.exit_code == 0, made.output
        trusted = ("--trusted", home / "release.pub")
        assert check_bundle(tmp_path / "board", home / "release.pub")[0].l4t == ("36.4",)
        refused = jetllm("bundle", "import", tmp_path / "board", *trusted)
        assert refused.exit_code == 1 and "for the processor aarch64; this machine has" in refused.output
        taken = jetllm("bundle", "import", tmp_path / "board", *trusted, "--any-machine")
        assert taken.exit_code == 0 and f"{MODEL}/{VARIANT}: here" in taken.output
