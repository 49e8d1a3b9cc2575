"""Directories and files of the workspace (terminal-ssh-http.md §4.6)."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.workspace_api.conftest import Client, until

pytestmark = pytest.mark.spec("terminal-ssh-http", 46)


async def listing(client: Client, body: object, **query: str) -> tuple[int, Any]:
    status, _, text = await client.ask("POST", "/api/v0/list-directory", json=body, params=query)
    return status, json.loads(text)


async def test_a_directory(client: Client) -> None:
    place = client.home / "a" / "b"
    for name in ("zoo", "Zoo", "älter", "bin"):
        (place / name).mkdir(parents=True)
    for name in ("x", "README", "<&>"):
        (place / name).write_text("")
    (place / "link").symlink_to(place / "bin")
    status, value = await listing(client, {"path": ["a", "b"], "relativity": "home"})
    assert status == 200
    assert value["absolute_path_string"] == str(place)
    assert value["absolute_path"] == str(place)[1:].split("/")
    assert [(item["name"], item["is_dir"]) for item in value["contents"]] == [
        ("Zoo", True),
        ("bin", True),
        ("zoo", True),
        ("älter", True),
        ("<&>", False),
        ("README", False),
        ("link", False),
        ("x", False),
    ]
    assert value["contents"][0]["absolute_path_string"] == str(place / "Zoo")
    elements = str(place)[1:].split("/")
    assert (await listing(client, {"path": elements, "relativity": "root"}))[1] == value
    assert (await listing(client, {"relativity": "nonsense"}, path=f"{place}//"))[1] == value


async def test_root_home_and_empty(client: Client) -> None:
    status, value = await listing(client, {"path": [], "relativity": "root"})
    assert (status, value["absolute_path"], value["absolute_path_string"]) == (200, [], "/")
    assert await listing(client, {"relativity": "home"}) == (
        200,
        {
            "absolute_path": str(client.home)[1:].split("/"),
            "absolute_path_string": str(client.home),
            "contents": [],
        },
    )


async def test_mistakes(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    (client.home / "file").write_text("")
    assert (await listing(client, {}, path=f"{client.home}/nowhere"))[0] == 404
    assert await listing(client, {}, path="relative") == (500, {"message": 'path must be absolute: "relative"'})
    assert await listing(client, {}, path=f"{client.home}/file") == (
        500,
        {"message": f'path "{client.home}/file" is not a directory'},
    )
    assert await listing(client, {"path": [], "relativity": "moon"}) == (
        500,
        {"message": 'unsupported relativity type "moon"'},
    )
    wrong: list[object] = [{"path": "a"}, {"path": [1]}, [], "x"]
    for body in wrong:
        status, value = await listing(client, body)
        assert (status, value["message"]) == (400, "Request body must be valid JSON.")
    status, _, text = await client.ask("POST", "/api/v0/list-directory", data=b"{", params={"path": "/"})
    assert (status, json.loads(text)["message"]) == (400, "Request body must be valid JSON.")
    assert await listing(client, {}, path="/", depth="2") == (
        400,
        {
            "message": "Query parameters have invalid values.",
            "validations": [{"field": "depth", "detail": '"depth" is not a valid query param'}],
        },
    )
    assert (await listing(client, {}, path="/a\0b"))[0] == 400

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    assert await listing(client, {}, path="/root") == (403, {"message": "/root: Permission denied"})


async def test_resolve(client: Client) -> None:
    (client.home / "real").mkdir()
    (client.home / "link").symlink_to("real")
    (client.home / "round").symlink_to("round")

    async def resolve(path: object) -> tuple[int, Any]:
        status, _, text = await client.get("/api/v0/resolve-path", params={"path": str(path)})
        return status, json.loads(text)

    assert await resolve(client.home / "link" / "new" / "file") == (
        200,
        {"resolved_path": str(client.home / "real" / "new" / "file")},
    )
    assert (await resolve("x"))[0] == 400
    assert (await resolve(""))[1]["validations"][0]["detail"] == 'Query param "path" is required and cannot be empty'
    status, value = await resolve(client.home / "round")
    assert status == 500
    assert value["message"].startswith("too many levels of symlinks resolving")


async def test_read(client: Client) -> None:
    data = bytes(range(256)) * 3000
    (client.home / "data.bin").write_bytes(data)
    (client.home / "a.txt").write_text("hello")
    os.mkfifo(client.home / "fifo")

    async def read(name: str, **query: object) -> tuple[int, str, bytes]:
        params = {"path": f"{client.home}/{name}", **{key: str(value) for key, value in query.items()}}
        async with client.session.get("http://agent:4/api/v0/read-file", params=params) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.read()

    assert await read("a.txt") == (200, "text/plain; charset=utf-8", b"hello")
    assert await read("data.bin") == (200, "application/octet-stream", data)
    assert (await read("data.bin", offset=1000, limit=500_000))[2] == data[1000:501_000]
    assert (await read("data.bin", offset=len(data) - 1, limit=10))[2] == data[-1:]
    assert (await read("data.bin", offset=10**15))[::2] == (200, b"")
    for name in ("", "fifo"):
        status, _, body = await read(name)
        assert (status, json.loads(body)["message"]) == (400, f"open {client.home}/{name}: not a file")
    assert (await read("nowhere"))[0] == 404
    assert (await read("a.txt", offset=-1))[0] == 400
    assert (await client.get("/api/v0/read-file?path=x"))[0] == 400


async def test_a_file_that_shrinks_while_it_is_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    (client.home / "file").write_bytes(bytes(1000))
    monkeypatch.setattr("os.pread", lambda descriptor, length, offset: b"")
    with pytest.raises(aiohttp.ClientError):
        await client.get("/api/v0/read-file", params={"path": f"{client.home}/file"})


async def write(client: Client, path: object, data: object) -> tuple[int, str]:
    status, _, text = await client.ask("POST", "/api/v0/write-file", params={"path": str(path)}, data=data)
    return status, json.loads(text)["message"]


async def test_write(client: Client) -> None:
    path = client.home / "new" / "deeper" / "file"
    assert await write(client, path, b"one") == (200, f'Successfully wrote to "{path}"')
    assert path.read_bytes() == b"one"
    path.chmod(0o751)
    link = client.home / "link"
    link.symlink_to(path)
    assert (await write(client, link, b"two"))[0] == 200
    assert link.is_symlink()
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o751
    dangling = client.home / "dangling"
    dangling.symlink_to("target")
    assert (await write(client, dangling, b"three"))[0] == 200
    assert (client.home / "target").read_bytes() == b"three"
    assert not [name for name in os.listdir(path.parent) if name != "file"]


async def test_write_much(client: Client) -> None:
    data = os.urandom(1000) * 3000
    with (client.home / "source").open("wb+") as source:
        source.write(data)
        source.seek(0)
        assert (await write(client, client.home / "file", source))[0] == 200
    assert (client.home / "file").read_bytes() == data


async def test_write_mistakes(client: Client) -> None:
    (client.home / "file").write_text("")
    for path in ("x", client.home, client.home / "file" / "below", client.home / "file" / "below" / "that"):
        assert (await write(client, path, b""))[0] == 400, path
    assert (await write(client, "/proc/no", b""))[0] in (403, 404, 500)
    assert os.listdir(client.home) == ["file"]


async def test_a_broken_upload_leaves_the_old_file(client: Client, tmp_path: Path) -> None:
    (client.home / "file").write_text("old")
    stream = client.dial()
    head = f"POST /api/v0/write-file?path={client.home}/file HTTP/1.1\r\nHost: agent\r\nContent-Length: 1000\r\n\r\n"
    await stream.write(head.encode() + b"half")
    await until(lambda: len(os.listdir(client.home)) == 2)
    stream.abort()
    await until(lambda: not client.serving)
    await until(lambda: os.listdir(client.home) == ["file"])
    assert (client.home / "file").read_text() == "old"


async def test_uploads_cancelled_at_any_time_leave_nothing(client: Client) -> None:
    for turns in range(0, 100, 3):
        stream = client.dial()
        head = f"POST /api/v0/write-file?path={client.home}/file HTTP/1.1\r\nHost: agent\r\nContent-Length: 9\r\n\r\n"
        await stream.write(head.encode() + b"half")
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.abort()
        await until(lambda: not client.serving)
        await until(lambda: os.listdir(client.home) == [])
