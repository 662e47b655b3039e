"""How does the evidence read on paper? PDF.

Rules
-----
* It says what the page says, from the same story. The same story gives the same bytes: its date is the head's.
* Every name survives: letters that the text face has not come from pan-Unicode faces, and what none of them has is
  shown as U+FFFD and counted, never dropped in silence.
* fpdf2 and the faces (PyPI ``weblate-fonts``: Source Sans, Source Code, Kurinto, all OFL) are the extra ``reports``;
  without it there are pages and no papers.
"""

from __future__ import annotations

import logging
from datetime import UTC
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from storage.reports import approvers, executed, timeline
from storage.reports.story import ENDINGS, OUTCOMES, moment, say, who

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.reports.story import About, Names, Period, Story

MOST_COMMANDS: Final = 300  # the page has more, and entries.jsonl all
_MOST_COMMAND: Final = 1000  # characters of one
MOST_ROWS: Final = 1000  # of the list of requests; the whole one is population.csv

_FACES: Final = "static/weblate_fonts"
_TEXT: Final = "source-sans/ttf/SourceSans3-Regular.ttf"
_BOLD: Final = "source-sans/ttf/SourceSans3-Bold.ttf"
_CODE: Final = "source-code/ttf/SourceCodePro-Regular.ttf"
# In this order, since a letter that two of them have looks best in the first. None has Latin that the text face lacks.
_OTHERS: Final = tuple(f"kurinto/ttf/KurintoSans{script}-Rg.ttf" for script in ("", "JP", "KR", "SC", "TC"))
_UNKNOWN: Final = "\ufffd"
_INK, _SOFT, _LINE, _PANEL = (27, 34, 48), (74, 85, 104), (190, 198, 210), (240, 243, 247)
_KINDS: Final = ((251, 231, 184), (211, 229, 251), (248, 207, 198), (227, 215, 245), (210, 236, 217))
_MARK, _BAD = (36, 71, 111), (163, 35, 28)
_WIDTH: Final = 178.0  # mm between the margins


@cache
def is_there() -> bool:
    """Whether papers can be made here."""
    return find_spec("fpdf") is not None and find_spec("weblate_fonts") is not None


def request_paper(story: Story, about: About, names: Names) -> bytes:
    """Return the paper of one request."""
    sheet = _Sheet(f"Break-glass request {story.id}", about)
    opened = f"Opened {moment(story.opened_at)}." if story.is_whole else "Its opening is not in this selection."
    sheet.title("Emergency access, one request", f"{story.state or 'state not known'}. {opened}")
    needed = story.quorum if story.quorum is not None else "-"
    sheet.figures(
        ("Time to approve", say(story.to_approve)),
        ("Access was out for", say(story.seconds_out)),
        ("Approvals", f"{len(story.approvers)} of {needed} needed"),
        ("Review", OUTCOMES.get(story.review.outcome, story.review.outcome) if story.review else "none filed"),
    )
    _draw_timeline(sheet, story)
    _write_request(sheet, story, names)
    sheet.heading("Every entry")
    sheet.table(
        ("No.", "Entry", "When (UTC)", "Who", "What"),
        (9, 14, 33, 36, 86),
        [
            (
                str(number),
                f"#{step.seq}",
                moment(step.at).removesuffix(" UTC"),
                step.who or "-",
                ("Refused: " if step.is_refusal else "") + step.text + (f" “{step.typed}”" if step.typed else ""),
            )
            for number, step in enumerate(story.steps, start=1)
        ],
    )
    sheet.heading("How to check this paper")
    closed = (
        f"Entry #{story.closing} states how many entries this request had until then, and one hash over them."
        if story.closing is not None
        else "No closing entry in this selection shows that the entries are complete."
    )
    sheet.text(
        "It is drawn from entries.jsonl, which came with it, and is not the evidence itself. README.txt there shows "
        f"how each entry is verified with stock tools. {closed}"
    )
    sheet.standing()
    return sheet.bytes()


