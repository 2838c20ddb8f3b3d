"""A manifest is read strictly, a key is a key, and a release says what it is for."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference.appliance.bundle import check_bundle, why_unfit
from inference.appliance.errors import BundleError
from inference.appliance.manifest import Manifest, golden_of, parse_manifest, read_golden
from inference.appliance.signing import generate_keys, load_private, load_trusted, sign, verify
from inference.device.detect import detect
from tests.release_parts import Maker

BOARDS = Path(__file__).parent / "fixtures/devices"
HASH = "0" * 64
TREE: dict[str, Any] = {
    "schema": 1,
    "version": "1.2.0",
    "created_unix_s": 1_795_000_000,
    "arch": "aarch64",
    "l4t": ["36.4", "36.5"],
    "compute_capability": ["8.7"],
    "boards": ["orin-nano-8gb"],
    "image": {"file": "image.tar", "reference": "jetllm:1.2.0", "id": f"sha256:{HASH}", "bytes": 9},
    "models": [{"model": "tiny", "variant": "gguf"}],
    "golden": [{"model": "tiny", "variant": "gguf", "prompt": "Hi", "text": " there", "tokens": [1, 2]}],
    "evidence": "evidence.jsonl",
    "registry": "models.json",
    "files": [
        {"path": path, "bytes": 1, "sha256": HASH}
        for path in ("image.tar", "evidence.jsonl", "models.json", "store/blobs/x", "store/a/b/.c")
    ],
}


def parsed(**changes: Any) -> Manifest:
    """The manifest with other values."""
    return parse_manifest(json.dumps({**TREE, **changes}).encode())


def refusal(data: bytes) -> str:
    """Why it is no manifest."""
    with pytest.raises(BundleError) as caught:
        parse_manifest(data)
    assert caught.value.hint
    return caught.value.message


def places(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield (*place, key)
        yield from places(tree[key], (*place, key))


def replaced(place: tuple[Any, ...], value: Any) -> bytes:
    """The manifest with another value at a place; without it where the value is `...`."""
    tree = copy.deepcopy(TREE)
    at = tree
    for key in place[:-1]:
        at = at[key]
    if value is ...:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return json.dumps(tree).encode()


class TestManifest:
    """`parse_manifest`: all of it, or an error that says where."""

    def test_it_is_read_as_it_was_written(self) -> None:
        """And named by the hash of its bytes."""
        manifest = parsed()
        assert json.loads(manifest.to_bytes()) == TREE
        again = parse_manifest(manifest.to_bytes())
        assert again.to_bytes() == manifest.to_bytes() and len(again.digest) == 64
        assert manifest.total_bytes == 5 and list(manifest.cargo) == ["blobs/x", "a/b/.c"]

    @pytest.mark.parametrize("value", [None, True, 1.5, -1, 2**63, "", "\u00e9\n", [], {}, [[]]], ids=repr)
    def test_another_type_is_refused_everywhere(self, value: Any) -> None:
        """At each place of the tree; a boolean is no number, and a number no text."""
        for place in places(TREE):
            old: Any = TREE
            for key in place:
                old = old[key]
            if type(value) is not type(old) or type(value) is int:
                assert refusal(replaced(place, value)), place

    def test_each_key_is_needed_and_no_other_is_known(self) -> None:
        """Of the whole, and of every part."""
        for place in places(TREE):
            if isinstance(place[-1], str):
                assert f"{place[-1]} is missing" in refusal(replaced(place, ...))
                assert 'unknown key "extra"' in refusal(replaced((*place[:-1], "extra"), 1))

    @pytest.mark.parametrize(
        "path",
        [
            "/etc/passwd",
            "..",
            "../image.tar",
            "store/../../x",
            "store/./x",
            "store//x",
            "store/",
            "./image.tar",
            "store/...",
            "store\\x",
            "C:/x",
            "store/a b",
            "store/\u00e9",
            "store/x\n",
            "store/x\u0000",
            "store/" + "x" * 101,
            "store" + "/x" * 200,
            "~root/x",
            "elsewhere/x",
            "manifest.json",
            "manifest.json.sig",
            "store",
            "store/blobs",
            "store/blobs/x/y",
            "store/blobs/x",
            "image.tar/x",
        ],
        ids=repr,
    )
    def test_a_path_stays_below_the_bundle(self, path: str) -> None:
        """It is where a bundle has files, is there once, and is no directory of another."""
        added = [*TREE["files"], {"path": path, "bytes": 1, "sha256": HASH}]
        assert "files" in refusal(json.dumps({**TREE, "files": added}).encode())

    @pytest.mark.parametrize(
        "changes",
        [
            {"version": "1.2.0; rm -rf /"},
            {"version": "-rf"},
            {"version": "../1"},
            {"arch": "arm64"},
            {"l4t": ["r36.4"]},
            {"compute_capability": ["sm_87"]},
            {"boards": ["Orin Nano"]},
            {"image": {**TREE["image"], "reference": "--privileged"}},
            {"image": {**TREE["image"], "id": HASH}},
            {"image": {**TREE["image"], "file": "other.tar"}},
            {"image": {**TREE["image"], "file": "store/blobs/x"}},
            {"evidence": "models.json"},
            {"registry": None},
            {"models": TREE["models"] * 2},
            {"models": [{"model": "--help", "variant": "gguf"}]},
            {"golden": [{**TREE["golden"][0], "variant": "other"}]},
            {"golden": [{**TREE["golden"][0], "tokens": []}]},
            {"golden": [{**TREE["golden"][0], "text": "\ud800"}]},
            {"golden": [{**TREE["golden"][0], "text": "x" * 100_001}]},
            {"files": TREE["files"] * 3000},
            {"schema": 0},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_a_value_out_of_range_or_at_odds_is_refused(self, changes: dict[str, Any]) -> None:
        """Nothing of it can be an option of a command, and nothing contradicts the list of files."""
        assert refusal(json.dumps({**TREE, **changes}).encode()).startswith("manifest.json: ")

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"null",
            b"[]",
            b"\xff",
            b'{"schema": NaN}',
            b"[" * 100_000,
            b"1" * 10_000,
            b" " * (16 * 2**20 + 1),
            json.dumps(TREE).encode() + b"x",
            json.dumps(TREE).replace('"schema": 1,', '"schema": 1, "schema": 1,').encode(),
            json.dumps(TREE).encode("utf-16"),
        ],
        ids=lambda data: repr(data[:20]),
    )
    def test_what_is_no_json_object_is_refused(self, data: bytes) -> None:
        """In UTF-8, with each key once, and not larger than it may be."""
        refusal(data)

    def test_a_newer_one_asks_for_a_newer_jetllm(self) -> None:
        """Whatever else it has."""
        with pytest.raises(BundleError, match="knows 1, the bundle has 2") as caught:
            parse_manifest(b'{"schema": 2, "new": true}')
        assert caught.value.hint == "update JetLLM on this machine first"

    def test_golden_tokens_are_a_file_of_their_own(self, tmp_path: Path) -> None:
        """As strict as the manifest's."""
        path = tmp_path / "golden.json"
        path.write_text(json.dumps(TREE["golden"]))
        assert read_golden(path) == parsed().golden == (golden_of(TREE["golden"][0]),)
        path.write_text("{}")
        with pytest.raises(BundleError, match=r"golden.json: golden: expected a list"):
            read_golden(path)

    def test_a_hostile_manifest_is_refused_though_it_is_signed(self, tmp_path: Path) -> None:
        """A key that leaks does not write outside of the bundle."""
        maker = Maker(tmp_path)
        bundle = maker.directory()
        (tmp_path / "evil").write_bytes(b"")
        tree = json.loads((bundle / "manifest.json").read_bytes())
        tree["files"].append({"path": "store/../../evil", "bytes": 0, "sha256": HASH})
        maker.sign(bundle, json.dumps(tree).encode())
        with pytest.raises(BundleError, match="a path below the bundle"):
            check_bundle(bundle, maker.trusted)


