"""Files of the workspace: look at directories, read, write (terminal-ssh-http.md §4.6).

Paths are absolute and there is no jail: whoever reaches the agent may do what the workspace's user may.
"""

from __future__ import annotations

import errno
import functools
import mimetypes
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from aiohttp import web

from agent.workspace_api import streaming
from agent.workspace_api.answers import ApiError, Query, object_from, to_json

T = TypeVar("T")

CHUNK: Final = 256 * 1024


# ---- handlers


async def list_directory(request: web.Request, home: str) -> dict[str, Any]:
    """`POST /api/v0/list-directory`."""
    query = Query(request.query)
    path = query.text("path")
    query.check()
    body = object_from(await request.read())
    return await _in_thread(lambda: _listing(path or _base(body, home)))


async def resolve_path(request: web.Request) -> web.Response:
    """`GET /api/v0/resolve-path`."""
    query = Query(request.query)
    path = query.text("path", required=True)
    query.check()
    _must_be_absolute(path)
    return _json({"resolved_path": await _in_thread(lambda: _resolved(path))})


async def read_file(request: web.Request) -> web.StreamResponse:
    """`GET /api/v0/read-file`."""
    query = Query(request.query)
    path, offset, limit = query.text("path", required=True), query.count("offset"), query.count("limit")
    query.check()
    _must_be_absolute(path)
    source = _Source(path)
    try:
        await _in_thread(source.open)
        length = max(source.size - offset, 0)
        if limit:
            length = min(length, limit)
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        if kind.startswith("text/"):
            kind += "; charset=utf-8"
        response = web.StreamResponse(headers={"Content-Type": kind, "Content-Length": str(length)})
        return await streaming.send(request, response, source.pieces(offset, length))
    finally:
        source.close()


async def write_file(request: web.Request) -> web.Response:
    """`POST /api/v0/write-file`: the file is there as a whole or as it was before."""
    query = Query(request.query)
    path = query.text("path", required=True)
    query.check()
    _must_be_absolute(path)
    new = _NewFile(path)
    try:
        await _in_thread(new.create)
        while chunk := await request.content.read(CHUNK):
            await _in_thread(functools.partial(new.write, chunk))
        await _in_thread(new.put)
    finally:
        await streaming.in_thread(new.discard)
    return _json({"message": f'Successfully wrote to "{path}"'})


# ---- what they do, in a thread


def _base(body: dict[str, Any], home: str) -> str:
    elements, relativity = body.get("path"), body.get("relativity", "")
    if not (elements is None or (isinstance(elements, list) and all(isinstance(item, str) for item in elements))):
        raise ApiError(400, "Request body must be valid JSON.", "path must be a list of strings")
    bases = {"home": home, "root": "/"}
    if not isinstance(relativity, str) or relativity not in bases:
        raise ApiError(500, f'unsupported relativity type "{relativity}"')
    return "/".join([bases[relativity], *(elements or ())])


def _listing(path: str) -> dict[str, Any]:
    if not os.path.isabs(path):
        raise ApiError(500, f'path must be absolute: "{path}"')
    path = _clean(path)
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise ApiError(500, f'path "{path}" is not a directory')
    with os.scandir(path) as entries:
        found = [(not entry.is_dir(follow_symlinks=False), os.fsencode(entry.name), entry.name) for entry in entries]
    return {
        "absolute_path": [element for element in path.split("/") if element],
        "absolute_path_string": path,
        "contents": [
            {"name": name, "absolute_path_string": os.path.join(path, name), "is_dir": not other}
            for other, _, name in sorted(found)
        ],
    }


def _resolved(path: str) -> str:
    """Without links; what does not exist at the end stays as it is. Raises `OSError`, also for links in a circle."""
    try:
        return os.path.realpath(path, strict=True)
    except FileNotFoundError:
        return os.path.realpath(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ApiError(500, f'too many levels of symlinks resolving "{path}"') from error
        raise


class _Source:
    """A regular file to read from."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.size = 0

    def open(self) -> None:
        # Without waiting, as the open of a FIFO would.
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ApiError(400, f"open {self._path}: not a file")
        self.size = status.st_size

    def pieces(self, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes, or `OSError`."""
        assert self._descriptor is not None
        while length:
            piece = os.pread(self._descriptor, min(CHUNK, length), offset)
            if not piece:
                raise OSError(errno.EIO, "the file became shorter while it was read")
            offset += len(piece)
            length -= len(piece)
            yield piece

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


class _NewFile:
    """What a file will be, beside it until it is whole. `discard` comes last in any case."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._target = ""
        self._temporary = ""
        self._descriptor: int | None = None

    def create(self) -> None:
        """Find out where the file really is, and make a new one with the mode of the old one."""
        try:
            mode = self._look()
            directory, name = os.path.split(self._target)
            os.makedirs(directory, 0o755, exist_ok=True)
        except (NotADirectoryError, FileExistsError) as error:
            raise ApiError(400, f"open {self._path}: a parent is not a directory") from error
        temporary = os.path.join(directory, f".{name}.tmp.{secrets.token_hex(4)}")
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._temporary = temporary
        if mode is not None:
            os.fchmod(self._descriptor, mode)

    def _look(self) -> int | None:
        self._target = _resolved(self._path)
        try:
            status = os.stat(self._target)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(status.st_mode):
            raise ApiError(400, f"open {self._path}: is a directory")
        return stat.S_IMODE(status.st_mode)

    def write(self, data: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def put(self) -> None:
        """Put it in the place of the old one."""
        os.rename(self._temporary, self._target)
        self._temporary = ""

    def discard(self) -> None:
        """Close it, and remove it if it was not put in place."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        if self._temporary:
            os.unlink(self._temporary)


# ---- what they share


async def _in_thread(body: Callable[[], T]) -> T:
    """Run what touches files; its errors become answers."""
    try:
        return await streaming.in_thread(body)
    except OSError as error:
        raise ApiError(_status(error), _words(error)) from error
    except ValueError as error:
        raise ApiError(400, str(error)) from error  # a NUL in a path


def _status(error: OSError) -> int:
    if isinstance(error, FileNotFoundError):
        return 404
    return 403 if isinstance(error, PermissionError) else 500


def _words(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def _must_be_absolute(path: str) -> None:
    if not os.path.isabs(path):
        raise ApiError(400, f'file path must be absolute: "{path}"')


def _clean(path: str) -> str:
    """One slash between elements, and no dots; `normpath` keeps two leading slashes."""
    cleaned = os.path.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned


def _json(value: object) -> web.Response:
    return web.Response(body=to_json(value), headers={"Content-Type": "application/json; charset=utf-8"})
