"""The modes of a client's terminal, put on another one (RFC 4254 §8, terminal-ssh-http.md §3.5)."""

from __future__ import annotations

import termios
from collections.abc import Mapping
from typing import Any, Final

_CHARACTERS: Final = {
    1: "VINTR", 2: "VQUIT", 3: "VERASE", 4: "VKILL", 5: "VEOF", 6: "VEOL", 7: "VEOL2", 8: "VSTART", 9: "VSTOP",
    10: "VSUSP", 12: "VREPRINT", 13: "VWERASE", 14: "VLNEXT", 16: "VSWTC", 18: "VDISCARD",
}  # fmt: skip
_INPUT: Final = {
    30: "IGNPAR", 31: "PARMRK", 32: "INPCK", 33: "ISTRIP", 34: "INLCR", 35: "IGNCR", 36: "ICRNL", 37: "IUCLC",
    38: "IXON", 39: "IXANY", 40: "IXOFF", 41: "IMAXBEL", 42: "IUTF8",
}  # fmt: skip
_LOCAL: Final = {
    50: "ISIG", 51: "ICANON", 52: "XCASE", 53: "ECHO", 54: "ECHOE", 55: "ECHOK", 56: "ECHONL", 57: "NOFLSH",
    58: "TOSTOP", 59: "IEXTEN", 60: "ECHOCTL", 61: "ECHOKE", 62: "PENDIN",
}  # fmt: skip
_OUTPUT: Final = {70: "OPOST", 71: "OLCUC", 72: "ONLCR", 73: "OCRNL", 74: "ONOCR", 75: "ONLRET"}
# 90 to 93, the size of a character and its parity, are left out: a pseudo-terminal has 8 bits and none, and the kernel
# refuses to change either.
_IUTF8: Final = 0o40000  # Linux; Python has no name for it
_DISABLED: Final = 255
"""What clients send for a character that is switched off."""
_INPUT_SPEED: Final = 128
_OUTPUT_SPEED: Final = 129


def apply_modes(fd: int, modes: Mapping[int, int]) -> None:
    """Set what is known of `modes` on the terminal; the rest, and what another system may have, is left as it is.

    Raises `OSError`.
    """
    if not modes:
        return
    try:
        attributes = termios.tcgetattr(fd)
        _change(attributes, modes)
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
    except termios.error as error:
        raise OSError(*error.args) from error


def _change(attributes: list[Any], modes: Mapping[int, int]) -> None:
    for opcode, value in modes.items():
        for field, table in ((0, _INPUT), (1, _OUTPUT), (3, _LOCAL)):
            if opcode in table:
                flag = _flag(table[opcode])
                attributes[field] = attributes[field] | flag if value else attributes[field] & ~flag
        if opcode in _CHARACTERS and (index := getattr(termios, _CHARACTERS[opcode], None)) is not None:
            attributes[6][index] = bytes([0 if value == _DISABLED else value & 0xFF])
        elif opcode == _INPUT_SPEED:
            attributes[4] = _speed(value, attributes[4])
        elif opcode == _OUTPUT_SPEED:
            attributes[5] = _speed(value, attributes[5])


def _flag(name: str) -> int:
    return _IUTF8 if name == "IUTF8" else int(getattr(termios, name, 0))


def _speed(baud: int, otherwise: int) -> int:
    return int(getattr(termios, f"B{baud}", otherwise))
