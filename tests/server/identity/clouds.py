"""Clouds with keys of their own, which sign what real ones would: for tests, the bench and the fuzzer."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SECONDS = NOW.timestamp()

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def rsa_key(number: int, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same key for the same number: making one takes longer than a test."""
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass
class Issued:
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


def issue(
    name: str | list[str],
    key: PrivateKey,
    by: Issued | None = None,
    *,
    authority: bool | None = True,
    signs: bool | None = None,
    issuer_urls: tuple[str, ...] = (),
    days: tuple[int, int] = (-30, 30),
    now: datetime = NOW,
) -> Issued:
    """A certificate, self-signed where `by` is None. `authority` None: without basic constraints; `signs`: its key
    usage says whether it may sign certificates."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, part) for part in ([name] if isinstance(name, str) else name)]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
    )
    if authority is not None:
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
    if signs is not None:
        usage = x509.KeyUsage(True, False, False, False, False, signs, False, False, False)
        builder = builder.add_extension(usage, critical=True)
    if issuer_urls:
        access = [
            x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, x509.UniformResourceIdentifier(url))
            for url in issuer_urls
        ]
        builder = builder.add_extension(x509.AuthorityInformationAccess(access), critical=False)
    return Issued(builder.sign(by.key if by else key, hashes.SHA256()), key)


@dataclass
class Aws:
    """The signing key of a region."""

    region: Issued = field(default_factory=lambda: issue("region", rsa_key(1, 1024)))

    @staticmethod
    def document(instance: str = "i-0abc", **more: Any) -> str:
        values = {"accountId": "123456789012", "instanceId": instance, "region": "us-east-1", **more}
        return json.dumps(values, indent=2)

    def sign(self, document: str) -> str:
        assert isinstance(self.region.key, rsa.RSAPrivateKey)
        signature = self.region.key.sign(document.encode(), padding.PKCS1v15(), hashes.SHA256())
        return base64.encodebytes(signature).decode()  # with line ends, as the metadata service has them


@dataclass
class Azure:
    """A root, an authority below it, and a signer of attested documents."""

    root: Issued = field(default_factory=lambda: issue("root", rsa_key(2)))
    issuer: Issued = field(init=False)
    signer: Issued = field(init=False)

    def __post_init__(self) -> None:
        self.issuer = issue("issuer", rsa_key(3), self.root)
        self.signer = issue("metadata.azure.com", rsa_key(4), self.issuer, authority=None)

    @staticmethod
    def document(vm: str = "vm-1", **more: Any) -> bytes:
        return json.dumps({"vmId": vm, "subscriptionId": "sub-1", "nonce": "1", **more}).encode()

    def message(
        self,
        document: bytes,
        *,
        signer: Issued | None = None,
        attributes: bool = True,
        chain: tuple[Issued, ...] = (),
        signers: int = 1,
        digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 = hashes.SHA256(),
    ) -> bytes:
        """The DER of a signed message; without signed attributes, the signature is that of the content itself."""
        signer = signer or self.signer
        builder = pkcs7.PKCS7SignatureBuilder().set_data(document)
        for _ in range(signers):
            builder = builder.add_signer(signer.certificate, signer.key, digest)
        for more in chain:
            builder = builder.add_certificate(more.certificate)
        options = [pkcs7.PKCS7Options.Binary]
        if not attributes:
            options.append(pkcs7.PKCS7Options.NoAttributes)
        return builder.sign(serialization.Encoding.DER, options)

    def attest(self, document: bytes, **options: Any) -> str:
        return base64.b64encode(self.message(document, **options)).decode()


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Google:
    """A token service with an RSA key `one` and, for tokens of its proxy, an EC key `two`."""

    rsa: Any = field(default_factory=lambda: rsa_key(5))
    ec: Any = field(default_factory=lambda: ec_key(6))

    @staticmethod
    def claims(instance: str = "1234567890", now: float = SECONDS, **changes: Any) -> dict[str, Any]:
        claims = {
            "aud": "coder",
            "exp": int(now) + 3600,
            "iat": int(now) - 10,
            "iss": "https://accounts.google.com",
            "google": {"compute_engine": {"instance_id": instance, "project_id": "project-1", "zone": "us-central1-a"}},
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, claims: dict[str, Any], header: dict[str, Any] | None = None) -> str:
        header = {"alg": "RS256", "kid": "one", "typ": "JWT"} if header is None else header
        signed = f"{segment(json.dumps(header).encode())}.{segment(json.dumps(claims).encode())}"
        if header.get("alg") == "ES256":
            r, s = decode_dss_signature(self.ec.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        else:
            signature = self.rsa.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{segment(signature)}"

    def key_set(self) -> bytes:
        """The keys of Google's tokens."""
        numbers = self.rsa.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "kid": "one",
            "alg": "RS256",
            "use": "sig",
            "n": _number(numbers.n),
            "e": _number(numbers.e),
        }
        return json.dumps({"keys": [key]}).encode()

    def proxy_key_set(self) -> bytes:
        numbers = self.ec.public_key().public_numbers()
        point = {"x": segment(numbers.x.to_bytes(32, "big")), "y": segment(numbers.y.to_bytes(32, "big"))}
        return json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "kid": "two", "alg": "ES256", **point}]}).encode()


def _number(value: int) -> str:
    return segment(value.to_bytes((value.bit_length() + 7) // 8, "big"))
