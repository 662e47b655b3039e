"""How does a week of emergency access look in one picture? PNG.

Rules
-----
* It stands in a message at a third of its width, so its letters are large and its words are few.
* Its ground is opaque: it reads the same in Slack's light and dark. Text has a contrast of at least 4.5 to 1, what is
  drawn of at least 3 to 1; nothing is told by colour alone.
* The same figures give the same bytes.
* Pillow and the faces are the extra ``reports``; without it there is a digest and no picture.

Pure: figures in, bytes out.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from bot import digest_view
from bot.blockkit import clean, plural
from storage.reports import paper
from storage.reports.story import say

if TYPE_CHECKING:
    from workflows.digest import Counts, Figures

WIDTH: Final = 1000
LEAST_TEXT: Final = 26  # pixels of a letter's height; in a message of 360 pixels that is nine
_EDGE: Final = 40
_BASE: Final = 620  # where the bars of the weeks stand
_TALL: Final = 180  # the highest of them

PAPER: Final = (255, 255, 255)
PANEL: Final = (240, 243, 247)
INK: Final = (27, 34, 48)
SOFT: Final = (74, 85, 104)
BAD: Final = (163, 35, 28)
LINE: Final = (190, 198, 210)
# What became of a request; the words stand below with their numbers.
KINDS: Final = (
    ("used", (36, 71, 111)),
    ("denied", (163, 35, 28)),
    ("lapsed", (150, 92, 0)),
    ("other", (110, 118, 132)),
)


def is_there() -> bool:
    """Whether pictures can be drawn here."""
    return find_spec("PIL") is not None and paper.is_there()


def parts(counts: Counts) -> tuple[int, int, int, int]:
    """Return how many requests of a week were used, denied, lapsed, and none of these."""
    known = counts.used + counts.denied + counts.lapsed
    return counts.used, counts.denied, counts.lapsed, max(0, counts.asked - known)


def tiles(figures: Figures) -> list[tuple[str, str, bool]]:
    """Return the four figures on top: the figure, what it is, and whether somebody has to do something."""
    counts = figures.counts
    # (One unit is enough at this size.)
    approve = "-" if counts.approve_median is None else " ".join(say(counts.approve_median).split()[:2])
    return [
        (f"{counts.used}", f"used of {plural(counts.asked, 'request')}", False),
        (approve, "to approve half", False),
        (
            f"{figures.overdue_reviews}",
            f"overdue of {plural(figures.open_reviews, 'open review')}",
            figures.overdue_reviews > 0,
        ),
        (f"{counts.unnecessary}", "need not have been", counts.unnecessary > 0),
    ]


def draw(figures: Figures) -> bytes:
    """Return the picture."""
    from PIL import Image, PngImagePlugin  # noqa: PLC0415 - an extra; and a bot that posts no digest need not load it

    rules = figures.thresholds[:4]
    height = 760 + 62 * max(1, len(rules)) + 190
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = _Pen(image)
    pen.text(_EDGE, 30, digest_view.title(figures), 46, INK, bold=True)
    pen.text(_EDGE, 92, digest_view.span(figures), 28, SOFT)
    _draw_tiles(pen, figures)
    _draw_weeks(pen, figures)
    y = _draw_rules(pen, figures, 736)
    _draw_unused(pen, figures, y + 24)
    out = io.BytesIO()
    words = PngImagePlugin.PngInfo()
    words.add_itxt("Description", digest_view.described(figures))  # wherever the picture goes, its words go with it
    image.save(out, "PNG", optimize=True, pnginfo=words)
    return out.getvalue()


def _draw_tiles(pen: _Pen, figures: Figures) -> None:
    gap, top = 18, 146
    wide = (WIDTH - 2 * _EDGE - 3 * gap) // 4
    for place, (figure, what, is_bad) in enumerate(tiles(figures)):
        x = _EDGE + place * (wide + gap)
        pen.box(x, top, wide, 156, PANEL, edge=BAD if is_bad else LINE)
        pen.text(x + 14, top + 10, figure, 50, BAD if is_bad else INK, bold=True, most=wide - 28)
        for number, line in enumerate(pen.wrap(what, LEAST_TEXT, wide - 28)[:2]):
            pen.text(x + 14, top + 78 + 32 * number, line, LEAST_TEXT, SOFT)


def _draw_weeks(pen: _Pen, figures: Figures) -> None:
    pen.text(_EDGE, 330, "Requests by week", 32, INK, bold=True)
    weeks = [*figures.before, figures.counts]
    most = max(1, *(one.asked for one in weeks)) if weeks else 1
    step = (WIDTH - 2 * _EDGE) / len(weeks)
    for place, one in enumerate(weeks):
        is_last = place == len(weeks) - 1
        x, y = _EDGE + place * step + step * 0.22, float(_BASE)
        for number, (_, colour) in zip(parts(one), KINDS, strict=True):
            high = _TALL * number / most
            if high:
                pen.box(x, y - high, step * 0.56, high, colour)
                y -= high
        pen.text(x + step * 0.28, y - 38, str(one.asked), 30, INK, bold=is_last, middle=True)
        pen.text(
            x + step * 0.28,
            _BASE + 8,
            one.week.partition("-")[2],
            28,
            INK if is_last else SOFT,
            bold=is_last,
            middle=True,
        )
    pen.box(_EDGE, _BASE, WIDTH - 2 * _EDGE, 2, LINE)
    x = float(_EDGE)
    for number, (name, colour) in zip(parts(figures.counts), KINDS, strict=True):
        pen.box(x, _BASE + 58, 24, 24, colour)
        x = pen.text(x + 34, _BASE + 50, f"{number} {name}", LEAST_TEXT, SOFT) + 44


def _draw_rules(pen: _Pen, figures: Figures, y: float) -> float:
    pen.text(_EDGE, y, "Thresholds chosen most, in five weeks", 32, INK, bold=True)
    y += 52
    most = max([one.times for one in figures.thresholds], default=1)
    for one in figures.thresholds[:4]:
        is_bad = digest_view.needs_work(one)
        colour = BAD if is_bad else INK
        said = (
            f"{plural(one.times, 'time')}, not met {one.not_met} of {one.judged}"
            if one.judged
            else f"{plural(one.times, 'time')}, not judged"
        )
        end = WIDTH - _EDGE - pen.width(said, LEAST_TEXT, bold=is_bad)
        pen.text(_EDGE, y, f"{one.account}/{one.threshold}", LEAST_TEXT, INK, most=end - _EDGE - 20)
        pen.text(end, y, said, LEAST_TEXT, colour, bold=is_bad)
        pen.box(_EDGE, y + 38, (WIDTH - 2 * _EDGE) * one.times / most, 8, BAD if is_bad else KINDS[0][1])
        y += 62
    if not figures.thresholds:
        pen.text(_EDGE, y, "Nobody asked, so none was.", LEAST_TEXT, SOFT)
        y += 62
    return y


def _draw_unused(pen: _Pen, figures: Figures, y: float) -> None:
    pen.text(_EDGE, y, f"Not used since {figures.unused_since}", 32, INK, bold=True)
    words = ", ".join((*figures.unused_accounts, *figures.unused_levels)) or "nothing: every level was used"
    lines = pen.wrap(words, LEAST_TEXT, WIDTH - 2 * _EDGE)
    if len(lines) > 3:
        lines = [*lines[:2], f"{lines[2]} …"]
    for number, line in enumerate(lines):
        pen.text(_EDGE, y + 48 + 34 * number, line, LEAST_TEXT, SOFT, most=WIDTH - 2 * _EDGE)


class _Pen:
    """Draws text and boxes, in pixels from the top left."""

    def __init__(self, image: Any) -> None:  # noqa: ANN401 - of an extra
        from PIL import ImageDraw  # noqa: PLC0415

        self._draw = ImageDraw.Draw(image)

    def box(
        self,
        x: float,
        y: float,
        wide: float,
        high: float,
        fill: tuple[int, int, int],
        *,
        edge: tuple[int, int, int] | None = None,
    ) -> None:
        """Fill a box; ``edge``: the colour of a line around it."""
        self._draw.rectangle((round(x), round(y), round(x + wide), round(y + high)), fill=fill, outline=edge, width=3)

    def width(self, words: str, size: int, *, bold: bool = False) -> float:
        """Return how wide words are."""
        return float(_face(size, bold=bold).getlength(words))

    def wrap(self, words: str, size: int, most: float) -> list[str]:
        """Return words in lines that are not wider than ``most``."""
        lines: list[str] = []
        for word in clean(words, is_line=True).split():
            if lines and self.width(f"{lines[-1]} {word}", size) <= most:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: int,
        fill: tuple[int, int, int],
        *,
        bold: bool = False,
        middle: bool = False,
        most: float = WIDTH,
    ) -> float:
        """Write one line, cut to ``most`` pixels; return where it ends."""
        shown = clean(words, is_line=True)
        while len(shown) > 1 and self.width(shown, size, bold=bold) > most:
            shown = f"{shown.removesuffix('…')[:-1]}…"
        wide = self.width(shown, size, bold=bold)
        left = x - wide / 2 if middle else x
        self._draw.text((left, y), shown, fill=fill, font=_face(size, bold=bold))
        return left + wide


def _face(size: int, *, bold: bool) -> Any:  # noqa: ANN401 - of an extra
    from PIL import ImageFont  # noqa: PLC0415

    return ImageFont.truetype(paper.face(bold=bold), size)