def _write_request(sheet: _Sheet, story: Story, names: Names) -> None:
    sheet.heading("Who asked for what, and why")
    if story.is_whole:
        sheet.facts(
            ("Account and level", f"{story.account}, {story.level}"),
            ("Requester", who(story.requester, names)),
            ("Threshold", f"{story.threshold_text} ({story.threshold})"),
            ("Reason", story.reason),
            ("Why not the usual way", story.standard_path),
            ("Incident", story.incident),
            ("Time asked for", say(story.asked_seconds)),
            ("Custodians asked", ", ".join(who(person, names) for person in story.custodians) or "nobody"),
            ("Approvals needed", str(story.quorum)),
            ("Policy and custodians", story.policy),
        )
    else:
        sheet.text("This selection begins after the opening, which would say so.")
    sheet.heading("Who decided")
    if story.votes:
        sheet.table(
            ("When (UTC)", "Who", "Answer", "For", "Reason", "Entry"),
            (33, 48, 20, 22, 40, 15),
            [
                (
                    moment(vote.at).removesuffix(" UTC"),
                    who(vote.person, names),
                    "approved" if vote.approved else "denied",
                    say(vote.seconds) if vote.approved else "-",
                    vote.reason or "-",
                    f"#{vote.seq}",
                )
                for vote in story.votes
            ],
        )
    if story.approved_at:
        sheet.text(f"The quorum was reached {moment(story.approved_at)}, {say(story.to_approve)} after the opening.")
    else:
        sheet.text("The quorum was not reached.")
    sheet.heading("Credentials")
    if story.credentials:
        sheet.table(
            ("No.", "Login at the target", "Issued (UTC)", "Ended (UTC)", "How"),
            (9, 55, 33, 33, 48),
            [
                (
                    str(one.number),
                    one.identity or "-",
                    moment(one.issued_at).removesuffix(" UTC") if one.issued_at else "never issued",
                    moment(one.ended_at).removesuffix(" UTC") if one.ended_at else "not known",
                    one.end or "-",
                )
                for one in story.credentials
            ],
        )
        if story.ended_at is not None:
            by = "" if story.ended_by_person in {"", "system"} else f", {who(story.ended_by_person, names)}"
            sheet.text(
                f"It was {ENDINGS.get(story.ended_by, story.ended_by)}{by}. Vault confirmed that the lease is gone "
                f"{moment(story.ended_at)}, {say(story.to_end)} after that was decided."
            )
    else:
        sheet.text("No credential was asked for.")
    _write_commands(sheet, story)
    sheet.heading("Review and follow-ups")
    review = story.review
    if review is None:
        due = f" It is due {moment(story.review_due_at)}." if story.review_due_at else ""
        sheet.text(f"No review is on record.{due}")
        return
    ticked = {True: "yes", False: "no", None: "not said"}
    sheet.facts(
        ("Reviewer", who(review.person, names)),
        ("Filed", f"{moment(review.at)}, {say(story.to_review)} after the end"),
        ("Outcome", OUTCOMES.get(review.outcome, review.outcome)),
        ("Threshold was met", _with(ticked[review.threshold_met], review.threshold_why)),
        ("The usual way would do", _with(ticked[review.standard_path_enough], review.standard_path_why)),
        ("Used as stated", ticked[review.used_as_stated]),
        ("Findings", review.findings),
    )
    if (second := story.second) is not None:
        sheet.facts(
            ("Second reviewer", who(second.person, names)),
            ("Filed", moment(second.at)),
            ("Outcome", OUTCOMES.get(second.outcome, second.outcome)),
            ("Agrees", ticked[second.outcome == review.outcome]),
            ("Findings", second.findings),
        )
    elif story.state == "ended":
        sheet.text("It waits for a second reviewer.")
    if review.follow_ups:
        rows = [
            (
                one.what,
                who(one.owner, names),
                one.due,
                f"{moment(one.closed_at)}: {one.note}" if one.closed_at else "no",
            )
            for one in review.follow_ups
        ]
        sheet.table(("To do", "Owner", "Due", "Done"), (66, 40, 24, 48), rows)


