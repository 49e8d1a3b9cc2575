"""Azure: an attested document, which is a PKCS#7 message (agent-api.md §5.4). No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from agent.server.identity import certificate, pkcs7
from agent.server.identity.instance import Cloud, IdentityError, Instance, decode_base64

LENIENCY: Final = timedelta(hours=1)
"""By how much a document may be older than it says, for clocks that are wrong."""
MAX_ISSUER_URLS: Final = 2

_SIGNER: Final = re.compile(r"(.*\.)?metadata\.(azure\.(com|us|cn)|microsoftazure\.de)")
_TIME: Final = re.compile(r"(\d\d)/(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d) -0000", re.ASCII)


class _Times(msgspec.Struct, rename="camel"):
    expires_on: str = ""


class _Document(msgspec.Struct, rename="camel"):
    vm_id: str = ""
    subscription_id: str | None = None
    time_stamp: _Times | None = None


@dataclass(frozen=True, slots=True)
class Attested:
    """A message whose signer signed it and has a name of Azure's; whether the signer is genuine is not known yet."""

    signer: x509.Certificate
    intermediates: tuple[x509.Certificate, ...]
    _content: bytes

    @property
    def issuer_urls(self) -> list[str]:
        """Where the certificate of the signer's issuer can be had, as the signer's certificate says."""
        try:
            access = self.signer.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        except (
            x509.ExtensionNotFound,
            x509.DuplicateExtension,
            x509.UnsupportedGeneralNameType,
            TypeError,
            ValueError,
        ):
            return []
        return [
            description.access_location.value
            for description in access
            if description.access_method == AuthorityInformationAccessOID.CA_ISSUERS
            and isinstance(description.access_location, x509.UniformResourceIdentifier)
        ][:MAX_ISSUER_URLS]

    def instance(self, now: datetime) -> Instance:
        """What the document says; to be asked when the signer is known to be genuine. Raises `IdentityError`."""
        try:
            document = msgspec.json.decode(self._content, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise IdentityError("malformed document", f"parse document: {error}") from error
        expires = _time(document.time_stamp.expires_on) if document.time_stamp else None
        if expires is not None and now > expires + LENIENCY:
            raise IdentityError(
                "expired", f"The document ended at {expires:%Y-%m-%dT%H:%M:%SZ}; the clock may be wrong."
            )
        return Instance(Cloud.AZURE, document.vm_id, document.subscription_id or "")


def read(signature: str) -> Attested:
    """The first half: everything that needs no other certificates. Raises `IdentityError`."""
    try:
        signed = pkcs7.parse(decode_base64(signature, max_size=pkcs7.MAX_SIZE))
    except ValueError as error:
        raise _refused("malformed signature", f"The signature cannot be read: {error}.") from error
    name = _common_name(signed.signer)
    if _SIGNER.fullmatch(name) is None:
        raise _refused("wrong signer", "The signer's certificate is not one of Azure's metadata service.")
    try:
        signed.verify()
    except pkcs7.ContentSignatureError as error:
        raise _refused("wrong signature", f"{str(error).capitalize()}.") from error
    return Attested(signed.signer, tuple(_readable(signed.certificates)), signed.content)


class ChainVerifier:
    """The second half: is there a way from the signer to a root that is trusted?

    Any extended key usage will do, as the specification says: the signers are certificates of web servers.
    """

    def __init__(self, roots: Sequence[x509.Certificate], intermediates: Iterable[x509.Certificate]) -> None:
        """Raises ValueError without a root."""
        self._store, self._intermediates = verification.Store(list(roots)), list(intermediates)
        authority = verification.ExtensionPolicy.permit_all()
        authority = authority.require_present(x509.BasicConstraints, verification.Criticality.AGNOSTIC, _is_authority)
        authority = authority.may_be_present(x509.KeyUsage, verification.Criticality.AGNOSTIC, _may_sign)
        self._policy = verification.PolicyBuilder().extension_policies(
            ca_policy=authority, ee_policy=verification.ExtensionPolicy.permit_all()
        )

    def learn(self, issuers: Iterable[x509.Certificate]) -> None:
        """Keep issuers that completed a way to a trusted root. They are few: a genuine signer named them."""
        self._intermediates.extend(issuer for issuer in issuers if issuer not in self._intermediates)

    def verify(self, attested: Attested, now: datetime, more: Iterable[x509.Certificate] = ()) -> None:
        """`more` are issuers that were looked up. Raises `IdentityError`, which names the missing issuer."""
        known = [*attested.intermediates, *self._intermediates, *more]
        verifier = self._policy.store(self._store).time(now).build_client_verifier()
        try:
            verifier.verify(attested.signer, known)
        except (verification.VerificationError, TypeError, ValueError) as error:
            signer = attested.signer
            if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
                until = f"{signer.not_valid_before_utc:%Y-%m-%d} to {signer.not_valid_after_utc:%Y-%m-%d}"
                raise _refused("expired signer", f"The signer's certificate is valid from {until}.") from error
            issuer = signer.issuer.rfc4514_string()[:200]
            raise _refused(
                "unknown issuer",
                f'The signer\'s certificate, issued by "{issuer}", leads to no root that this server trusts. '
                "If that is an authority of Azure, add it to the intermediates of the server.",
            ) from error


def _refused(reason: str, detail: str) -> IdentityError:
    return IdentityError(reason, f"Signature verification failed. {detail}")


def _is_authority(_: verification.Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("it is no certificate authority")


def _may_sign(_: verification.Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("it must not sign certificates")


def _common_name(signer: x509.Certificate) -> str:
    """Empty where there is none, or several."""
    names = signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _readable(certificates: Iterable[bytes]) -> Iterable[x509.Certificate]:
    """One that cannot be read does not help, and does no harm: the chain has to do without it."""
    for data in certificates:
        try:
            yield certificate.load(data)
        except ValueError:
            continue


def _time(text: str) -> datetime | None:
    """Azure's form: `11/20/18 22:08:24 -0000`; None for any other."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        return None
    month, day, year, hour, minute, second = map(int, parts.groups())
    try:
        return datetime(2000 + year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
