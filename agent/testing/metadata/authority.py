"""Keys and certificates of three clouds that do not exist, and what is signed with them.

`write` leaves what a server needs to believe them: a file for its `--instance-identity`. Nothing here blocks for longer
than it takes to make an RSA key, some 0.1 s.
"""

from __future__ import annotations

import json
import uuid
from base64 import b64encode, encodebytes, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

AZURE_SIGNER = "metadata.azure.com"
AWS_FILE, AZURE_ROOTS_FILE, CONFIG_FILE = "aws.pem", "azure-roots.pem", "identity.json"


class AwsAuthority:
    """Signs identity documents. `certificates` has the present one and the next, as AWS announces new ones early."""

    def __init__(self) -> None:
        self._keys = [rsa_key(), rsa_key()]
        self.certificates = [
            certify(key, f"AWS test region {number}", key, f"AWS test region {number}")
            for number, key in enumerate(self._keys)
        ]

    def sign(self, document: bytes) -> str:
        """What the endpoint `signature` gives: base64 in lines, without one at the end."""
        return encodebytes(self._keys[0].sign(document, padding.PKCS1v15(), hashes.SHA256())).decode().rstrip("\n")

    def rotate(self) -> None:
        """Sign with the next key from now on; the one after it is new, and no server knows it yet."""
        self._keys = [self._keys[1], rsa_key()]
        name = f"AWS test region {uuid.uuid4()}"
        self.certificates = [*self.certificates, certify(self._keys[1], name, self._keys[1], name)]


class AzureAuthority:
    """A root, an intermediate, and the signer of attested documents."""

    def __init__(self, signer: str = AZURE_SIGNER) -> None:
        self._root_key, self._intermediate_key = ec_key(), ec_key()
        self.root = certify(self._root_key, "Azure test root", self._root_key, "Azure test root", authority=True)
        self.intermediate = certify(
            self._intermediate_key, "Azure test issuer", self._root_key, "Azure test root", authority=True
        )
        self._name = signer
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key and certificate of the same issuer from now on."""
        self._key = rsa_key()
        self.signer = certify(self._key, self._name, self._intermediate_key, "Azure test issuer")

    def sign(self, content: bytes, *, with_intermediate: bool = True) -> str:
        """The PKCS#7 message, in base64."""
        builder = pkcs7.PKCS7SignatureBuilder().set_data(content).add_signer(self.signer, self._key, hashes.SHA256())
        if with_intermediate:
            builder = builder.add_certificate(self.intermediate)
        return b64encode(builder.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])).decode()


class GoogleAuthority:
    """Signs identity tokens. `key_set` has the present key and the one before it."""

    def __init__(self) -> None:
        self._keys: list[tuple[str, rsa.RSAPrivateKey]] = []
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self._keys = [(uuid.uuid4().hex, rsa_key()), *self._keys[:1]]

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The JWT."""
        name, key = self._keys[0]
        signed = f"{_part({'alg': 'RS256', 'kid': name, 'typ': 'JWT'})}.{_part(claims)}"
        return f"{signed}.{_base64url(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def key_set(self) -> dict[str, Any]:
        """As Google publishes it (RFC 7517)."""
        keys = []
        for name, key in self._keys:
            numbers = key.public_key().public_numbers()
            keys.append(
                {
                    "kty": "RSA",
                    "alg": "RS256",
                    "use": "sig",
                    "kid": name,
                    "n": _base64url(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8, "big")),
                    "e": _base64url(numbers.e.to_bytes(3, "big")),
                }
            )
        return {"keys": keys}


class Authority:
    """All three, each made when it is first asked for."""

    def __init__(self) -> None:
        self._aws: AwsAuthority | None = None
        self._azure: AzureAuthority | None = None
        self._google: GoogleAuthority | None = None

    @property
    def aws(self) -> AwsAuthority:
        if self._aws is None:
            self._aws = AwsAuthority()
        return self._aws

    @property
    def azure(self) -> AzureAuthority:
        if self._azure is None:
            self._azure = AzureAuthority()
        return self._azure

    @property
    def google(self) -> GoogleAuthority:
        if self._google is None:
            self._google = GoogleAuthority()
        return self._google

    def write(self, directory: Path, google_keys_url: str = "") -> Path:
        """The file for a server's `--instance-identity`, with the certificates beside it. Blocks."""
        config: dict[str, Any] = {}
        if self._aws is not None:
            (directory / AWS_FILE).write_bytes(_pem(self._aws.certificates))
            config["aws"] = {"certificates": AWS_FILE}
        if self._azure is not None:
            (directory / AZURE_ROOTS_FILE).write_bytes(_pem([self._azure.root]))
            config["azure"] = {"roots": AZURE_ROOTS_FILE, "fetch_issuers": False}
        if google_keys_url:
            config["google"] = {"keys_url": google_keys_url}
        file = directory / CONFIG_FILE
        file.write_text(json.dumps(config, indent=2))
        return file


def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def certify(
    key: Key, name: str, issuer_key: Key, issuer: str, *, authority: bool = False, days: tuple[int, int] = (-1, 30)
) -> x509.Certificate:
    """A certificate for `key` that is valid between these days from now on."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name.replace(" ", "-"))]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _part(value: Mapping[str, Any]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")
