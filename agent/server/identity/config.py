"""What the owner of a server decides about cloud identities, in a file of YAML or JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import yaml
from cryptography import x509

MAX_FILE: Final = 4 * 1024 * 1024
GOOGLE_KEYS: Final = "https://www.googleapis.com/oauth2/v3/certs"
IAP_KEYS: Final = "https://www.gstatic.com/iap/verify/public_key-jwk"

_BUNDLES: Final = Path(__file__).with_name("certificates")


class IdentityConfigError(Exception):
    """A file cannot be used; the text names it and what is wrong."""


class Aws(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`certificates` is a PEM file whose certificates are tried besides the public ones. Without `accounts` or
    `regions`, instances of all of them are accepted."""

    certificates: Path | None = None
    accounts: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


class Azure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roots` is a PEM file that takes the place of the system's trusted roots; `intermediates` is one besides those
    that come with the server. `fetch_issuers`: ask Microsoft for issuers that are not known."""

    roots: Path | None = None
    intermediates: Path | None = None
    fetch_issuers: bool = True
    subscriptions: tuple[str, ...] = ()


class Google(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the key sets are, and whom tokens must be meant for: without `audiences`, anybody."""

    keys_url: str = GOOGLE_KEYS
    iap_keys_url: str = IAP_KEYS
    audiences: tuple[str, ...] = ("coder",)
    projects: tuple[str, ...] = ()


class IdentityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The defaults accept every instance of the public clouds that an agent is bound to."""

    aws: Aws = Aws()
    azure: Azure = Azure()
    google: Google = Google()


def read_config(file: Path) -> IdentityConfig:
    """Paths in the file are relative to it. Raises `IdentityConfigError`. Blocks."""
    try:
        content = yaml.safe_load(_read(file).decode())
        config = msgspec.convert({} if content is None else content, IdentityConfig, strict=True, dec_hook=_path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise IdentityConfigError(f"{file} is neither YAML nor JSON: {error}") from error
    except msgspec.ValidationError as error:
        raise IdentityConfigError(f"{file} cannot be used: {error}") from error
    for url in (config.google.keys_url, config.google.iap_keys_url):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise IdentityConfigError(f"{file} cannot be used: {url!r} is no address of keys")
    base = file.parent
    return msgspec.structs.replace(
        config,
        aws=msgspec.structs.replace(config.aws, certificates=_beside(base, config.aws.certificates)),
        azure=msgspec.structs.replace(
            config.azure,
            roots=_beside(base, config.azure.roots),
            intermediates=_beside(base, config.azure.intermediates),
        ),
    )


def read_certificates(file: Path) -> list[x509.Certificate]:
    """Those of a PEM file. Raises `IdentityConfigError`. Blocks."""
    try:
        return x509.load_pem_x509_certificates(_read(file))
    except ValueError as error:
        raise IdentityConfigError(f"{file} has no certificates in PEM, or one that cannot be read") from error


def bundled(name: str) -> list[x509.Certificate]:
    """The certificates that come with the server: `aws` or `azure`. Blocks."""
    return read_certificates(_BUNDLES / f"{name}.pem")


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise IdentityConfigError(f"cannot read {file}: {reason}") from error
    if len(data) > MAX_FILE:
        raise IdentityConfigError(f"{file} is larger than {MAX_FILE} bytes")
    return data


def _path(kind: type[object], value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError("Expected the path of a file")  # msgspec says where


def _beside(base: Path, file: Path | None) -> Path | None:
    return None if file is None else base / file
