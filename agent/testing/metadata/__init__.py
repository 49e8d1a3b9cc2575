"""Fake metadata services of three clouds, with real signatures of authorities that a test server is told to trust.

    async with FakeAws(authority.aws, Instance("i-1")).listening() as url: ...

or, as a process of its own, `python -m agent.testing.metadata aws --instance-id i-1`.
"""

from agent.testing.metadata.authority import Authority, AwsAuthority, AzureAuthority, GoogleAuthority
from agent.testing.metadata.clouds import KEYS, FakeAws, FakeAzure, FakeGoogle
from agent.testing.metadata.service import FakeMetadata, Faults, Instance, Request

__all__ = [
    "KEYS",
    "Authority",
    "AwsAuthority",
    "AzureAuthority",
    "FakeAws",
    "FakeAzure",
    "FakeGoogle",
    "FakeMetadata",
    "Faults",
    "GoogleAuthority",
    "Instance",
    "Request",
]
