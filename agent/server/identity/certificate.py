"""Reading certificates that somebody else chose. Raises ValueError only."""

from __future__ import annotations

import ssl

from cryptography import x509

from agent.server.identity import der
from agent.server.identity.der import DerError, Reader, tagged


def load(data: bytes) -> x509.Certificate:
    """A certificate in DER or PEM, whose names can be read. Serial numbers must be positive (RFC 5280 §4.1.2.2)."""
    if data.lstrip().startswith(b"-----BEGIN"):
        data = ssl.PEM_cert_to_DER_cert(data.decode("ascii"))
    if issuer_and_serial(data)[1] <= 0:
        raise DerError("the serial number is not positive")
    try:
        certificate = x509.load_der_x509_certificate(data)
        _ = certificate.subject, certificate.issuer  # read only when asked for
    except (x509.InvalidVersion, TypeError) as error:
        raise ValueError("the version is not known, or a name cannot be read") from error
    return certificate


def issuer_and_serial(data: bytes) -> tuple[bytes, int]:
    """What names a certificate, by which others refer to it: the DER of its issuer, and its number."""
    body = Reader(data).enter(der.SEQUENCE).enter(der.SEQUENCE)
    body.optional(tagged(0))  # the version
    serial = body.integer()
    body.read(der.SEQUENCE)  # how it is signed
    return body.read_whole(der.SEQUENCE), serial
