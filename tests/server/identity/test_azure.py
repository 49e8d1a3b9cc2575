"""Attested documents of Azure."""

from __future__ import annotations

import base64
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from agent.server.identity import azure, pkcs7
from agent.server.identity.azure import ChainVerifier
from agent.server.identity.config import bundled
from agent.server.identity.instance import Cloud, IdentityError, Instance
from agent.server.identity.roots import system_roots
from tests.server.identity.clouds import NOW, Azure, ec_key, issue, rsa_key

# The example of Microsoft's page "Azure Instance Metadata Service", signed by a certificate that signed itself.
PUBLISHED = (
    "MIIEEgYJKoZIhvcNAQcCoIIEAzCCA/8CAQExDzANBgkqhkiG9w0BAQsFADCBugYJKoZIhvcNAQcBoIGsBIGpeyJub25jZSI6IjEyMzQ1NjY3NjYi"
    "LCJwbGFuIjp7Im5hbWUiOiIiLCJwcm9kdWN0IjoiIiwicHVibGlzaGVyIjoiIn0sInRpbWVTdGFtcCI6eyJjcmVhdGVkT24iOiIxMS8yMC8xOCAy"
    "MjowNzozOSAtMDAwMCIsImV4cGlyZXNPbiI6IjExLzIwLzE4IDIyOjA4OjI0IC0wMDAwIn0sInZtSWQiOiIifaCCAj8wggI7MIIBpKADAgECAhBn"
    "xW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBBAUAMCsxKTAnBgNVBAMTIHRlc3RzdWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tMB4XDTE4MTEy"
    "MDIxNTc1N1oXDTE4MTIyMDIxNTc1NlowKzEpMCcGA1UEAxMgdGVzdHN1YmRvbWFpbi5tZXRhZGF0YS5henVyZS5jb20wgZ8wDQYJKoZIhvcNAQEB"
    "BQADgY0AMIGJAoGBAML/tBo86ENWPzmXZ0kPkX5dY5QZ150mA8lommszE71x2sCLonzv4/UWk4H+jMMWRRwIea2CuQ5RhdWAHvKq6if4okKNt66f"
    "xm+YTVz9z0CTfCLmLT+nsdfOAsG1xZppEapC0Cd9vD6NCKyE8aYI1pliaeOnFjG0WvMY04uWz2MdAgMBAAGjYDBeMFwGA1UdAQRVMFOAENnYkHLa"
    "04Ut4Mpt7TkJFfyhLTArMSkwJwYDVQQDEyB0ZXN0c3ViZG9tYWluLm1ldGFkYXRhLmF6dXJlLmNvbYIQZ8VuSofHbJRAQNBNpiASdDANBgkqhkiG"
    "9w0BAQQFAAOBgQCLSM6aX5Bs1KHCJp4VQtxZPzXF71rVKCocHy3N9PTJQ9Fpnd+bYw2vSpQHg/AiG82WuDFpPReJvr7Pa938mZqW9HUOGjQKK2FY"
    "DTg6fXD8pkPdyghlX5boGWAMMrf7bFkup+lsT+n2tRw2wbNknO1tQ0wICtqy2VqzWwLi45RBwTGB6DCB5QIBATA/MCsxKTAnBgNVBAMTIHRlc3Rz"
    "dWJkb21haW4ubWV0YWRhdGEuYXp1cmUuY29tAhBnxW5Kh8dslEBA0E2mIBJ0MA0GCSqGSIb3DQEBCwUAMA0GCSqGSIb3DQEBAQUABIGAld1BM/yY"
    "Iqqv8SDE4kjQo3Ul/IKAVR8ETKcve5BAdGSNkTUooUGVniTXeuvDj5NkmazOaKZp9fEtByqqPOyw/nlXaZgOO44HDGiPUJ90xVYmfeK6p9RpJBu6"
    "kiKhnnYTelUk5u75phe5ZbMZfBhuPhXmYAdjc7Nmw97nx8NnprQ="
)


@pytest.fixture(scope="module")
def cloud() -> Azure:
    return Azure()


