"""Where each value of a flax msgpack file begins and ends: headers are read, arrays are skipped."""

import os
from typing import Any, BinaryIO

#: Bytes after the first: of the value; or of its length, and then besides the length.
_FIXED = dict(zip(range(0xCA, 0xD9), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 3, 5, 9, 17), strict=True))
_OF_BYTES = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0)}
_OF_FLAX = {0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_OF_TEXT = {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
_SIZED = _OF_BYTES | _OF_FLAX | _OF_TEXT


def outline(file: BinaryIO) -> dict[str, Any]:
    """The dict in a file, with a `slice` of its bytes for each value that is no dict.

    Raises ValueError for a file of anything else, or of only the beginning of a dict.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    tree = _value(file)
    if file.tell() != size or not isinstance(tree, dict):
        raise ValueError("it is no dict of flax, or not all of one")
    return tree


def _value(file: BinaryIO) -> Any:
    start = file.tell()
    code = _number(file, 1)
    if 0x80 <= code <= 0x8F or code in (0xDE, 0xDF):
        entries = _number(file, 2 * (code - 0xDD)) if code > 0x8F else code & 15
        return {_text(file): _value(file) for _ in range(entries)}
    if 0x90 <= code <= 0x9F or code in (0xDC, 0xDD):
        for _ in range(_number(file, 2 * (code - 0xDB)) if code > 0x9F else code & 15):
            _value(file)
    elif 0xA0 <= code <= 0xBF:
        file.seek(code & 31, os.SEEK_CUR)
    elif code in _FIXED:
        file.seek(_FIXED[code], os.SEEK_CUR)
    elif code in _SIZED:
        width, besides = _SIZED[code]
        file.seek(_number(file, width) + besides, os.SEEK_CUR)
    return slice(start, file.tell())


def _number(file: BinaryIO, width: int) -> int:
    read = file.read(width)
    if len(read) < width:
        raise ValueError("it ends in the middle of a value")
    return int.from_bytes(read, "big")


def _text(file: BinaryIO) -> str:
    code = _number(file, 1)
    if code not in _OF_TEXT and not 0xA0 <= code <= 0xBF:
        raise ValueError("a key is no text")
    length = _number(file, _OF_TEXT[code][0]) if code > 0xBF else code & 31
    return file.read(length).decode()