class TestKeys:
    """`signing`: ed25519, PEM, and a private key that nobody else reads."""

    def test_a_pair_is_made_once(self, tmp_path: Path) -> None:
        """The private key is its owner's alone from the first moment on, and never replaced."""
        public = generate_keys(tmp_path / "release")
        assert (tmp_path / "release").stat().st_mode & 0o777 == 0o600
        assert public == tmp_path / "release.pub" and public.stat().st_mode & 0o777 == 0o644
        before = (tmp_path / "release").read_bytes()
        with pytest.raises(BundleError, match="there already"):
            generate_keys(tmp_path / "release")
        (tmp_path / "release").rename(tmp_path / "kept")
        with pytest.raises(BundleError, match="there already"):
            generate_keys(tmp_path / "release")
        assert (tmp_path / "kept").read_bytes() == before and not (tmp_path / "release").exists()

    def test_a_private_key_that_others_read_is_refused(self, tmp_path: Path) -> None:
        """Its hint is the command that mends it."""
        generate_keys(tmp_path / "release")
        (tmp_path / "release").chmod(0o640)
        with pytest.raises(BundleError, match="others can read") as caught:
            load_private(tmp_path / "release")
        assert caught.value.hint == f"chmod 600 {tmp_path / 'release'}"

    def test_openssl_checks_a_signature_too(self, tmp_path: Path) -> None:
        """A line of base64 over the exact bytes: nobody needs JetLLM to check it."""
        public = generate_keys(tmp_path / "release")
        signature = sign(b"{}", load_private(tmp_path / "release"))
        assert verify(b"{}", signature, load_trusted(public)) == "release"
        (tmp_path / "data").write_bytes(b"{}")
        command = "base64 -d > signature && openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in data"
        subprocess.run(
            ["sh", "-c", f"{command} -sigfile signature"], input=signature, cwd=tmp_path, check=True
        )

    @pytest.mark.parametrize("kind", ["none", "text", "rsa", "private", "large", "directory"])
    def test_what_is_no_key_is_refused(self, tmp_path: Path, kind: str) -> None:
        """Neither as a trusted one nor to sign with."""
        path = tmp_path / "key.pub"
        if kind == "rsa":
            subprocess.run(["openssl", "genrsa", "-out", path, "1024"], check=True, capture_output=True)
        elif kind == "private":
            generate_keys(tmp_path / "release")
            (tmp_path / "release").rename(path)
        elif kind == "directory":
            path.mkdir()
        elif kind != "none":
            path.write_bytes({"text": b"key", "large": b"x" * 70_000}[kind])
        with pytest.raises(BundleError):
            load_trusted(path)
        if kind not in ("none", "private", "directory"):
            path.chmod(0o600)
        if kind != "private":
            with pytest.raises(BundleError):
                load_private(path)


