"""The signature: ed25519 over a manifest's exact bytes, by a key that the device was told to trust.

Keys are PEM files, as `openssl pkey` reads them; a signature is one line of base64.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from inference.appliance.errors import BundleError
from inference.artifacts import files

PUBLIC_SUFFIX = ".pub"
MAX_SIGNATURE_BYTES = 200
_MAX_KEY_BYTES = 64 * 2**10
_KEYGEN = "make a pair: jetllm bundle keygen NAME"


@dataclass(frozen=True)
class TrustedKey:
    """A public key whose bundles are taken; *name* is its file's, without ``.pub``."""

    name: str
    key: Ed25519PublicKey


def generate_keys(private: Path) -> Path:
    """Make a pair: *private*, which its owner alone can read, and beside it ``.pub``; return the second.

    Raises:
        BundleError: one of the two is there already; nothing was changed.
    """
    public = private.with_name(f"{private.name}{PUBLIC_SUFFIX}")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise BundleError(
                f"{path}: it is there already", hint="choose another name: keys are not replaced"
            )
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # With its mode from the first moment on, and never through a link.
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    files.write_atomic(public, _public_pem(key.public_key()))
    public.chmod(0o644)
    return public


def load_private(path: Path) -> Ed25519PrivateKey:
    """Read the key that signs.

    Raises:
        BundleError: it is none, or others can read it.
    """
    data = _read(path)
    if path.stat().st_mode & 0o077:
        raise BundleError(f"{path}: others can read this private key", hint=f"chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError(f"{path}: expected an ed25519 private key, PEM without a password", hint=_KEYGEN)
    return key


def load_trusted(path: Path) -> tuple[TrustedKey, ...]:
    """Read a public key, or all of a directory (``*.pub``).

    Raises:
        BundleError: there is none, or one is no ed25519 public key.
    """
    paths = sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    if not paths:
        raise BundleError(
            f"{path}: there is no trusted key (*{PUBLIC_SUFFIX})",
            hint=f"copy the signer's public key there: cp release{PUBLIC_SUFFIX} {path}/",
        )
    return tuple(TrustedKey(each.name.removesuffix(PUBLIC_SUFFIX), _public(each)) for each in paths)


def sign(data: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signature of *data* as its file has it."""
    return base64.b64encode(key.sign(data)) + b"\n"


def verify(data: bytes, signature: bytes, trusted: tuple[TrustedKey, ...]) -> str:
    """Return the name of the key that signed *data*.

    Raises:
        BundleError: none of *trusted* did.
    """
    try:
        raw = base64.b64decode(signature.removesuffix(b"\n"), validate=True)
    except binascii.Error:
        raw = b""
    if base64.b64encode(raw) + b"\n" == signature:  # base64 has more than one form of the same bytes
        for each in trusted:
            try:
                each.key.verify(raw, data)
            except InvalidSignature:
                continue
            return each.name
    raise BundleError(
        f"the signature is by none of the trusted keys: {', '.join(each.name for each in trusted)}",
        hint="do not use it; or trust its signer, whose public key you know from elsewhere than the bundle",
    )


def _public(path: Path) -> Ed25519PublicKey:
    data = _read(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError(f"{path}: expected an ed25519 public key, PEM", hint=_KEYGEN)
    return key


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path}: the key cannot be read: {error.strerror}", hint=_KEYGEN) from None
    if len(data) > _MAX_KEY_BYTES:
        raise BundleError(f"{path}: expected a key, got more than {_MAX_KEY_BYTES:,} bytes", hint=_KEYGEN)
    return data
