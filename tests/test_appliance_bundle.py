"""A bundle is believed only when every byte of it is what its signer wrote."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference.appliance.bundle import check_bundle, is_release, open_bundle
from inference.appliance.errors import BundleError
from inference.appliance.manifest import MANIFEST, SIGNATURE, Manifest, parse_manifest
from inference.appliance.signing import generate_keys, load_trusted, verify
from inference.errors import InsufficientStorageError
from tests.release_parts import BLOB, BLOB_PATH, Maker, members_of

ANY_TIMES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Whoever makes releases; one of each form is made."""
    maker = Maker(tmp_path_factory.mktemp("maker"))
    maker.directory()
    maker.tar()
    return maker


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    """Whoever makes releases; none is made."""
    return Maker(tmp_path)


def refusal(path: Path, trusted: Path) -> str:
    """Why a bundle is refused."""
    with pytest.raises(BundleError) as caught:
        check_bundle(path, trusted)
    assert caught.value.hint
    return caught.value.message


def manifest_of(directory: Path) -> Manifest:
    return parse_manifest((directory / MANIFEST).read_bytes())


class TestWhole:
    """What was made well is opened."""

    @pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
    def test_opens_with_every_file_in_place(self, made: Maker, tmp_path: Path, name: str) -> None:
        """Of both forms the files lie below the directory, and the key that signed has its file's name."""
        with open_bundle(made.home / name, made.trusted, workspace=tmp_path / "new" / "work") as opened:
            assert (opened.directory / "store" / BLOB_PATH).read_bytes() == BLOB
            assert opened.signer == "release"
            assert opened.manifest.version == "1.2.0"
            assert opened.manifest.golden[0].text == " of \u00e9clairs"
            assert opened.manifest.cargo.keys() == {BLOB_PATH}
        assert made.home.joinpath("bundle").exists()

    @pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
    def test_others_may_read_it(self, maker: Maker, tmp_path: Path, name: str) -> None:
        """Whatever the umask: an import in a container is not the one who made or unpacked it."""
        before = os.umask(0o077)
        try:
            bundle = maker.tar(name)
            with open_bundle(bundle, maker.trusted, workspace=tmp_path / "work") as opened:
                found = [opened.directory, *opened.directory.rglob("*")]
                assert {path.stat().st_mode & 0o777 for path in found if path.is_dir()} == {0o755}
                assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o644}
        finally:
            os.umask(before)

    def test_nothing_unpacked_stays(self, made: Maker, tmp_path: Path) -> None:
        """What a .tar was unpacked to goes with the context, and what a killed process left with the next."""
        leftover = tmp_path / ".tmp-bundle-left"
        leftover.mkdir()
        with (
            open_bundle(made.home / "bundle.tar", made.trusted, workspace=tmp_path) as first,
            open_bundle(made.home / "bundle.tar", made.trusted, workspace=tmp_path) as second,
        ):
            assert not leftover.exists()
            assert first.directory.exists() and first.directory != second.directory
        assert list(tmp_path.iterdir()) == []

    def test_directory_and_tar_are_one_release(self, made: Maker) -> None:
        """They differ in nothing but the second they were made in."""
        one, other = (check_bundle(made.home / name, made.trusted)[0] for name in ("bundle", "bundle.tar"))
        assert one.files == other.files and one.image == other.image

    def test_tar_unpacks_it(self, made: Maker, tmp_path: Path) -> None:
        """The .tar is one for every tool: unpacked by tar, it is the same bundle as a directory."""
        subprocess.run(["tar", "-xf", made.home / "bundle.tar", "-C", tmp_path], check=True)
        assert check_bundle(tmp_path, made.trusted) == check_bundle(made.home / "bundle.tar", made.trusted)
        with tarfile.open(made.home / "bundle.tar") as tar:
            assert tar.getnames()[:2] == [MANIFEST, SIGNATURE]

    def test_progress_ends_with_all_of_it(self, made: Maker) -> None:
        """The last report has every byte."""
        seen: list[tuple[str, int, int]] = []
        manifest, _ = check_bundle(made.home / "bundle", made.trusted, lambda *each: seen.append(each))
        assert seen[-1] == ("check", manifest.total_bytes, manifest.total_bytes)

    def test_a_release_is_told_from_a_build(self, made: Maker, tmp_path: Path) -> None:
        """By how the file begins; a directory is a release's."""
        build = tmp_path / "build.tar"
        with tarfile.open(build, "w") as tar:
            tar.addfile(tarfile.TarInfo("bundle.json"))
        found = [is_release(path) for path in (made.home / "bundle", made.home / "bundle.tar", build)]
        assert found == [True, True, False]


