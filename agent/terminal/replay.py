"""What of a terminal's output is not said again when it is replayed.

A terminal answers some sequences, as if the user had typed the answer: an old question in a replay would put junk on
the command line of the shell. Others ring, set the clipboard, or show a notification; they are over.
"""

from __future__ import annotations

import re

_EFFECT = re.compile(
    rb"\x1b(?:"
    rb"\[(?:[>=?]?[0-9;]*c"  # DA1, DA2, DA3
    rb"|\??[0-9;]*n"  # DSR
    rb"|\??[0-9;]*\$p"  # DECRQM
    rb"|>[0-9]*q"  # XTVERSION
    rb"|[0-9]*x"  # DECREQTPARM
    rb"|\?u"  # kitty keyboard flags
    rb"|\?[0-9;]*m"  # XTQMODKEYS
    rb"|>?(?:1[1345689]|2[01])(?:;[0-9]*)*t)"  # window reports
    rb"|Z"  # DECID
    rb"|P[$+]q[^\x1b\x18\x1a]*+\x1b\\"  # DECRQSS, XTGETTCAP
    rb"|\](?:[0-9]+;(?:[0-9]+;)*\?|(?:9|52|777);)[^\x07\x1b\x18\x1a]*+(?:\x07|\x1b\\)"  # colours, clipboard, notices
    rb")"
    # What is in other control strings is text.
    rb"|(?P<keep>\x1b(?:\][^\x07\x1b\x18\x1a]*+(?:\x07|\x1b\\)|[PX^_][^\x1b\x18\x1a]*+\x1b\\))"
    rb"|[\x05\x07]"  # ENQ, BEL
)
_ANY = re.compile(rb"[\x05\x07]|\x1b[\]PZ]|\x1b\[[>=?]?[0-9;$]*[cnpqxut]|\x1b\[\?[0-9;]*m")


def without_effects(data: bytes) -> bytes:
    """`data` without such sequences. It begins outside of any sequence; one that is not finished stays."""
    if _ANY.search(data) is None:
        return data
    return _EFFECT.sub(lambda match: match["keep"] or b"", data)
