"""Composition: one verifier per cloud, with its certificates and keys, and the owner's bounds on who may come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Final, TypeVar

from agent.clock import Clock
from agent.server.identity import azure, google
from agent.server.identity.aws import AwsVerifier
from agent.server.identity.azure import ChainVerifier
from agent.server.identity.config import IdentityConfig, IdentityConfigError, bundled, read_certificates
from agent.server.identity.fetch import FetchError, Get, IssuerFetcher, KeySource
from agent.server.identity.instance import IdentityError, Instance
from agent.server.identity.roots import system_roots

PARALLEL: Final = 2
"""Verifications at a time: each takes a core for a millisecond or a few."""

T = TypeVar("T")


class Verifiers:
    """Checks proofs; the arithmetic is done in threads, a few at a time."""

    def __init__(self, config: IdentityConfig, get_public: Get, get: Get, clock: Clock) -> None:
        """`get_public` reaches the public internet only: it is given addresses that certificates name."""
        self._config, self._clock = config, clock
        self._slots = asyncio.Semaphore(PARALLEL)
        self._issuers = IssuerFetcher(get_public, clock)
        self._keys = {
            "RS256": KeySource(get, config.google.keys_url, clock),
            "ES256": KeySource(get, config.google.iap_keys_url, clock),
        }
        self._aws: AwsVerifier | None = None
        self._chains: ChainVerifier | None = None
        self._loading = asyncio.Lock()

    async def check_config(self) -> None:
        """Read the owner's certificates, so that a mistake in them is told at the start. Raises
        `IdentityConfigError`."""
        if self._config.aws.certificates is not None:
            await self._aws_verifier()
        if self._config.azure.roots is not None or self._config.azure.intermediates is not None:
            await self._chain_verifier()

    async def aws(self, document: str, signature: str) -> Instance:
        """Raises `IdentityError`."""
        verifier = await self._aws_verifier()
        instance = await self._thread(lambda: verifier.verify(document, signature))
        _check("account", instance.account, self._config.aws.accounts)
        _check("region", instance.region, self._config.aws.regions)
        return instance

    async def azure(self, signature: str) -> Instance:
        """Raises `IdentityError`."""
        attested = await self._thread(lambda: azure.read(signature))
        try:
            chains = await self._chain_verifier()
        except IdentityConfigError as error:  # not told at the start: who has no instance of Azure need not care
            raise IdentityError(
                "no roots", f"Signature verification failed. The server cannot do it: {error}"
            ) from error
        now = datetime.fromtimestamp(self._seconds(), UTC)
        try:
            await self._thread(lambda: chains.verify(attested, now))
        except IdentityError:
            issuers = await self._issuers.fetch(attested.issuer_urls) if self._config.azure.fetch_issuers else []
            if not issuers:
                raise
            await self._thread(lambda: chains.verify(attested, now, issuers))
            chains.learn(issuers)
        instance = attested.instance(now)
        _check("subscription", instance.account, self._config.azure.subscriptions)
        return instance

    async def google(self, token: str) -> Instance:
        """Raises `IdentityError`."""
        read = await self._thread(lambda: google.read(token, self._config.google.audiences, self._seconds()))
        try:
            key = await self._keys[read.algorithm].key(read.key_id)
        except FetchError as error:
            raise IdentityError("unknown key", f"idtoken: {error}") from error
        instance = await self._thread(lambda: google.verified(read, key))
        _check("project", instance.account, self._config.google.projects)
        return instance

    async def _aws_verifier(self) -> AwsVerifier:
        async with self._loading:
            if self._aws is None:
                self._aws = await asyncio.to_thread(self._load_aws)
            return self._aws

    def _load_aws(self) -> AwsVerifier:
        own = self._config.aws.certificates
        try:
            return AwsVerifier([*bundled("aws"), *(read_certificates(own) if own else ())])
        except ValueError as error:
            raise IdentityConfigError(f"{own} cannot be used: {error}") from error

    async def _chain_verifier(self) -> ChainVerifier:
        async with self._loading:
            if self._chains is None:
                self._chains = await asyncio.to_thread(self._load_chains)
            return self._chains

    def _load_chains(self) -> ChainVerifier:
        config = self._config.azure
        more = read_certificates(config.intermediates) if config.intermediates else []
        roots = read_certificates(config.roots) if config.roots else system_roots()
        if not roots:
            raise IdentityConfigError("this machine trusts no certificate authority: name `roots` for Azure")
        return ChainVerifier(roots, [*bundled("azure"), *more])

    async def _thread(self, work: Callable[[], T]) -> T:
        async with self._slots:
            return await asyncio.to_thread(work)

    def _seconds(self) -> float:
        return self._clock.wall() / 1e9


def _check(what: str, value: str, allowed: Collection[str]) -> None:
    if allowed and value not in allowed:
        raise IdentityError(f"{what} not allowed", f"This server does not accept instances of {what} {value[:64]!r}.")
