"""Instance identity documents of AWS."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given
from hypothesis import strategies as st

from agent.server.identity.aws import MAX_DOCUMENT, AwsVerifier
from agent.server.identity.config import bundled
from agent.server.identity.instance import Cloud, IdentityError, Instance, decode_base64
from tests.server.identity.clouds import Aws, ec_key, issue, rsa_key

SPECIFICATION = Path(__file__).parents[3] / "docs/specification/agent-api.md"
CLOUD = Aws()
VERIFIER = AwsVerifier([*bundled("aws"), CLOUD.region.certificate])


def refusal(document: str, signature: str) -> IdentityError:
    with pytest.raises(IdentityError) as raised:
        VERIFIER.verify(document, signature)
    return raised.value


def test_the_certificates_of_the_specification_come_along() -> None:
    listed = re.findall(r"\| [0-9A-F]+ \| ([0-9A-F]{64}) \|", SPECIFICATION.read_text())
    assert len(listed) == 14
    certificates = bundled("aws")
    assert {certificate.fingerprint(hashes.SHA256()).hex().upper() for certificate in certificates} >= set(listed)
    assert len(AwsVerifier(certificates)._keys) == 18, "newer certificates are mostly of the same keys"


def test_a_genuine_document() -> None:
    document = CLOUD.document("i-1")
    assert VERIFIER.verify(document, CLOUD.sign(document)) == Instance(Cloud.AWS, "i-1", "123456789012", "us-east-1")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.replace("i-1", "i-2"),
        lambda document: document + "\n",
        lambda document: document.replace("\n", "\r\n"),
        lambda document: document.replace(" ", "", 1),
    ],
)
def test_an_altered_document(change: object) -> None:
    assert callable(change)
    document = CLOUD.document("i-1")
    error = refusal(change(document), CLOUD.sign(document))
    assert (error.reason, error.detail) == ("wrong signature", "crypto/rsa: verification error")


def test_other_signers_and_other_schemes() -> None:
    document = CLOUD.document("i-1")
    stranger = Aws(issue("region", rsa_key(9, 1024)))
    assert refusal(document, stranger.sign(document)).reason == "wrong signature"
    key = rsa_key(1, 1024)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    for signature in (
        key.sign(document.encode(), padding.PKCS1v15(), hashes.SHA1()),
        key.sign(document.encode(), pss, hashes.SHA256()),
        b"",
        b"\0" * 128,
        b"\xff" * 128,
        b"\0" * 129,
    ):
        assert refusal(document, base64.b64encode(signature).decode()).reason == "wrong signature"


@pytest.mark.parametrize("document", ["", "{", "[]", "null", '{"instanceId":1}', '{"instanceId":null}', "[" * 5000])
def test_what_is_no_document(document: str) -> None:
    error = refusal(document, CLOUD.sign(document))
    assert error.detail.startswith("parse document: ")


def test_sizes() -> None:
    assert refusal(" " * (MAX_DOCUMENT + 1), "").reason == "document too large"
    assert refusal("{}", "A" * 10_000_000).detail == "decode signature: it is longer than 1024 bytes"


@pytest.mark.parametrize("signature", ["A", "AA", "AA=", "AB==", "AA==AA==", "A A=", "-_==", "тест", "AA==\x00"])
def test_base64_that_is_not_the_one_form(signature: str) -> None:
    error = refusal("{}", signature)
    assert error.reason == "malformed signature"
    assert error.detail.startswith("decode signature: it is not ")


def test_a_document_without_an_id() -> None:
    assert VERIFIER.verify("{}", CLOUD.sign("{}")) == Instance(Cloud.AWS, "")


def test_certificates_without_an_rsa_key() -> None:
    with pytest.raises(ValueError, match="the key of CN=region is not RSA"):
        AwsVerifier([issue("region", ec_key(1)).certificate])


@given(st.binary(max_size=100))
def test_base64_has_one_form(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert decode_base64(text, max_size=100) == data
    assert decode_base64(f"\r\n{text[:3]}\n{text[3:]}", max_size=100) == data


@given(st.text(alphabet="ABCw+/=-_ \r\n", max_size=12))
def test_what_is_taken_for_base64_is_written_back_as_it_was(text: str) -> None:
    try:
        data = decode_base64(text, max_size=100)
    except ValueError:
        return
    assert base64.b64encode(data).decode() == text.replace("\r", "").replace("\n", "")


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_text_is_refused(document: str, signature: str) -> None:
    with pytest.raises(IdentityError):
        VERIFIER.verify(document, signature)
