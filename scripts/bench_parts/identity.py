"""Instance identity in the agent: what a proof costs, and what the clouds' own libraries would."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time

from agent.clock import SystemClock
from agent.identity import CLOUDS
from agent.identity.metadata import MetadataService, http_asker
from agent.testing.metadata import Authority, Instance
from agent.testing.metadata.__main__ import make

PROOFS = 30
RUNS = 3
BASE = "from agent import lean_aiohttp; import agent.identity, aiohttp"
LIBRARIES = {
    "botocore": "from botocore.utils import IMDSFetcher; IMDSFetcher()",
    "azure-core": "from azure.core.pipeline.transport import RequestsTransport as T; T().open()",
    "google-auth": "import google.auth.compute_engine, google.auth.transport.requests as r; r.Request()",
}
_REPORT = """
import sys, time
began = time.perf_counter()
exec(sys.argv[1])
took = time.perf_counter() - began
kib = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(kib / 1024, took * 1e3)
"""


def _load(code: str) -> tuple[float, float]:
    """MiB of memory and milliseconds, the best of several."""
    figures = []
    for _ in range(RUNS):
        outcome = subprocess.run([sys.executable, "-c", _REPORT, code], capture_output=True, text=True, check=True)
        figures.append([float(text) for text in outcome.stdout.split()])
    return min(memory for memory, _ in figures), min(took for _, took in figures)


async def _proof(name: str, authority: Authority) -> float:
    """Milliseconds of one, the fake's share included: a new session, the requests, the checks."""
    cloud = next(cloud for cloud in CLOUDS if cloud.method.startswith(name))
    clock = SystemClock()
    took = []
    async with make(name, authority, Instance("i-1")).listening() as url:
        for _ in range(PROOFS):
            began = time.perf_counter()
            async with http_asker() as asker:
                await cloud.prove(MetadataService(cloud.title, cloud.address(_environment(url)), asker, clock))
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def _environment(url: str) -> dict[str, str]:
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "AZURE_POD_IDENTITY_AUTHORITY_HOST": url,
        "GCE_METADATA_HOST": url.removeprefix("http://"),
    }


async def measure() -> dict[str, float]:
    """Proofs, and the memory and time of each library on top of the agent's own way."""
    authority = Authority()
    figures = {f"ms, proof of {name}": await _proof(name, authority) for name in ("aws", "azure", "google")}
    base_memory, base_took = await asyncio.to_thread(_load, BASE)
    figures["MiB, our way, aiohttp included"] = base_memory
    for library, code in LIBRARIES.items():
        memory, took = await asyncio.to_thread(_load, f"{BASE}\n{code}")
        figures[f"MiB more with {library}"] = memory - base_memory
        figures[f"ms more with {library}"] = took - base_took
    return figures


if __name__ == "__main__":
    for what, value in asyncio.run(measure()).items():
        print(f"{what:34} {value:8.2f}")
