"""Where a compiled Python module says when and where it was installed.

pip compiles what it installs, and the stager installs into a directory with a random name.  So
each staging of the same module has another time in the header of its ``.pyc`` and another path in
its code, and would be stored anew: two stagings of an app with 95 packages had 137 MB of bytecode
each, of which 128 MB are the same but for these few bytes.  Cut around, the rest meets.

Invariant: this only says where to cut.  What is taken for a module and is none is stored as
safely, in a few more pieces.
"""

from __future__ import annotations

import re
from typing import Final

HEADER: Final = 16
"""Bytes: magic, flags, time or hash, size (PEP 552)."""
_MAGIC_END: Final = b"\r\n"
_FLAGS: Final = (0, 1, 3)
_CODE: Final = 0xE3
"""marshal's TYPE_CODE, with the flag that it may be referred to again."""
_LOOK: Final = 64 << 10
"""The path stands where the first function is, which is soon."""
# TYPE_SHORT_ASCII and TYPE_SHORT_ASCII_INTERNED, with that flag and without, length, text.
_TEXT: Final = re.compile(rb"[\xfa\xda\x7a\x5a](.)/", re.DOTALL)
_SUFFIX: Final = b".py"
_TEXTS_MAX: Final = 3
"""A module may have a path of its own among its constants, before the one that is looked for."""


def varying(data: bytes) -> list[tuple[int, int]]:
    """The ranges (start, end) that another installation of the same module has otherwise.

    *data* is what a file begins with.  Empty if that is no module compiled by Python 3.7 or
    later.  All code in it names the path by referring to the first place that has it.
    """
    if (
        len(data) <= HEADER
        or data[2:4] != _MAGIC_END
        or int.from_bytes(data[4:8], "little") not in _FLAGS
        or data[HEADER] != _CODE
    ):
        return []
    ranges = [(0, HEADER)]
    for found in _TEXT.finditer(data, HEADER, _LOOK):
        # With its length, because the name of the directory may be a longer one.
        start, text = found.start(1), found.end(1)
        end = text + found[1][0]
        if (
            start >= ranges[-1][1]
            and data[text:end].isascii()
            and data[end - len(_SUFFIX) : end] == _SUFFIX
        ):
            ranges.append((start, end))
            if len(ranges) > _TEXTS_MAX:
                break
    return ranges
