"""Which counters of a receiving keypair were seen (tailnet.md §7.5)."""

from __future__ import annotations

_WORD = 64
_WORDS = 128
WINDOW = (_WORDS - 1) * _WORD
"""Counters behind the highest one that are still told apart: 8128. One word more is kept, which moving ahead clears."""


class ReplayWindow:
    """A ring of 64-bit words: accepting a counter costs the same wherever it falls, and memory never grows."""

    __slots__ = ("_highest", "_words")

    def __init__(self) -> None:
        self._words = [0] * _WORDS
        self._highest = 0

    def accept(self, counter: int) -> bool:
        """Whether this counter is new; it is not, from now on. To be called only after successful decryption."""
        highest = self._highest
        position = counter >> 6
        words = self._words
        if counter > highest:
            ahead = position - (highest >> 6)
            if ahead:
                if ahead >= _WORDS:
                    words[:] = [0] * _WORDS
                else:
                    for passed in range(position - ahead + 1, position + 1):
                        words[passed & 127] = 0
            self._highest = counter
        elif highest - counter > WINDOW:
            return False
        bit = 1 << (counter & 63)
        word = words[position & 127]
        if word & bit:
            return False
        words[position & 127] = word | bit
        return True
