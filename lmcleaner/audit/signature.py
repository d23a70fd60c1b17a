"""A detached ed25519 signature over an audit document, as OpenSSL makes and checks it too."""

from pathlib import Path
from typing import TYPE_CHECKING

from lmcleaner.formats.audit_document import AUDIT_FILE, read_audit
from lmcleaner.formats.errors import ExistsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_FILE = f"{AUDIT_FILE}.sig"


def sign_audit(folder: Path, key: Path) -> Path:
    """Signs the audit document of an output folder.

    Args:
        folder: the output folder.
        key: a private ed25519 key in PEM, as `openssl genpkey -algorithm ed25519` writes it.

    Returns:
        The file beside the document that holds the signature, 64 bytes (RFC 8032).

    Raises:
        NotFoundError: the document or the key isn't there.
        UsageError: it is no such key, or the package isn't installed.
        ExistsError: the document is signed already.
    """
    read_audit(folder)
    signature = _private_key(key).sign((folder / AUDIT_FILE).read_bytes())
    path = folder / SIGNATURE_FILE
    try:
        with path.open("xb") as file:
            file.write(signature)
    except FileExistsError as error:
        raise ExistsError(
            f"the document is signed already: {path}", hint="remove that signature to sign anew"
        ) from error
    return path


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

    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "private", str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", type(key).__name__)
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    content = _content(path)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(content)
    except ValueError as error:
        raise _no_key(path, "public", str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", type(key).__name__)
    return key


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


def _no_key(path: Path, kind: str, found: str) -> UsageError:
    return UsageError(
        f"not a key to sign with: {path}: expected a {kind} ed25519 key in PEM, found {found}",
        hint="make one by openssl genpkey -algorithm ed25519 -out key.pem, and openssl pkey -in key.pem -pubout",
    )
