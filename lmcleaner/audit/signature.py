"""A detached ed25519 signature over an audit document, as OpenSSL makes and checks it too."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lmcleaner.formats.audit_document import AUDIT_FILE, read_audit
from lmcleaner.formats.errors import ExistsError, NotFoundError, UsageError
from lmcleaner.formats.store import storage_errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = f"{AUDIT_FILE}.sig"


def sign_audit(folder: Path, key: Path, *, overwrite: bool = False) -> Path:
    """Signs the audit document of an output folder.

    Args:
        folder: the output folder.
        key: a private ed25519 key in PEM, as `openssl genpkey -algorithm ed25519` writes it.
        overwrite: replaces a signature that lies there.

    Returns:
        The file beside the document that holds the signature, 64 bytes (RFC 8032).

    Raises:
        NotFoundError: the document or the key isn't there.
        UsageError: it is no such key, or the package isn't installed.
        ExistsError: the document is signed already, and nothing was said of overwriting.
        ResourceError: the signature can't be written.
    """
    private = _private_key(key)
    read_audit(folder)
    signature = private.sign((folder / AUDIT_FILE).read_bytes())
    path = folder / SIGNATURE_FILE
    if path.exists() and not overwrite:
        is_same = path.read_bytes() == signature  # ed25519 draws nothing at random
        whose = "with this key" if is_same else "with another key, or when it said something else"
        hint = "there is nothing to do" if is_same else "--overwrite replaces the signature"
        raise ExistsError(f"the document is signed already, {whose}: {path}", hint=hint)
    with storage_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(signature)
        temporary.replace(path)
    return path


def check_public_key(key: Path) -> None:
    """Makes sure that a key can verify signatures.

    Args:
        key: the public ed25519 key in PEM.

    Raises:
        NotFoundError: the key isn't there.
        UsageError: it is no such key, or the package isn't installed.
    """
    _public_key(key)


def signature_problem(folder: Path, key: Path) -> str | None:
    """What is wrong with the signature of an audit document.

    Args:
        folder: the output folder.
        key: the public ed25519 key in PEM, as `openssl pkey -pubout` writes it.

    Returns:
        The problem, or None.

    Raises:
        NotFoundError: the key isn't there.
        UsageError: it is no such key, or the package isn't installed.
    """
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE_FILE
    if not path.is_file():
        return f"the document isn't signed: expected {SIGNATURE_FILE} beside it"
    try:
        public.verify(path.read_bytes(), (folder / AUDIT_FILE).read_bytes())
    except InvalidSignature:
        return f"{SIGNATURE_FILE}: it isn't this key's signature of this document"
    return None


def check_unsigned(folder: Path) -> None:
    """Makes sure that nobody's signature is lost when the audit document of a folder gets an evaluation.

    Raises:
        ExistsError: the document is signed.
    """
    path = folder / SIGNATURE_FILE
    if path.exists():
        raise ExistsError(
            f"the document is signed, and an evaluation would change what was signed: {path}",
            hint="evaluate first and sign last; remove the signature to evaluate anew",
        )


def _private_key(path: Path) -> "Ed25519PrivateKey":
    content = _content(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    wanted = "not a key to sign with: {}: expected a private ed25519 key in PEM, found {}"
    hint = "make one by openssl genpkey -algorithm ed25519 -out key.pem"
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(wanted.format(path, _label(content)), hint=hint) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(wanted.format(path, type(key).__name__), hint=hint)
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    content = _content(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    wanted = "not a key to verify with: {}: expected a public ed25519 key in PEM, found {}"
    hint = "write the signer's by openssl pkey -in key.pem -pubout -out key.pub"
    try:
        key = load_pem_public_key(content)
    except ValueError as error:
        raise UsageError(wanted.format(path, _label(content)), hint=hint) from error
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(wanted.format(path, type(key).__name__), hint=hint)
    return key


def _label(content: bytes) -> str:
    """What a file says of itself that couldn't be read as the key that is wanted."""
    found = re.search(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----", content)
    return f"a {found[1].decode()}" if found is not None else "something else"


def _content(path: Path) -> bytes:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "signatures need the package cryptography, which isn't installed", hint="pip install 'lmcleaner[sign]'"
        ) from error
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"no key: {path}: {error.strerror}") from error
