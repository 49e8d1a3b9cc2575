"""The certificate authorities that the machine trusts. Blocks."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from agent.server.identity.certificate import load


def system_roots() -> list[x509.Certificate]:
    """Those of OpenSSL's file, or else of its folder; what cannot be read is passed over, as OpenSSL does."""
    paths = ssl.get_default_verify_paths()
    found: dict[bytes, x509.Certificate] = {}
    for file in _files(paths.cafile, paths.capath):
        for block in _blocks(file):
            if block not in found:
                with suppress(ValueError):
                    found[block] = load(block)
    return list(found.values())


def _files(file: str | None, folder: str | None) -> Iterator[Path]:
    if file is not None:
        yield Path(file)
    elif folder is not None:
        yield from sorted(path for path in Path(folder).glob("*") if path.suffix in (".pem", ".crt", ".0"))


def _blocks(file: Path) -> Iterator[bytes]:
    """The PEM blocks of a file; OpenSSL passes over files that it cannot read."""
    try:
        text = file.read_bytes()
    except OSError:
        return
    end = b"-----END CERTIFICATE-----"
    for part in text.split(end)[:-1]:
        yield part[part.rfind(b"-----BEGIN CERTIFICATE-----") :] + end + b"\n"
