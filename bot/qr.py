"""How does a QR code that comes as a picture look in a terminal?

Pure. The picture is Vault's own (a PNG in base64): grey or colours, not interlaced. Nothing here makes a code. What
cannot be read is no picture, and the address beside it does as well.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from typing import Final

_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by type of colour
_QUIET: Final = 2  # modules of white around it
_MOST: Final = 2000  # pixels a side


def as_text(picture: str) -> str:
    """Return the code in half blocks, dark on light, two modules a character high; empty for what is no picture."""
    try:
        return _draw(_modules(_dark(base64.b64decode(picture, validate=True))))
    except (binascii.Error, ValueError, struct.error, zlib.error, IndexError, StopIteration):
        return ""


def _dark(data: bytes) -> list[list[bool]]:
    """Return which pixels are dark. ValueError for a picture of another kind."""
    if not data.startswith(_MAGIC):
        raise ValueError("it is no PNG")
    at, packed, palette, head = len(_MAGIC), b"", b"", (0, 0, 0, 0)
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        at += size + 12
        if kind == b"IHDR":
            *found, packing, filtering, interlace = struct.unpack(">IIBBBBB", body)
            head = (found[0], found[1], found[2], found[3])
            if packing or filtering or interlace:
                raise ValueError("it is packed in another way")
        elif kind == b"PLTE":
            palette = body
        elif kind == b"IDAT":
            packed += body
    width, height, depth, colour = head
    if not 0 < width <= _MOST or not 0 < height <= _MOST:
        raise ValueError("it is too large")
    bits = depth * _SAMPLES[colour]
    rows = _unfiltered(zlib.decompress(packed), (width * bits + 7) // 8, max(1, bits // 8), height)
    return [[_is_dark(row, x, depth, bits, palette) for x in range(width)] for row in rows]


def _is_dark(row: bytes, x: int, depth: int, bits: int, palette: bytes) -> bool:
    if bits < 8:
        value = row[x * bits // 8] >> (8 - bits - x * bits % 8) & ((1 << bits) - 1)
        return palette[value * 3] < 128 if palette else value == 0
    value = row[x * bits // 8]  # the first sample, and of two bytes the first, tells dark from light
    return palette[value * 3] < 128 if palette and depth == 8 and bits == 8 else value < 128


def _unfiltered(data: bytes, length: int, step: int, height: int) -> list[bytes]:
    """Undo PNG's filters: each row is told by its differences to the left and above."""
    rows, above = list[bytes](), bytes(length)
    for number in range(height):
        start = number * (length + 1)
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + length])
        for i in range(length):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))[kind]
            row[i] = (row[i] + guess) & 255
        above = bytes(row)
        rows.append(above)
    return rows


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda one: abs(guess - one))


def _modules(dark: list[list[bool]]) -> list[list[bool]]:
    """Return the code's own squares: a corner's dark edge is seven of them long."""
    top = next(y for y, row in enumerate(dark) if any(row))
    left = dark[top].index(True)
    run = next(i for i, is_dark in enumerate(dark[top][left:]) if not is_dark)
    size = run // 7
    if not size or run % 7:
        raise ValueError("it is no QR code")
    count = (len(dark[top]) - dark[top][::-1].index(True) - left) // size
    half = size // 2
    return [[dark[top + y * size + half][left + x * size + half] for x in range(count)] for y in range(count)]


def _draw(modules: list[list[bool]]) -> str:
    wide = len(modules) + 2 * _QUIET
    blank = [False] * wide
    rows = [blank] * _QUIET + [[False] * _QUIET + row + [False] * _QUIET for row in modules] + [blank] * _QUIET
    rows += [blank] * (len(rows) % 2)
    # White is what is drawn, since most terminals are dark.
    marks = {(False, False): "█", (False, True): "▀", (True, False): "▄", (True, True): " "}
    return "\n".join(
        "".join(marks[pair] for pair in zip(rows[y], rows[y + 1], strict=True)) for y in range(0, len(rows), 2)
    )
