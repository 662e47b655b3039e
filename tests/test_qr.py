"""Does a picture of a QR code come out in a terminal as the same squares?"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING

import pytest

from bot import qr

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE = 21  # modules of the smallest code
_SCALE, _EDGE = 4, 6


def _square() -> list[list[bool]]:
    """Return a corner as every code has, and a pattern of our own in the rest."""
    rows = [[(x * 7 + y * 3) % 5 < 2 for x in range(_SIZE)] for y in range(_SIZE)]
    for y in range(8):
        for x in range(8):
            ring = max(abs(x - 3), abs(y - 3))
            rows[y][x] = ring in {0, 1, 3} and x < 7 and y < 7
    rows[0][-1] = True  # as another corner has there
    return rows


def _png(rows: list[list[bool]], depth: int, kind: int, pack: Callable[[list[bool]], bytes], *, filtered: int) -> str:
    width = _SIZE * _SCALE + 2 * _EDGE
    pixels = [[False] * width for _ in range(_EDGE)]
    for row in rows:
        wide = [False] * _EDGE + [dark for dark in row for _ in range(_SCALE)] + [False] * _EDGE
        pixels += [wide] * _SCALE
    pixels += [[False] * width for _ in range(_EDGE)]
    lines, above = b"", b""
    for number, row in enumerate(pixels):
        line = pack(row)
        if filtered and number:  # each byte as its difference from the one above
            lines += b"\x02" + bytes((one - other) & 255 for one, other in zip(line, above, strict=True))
        else:
            lines += b"\0" + line
        above = line

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, width, depth, kind, 0, 0, 0)
    palette = chunk(b"PLTE", b"\xff\xff\xff\0\0\0") if kind == 3 else b""
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + chunk(b"IDAT", zlib.compress(lines))
    return base64.b64encode(data + chunk(b"IEND", b"")).decode()


def _bits(row: list[bool], dark: int) -> bytes:
    text = "".join(str(dark if one else 1 - dark) for one in row)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


@pytest.mark.parametrize(
    ("depth", "kind", "pack"),
    [
        (16, 0, lambda row: b"".join(b"\0\0" if dark else b"\xff\xff" for dark in row)),  # as Vault's own
        (8, 2, lambda row: b"".join(b"\0\0\0" if dark else b"\xff\xff\xff" for dark in row)),
        (1, 0, lambda row: _bits(row, 0)),
        (1, 3, lambda row: _bits(row, 1)),
    ],
)
@pytest.mark.parametrize("filtered", [0, 1])
def test_every_square_is_where_it_was(depth: int, kind: int, pack: Callable[[list[bool]], bytes], filtered: int):
    """Whatever kind of picture it is, the terminal shows the same squares, with white around them."""
    rows = _square()
    lines = qr.as_text(_png(rows, depth, kind, pack, filtered=filtered)).split("\n")
    dark = {"█": (False, False), "▀": (False, True), "▄": (True, False), " ": (True, True)}
    seen = [[dark[mark][half] for mark in line] for line in lines for half in (0, 1)]
    assert [row[2 : 2 + _SIZE] for row in seen[2 : 2 + _SIZE]] == rows
    assert not any(any(row) for row in (*seen[:2], *seen[2 + _SIZE :]))


@pytest.mark.parametrize("picture", ["", "no base64!", base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), "AAAA"])
def test_what_is_no_picture_is_left_out(picture: str):
    """What cannot be read is not shown; the address beside it does as well."""
    assert qr.as_text(picture) == ""