class TestTampered:
    """One byte that another wrote is enough."""

    @ANY_TIMES
    @given(data=st.data())
    def test_any_changed_byte_of_a_tar_is_refused(self, made: Maker, data: st.DataObject) -> None:
        """Wherever it is: headers, padding and the end are what they must be, too."""
        whole = (made.home / "bundle.tar").read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        change = data.draw(st.integers(1, 255))
        path = made.home / "changed.tar"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        refusal(path, made.trusted)

    @ANY_TIMES
    @given(data=st.data())
    def test_any_changed_byte_of_a_file_is_refused(self, made: Maker, data: st.DataObject) -> None:
        """Also of the manifest, and of the signature, which base64 could write in more than one way."""
        bundle = made.home / "bundle"
        names = sorted(path for path in bundle.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(names))
        whole = path.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        changed = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
        try:
            path.write_bytes(changed)
            refusal(bundle, made.trusted)
        finally:
            path.write_bytes(whole)

    def test_every_bit_of_the_signature_counts(self, made: Maker) -> None:
        """Base64 could write the same bytes in more than one way: one of them is right."""
        trusted = load_trusted(made.trusted)
        manifest, whole = ((made.home / "bundle" / name).read_bytes() for name in (MANIFEST, SIGNATURE))
        assert verify(manifest, whole, trusted) == "release"
        for place in range(len(whole)):
            for bit in range(8):
                changed = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
                with pytest.raises(BundleError, match="signature"):
                    verify(manifest, changed, trusted)

    @ANY_TIMES
    @given(data=st.data())
    def test_a_tar_cut_or_continued_anywhere_is_refused(self, made: Maker, data: st.DataObject) -> None:
        """It ends where it must."""
        whole = (made.home / "bundle.tar").read_bytes()
        end = data.draw(st.integers(0, len(whole) - 1))
        path = made.home / "cut.tar"
        path.write_bytes(whole[:end] if data.draw(st.booleans()) else whole + bytes(end + 1))
        refusal(path, made.trusted)


class TestKeys:
    """Whose signature counts is said by the device, not by the bundle."""

    def test_another_key_is_refused(self, made: Maker, tmp_path: Path) -> None:
        """A bundle is not its own witness."""
        other = generate_keys(tmp_path / "other")
        for name in ("bundle", "bundle.tar"):
            assert "none of the trusted keys: other" in refusal(made.home / name, other)

    def test_one_of_several_keys_is_enough(self, made: Maker, tmp_path: Path) -> None:
        """Of a directory every *.pub counts, so that keys can be changed; other files do not."""
        generate_keys(tmp_path / "another")
        (tmp_path / "zz.pub").write_bytes(made.trusted.read_bytes())
        assert check_bundle(made.home / "bundle", tmp_path)[1] == "zz"

    def test_without_a_key_nothing_is_taken(self, made: Maker, tmp_path: Path) -> None:
        """An empty directory trusts nobody, and says where to put a key."""
        (tmp_path / "release.pem").write_bytes(made.trusted.read_bytes())
        assert "no trusted key" in refusal(made.home / "bundle", tmp_path)

    @pytest.mark.parametrize("name", [MANIFEST, SIGNATURE])
    def test_a_bundle_without_it_is_none(self, maker: Maker, name: str) -> None:
        """Manifest and signature must be there."""
        bundle = maker.directory()
        (bundle / name).unlink()
        assert refusal(bundle, maker.trusted) == f"{name}: it is missing"

    def test_the_signature_of_another_manifest_is_refused(self, maker: Maker) -> None:
        """A signature does for one bundle only."""
        one, other = maker.directory("one"), maker.directory("other", version="1.2.1")
        (one / SIGNATURE).write_bytes((other / SIGNATURE).read_bytes())
        assert "signature" in refusal(one, maker.trusted)