class TestFitness:
    """`why_unfit`: said before anything is loaded, with what would fit."""

    def test_the_board_it_is_for(self) -> None:
        """Of L4T 36.4 every patch release fits."""
        device = detect(BOARDS / "orin-nano-8gb-super")
        assert device.l4t is not None and device.l4t.startswith("36.4")
        assert why_unfit(parsed(), device) is None
        assert why_unfit(parsed(boards=[]), detect(BOARDS / "agx-orin-64gb")) is None

    @pytest.mark.parametrize(
        ("board", "changes", "words"),
        [
            ("orin-nano-8gb-super", {"l4t": ["36"]}, None),
            ("orin-nano-8gb-super", {"l4t": ["3"]}, "for L4T 3; this machine has 36.4"),
            ("orin-nano-8gb-super", {"l4t": ["36.5", "39"]}, "for L4T 36.5 or 39; this machine has 36.4"),
            ("orin-nano-8gb-super", {"arch": "x86_64"}, "for the processor x86_64; this machine has aarch64"),
            ("orin-nano-8gb-super", {"compute_capability": ["7.2"]}, "capability 7.2; this machine has 8.7"),
            ("orin-nano-8gb-super", {}, None),
            ("agx-orin-64gb", {}, "for the board orin-nano-8gb; this machine has agx-orin-64gb"),
        ],
    )
    def test_what_does_not_fit_is_named(self, board: str, changes: dict[str, Any], words: str | None) -> None:
        """With what the release is for, and what the machine has."""
        why = why_unfit(parsed(**changes), detect(BOARDS / board))
        assert (why is None) if words is None else (why is not None and words in why)

    def test_what_would_fit_is_said(self) -> None:
        """With the image that it would be built on; or that there is none."""
        why = why_unfit(parsed(l4t=["35"]), detect(BOARDS / "orin-nano-8gb-super"))
        assert why is not None and why.endswith("built on dustynv/mlc:0.20.0-r36.4.0")
        assert "it needs a release for the processor aarch64, L4T 36.4" in why

    def test_a_machine_that_is_no_jetson(self, tmp_path: Path) -> None:
        """What is not known does not fit what is asked for; where nothing is asked for, it does."""
        plain = detect(tmp_path)
        why = why_unfit(parsed(), plain)
        assert why is not None and "for L4T 36.4 or 36.5; this machine has none" in why
        arm = replace(plain, arch="aarch64")
        assert why_unfit(parsed(), arm, unknown_fits=True) is None
        assert why_unfit(parsed(), replace(arm, l4t="35.4.1"), unknown_fits=True) is not None
        here = detect()
        anywhere = parsed(arch=here.arch, l4t=[], compute_capability=[], boards=[])
        assert why_unfit(anywhere, here) is None
