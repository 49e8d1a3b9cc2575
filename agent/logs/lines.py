"""From bytes to lines (daemon.md §4.8)."""

from __future__ import annotations

from agent.logs.sanitise import sanitise


def lines_of(text: str, limit: int) -> list[bytes]:
    """The lines of a text of the agent's own; one of more than `limit` bytes is left out."""
    lines = sanitise(text.encode("utf-8", "replace")).split(b"\n")
    return [line for line in lines if len(line) <= limit]


class LineSplitter:
    """Cuts a stream of bytes at `\\n`, in any chunking, into sanitised lines of at most `limit` bytes.

    One `\\r` before the newline goes with it. A longer line is left out and counted in `dropped`; once its beginning
    alone is too long it is no longer kept in memory but skipped up to its newline.
    """

    def __init__(self, limit: int, *, skipping: bool = False) -> None:
        self._limit = limit
        self._partial = b""
        self.skipping = skipping
        self.dropped = 0

    @property
    def partial(self) -> int:
        """Bytes held of a line that has no newline yet."""
        return len(self._partial)

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, in order."""
        if self.skipping:
            end = data.find(b"\n")
            if end < 0:
                return []
            self.skipping = False
            data = data[end + 1 :]
        end = data.rfind(b"\n")
        if end < 0:
            self._keep(self._partial + data)
            return []
        block = self._partial + data[:end]
        self._keep(data[end + 1 :])
        if b"\r" in block:
            block = (block + b"\n").replace(b"\r\n", b"\n")[:-1]
        return self._fitting(block)

    def flush(self) -> list[bytes]:
        """The last line when it has no newline; the stream is over."""
        rest, self._partial = self._partial, b""
        return self._fitting(rest) if rest else []

    def _keep(self, partial: bytes) -> None:
        # A `\r` that may yet prove to belong to the newline does not count.
        if len(partial) > self._limit + 1:
            self.skipping = True
            self.dropped += 1
            partial = b""
        self._partial = partial

    def _fitting(self, block: bytes) -> list[bytes]:
        block = sanitise(block)
        lines = block.split(b"\n")
        if len(block) > self._limit:
            fitting = [line for line in lines if len(line) <= self._limit]
            self.dropped += len(lines) - len(fitting)
            return fitting
        return lines
