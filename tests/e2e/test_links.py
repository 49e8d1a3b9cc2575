"""A machine's addresses change while its node runs, in a network namespace (tailnet.md §6.4, §6.5)."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.e2e.namespace import command_in_bare_namespace

SET_UP = 'ip link set lo up && ip addr add 192.0.2.1/24 dev lo && exec "$0" -m tests.e2e.links_host'


async def test_a_new_address_is_told_at_once() -> None:
    namespace = await asyncio.to_thread(command_in_bare_namespace)
    process = await asyncio.create_subprocess_exec(
        *namespace, "sh", "-c", SET_UP, sys.executable, stdout=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    before, after = ([text.rpartition(":")[0] for text in json.loads(line)] for line in output.splitlines())
    assert before == ["192.0.2.1"]
    assert after == ["198.51.100.7"]
