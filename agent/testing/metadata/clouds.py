"""The metadata services of AWS, Azure and Google Cloud, as far as an instance proves itself with them."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta

from aiohttp import web

from agent.testing.metadata.authority import AwsAuthority, AzureAuthority, GoogleAuthority
from agent.testing.metadata.service import FakeMetadata, Instance

KEYS = "/oauth2/v3/certs"
"""Where `FakeGoogle` publishes its keys."""
KEYS_LIFE = 300
"""Seconds that a server may keep them."""


class FakeAws(FakeMetadata):
    """IMDSv2, and with a fault IMDSv1 alone."""

    server = "EC2ws"

    def __init__(self, authority: AwsAuthority, instance: Instance) -> None:
        super().__init__(instance)
        self.authority = authority
        self._tokens: set[str] = set()

    def document(self) -> bytes:
        """Laid out as AWS does it: the blanks are signed, too."""
        return json.dumps(
            {
                "accountId": self.instance.owner,
                "architecture": "x86_64",
                "availabilityZone": f"{self.instance.region}a",
                "billingProducts": None,
                "devpayProductCodes": None,
                "imageId": "ami-0abcdef1234567890",
                "instanceId": self.instance.id,
                "instanceType": "t3.large",
                "kernelId": None,
                "marketplaceProductCodes": None,
                "pendingTime": "2024-05-01T07:11:22Z",
                "privateIp": "10.0.0.12",
                "ramdiskId": None,
                "region": self.instance.region,
                "version": "2017-09-30",
            },
            indent=2,
            separators=(",", " : "),
        ).encode()

    def rotate(self) -> None:
        self.authority.rotate()

    def answer(self, request: web.Request) -> web.Response:
        if request.path == "/latest/api/token":
            return self._token(request)
        if not self.faults.v1_only and request.headers.get("X-aws-ec2-metadata-token") not in self._tokens:
            return web.Response(status=401)
        match request.path:
            case "/latest/dynamic/instance-identity/document":
                return _text(self.document())
            case "/latest/dynamic/instance-identity/signature":
                return _text(self.authority.sign(self.document()).encode())
            case "/latest/meta-data/placement/availability-zone":
                return _text(f"{self.instance.region}a".encode())
        return web.Response(status=404)

    def _token(self, request: web.Request) -> web.Response:
        if self.faults.v1_only or request.method != "PUT":
            return web.Response(status=405)
        seconds = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= 21600 or "X-Forwarded-For" in request.headers:
            return web.Response(status=400)
        token = secrets.token_urlsafe(40) + "=="
        self._tokens.add(token)
        return _text(token.encode())

    def _never_answers(self, request: web.Request) -> bool:
        return self.faults.hop_limit and request.method == "PUT"


class FakeAzure(FakeMetadata):
    """IMDS with the attested document."""

    server = "IMDS/150.870.65.1854"

    def __init__(self, authority: AzureAuthority, instance: Instance) -> None:
        super().__init__(instance)
        self.authority = authority

    def content(self) -> bytes:
        """What is signed."""
        made = datetime.now(UTC) - timedelta(days=1 if self.faults.expired else 0)
        return json.dumps(
            {
                "licenseType": "",
                "nonce": made.strftime("%Y%m%d-%H%M%S"),
                "plan": {"name": "", "product": "", "publisher": ""},
                "sku": "22_04-lts-gen2",
                "subscriptionId": self.instance.owner,
                "timeStamp": {"createdOn": _azure_time(made), "expiresOn": _azure_time(made + timedelta(hours=6))},
                "vmId": self.instance.id,
            },
            separators=(",", ":"),
        ).encode()

    def rotate(self) -> None:
        self.authority.rotate()

    def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Metadata", "").lower() != "true" or "X-Forwarded-For" in request.headers:
            return web.json_response({"error": "Bad request. Required metadata header not specified"}, status=400)
        match request.path:
            case "/metadata/versions":
                return web.json_response({"apiVersions": ["2020-09-01", "2021-02-01"]})
            case "/metadata/attested/document" if "api-version" not in request.query:
                return web.json_response({"error": "Bad request. api-version was not specified"}, status=400)
            case "/metadata/attested/document":
                signature = self.authority.sign(self.content(), with_intermediate=not self.faults.no_intermediate)
                return web.json_response({"encoding": "pkcs7", "signature": signature})
        return web.json_response({"error": "Not found"}, status=404)


class FakeGoogle(FakeMetadata):
    """The metadata server, and the keys that Google publishes elsewhere."""

    server = "Metadata Server for VM"

    def __init__(self, authority: GoogleAuthority, instance: Instance) -> None:
        super().__init__(instance)
        self.authority = authority

    @property
    def email(self) -> str:
        """Of the instance's service account."""
        return f"default@{self.instance.owner}.iam.gserviceaccount.com"

    def token(self, audience: str, *, full: bool) -> str:
        """The identity token."""
        now = int(datetime.now(UTC).timestamp()) - (86400 if self.faults.expired else 0)
        claims: dict[str, object] = {
            "aud": audience,
            "azp": "107517467455664443765",
            "email": self.email,
            "email_verified": True,
            "exp": now + 3600,
            "iat": now,
            "iss": "https://accounts.google.com",
            "sub": "107517467455664443765",
        }
        if full:
            claims["google"] = {
                "compute_engine": {
                    "instance_creation_timestamp": now - 600,
                    "instance_id": self.instance.id,
                    "instance_name": "workspace",
                    "project_id": self.instance.owner,
                    "project_number": 739419398126,
                    "zone": f"{self.instance.region}-a",
                }
            }
        return self.authority.sign(claims)

    def rotate(self) -> None:
        self.authority.rotate()

    def answer(self, request: web.Request) -> web.Response:
        if request.path == KEYS:
            cache = {"Cache-Control": f"public, max-age={KEYS_LIFE}, must-revalidate"}
            return web.json_response(self.authority.key_set(), headers=cache)
        flavor = {"Metadata-Flavor": "Google"}
        if request.headers.get("Metadata-Flavor") != "Google" or "X-Forwarded-For" in request.headers:
            return web.Response(status=403, headers=flavor)
        match request.path:
            case "/":
                return web.Response(text="computeMetadata/\n", headers=flavor)
            case "/computeMetadata/v1/instance/service-accounts/default/":
                account = {"aliases": ["default"], "email": self.email, "scopes": []}
                return web.json_response(account, headers=flavor)
            case "/computeMetadata/v1/instance/service-accounts/default/identity" if "audience" in request.query:
                token = self.token(request.query["audience"], full=request.query.get("format") == "full")
                return web.Response(text=token, content_type="text/html", headers=flavor)
        return web.Response(status=404, headers=flavor)


def _text(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="text/plain")


def _azure_time(when: datetime) -> str:
    return when.strftime("%m/%d/%y %H:%M:%S -0000")
