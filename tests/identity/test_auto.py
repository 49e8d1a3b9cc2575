"""Finding the cloud: DMI first, then the metadata services, then a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from yarl import URL

from agent.identity import Auto, Cloud, CredentialSource, ExchangeRefusedError, FixedToken, IdentityError
from agent.identity.auto import PROBE_LIMIT, recognise
from agent.identity.metadata import Answer
from agent.testing import ManualClock, settle
from tests.identity.scripted import ok

DMI = {
    "AWS": [{"sys_vendor": "Amazon EC2"}, {"bios_vendor": "Amazon EC2"}, {"board_vendor": "Amazon EC2"}],
    "Azure": [{"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"}],
    "Google Cloud": [{"product_name": "Google Compute Engine", "sys_vendor": "Google"}],
}


def machine(root: Path, facts: Mapping[str, str], hypervisor: str = "") -> Path:
    directory = root / "class/dmi/id"
    directory.mkdir(parents=True)
    for name, value in facts.items():
        (directory / name).write_text(f"{value}\n")
    if hypervisor:
        (root / "hypervisor").mkdir()
        (root / "hypervisor/uuid").write_text(hypervisor)
    return root


@pytest.mark.parametrize(("title", "facts"), [(title, facts) for title, many in DMI.items() for facts in many])
def test_what_dmi_says(tmp_path: Path, title: str, facts: dict[str, str]) -> None:
    found = recognise(str(machine(tmp_path, facts)))
    assert found is not None
    assert found[0].title == title
    assert list(facts.values())[-1] in found[1]


def test_xen_instances_of_aws(tmp_path: Path) -> None:
    found = recognise(str(machine(tmp_path, {"sys_vendor": "Xen"}, "EC2E1916-9099-7caf-fd21-012345abcdef\n")))
    assert found is not None
    assert found[0].title == "AWS"


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"sys_vendor": "QEMU"},
        {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "None"},  # Hyper-V
        {"sys_vendor": "Google", "product_name": "Eve"},  # a Chromebook
    ],
)
def test_machines_at_home(tmp_path: Path, facts: dict[str, str]) -> None:
    assert recognise(str(machine(tmp_path, facts))) is None


class World:
    """Answers of metadata services by path; None waits for ever."""

    def __init__(self, answers: Mapping[str, Answer | None]) -> None:
        self.answers = answers
        self.connected = True
        self.asked: list[str] = []

    async def ask(self, method: str, url: URL, headers: Mapping[str, str]) -> Answer:
        self.asked.append(url.path)
        answer = self.answers.get(url.path, Answer(404, b""))
        if answer is None:
            await asyncio.Event().wait()
        assert answer is not None
        return answer

    @asynccontextmanager
    async def open(self) -> AsyncIterator[World]:
        yield self


class Source:
    """A credential source of one cloud."""

    def __init__(self, cloud: Cloud, failure: IdentityError | None = None) -> None:
        self._cloud = cloud
        self._failure = failure

    async def obtain(self) -> str:
        if self._failure:
            raise self._failure
        return f"token-of-{self._cloud.title}"


SILENT: dict[str, Answer | None] = {"/latest/api/token": None, "/metadata/versions": None, "/": None}


def auto(
    world: World,
    root: Path,
    clock: ManualClock,
    token: CredentialSource | None = None,
    failure: IdentityError | None = None,
) -> Auto:
    return Auto(lambda cloud: Source(cloud, failure), token, {}, clock, world.open, str(root))


async def obtain(source: Auto, clock: ManualClock) -> str:
    task = asyncio.create_task(source.obtain())
    while not task.done():
        await asyncio.sleep(0.001)  # the files are read in a thread
        if not task.done():
            await clock.advance(0.1)
    return await task


async def test_dmi_needs_no_probe(tmp_path: Path) -> None:
    world, clock = World(SILENT), ManualClock()
    with capture_logs() as logs:
        source = auto(world, machine(tmp_path, DMI["Azure"][0]), clock)
        assert await obtain(source, clock) == await obtain(source, clock) == "token-of-Azure"
    assert world.asked == []
    assert [log["event"] for log in logs] == ["this machine is in Azure"]
    assert "chassis_asset_tag" in logs[0]["because"]


@pytest.mark.parametrize(
    ("path", "answer", "title"),
    [
        ("/latest/api/token", ok("token"), "AWS"),
        ("/metadata/versions", ok('{"apiVersions": ["2020-09-01"]}'), "Azure"),
        ("/", ok("computeMetadata/", metadata_flavor="Google"), "Google Cloud"),
    ],
)
async def test_the_metadata_service_tells(tmp_path: Path, path: str, answer: Answer, title: str) -> None:
    clock = ManualClock()
    with capture_logs() as logs:
        assert await obtain(auto(World({**SILENT, path: answer}), tmp_path, clock), clock) == f"token-of-{title}"
    assert logs[0]["because"] == "its metadata service answers"
    assert clock.now() < PROBE_LIMIT


async def test_a_page_that_answers_everything_is_no_cloud(tmp_path: Path) -> None:
    page = ok("<html>log in</html>", content_type="text/html")
    clock = ManualClock()
    world = World(dict.fromkeys(SILENT, page))
    with pytest.raises(IdentityError, match="no sign of AWS, Azure or Google Cloud"):
        await obtain(auto(world, tmp_path, clock), clock)


@pytest.mark.parametrize("answers", [SILENT, {}])
async def test_without_a_cloud_the_token_serves(tmp_path: Path, answers: dict[str, Answer | None]) -> None:
    clock = ManualClock()
    source = auto(World(answers), tmp_path, clock, FixedToken("mine"))
    with capture_logs() as logs:
        assert await obtain(source, clock) == await obtain(source, clock) == "mine"
    assert clock.now() <= 2 * PROBE_LIMIT + 0.3
    assert len(logs) == 1
    assert "mine" not in str(logs)


async def test_a_cloud_that_was_away_at_first_is_found_later(tmp_path: Path) -> None:
    clock, world = ManualClock(), World(SILENT)
    source = auto(world, tmp_path, clock)
    with pytest.raises(IdentityError, match="name the cloud with --auth"):
        await obtain(source, clock)
    world.answers = {**SILENT, "/latest/api/token": ok("token")}
    assert await obtain(source, clock) == "token-of-AWS"


@pytest.mark.parametrize(
    ("failure", "falls_back"),
    [
        (ExchangeRefusedError("x", 401, "Invalid Azure identity."), True),
        (IdentityError("metadata: nobody answers"), True),
        (ExchangeRefusedError("x", 503, "away"), False),
    ],
)
async def test_a_refused_proof_and_a_token(tmp_path: Path, failure: IdentityError, falls_back: bool) -> None:
    clock = ManualClock()
    root = machine(tmp_path, DMI["AWS"][0])
    source = auto(World({}), root, clock, FixedToken("mine"), failure)
    if falls_back:
        with capture_logs() as logs:
            assert await obtain(source, clock) == await obtain(source, clock) == "mine"
        assert [str(failure) in log["event"] for log in logs] == [False, True]
    else:
        with pytest.raises(ExchangeRefusedError):
            await obtain(source, clock)
    with pytest.raises(IdentityError):
        await obtain(auto(World({}), root, clock, None, failure), clock)


async def test_cancelling_the_search(tmp_path: Path) -> None:
    clock = ManualClock()
    before = asyncio.all_tasks()
    task = asyncio.create_task(auto(World(SILENT), tmp_path, clock).obtain())
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert len(asyncio.all_tasks() - before) > 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settle()
    assert asyncio.all_tasks() == before