def _with(answer: str, why: str) -> str:
    return f"{answer}: {why}" if why else answer


def _write_commands(sheet: _Sheet, story: Story) -> None:
    sheet.heading("Commands")
    told = executed.summary(story.use)
    if not told and not story.executed:
        sheet.text(executed.NONE)
        return
    for line in told:
        sheet.text(line)
    if not story.executed:
        return
    sheet.table(
        ("When (UTC)", "Source and login", "Command", "What it was", "Entry"),
        (21, 32, 78, 32, 15),
        [
            (
                moment(one.at).removesuffix(" UTC"),
                executed.where(one) or "-",
                clip(executed.words(one)),
                executed.marks(one) or "-",
                f"#{one.seq}",
            )
            for one in story.executed[:MOST_COMMANDS]
        ],
    )
    more = story.entries - len(story.steps) - min(len(story.executed), MOST_COMMANDS)
    if more:
        sheet.text(f"{more} more stand in entries.jsonl, which has all of them.")


def clip(text: str) -> str:
    """Return the beginning of a long text, and how much is missing: a row of a table must fit on a page."""
    more = len(text) - _MOST_COMMAND
    return text if more <= 0 else f"{text[:_MOST_COMMAND]}… ({more} more characters)"


def period_paper(period: Period, integrity: approvers.Integrity, about: About, names: Names) -> bytes:
    """Return the paper of all requests."""
    sheet = _Sheet("Break-glass requests of a period", about)
    sheet.title("Emergency access, all requests", f"Selection: {about.what()}.")
    sheet.figures(
        ("Requests", str(len(period.real))),
        *(() if not period.drills else (("Drills, not counted", str(period.drills)),)),
        ("Granted", str(sum(row.to_approve is not None for row in period.real))),
        ("Median to approve", say(period.median_to_approve())),
        ("Ended, not reviewed", str(sum(row.state == "ended" for row in period.real))),
    )
    sheet.heading("Population")
    sheet.text("Every request with an entry in this selection, by its state at the head. Draw a sample from the list.")
    sheet.table(("State", "Requests"), (50, 24), [(state, str(count)) for state, count in period.states().items()])
    if outcomes := period.outcomes():
        told = [(OUTCOMES.get(outcome, outcome), str(count)) for outcome, count in outcomes.items()]
        sheet.table(("Review", "Requests"), (50, 24), told)
    _write_integrity(sheet, integrity, names)
    sheet.heading("All requests")
    sheet.table(
        ("Request", "Opened (UTC)", "Account, level", "Requester", "State", "Approved by", "To approve", "Review"),
        (19, 22, 28, 27, 18, 30, 17, 17),
        [
            (
                row.id,
                moment(row.opened_at).removesuffix(" UTC"),
                f"{row.account or '-'}, {row.level or '-'}",
                who(row.requester, names) if row.requester else "-",
                row.state or "unknown",
                ", ".join(who(person, names) for person in row.approvers) or "-",
                say(row.to_approve),
                OUTCOMES.get(row.outcome, row.outcome) or "-",
            )
            for row in period.rows[:MOST_ROWS]
        ],
    )
    if len(period.rows) > MOST_ROWS:
        sheet.text(f"{len(period.rows) - MOST_ROWS} more stand in population.csv, which has all of them.")
    sheet.heading("How to check this paper")
    sheet.text(
        "It is drawn from entries.jsonl, which came with it, and is not the evidence itself. README.txt there shows "
        "how each entry is verified with stock tools."
    )
    sheet.standing()
    return sheet.bytes()