def _link(bundle: Path) -> None:
    path = bundle / "store" / BLOB_PATH
    path.rename(bundle.parent / "aside")
    path.symlink_to(bundle.parent / "aside")


def _linked_directory(bundle: Path) -> None:
    (bundle / "store").rename(bundle.parent / "aside")
    (bundle / "store").symlink_to(bundle.parent / "aside")


def _fifo(bundle: Path) -> None:
    (bundle / "store" / BLOB_PATH).unlink()
    os.mkfifo(bundle / "store" / BLOB_PATH)


def _linked_manifest(bundle: Path) -> None:
    (bundle / MANIFEST).rename(bundle.parent / "manifest")
    (bundle / MANIFEST).symlink_to(bundle.parent / "manifest")


class TestDirectory:
    """There is what the manifest lists, as files, and nothing else."""

    @pytest.mark.parametrize(
        ("spoil", "why"),
        [
            (_link, "nothing of this bundle"),
            (_linked_directory, "nothing of this bundle"),
            (_linked_manifest, "cannot be read"),
            (_fifo, "expected a file"),
            (lambda bundle: (bundle / "store" / BLOB_PATH).unlink(), "it is missing"),
            (lambda bundle: (bundle / "image.tar").unlink(), "it is missing"),
            (lambda bundle: (bundle / "extra").write_text(""), "extra: nothing of this bundle"),
            (lambda bundle: (bundle / "store" / ".hidden").write_text(""), "nothing of this bundle"),
            (lambda bundle: (bundle / "empty").mkdir(), "empty: nothing of this bundle"),
            (lambda bundle: os.truncate(bundle / "image.tar", 10**6), "image.tar: expected"),
            (lambda bundle: os.truncate(bundle / MANIFEST, 16 * 2**20 + 1), "at most"),
            (lambda bundle: os.truncate(bundle / SIGNATURE, 1000), "at most"),
        ],
    )
    def test_anything_else_is_refused(self, maker: Maker, spoil: Callable[[Path], Any], why: str) -> None:
        """A link, a pipe, a file too many or too few, a byte too many."""
        bundle = maker.directory()
        spoil(bundle)
        assert why in refusal(bundle, maker.trusted)


