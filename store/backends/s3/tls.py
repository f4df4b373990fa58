"""Which servers are trusted: those of the system's CAs, of one CA file, or one certificate."""

import hashlib
import ssl
from http.client import HTTPSConnection

from store.errors import BackendError, InvalidName


def parse_fingerprint(text: str) -> bytes:
    """The 32 bytes of `aa:bb:…`. Raises InvalidName."""
    try:
        fingerprint = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != 32:
        raise InvalidName(f"certificate fingerprint {text!r}: write its SHA-256 as aa:bb:…")
    return fingerprint


def make_context(ca_file: str | None, fingerprint: str | None) -> ssl.SSLContext:
    """How to check a server. With a fingerprint nothing else counts; see `check_fingerprint`.

    Raises InvalidName: the CA file can't be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InvalidName(f"CA file {ca_file}: {error.strerror or error}") from error
    if fingerprint is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_fingerprint(connection: HTTPSConnection, fingerprint: str) -> None:
    """Raise BackendError unless the server showed the certificate with this fingerprint."""
    shown = connection.sock.getpeercert(binary_form=True)
    found = hashlib.sha256(shown or b"").digest()
    if found != parse_fingerprint(fingerprint):
        raise BackendError(
            f"{connection.host}: its certificate has the fingerprint {found.hex(':')}, "
            f"not {fingerprint}"
        )