def _write_integrity(sheet: _Sheet, found: approvers.Integrity, names: Names) -> None:
    sheet.heading("Integrity of the approvers")
    sheet.text(approvers.HOW)
    for limit in found.limits:
        sheet.text(f"Note: {limit}")
    for sentence in found.outliers(names) or [found.conclusion()]:
        sheet.text(f"• {sentence}")
    for rule in approvers.RULES:
        sheet.small(f"Rule. {rule}")
    people = [(who(one.person, names), *approvers.counts(one), found.standing(one)) for one in found.custodians]
    heads = ("Custodian", *approvers.HEADS, "What can be said")
    _rows(sheet, "Each custodian", heads, (28, 13, 17, 18, 15, 22, 17, 16, 32), people)
    given = [
        (who(one.person, names), approvers.asker(one.requester, names), f"{one.number} of {one.of}", one.share)
        for one in found.given
    ]
    _rows(sheet, "Approvals, to whom", approvers.GIVEN_HEADS, (60, 60, 30, 28), given)
    denials = [
        (
            who(one.person, names),
            f"{one.request}, {approvers.asker(one.requester, names)}",
            clip(one.reason) or "-",
            moment(one.at).removesuffix(" UTC"),
            f"#{one.seq}",
        )
        for one in found.denials
    ]
    _rows(sheet, "Denials and their reasons", approvers.DENIAL_HEADS, (36, 40, 64, 22, 16), denials)
    refusals = [(who(one.person, names), one.code, str(one.number), str(one.own)) for one in found.refusals]
    _rows(sheet, "Attempts to decide that were refused", approvers.REFUSAL_HEADS, (60, 50, 28, 40), refusals)


def _rows(
    sheet: _Sheet, title: str, heads: Sequence[str], widths: Sequence[float], rows: Sequence[Sequence[str]]
) -> None:
    if not rows:
        sheet.text(f"{title}: none.")
        return
    if sheet.pdf.get_y() > 250:  # its name stays with its first row
        sheet.pdf.add_page()
    sheet.text(f"{title}:")
    sheet.table(heads, widths, rows[: approvers.MOST_ROWS])
    if len(rows) > approvers.MOST_ROWS:
        sheet.text(approvers.more(len(rows) - approvers.MOST_ROWS))


def _draw_timeline(sheet: _Sheet, story: Story) -> None:
    picture = timeline.draw(story)
    sheet.heading("Timeline")
    if not picture.bars:
        sheet.text(picture.told)
        return
    pdf, scale = sheet.pdf, _WIDTH / timeline.WIDTH
    left, top = pdf.l_margin, pdf.get_y() + 1
    for mark in picture.marks:
        x, y = left + (12 + mark.x * 0.976) * scale, top + 9 - mark.row * 4
        pdf.set_fill_color(*(_BAD if mark.is_refusal else _MARK))
        if mark.is_refusal:
            pdf.rect(x - 1.7, y - 1.7, 3.4, 3.4, style="F")
        else:
            pdf.ellipse(x - 1.8, y - 1.8, 3.6, 3.6, style="F")
        pdf.set_text_color(255, 255, 255)
        sheet.put(x - 3, y - 1.5, 6, str(mark.number), size=6, bold=True, align="C")
    for bar in picture.bars:
        x, width, y = left + bar.x * scale, bar.width * scale, top + 12
        pdf.set_fill_color(*_KINDS[bar.kind])
        pdf.set_draw_color(*_INK)
        pdf.rect(x, y, width, 10, style="DF")
        pdf.set_text_color(*_INK)
        sheet.put(x + 1, y + 1, width, bar.name, size=7.5, bold=True)
        sheet.put(x + 1, y + 5.2, width, bar.length + (" so far" if bar.is_open else ""), size=7.5)
        pdf.set_text_color(*_SOFT)
        sheet.put(x, y + 10.5, width, f"{bar.start:%H:%M:%S}", size=7)
        sheet.put(x, y + 13.5, width, f"{bar.start:%Y-%m-%d}", size=7)
    pdf.set_y(top + 30)
    sheet.small(
        "Not to scale; lengths are written out. Times are UTC. Numbers: see “Every entry”; squares are refusals."
    )