@pytest.fixture(scope="module")
def chains(cloud: Azure) -> ChainVerifier:
    return ChainVerifier([cloud.root.certificate], [cloud.issuer.certificate])


def refusal(signature: str) -> IdentityError:
    with pytest.raises(IdentityError) as raised:
        azure.read(signature)
    return raised.value


def test_the_published_example_is_read_and_leads_to_no_root(chains: ChainVerifier) -> None:
    attested = azure.read(PUBLISHED)
    with pytest.raises(IdentityError) as raised:
        chains.verify(attested, NOW)
    assert raised.value.reason == "expired signer"
    with pytest.raises(IdentityError) as raised:
        attested.instance(NOW)
    assert raised.value.reason == "expired"


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("digest", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_a_genuine_document(cloud: Azure, chains: ChainVerifier, attributes: bool, digest: hashes.SHA256) -> None:
    attested = azure.read(cloud.attest(cloud.document("vm-1"), attributes=attributes, digest=digest))
    chains.verify(attested, NOW)
    assert attested.instance(NOW) == Instance(Cloud.AZURE, "vm-1", "sub-1")


def test_line_ends_in_the_base64_are_passed_over(cloud: Azure) -> None:
    azure.read(base64.encodebytes(cloud.message(cloud.document())).decode().replace("\n", "\r\n"))


def test_a_signer_with_an_elliptic_curve(cloud: Azure, chains: ChainVerifier) -> None:
    signer = issue("eastus.metadata.azure.com", ec_key(1), cloud.issuer, authority=None)
    attested = azure.read(cloud.attest(cloud.document(), signer=signer))
    chains.verify(attested, NOW)


@pytest.mark.parametrize("name", ["metadata.azure.us", "x.y.metadata.azure.cn", "metadata.microsoftazure.de"])
def test_names_of_signers(cloud: Azure, name: str) -> None:
    azure.read(cloud.attest(cloud.document(), signer=issue(name, rsa_key(4), cloud.issuer, authority=None)))


@pytest.mark.parametrize(
    "name",
    [
        "evil.com",
        "xmetadata.azure.com",
        "metadata.azure.com.evil.com",
        "metadata.azure.com\n",
        "metadata_azure.com",
        "METADATA.AZURE.COM",
        ["metadata.azure.com", "evil.com"],
    ],
)
def test_other_names_of_signers(cloud: Azure, name: str | list[str]) -> None:
    signer = issue(name, rsa_key(4), cloud.issuer, authority=None)
    assert refusal(cloud.attest(cloud.document(), signer=signer)).reason == "wrong signer"


def test_altered_content(cloud: Azure) -> None:
    plain = cloud.message(cloud.document("vm-1"), attributes=False)
    assert refusal(base64.b64encode(plain.replace(b"vm-1", b"vm-2")).decode()).reason == "wrong signature"
    attributes = cloud.message(cloud.document("vm-1"))
    error = refusal(base64.b64encode(attributes.replace(b"vm-1", b"vm-2")).decode())
    assert error.detail.endswith("the content was altered: it does not have the digest that was signed.")


def test_the_signature_of_another_document(cloud: Azure) -> None:
    """The digest is the right one, but nobody signed it."""
    genuine, other = (cloud.message(cloud.document(name)) for name in ("vm-1", "vm-2"))
    assert len(genuine) == len(other)
    assert refusal(base64.b64encode(genuine[:-256] + other[-256:]).decode()).reason == "wrong signature"


@pytest.mark.parametrize(
    ("forge", "text"),
    [
        (lambda cloud: cloud.message(b"{}", signers=0), "it has no signer"),
        (lambda cloud: cloud.message(b"{}", signers=2), "it has more than one signer"),
        (lambda cloud: cloud.message(b"{}", chain=(cloud.issuer,) * 10), "it has more than 10 certificates"),
        (lambda cloud: cloud.message(b"{}", chain=(cloud.signer,)), "is not in it, or is there twice"),
        (lambda cloud: cloud.message(b"{}") + b"\0", "there is more than there should be"),
        (lambda cloud: cloud.message(b"{}")[:-1], "it ends too early"),
        (lambda cloud: b"\x30\x80" + cloud.message(b"{}"), "a length is indefinite or too long"),
        (lambda cloud: b"\x30\x84\0\0\0\x01\0", "a length is not in its shortest form"),
        (lambda cloud: b"\x30\x03\x02\x01\x01", "tag 0x02 is where 0x06 is expected"),
        (lambda cloud: b"", "it ends too early"),
    ],
)
def test_messages_that_are_not_accepted(cloud: Azure, forge: object, text: str) -> None:
    assert callable(forge)
    try:
        message = forge(cloud)
    except ValueError:  # the library makes no message without a signer
        message = cloud.message(b"{}", attributes=False)
        begin = message.rindex(b"\x31\x82")
        message = _without_signers(message, begin)
    error = refusal(base64.b64encode(message).decode())
    assert error.reason == "malformed signature"
    assert text in error.detail


def _without_signers(message: bytes, begin: int) -> bytes:
    """The message with an empty set of signers, its three outer lengths put right."""
    body = message[begin - (begin - 4) :][: begin - 4]  # all after the outermost header
    kept = message[:begin] + b"\x31\x00"
    assert body
    out = bytearray(kept)
    for at in _outer_headers(message):
        out[at + 2 : at + 4] = (len(kept) - at - 4).to_bytes(2, "big")
    return bytes(out)


def _outer_headers(message: bytes) -> list[int]:
    second = message.index(b"\xa0\x82")
    return [0, second, second + 4]


def test_sizes(cloud: Azure) -> None:
    assert "longer than" in refusal("A" * 10_000_000).detail
    with pytest.raises(pkcs7.Pkcs7Error, match="longer than"):
        pkcs7.parse(bytes(pkcs7.MAX_SIZE + 1))


def test_deep_nesting_costs_nothing() -> None:
    data = b""
    while len(data) < pkcs7.MAX_SIZE - 8:
        length = len(data)
        octets = length.to_bytes((length.bit_length() + 7) // 8, "big") if length >= 0x80 else b""
        data = b"\x30" + (bytes((0x80 | len(octets),)) + octets if octets else bytes((length,))) + data
    assert refusal(base64.b64encode(data).decode()).reason == "malformed signature"


@pytest.mark.parametrize("text", ["TQ=", "TR==", "T Q==", "TQ==TQ==", "-_==", "тест"])
def test_base64_that_is_not_the_one_form(text: str) -> None:
    assert "base64" in refusal(text).detail


def test_ways_to_no_trusted_root(cloud: Azure, chains: ChainVerifier) -> None:
    other = issue("root", rsa_key(7))
    below = issue("issuer", rsa_key(8), other)
    signer = issue("metadata.azure.com", rsa_key(9), below, authority=None)
    attested = azure.read(cloud.attest(cloud.document(), signer=signer, chain=(below, other)))
    with pytest.raises(IdentityError) as raised:
        chains.verify(attested, NOW)
    assert raised.value.reason == "unknown issuer"
    assert 'issued by "CN=issuer"' in raised.value.detail


@pytest.mark.parametrize(
    ("authority", "signs"), [(None, None), (False, None), (True, False)], ids=["plain", "no authority", "must not"]
)
def test_certificates_that_are_no_authorities(
    cloud: Azure, chains: ChainVerifier, authority: bool | None, signs: bool | None
) -> None:
    """Whoever has a genuine certificate must not make others with it."""
    between = issue("mine.example.com", rsa_key(8), cloud.issuer, authority=authority, signs=signs)
    signer = issue("metadata.azure.com", rsa_key(9), between, authority=None)
    attested = azure.read(cloud.attest(cloud.document(), signer=signer, chain=(between,)))
    with pytest.raises(IdentityError) as raised:
        chains.verify(attested, NOW)
    assert raised.value.reason == "unknown issuer"


@pytest.mark.parametrize("days", [(-30, -1), (1, 30)])
def test_times_of_the_signer(cloud: Azure, chains: ChainVerifier, days: tuple[int, int]) -> None:
    signer = issue("metadata.azure.com", rsa_key(4), cloud.issuer, authority=None, days=days)
    with pytest.raises(IdentityError) as raised:
        chains.verify(azure.read(cloud.attest(cloud.document(), signer=signer)), NOW)
    assert raised.value.reason == "expired signer"


def test_an_issuer_that_was_looked_up(cloud: Azure) -> None:
    url = "http://www.microsoft.com/pkiops/certs/issuer.crt"
    signer = issue("metadata.azure.com", rsa_key(4), cloud.issuer, authority=None, issuer_urls=(url,) * 5)
    attested = azure.read(cloud.attest(cloud.document(), signer=signer))
    assert attested.issuer_urls == [url] * azure.MAX_ISSUER_URLS
    roots_only = ChainVerifier([cloud.root.certificate], [])
    with pytest.raises(IdentityError):
        roots_only.verify(attested, NOW)
    roots_only.verify(attested, NOW, [cloud.issuer.certificate])
    assert azure.read(cloud.attest(cloud.document())).issuer_urls == []


def test_when_a_document_ends(cloud: Azure) -> None:
    def instance(**times: str) -> Instance:
        return azure.read(cloud.attest(cloud.document(timeStamp=times))).instance(NOW)

    assert instance(expiresOn="11/24/26 11:30:00 -0000").id == "vm-1", "clocks may be wrong"
    assert instance(expiresOn="soon").id == "vm-1"
    assert instance(expiresOn="99/99/26 11:30:00 -0000").id == "vm-1"
    with pytest.raises(IdentityError, match=r"ended at 2026-11-24T10:30:00Z"):
        instance(expiresOn="11/24/26 10:30:00 -0000")


@pytest.mark.parametrize("document", [b"", b"[]", b'{"vmId":1}', b"\xff", b"[" * 10000])
def test_signed_content_that_is_no_document(cloud: Azure, document: bytes) -> None:
    with pytest.raises(IdentityError, match="parse document"):
        azure.read(cloud.attest(document)).instance(NOW)


def test_a_document_without_an_id(cloud: Azure) -> None:
    assert azure.read(cloud.attest(b"{}")).instance(NOW).id == ""


@pytest.mark.filterwarnings("ignore::UserWarning")  # cryptography warns of what is odd in a certificate
@given(data=st.data())
def test_any_change_of_a_message_is_noticed(cloud: Azure, chains: ChainVerifier, data: st.DataObject) -> None:
    """Flipping bits gives the same content from the same signer, or a refusal; never anything else."""
    document = cloud.document("vm-1")
    message = bytearray(cloud.message(document, attributes=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        attested = azure.read(base64.b64encode(message).decode())
        chains.verify(attested, NOW)
    except IdentityError:
        return
    assert attested.instance(NOW).id == "vm-1"
    assert attested.signer.public_key() == cloud.signer.key.public_key()


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        azure.read(base64.b64encode(data).decode())


def test_the_authorities_that_come_along_lead_to_the_roots_of_the_system() -> None:
    """As a signer would be verified: the issuing authority stands in for it."""
    roots = system_roots()
    if not any("DigiCert Global Root G2" in root.subject.rfc4514_string() for root in roots):
        pytest.skip("this machine does not trust DigiCert Global Root G2")
    outer, inner = bundled("azure")
    attested = azure.Attested(inner, (), b"{}")
    ChainVerifier(roots, [outer]).verify(attested, NOW + timedelta(days=30))


def test_a_certificate_of_an_unknown_version(cloud: Azure) -> None:
    message = cloud.message(cloud.document())
    version = b"\xa0\x03\x02\x01\x02"
    assert message.count(version) == 1
    error = refusal(base64.b64encode(message.replace(version, b"\xa0\x03\x02\x01\x12")).decode())
    assert error.detail.endswith("the signer's certificate cannot be read.")


def test_a_certificate_with_a_name_that_cannot_be_read(cloud: Azure) -> None:
    """A name's text that is a string of bits."""
    message = cloud.message(cloud.document())
    text = b"\x0c\x12metadata.azure.com"
    assert message.count(text) == 1
    error = refusal(base64.b64encode(message.replace(text, b"\x03\x12\0etadata.azure.com")).decode())
    assert error.reason == "malformed signature"
