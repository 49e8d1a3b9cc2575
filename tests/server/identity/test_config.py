"""The owner's file about cloud identities."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agent.server.identity import IdentityConfig, IdentityConfigError, Verifiers, read_config
from agent.server.identity.config import MAX_FILE, read_certificates
from agent.server.identity.fetch import MAX_ISSUERS, RETRY_PERIOD, Answer, FetchError
from agent.server.identity.instance import IdentityError
from agent.testing import ManualClock
from tests.server.identity.clouds import NOW, Aws, Azure, issue, rsa_key


async def nothing(url: str) -> Answer:
    raise FetchError(f"{url} is away")


def verifiers(config: IdentityConfig) -> Verifiers:
    return Verifiers(config, nothing, nothing, ManualClock())


def test_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "identity.yaml"
    file.write_text(
        """
        aws: {certificates: aws.pem, accounts: ["123456789012"], regions: [eu-west-1]}
        azure: {roots: /roots.pem, intermediates: more.pem, fetch_issuers: false, subscriptions: [s]}
        google: {keys_url: http://keys.internal/certs, audiences: [], projects: [p]}
        """
    )
    config = read_config(file)
    assert config.aws.certificates == tmp_path / "aws.pem"
    assert config.azure.roots == Path("/roots.pem")
    assert config.google.audiences == ()
    assert config.google.iap_keys_url == IdentityConfig().google.iap_keys_url


def test_an_empty_file_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    assert read_config(tmp_path / "empty.yaml") == IdentityConfig()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("aws: [", "neither YAML nor JSON"),
        ("\x00", "neither YAML nor JSON"),
        ("[]", "Expected `object`, got `array`"),
        ("azur: {}", "unknown field `azur`"),
        ("aws: {acounts: []}", "unknown field `acounts` - at `$.aws`"),
        ("aws: {accounts: [123456789012]}", r"Expected `str`, got `int` - at `$.aws.accounts[0]`"),
        ("azure: {roots: 5}", "at `$.azure.roots`"),
        ("google: {keys_url: file:///etc/keys}", "'file:///etc/keys' is no address of keys"),
    ],
)
def test_files_with_mistakes(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "identity.yaml"
    file.write_text(text)
    with pytest.raises(IdentityConfigError) as raised:
        read_config(file)
    assert str(file) in str(raised.value)
    assert reason in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(IdentityConfigError, match="no such file or directory"):
        read_config(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(IdentityConfigError, match="neither YAML nor JSON"):
        read_config(tmp_path / "bytes")
    (tmp_path / "large").write_bytes(bytes(MAX_FILE + 1))
    with pytest.raises(IdentityConfigError, match="is larger than"):
        read_config(tmp_path / "large")
    (tmp_path / "no.pem").write_text("x")
    with pytest.raises(IdentityConfigError, match="has no certificates in PEM"):
        read_certificates(tmp_path / "no.pem")


async def test_mistakes_in_certificates_are_told_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "identity.yaml"
    for section, name in (("aws", "certificates"), ("azure", "roots"), ("azure", "intermediates")):
        file.write_text(json.dumps({section: {name: "missing.pem"}}))
        with pytest.raises(IdentityConfigError, match=r"missing\.pem"):
            await verifiers(await asyncio.to_thread(read_config, file)).check_config()


async def test_an_issuer_is_looked_up_only_where_that_is_wanted(tmp_path: Path) -> None:
    cloud = Azure()
    url = "http://www.microsoft.com/issuer.crt"
    signer = issue("metadata.azure.com", rsa_key(4), cloud.issuer, authority=None, issuer_urls=(url,))
    (tmp_path / "roots.pem").write_bytes(cloud.root.pem)
    asked = []

    async def get(url: str) -> Answer:
        asked.append(url)
        return Answer(cloud.issuer.der)

    class Clock(ManualClock):
        def wall(self) -> int:
            return int(NOW.timestamp()) * 1_000_000_000

    signature = cloud.attest(cloud.document("vm-1"), signer=signer)
    for wanted in (False, True):
        file = tmp_path / "identity.json"
        file.write_text(json.dumps({"azure": {"roots": "roots.pem", "fetch_issuers": wanted}}))
        checked = Verifiers(await asyncio.to_thread(read_config, file), get, nothing, Clock())
        if wanted:
            assert (await checked.azure(signature)).id == "vm-1"
            forged = cloud.attest(cloud.document("vm-1"), signer=issue("evil.com", rsa_key(4), issuer_urls=(url,)))
            with pytest.raises(IdentityError, match="is not one of Azure's"):
                await checked.azure(forged)
        else:
            with pytest.raises(IdentityError, match="leads to no root"):
                await checked.azure(signature)
    assert asked == [url]


async def test_an_issuer_that_was_needed_is_not_forgotten_for_those_of_strangers(tmp_path: Path) -> None:
    cloud = Azure()
    url = "http://www.microsoft.com/issuer.crt"
    genuine = issue("metadata.azure.com", rsa_key(4), cloud.issuer, authority=None, issuer_urls=(url,))
    (tmp_path / "roots.pem").write_bytes(cloud.root.pem)
    (tmp_path / "identity.json").write_text('{"azure": {"roots": "roots.pem"}}')
    config = await asyncio.to_thread(read_config, tmp_path / "identity.json")

    class Clock(ManualClock):
        def wall(self) -> int:
            return int(NOW.timestamp()) * 1_000_000_000

    async def get(asked: str) -> Answer:
        if not asked.startswith(url):
            raise FetchError("no such page")
        return Answer(cloud.issuer.der)

    clock = Clock()
    checked = Verifiers(config, get, nothing, clock)
    signature = cloud.attest(cloud.document("vm-1"), signer=genuine)
    assert (await checked.azure(signature)).id == "vm-1"
    await clock.advance(RETRY_PERIOD)
    for number in range(MAX_ISSUERS):
        forger = issue("metadata.azure.com", rsa_key(5), issuer_urls=(f"{url}?{number}",))
        with pytest.raises(IdentityError, match="leads to no root"):
            await checked.azure(cloud.attest(cloud.document("vm-1"), signer=forger))
    assert (await checked.azure(signature)).id == "vm-1"


async def test_a_machine_that_trusts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.server.identity.verifiers.system_roots", list)
    cloud = Azure()
    for _ in range(2):
        with pytest.raises(IdentityError, match="this machine trusts no certificate authority: name `roots` for Azure"):
            await verifiers(IdentityConfig()).azure(cloud.attest(cloud.document("vm-1")))


async def test_an_owner_who_names_intermediates_is_told_of_missing_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.server.identity.verifiers.system_roots", list)
    (tmp_path / "more.pem").write_bytes(Azure().issuer.pem)
    (tmp_path / "identity.json").write_text('{"azure": {"intermediates": "more.pem"}}')
    config = await asyncio.to_thread(read_config, tmp_path / "identity.json")
    with pytest.raises(IdentityConfigError, match="this machine trusts no certificate authority"):
        await verifiers(config).check_config()


async def test_the_defaults_know_aws() -> None:
    with pytest.raises(IdentityError, match="crypto/rsa: verification error"):
        await verifiers(IdentityConfig()).aws(Aws.document("i-1"), Aws().sign(Aws.document("i-1")))