class _Sheet:
    """A PDF with our faces, and the few things that are drawn on it."""

    def __init__(self, title: str, about: About) -> None:
        # Imported here: the extra may not be there, and half a second is not owed by those who do not print.
        from fpdf import FPDF  # noqa: PLC0415

        # Each letter that a subset leaves out is a line of theirs.
        logging.getLogger("fontTools").setLevel(logging.ERROR)
        sheet = self

        class Numbered(FPDF):  # type: ignore[misc, unused-ignore]
            def footer(self) -> None:
                sheet.foot()

        self._about = about
        self._title = title
        self._unknown = 0
        self._others: dict[str, str] = {}
        self.pdf: Any = Numbered(format="A4")
        self.pdf.set_creation_date(about.at.astimezone(UTC))
        self.pdf.set_title(self.fit(title))
        self.pdf.set_lang("en")
        self.pdf.set_producer("breakglass")
        self.pdf.set_margins(16, 16, 16)
        self.pdf.set_auto_page_break(auto=True, margin=20)
        self.pdf.add_font("text", "", _face(_TEXT))
        self.pdf.add_font("text", "B", _face(_BOLD))
        self.pdf.add_page()

    def fit(self, text: str) -> str:
        """Return the text as the faces can show it, after adding those that it needs."""
        shown = []
        for char in text:
            if char in "\n\t" or ord(char) in _letters(_TEXT):
                shown.append(char)
                continue
            face = next((face for face in _OTHERS if ord(char) in _letters(face)), None)
            if face is None:
                self._unknown += 1
            shown.append(_UNKNOWN if face is None else char)
            self._add(face or _OTHERS[0])
        return "".join(shown)

    def _add(self, face: str) -> None:
        if face not in self._others:
            self._others[face] = f"other{len(self._others)}"
            self.pdf.add_font(self._others[face], "", _face(face))
            ordered = [self._others[known] for known in _OTHERS if known in self._others]
            self.pdf.set_fallback_fonts(ordered, exact_match=False)

    def put(
        self, x: float, y: float, width: float, text: str, *, size: float, bold: bool = False, align: str = "L"
    ) -> None:
        """Write one line at a place, in the present colour."""
        self.pdf.set_font("text", "B" if bold else "", size)
        self.pdf.set_xy(x, y)
        self.pdf.cell(width, 3, self.fit(text), align=align)

    def foot(self) -> None:
        """Write the foot of a page; called by the library."""
        self.pdf.set_y(-14)
        self.pdf.set_font("text", "", 8)
        self.pdf.set_text_color(*_SOFT)
        log = f"log {self._about.origin or '(not signed)'}, {self._about.size} entries, as of {moment(self._about.at)}"
        self.pdf.cell(150, 4, self.fit(f"{self._title}; {log}"))
        self.pdf.cell(0, 4, f"Page {self.pdf.page_no()}", align="R")

    def title(self, over: str, under: str) -> None:
        """Write the title."""
        self.pdf.set_text_color(*_SOFT)
        self._line(over, 10, 5)
        self.pdf.set_text_color(*_INK)
        self._line(self._title, 19, 9, bold=True)
        self._line(under, 11, 6)
        self.pdf.ln(2)

    def heading(self, text: str) -> None:
        """Begin a section, on a new page rather than at the foot of one."""
        if self.pdf.get_y() > 255:
            self.pdf.add_page()
        self.pdf.ln(3)
        self.pdf.start_section(text)
        self.pdf.set_text_color(*_INK)
        self._line(text, 13, 6.5, bold=True)
        self.pdf.set_draw_color(*_LINE)
        self.pdf.line(self.pdf.l_margin, self.pdf.get_y(), self.pdf.l_margin + _WIDTH, self.pdf.get_y())
        self.pdf.ln(1.5)

    def text(self, text: str) -> None:
        """Write a paragraph."""
        self.pdf.set_text_color(*_INK)
        self._line(text, 10, 4.8)
        self.pdf.ln(1)

    def small(self, text: str) -> None:
        """Write a remark."""
        self.pdf.set_text_color(*_SOFT)
        self._line(text, 8, 4)

    def _line(self, text: str, size: float, height: float, *, bold: bool = False) -> None:
        self.pdf.set_x(self.pdf.l_margin)
        self.pdf.set_font("text", "B" if bold else "", size)
        self.pdf.multi_cell(_WIDTH, height, self.fit(text), align="L", new_x="LMARGIN", new_y="NEXT")

    def figures(self, *pairs: tuple[str, str]) -> None:
        """Write the few numbers that are looked at first, side by side."""
        top, width = self.pdf.get_y(), (_WIDTH - 4 * (len(pairs) - 1)) / len(pairs)
        for place, (name, value) in enumerate(pairs):
            x = self.pdf.l_margin + place * (width + 4)
            self.pdf.set_fill_color(*_PANEL)
            self.pdf.set_draw_color(*_LINE)
            self.pdf.rect(x, top, width, 14, style="DF")
            self.pdf.set_text_color(*_SOFT)
            self.put(x + 1, top + 2, width, name, size=8.5)
            self.pdf.set_text_color(*_INK)
            self.put(x + 1, top + 8, width, value, size=12, bold=True)
        self.pdf.set_y(top + 16)

    def facts(self, *pairs: tuple[str, str]) -> None:
        """Write names and values, one below the other."""
        self.table(None, (40, 138), pairs)

    def table(self, heads: Sequence[str] | None, widths: Sequence[float], rows: Iterable[Sequence[str]]) -> None:
        """Write a table; its heads are repeated on each page."""
        from fpdf.enums import TableBordersLayout  # noqa: PLC0415
        from fpdf.fonts import FontFace  # noqa: PLC0415

        self.pdf.set_font("text", "", 9)
        self.pdf.set_text_color(*_INK)
        self.pdf.set_draw_color(*_LINE)
        self.pdf.set_fill_color(255, 255, 255)  # cells without a colour of their own take the last one
        self.pdf.set_x(self.pdf.l_margin)
        with self.pdf.table(
            col_widths=tuple(widths),
            width=sum(widths),
            align="L",
            text_align="LEFT",
            v_align="TOP",
            line_height=4.4,
            padding=(0.8, 1, 0.8, 1),
            first_row_as_headings=heads is not None,
            headings_style=FontFace(emphasis="BOLD", fill_color=_PANEL),
            borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        ) as drawn:
            if heads is not None:
                line = drawn.row()
                for head in heads:
                    line.cell(head)
            for row in rows:
                line = drawn.row()
                for place, cell in enumerate(row):
                    is_name = heads is None and place == 0
                    line.cell(self.fit(cell), style=FontFace(color=_SOFT) if is_name else None)
        self.pdf.ln(1.5)

    def standing(self) -> None:
        """Write what it stands at, and what could not be shown."""
        self.facts(
            ("Log", self._about.origin or "not signed: compare the root with one that you received otherwise"),
            ("Selection", f"{self._about.what()}; {self._about.entries} entries"),
            ("Head", f"{self._about.size} entries, as of {moment(self._about.at)}"),
            ("Root", self._about.root),
        )
        if self._about.has_names:
            self.small("Names of people are as Slack had them when this was exported; the log has their ids.")
        if self._unknown:
            self.small(
                f"{_UNKNOWN} stands for a letter that no face here has ({self._unknown} times); the page has it."
            )

    def bytes(self) -> bytes:
        """Return the file."""
        return bytes(self.pdf.output())


def face(*, bold: bool = False) -> Path:
    """Return the file of the text face, for who draws something else with it."""
    return _face(_BOLD if bold else _TEXT)


def _face(name: str) -> Path:
    return _folder() / name


@cache
def _folder() -> Path:
    found = find_spec("weblate_fonts")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("weblate_fonts", name="weblate_fonts")
    return Path(found.origin).parent / _FACES


@cache
def _letters(name: str) -> frozenset[int]:
    """Return the code points that a face has."""
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    with TTFont(_face(name), lazy=True) as font:
        return frozenset(font.getBestCmap())
