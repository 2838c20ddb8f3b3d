"""A bundle is made whole or not at all, and says of its image what the image is."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.appliance import archive
from inference.appliance.bundle import check_bundle
from inference.appliance.creating import create_bundle
from inference.appliance.errors import BundleError
from inference.appliance.image_archive import read_image
from inference.appliance.manifest import Model
from tests.dying import killed_at_each_step
from tests.release_parts import Maker, image_members, make_image, tar_of


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Whoever makes releases."""
    return Maker(tmp_path)


class TestCreate:
    """`create_bundle`."""

    @pytest.mark.parametrize("name", ["out/bundle", "out/bundle.tar"])
    def test_whenever_it_is_killed_there_is_all_or_nothing(self, maker: Maker, name: str) -> None:
        """At each step on the disk: what stands at the output verifies; and the next run needs no help."""
        output = maker.home / name
        output.parent.mkdir()
        contents, key = maker.contents(), maker.key
        steps, whole = 0, 0
        for steps in killed_at_each_step(
            lambda step: create_bundle(contents, output, key, lambda *_: step()), maker.home
        ):
            if output.exists():
                check_bundle(output, maker.trusted)
                whole += 1
                output.rename(maker.home / f"whole-{steps}")
        assert steps > 10 and whole < 5
        check_bundle(output, maker.trusted)
        assert [path.name for path in output.parent.iterdir()] == [output.name]

    def test_nothing_is_replaced(self, maker: Maker) -> None:
        """What stands at the output stays as it is."""
        (maker.home / "bundle.tar").write_text("mine")
        with pytest.raises(BundleError, match="there already"):
            maker.tar()
        assert (maker.home / "bundle.tar").read_text() == "mine"

    @pytest.mark.parametrize(
        "changes",
        [
            {"version": "1 2"},
            {"l4t": ["R36"]},
            {"boards": ["Orin"]},
            {"reference": "-rm"},
            {"models": [Model("other", "gguf")]},
            {"store": {"../evil": Path("/dev/null")}},
        ],
        ids=str,
    )
    def test_what_a_device_would_refuse_is_not_made(self, maker: Maker, changes: dict[str, Any]) -> None:
        """It is checked as there, before anything is written."""
        with pytest.raises(BundleError) as caught:
            maker.directory("refused", **changes)
        assert caught.value.hint == "docs/bundle.md says what each of them may be"
        assert not any("refused" in path.name for path in maker.home.iterdir())

    def test_a_source_that_grows_meanwhile_is_noticed(self, maker: Maker) -> None:
        """What is signed is what was copied; nothing stays of it."""
        contents = maker.contents()
        blob = next(iter(contents.store.values()))

        def grow(*_: object) -> None:
            blob.write_bytes(b"other weights")

        with pytest.raises(BundleError, match="changed meanwhile"):
            create_bundle(contents, maker.home / "bundle.tar", maker.key, grow)
        assert not (maker.home / "bundle.tar").exists()

    def test_labels_say_what_the_image_is_for(self, maker: Maker) -> None:
        """L4T and compute capability are the image's, unless others are given."""
        labels = {"org.jetllm.l4t": "36.4,36.5", "org.jetllm.compute-capability": "8.7 7.2"}
        image = make_image(maker.home / "labelled.tar", "aarch64", labels)
        manifest, _ = check_bundle(maker.directory("a", image=image), maker.trusted)
        assert (manifest.l4t, manifest.compute_capability) == (("36.4", "36.5"), ("8.7", "7.2"))
        assert manifest.arch == "aarch64" and manifest.image.reference == "jetllm:test"
        manifest, _ = check_bundle(maker.directory("b", image=image, l4t=["36.3"]), maker.trusted)
        assert manifest.l4t == ("36.3",)

    def test_long_paths_and_large_files_have_their_headers(self) -> None:
        """As tar, which reads them, writes them: a prefix from 101 characters on, binary from 8 GiB on."""
        long = f"store/hub/{'o' * 60}/{'c' * 57}/model.safetensors"
        for name, size in ((long, 5), ("x", 2**33 - 1), ("x", 2**33), ("x", 2**42)):
            member = tarfile.TarInfo.frombuf(archive.header(name, size), "utf-8", "strict")
            assert (member.name, member.size, member.isreg()) == (name, size, True)
        with pytest.raises(BundleError, match="no room for this path"):
            archive.header("x" * 101, 0)


def _two(members: dict[str, bytes]) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) * 2).encode()


def _changed(members: dict[str, bytes]) -> None:
    members["layer.tar"] = tar_of({"hello": b"HELLO\n"})


def _other_config(members: dict[str, bytes]) -> None:
    name = next(each for each in members if each.endswith(".json") and each != "manifest.json")
    members[name] += b" "


def _zstd(members: dict[str, bytes]) -> None:
    members["layer.tar"] = b"\x28\xb5\x2f\xfd" + bytes(20)


def _no_layer(members: dict[str, bytes]) -> None:
    del members["layer.tar"]


def _cut_gzip(members: dict[str, bytes]) -> None:
    members["layer.tar"] = gzip.compress(members["layer.tar"])[:-9]


class TestImage:
    """`read_image`: what `docker save` and `podman save` write."""

    def test_its_name_and_size(self, tmp_path: Path) -> None:
        """The id is the hash of its configuration; packed layers are counted unpacked."""
        members = image_members("x86_64", {"a": "b"})
        plain, packed = tmp_path / "plain.tar", tmp_path / "packed.tar"
        plain.write_bytes(tar_of(members))
        size = len(members["layer.tar"])
        members["layer.tar"] = gzip.compress(members["layer.tar"])
        packed.write_bytes(tar_of(members))
        image = read_image(plain)
        assert image == read_image(packed)
        config = next(
            data for name, data in members.items() if name.endswith(".json") and name != "manifest.json"
        )
        assert image.id == f"sha256:{hashlib.sha256(config).hexdigest()}"
        assert (image.arch, image.bytes, image.labels, image.reference) == (
            "x86_64",
            size,
            {"a": "b"},
            "jetllm:test",
        )

    @pytest.mark.parametrize("spoil", [_two, _changed, _other_config, _zstd, _no_layer, _cut_gzip])
    def test_what_is_no_sound_image_is_refused(
        self, tmp_path: Path, spoil: Callable[[dict[str, bytes]], None]
    ) -> None:
        """Before it goes to any device."""
        members = image_members("x86_64")
        spoil(members)
        (tmp_path / "image.tar").write_bytes(tar_of(members))
        with pytest.raises(BundleError, match="not the archive of one image") as caught:
            read_image(tmp_path / "image.tar")
        assert caught.value.hint is not None and "docker save" in caught.value.hint

    @pytest.mark.parametrize("data", [b"", b"image", bytes(10240)])
    def test_another_file_is_refused(self, tmp_path: Path, data: bytes) -> None:
        """As is an image for a processor that no board and no host has."""
        (tmp_path / "image.tar").write_bytes(data)
        with pytest.raises(BundleError):
            read_image(tmp_path / "image.tar")
        with pytest.raises(BundleError, match="its architecture is riscv64"):
            read_image(make_image(tmp_path / "other.tar", "riscv64"))