def _hostile(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    return member


class TestTar:
    """The tar's own words are not believed: only the one right sequence of bytes is taken."""

    def test_a_pipe_is_refused_and_not_waited_for(self, made: Maker, tmp_path: Path) -> None:
        """Nobody may ever write to it; in a process of its own, whose time is limited."""
        pipe = tmp_path / "release.tar"
        os.mkfifo(pipe)
        verify = ["bundle", "verify", str(pipe), "--trusted", str(made.trusted)]
        command = [sys.executable, "-m", "inference", *verify]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert "expected a directory or a .tar" in done.stderr

    @pytest.mark.parametrize(
        "member",
        [
            _hostile("store/link", tarfile.SYMTYPE, "/etc/passwd"),
            _hostile("store/link", tarfile.LNKTYPE, MANIFEST),
            _hostile("store/device", tarfile.CHRTYPE),
            _hostile("store/device", tarfile.BLKTYPE),
            _hostile("store/pipe", tarfile.FIFOTYPE),
            _hostile("store", tarfile.DIRTYPE),
            _hostile("/etc/cron.d/evil"),
            _hostile("../evil"),
            _hostile("store/../../evil"),
            _hostile("./image.tar"),
            _hostile("image.tar"),
            _hostile("x" * 300),  # a GNU header for a long name
            _hostile("image.tar", tarfile.GNUTYPE_SPARSE),
            _hostile("image.tar", tarfile.CONTTYPE),
        ],
        ids=lambda member: f"{member.name[:20]} {member.type!r}",
    )
    @pytest.mark.parametrize("place", [0, 1, 2, -1])
    def test_a_hostile_member_is_refused_wherever_it_is(
        self, made: Maker, tmp_path: Path, member: tarfile.TarInfo, place: int
    ) -> None:
        """And nothing is written, inside of the workspace or outside."""
        bundle = made.home / "bundle"
        members = members_of(bundle, manifest_of(bundle))
        path = tmp_path / "hostile.tar"
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for number, (name, data) in enumerate(members):
                if number == place % (len(members) + 1):
                    tar.addfile(member)
                tar.addfile(_hostile(name, data=data), io.BytesIO(data))
            if place == -1:
                tar.addfile(member)
        with pytest.raises(BundleError), open_bundle(path, made.trusted, workspace=tmp_path / "work"):
            pass
        assert {each.name for each in tmp_path.rglob("*")} == {"hostile.tar", "work"}

    def test_another_order_or_a_file_twice_is_refused(self, made: Maker, tmp_path: Path) -> None:
        """Though every file is what it should be."""
        bundle = made.home / "bundle"
        first, second, *others = members_of(bundle, manifest_of(bundle))
        for number, members in enumerate(
            (
                [second, first, *others],
                [first, *others, second],
                [first, second, *reversed(others)],
                [first, second, *others, others[-1]],
                [first, first, second, *others],
                [first, second, *others[:-1]],
                [first, *others],
                [],
            )
        ):
            refusal(made.archive(tmp_path / f"{number}.tar", members), made.trusted)
        refusal(tmp_path / "not there.tar", made.trusted)

    def test_pax_headers_are_refused(self, made: Maker, tmp_path: Path) -> None:
        """They could give a file another name, or another size, and take any memory to be read."""
        bundle = made.home / "bundle"
        with tarfile.open(tmp_path / "pax.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name, data in members_of(bundle, manifest_of(bundle)):
                member = _hostile(name, data=data)
                member.pax_headers = {"path": "../evil"}
                tar.addfile(member, io.BytesIO(data))
        assert f"expected {MANIFEST} next" in refusal(tmp_path / "pax.tar", made.trusted)

    def test_packed_ones_are_refused(self, made: Maker, tmp_path: Path) -> None:
        """A bomb is not even unpacked."""
        packed = tmp_path / "packed.tar"
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(made.home / "bundle" / MANIFEST, MANIFEST)
        refusal(packed, made.trusted)

    def test_a_huge_manifest_is_not_read(self, made: Maker, tmp_path: Path) -> None:
        """Its size is looked at before its bytes."""
        from inference.appliance import archive

        path = tmp_path / "huge.tar"
        with path.open("wb") as out:
            out.write(archive.header(MANIFEST, 2**33 - 1))
            out.truncate(2**33)
        assert f"expected {MANIFEST} next" in refusal(path, made.trusted)

    def test_room_is_asked_for_before_anything_is_unpacked(self, maker: Maker, tmp_path: Path) -> None:
        """A signed bundle that the disk cannot take is refused with both numbers, and nothing is left."""
        bundle = maker.directory()
        tree = json.loads((bundle / MANIFEST).read_bytes())
        tree["files"][0]["bytes"] = 2**42
        maker.sign(bundle, json.dumps(tree).encode())
        path = maker.archive(tmp_path / "large.tar", members_of(bundle, manifest_of(bundle)))
        with (
            pytest.raises(InsufficientStorageError, match="MB are free"),
            open_bundle(path, maker.trusted, workspace=tmp_path / "work"),
        ):
            pass
        assert list((tmp_path / "work").iterdir()) == []

    def test_a_device_is_not_read(self, made: Maker) -> None:
        """What is neither a directory nor a file is no bundle."""
        assert "expected a directory or a .tar" in refusal(Path("/dev/zero"), made.trusted)
