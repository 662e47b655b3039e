"""How does the evidence read in a browser, on paper from a browser, and to a screen reader?

Rules
-----
* A page stands alone: no script, no address, nothing that is loaded. It opens the same in twenty years.
* Everything that came from a person or the log is escaped; a policy in the page refuses scripts all the same.
* Light and dark, small and large, printed: one page. Contrast is at least 4.5 to 1 in each.
* Headings in order, tables with captions and scopes, landmarks, a picture with its words: it is tested with axe.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.reports import approvers, controls, executed, timeline
from storage.reports.story import ENDINGS, OUTCOMES, moment, say, who

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from storage.reports.story import About, Names, Period, Story

MOST_ROWS: Final = 5000  # of the list of requests; the whole one is population.csv

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#1b2230;--soft:#4a5568;--paper:#fff;--panel:#f5f7fa;--line:#d5dbe5;--link:#0b57a4;
--k0:#fbe7b8;--k1:#d3e5fb;--k2:#f8cfc6;--k3:#e3d7f5;--k4:#d2ecd9;--mark:#24476f;--bad:#a3231c}
@media (prefers-color-scheme:dark){:root{--ink:#e7ecf3;--soft:#b3bdcc;--paper:#12161d;--panel:#1b212b;--line:#38424f;
--link:#8ec2ff;--k0:#5c4713;--k1:#1d4068;--k2:#6b2a20;--k3:#48346b;--k4:#1f4f30;--mark:#a9cdf7;--bad:#ff9d94}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif}
.wide{max-width:68rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
header.wide{padding-bottom:0}main.wide{padding-top:0}footer.wide{border-top:1px solid var(--line);padding-top:1rem;
color:var(--soft);font-size:.9rem}
h1{font-size:1.7rem;line-height:1.2;margin:.2rem 0 .4rem}
h2{font-size:1.2rem;margin:2.2rem 0 .6rem;padding-bottom:.25rem;border-bottom:2px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:60rem}.over{margin:0;color:var(--soft);font-weight:600;letter-spacing:.02em}
.state{display:inline-block;padding:.1rem .6rem;border:2px solid currentColor;border-radius:.3rem;font-weight:700}
dl{display:grid;grid-template-columns:minmax(9rem,14rem) 1fr;gap:.3rem 1rem;margin:.5rem 0}
dt{color:var(--soft);font-weight:600}dd{margin:0;overflow-wrap:anywhere}
.figures{display:flex;flex-wrap:wrap;gap:.75rem;padding:0;margin:1rem 0;list-style:none}
.figures li{flex:1 1 9rem;background:var(--panel);border:1px solid var(--line);border-radius:.4rem;padding:.6rem .8rem}
.figures b{display:block;font-size:1.25rem;line-height:1.3}
blockquote{margin:.3rem 0;padding:.4rem .8rem;border-left:4px solid var(--line);background:var(--panel);
white-space:pre-wrap;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;margin:.3rem 0}
caption{text-align:left;color:var(--soft);padding-bottom:.3rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line);
overflow-wrap:break-word}.few table{width:auto;min-width:18rem}
thead th{background:var(--panel);border-bottom:2px solid var(--line);white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;overflow-wrap:normal}
td.t,.nw{white-space:nowrap;overflow-wrap:normal}
code{font:.85em/1.4 ui-monospace,"Cascadia Mono",Consolas,monospace;overflow-wrap:anywhere}
code.cmd{display:block;min-width:16rem;white-space:pre-wrap}
td code.leaf{display:block;font-size:.72em;color:var(--soft)}.said{display:block;color:var(--soft);white-space:pre-wrap}
.bad{color:var(--bad);font-weight:700}a{color:var(--link)}
figure{margin:1rem 0}figcaption{color:var(--soft);font-size:.9rem}svg{width:100%;height:auto;display:block}
svg text{font:12.5px system-ui,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
svg .b{font-weight:600}svg .s{fill:var(--soft);font-size:12px}svg .m{font-size:11px;fill:var(--paper);font-weight:700}
svg .mark{fill:var(--mark)}svg .no{fill:var(--bad)}svg .bar{stroke:var(--ink);stroke-width:1}
.k0{fill:var(--k0)}.k1{fill:var(--k1)}.k2{fill:var(--k2)}.k3{fill:var(--k3)}.k4{fill:var(--k4)}
@media (max-width:40rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{:root{--ink:#000;--soft:#333;--paper:#fff;--panel:#f3f3f3;--line:#999;--link:#000;--k0:#fbe7b8;
--k1:#d3e5fb;--k2:#f8cfc6;--k3:#e3d7f5;--k4:#d2ecd9;--mark:#24476f;--bad:#8a1c16}body{font-size:10pt}.wide{max-width:none;padding:0}
h2{break-after:avoid}tr,figure,.figures li{break-inside:avoid}thead{display:table-header-group}.scroll{overflow:visible}
@page{size:A4;margin:16mm}}
""".replace("\n", "")

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f]")


# --- one request ---------------------------------------------------------------------------------------------------


def request_page(story: Story, about: About, names: Names) -> bytes:
    """Return the page of one request (UTF-8)."""
    title = f"Break-glass request {story.id}"
    opened = f"Opened {moment(story.opened_at)}." if story.is_whole else "Its opening is not in this selection."
    lead = (
        f'<p class="over">Emergency access, one request</p><h1>{_e(title)}</h1>'
        f'<p><span class="state">{_e(story.state or "state not known")}</span> {_e(opened)}</p>'
    )
    body = [
        _figures(
            ("Time to approve", say(story.to_approve)),
            ("Access was out for", say(story.seconds_out)),
            ("Approvals", f"{len(story.approvers)} of {story.quorum if story.quorum is not None else '-'} needed"),
            ("Review", OUTCOMES.get(story.review.outcome, story.review.outcome) if story.review else "none filed"),
        ),
        _timeline(story),
        _section("Who asked for what, and why", _asking(story, names)),
        _section("Who decided", _deciding(story, names)),
        _section("Credentials", _credentials(story, names)),
        _section("Commands", _commands(story)),
        _section("Review", _review(story, names)),
        _section("Follow-ups", _follow_ups(story, names)),
        _section("Every entry", _entries(story)),
        _section("How to check this page", _checking(story, about)),
    ]
    return _page(title, lead, body, about)


@dataclass(frozen=True, slots=True)
class Beside:
    """What a reviewer reads beside a request's own story, as (heading, sentences) and as (name, words)."""

    findings: Sequence[str]
    compared: Sequence[tuple[str, Sequence[str]]]
    rules: Sequence[tuple[str, str]]


def review_page(story: Story, beside: Beside, about: About, names: Names) -> bytes:
    """Return the page for whoever reviews a use (UTF-8): what to look at comes first."""
    title = f"Review pack of {story.id}"
    lead = (
        f'<p class="over">Emergency access, for its reviewer</p><h1>{_e(title)}</h1>'
        f'<p><span class="state">{_e(story.state or "state not known")}</span></p>'
    )
    compared = "".join(f"<h3>{_e(head)}</h3>{_lines(lines)}" for head, lines in beside.compared)
    body = [
        _section("What to look at", _lines(beside.findings) or "<p>Nothing stands out, by the rules of this pack.</p>"),
        _section("Compared with earlier uses", compared),
        _timeline(story),
        _section("Who asked for what, and why", _asking(story, names)),
        _section("The rules in force", _list([(name, _e(words)) for name, words in beside.rules])),
        _section("Who decided", _deciding(story, names)),
        _section("Credentials", _credentials(story, names)),
        _section("Commands", _commands(story)),
        _section("Every entry", _entries(story)),
        _section(
            "How to check this page",
            "<p>It is drawn from the log, and is not the evidence itself: <code>breakglass export</code> gives that, "
            "with proofs.</p>",
        ),
    ]
    return _page(title, lead, body, about)


def _lines(lines: Iterable[str]) -> str:
    found = "".join(f"<li>{_e(line)}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else ""


def _asking(story: Story, names: Names) -> str:
    if not story.is_whole:
        return "<p>This selection begins after the opening, which would say so.</p>"
    rows: list[tuple[str, str]] = [
        ("Account and level", _e(f"{story.account}, {story.level}")),
        ("Requester", _e(who(story.requester, names))),
        ("Threshold", f"{_e(story.threshold_text)} <code>{_e(story.threshold)}</code>"),
        ("Reason", f"<blockquote>{_e(story.reason)}</blockquote>"),
        ("Why not the usual way", f"<blockquote>{_e(story.standard_path)}</blockquote>"),
        ("Incident", _e(story.incident)),
        ("Time asked for", _e(say(story.asked_seconds))),
        ("Custodians asked", _e(", ".join(who(person, names) for person in story.custodians) or "nobody")),
        ("Approvals needed", _e(story.quorum)),
        ("Policy and custodians in force", f"<code>{_e(story.policy)}</code>"),
    ]
    if story.policy_file:
        rows.append(("Policy file", f"<code>{_e(story.policy_file)}</code> (SHA-256)"))
    return _list(rows)


def _deciding(story: Story, names: Names) -> str:
    if not story.votes:
        return "<p>No custodian decided about it.</p>"
    rows = [
        (
            moment(vote.at),
            who(vote.person, names),
            "approved" if vote.approved else "denied",
            say(vote.seconds) if vote.approved else "-",
            vote.reason or "-",
            f"#{vote.seq}",
        )
        for vote in story.votes
    ]
    told = f"The quorum was reached {moment(story.approved_at)}, {say(story.to_approve)} after the opening."
    after = f"<p>{_e(told)}</p>" if story.approved_at else "<p>The quorum was not reached.</p>"
    return _table("Answers of custodians", ("When", "Who", "Answer", "For", "Reason", "Entry"), rows) + after


def _credentials(story: Story, names: Names) -> str:
    if not story.credentials:
        return "<p>No credential was asked for.</p>"
    rows = [
        (
            str(one.number),
            one.identity or "-",
            moment(one.issued_at) if one.issued_at else "never issued",
            moment(one.expires_at),
            moment(one.ended_at) if one.ended_at else "not known to have ended",
            one.end or "-",
        )
        for one in story.credentials
    ]
    heads = ("No.", "Login at the target", "Issued", "Was to end", "Ended", "How")
    found = _table("Credentials of this request; the secret itself is on no record", heads, rows)
    if story.ended_at is not None:
        by = "" if story.ended_by_person in {"", "system"} else f", {who(story.ended_by_person, names)}"
        told = (
            f"It was {ENDINGS.get(story.ended_by, story.ended_by)}{by}. Vault confirmed that the lease is gone "
            f"{moment(story.ended_at)}, {say(story.to_end)} after that was decided."
        )
        found += f"<p>{_e(told)}</p>"
    return found


def _commands(story: Story) -> str:
    told = executed.summary(story.use)
    if not told and not story.executed:
        return f"<p>{executed.NONE}</p>"
    found = "".join(f"<p>{_e(line)}</p>" for line in told)
    if not story.executed:
        return found
    lines = []
    for one in story.executed:
        marks = _e(executed.marks(one))
        bad = f'<span class="bad">{marks}</span>' if one.is_alarming else marks
        lines.append(
            f'<tr><th scope="row" class="nw">{_e(_time(one.at))}</th><td>{_e(executed.where(one)) or "-"}</td>'
            f'<td><code class="cmd">{_e(executed.words(one))}</code></td><td>{bad or "-"}</td>'
            f'<td class="n">#{one.seq}</td></tr>'
        )
    heads = ("When (UTC)", "Source and login", "Command", "What it was")
    head = "".join(f'<th scope="col">{_e(name)}</th>' for name in heads) + '<th scope="col" class="n">Entry</th>'
    more = story.entries - len(story.steps) - len(story.executed)
    after = f"<p>{more} more stand in <code>entries.jsonl</code>, which has all of them.</p>" if more else ""
    return (
        f"{found}{_scroll('commands')}<caption>In the order of the log; times are the target's.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{after}"
    )


def _review(story: Story, names: Names) -> str:
    review = story.review
    if review is None:
        due = f" It is due {moment(story.review_due_at)}." if story.review_due_at else ""
        owner = f" It is {who(story.review_owner, names)}'s to file." if story.review_owner else ""
        return f"<p>No review is on record.{_e(due + owner)}</p>"
    second = story.second
    told = _list(
        [
            ("Reviewer", _e(who(review.person, names))),
            ("Filed", _e(f"{moment(review.at)}, {say(story.to_review)} after the end; entry #{review.seq}")),
            ("Outcome", _e(OUTCOMES.get(review.outcome, review.outcome))),
            ("Threshold was met", _yes(review.threshold_met) + _quoted(review.threshold_why)),
            ("The usual way would have done", _yes(review.standard_path_enough) + _quoted(review.standard_path_why)),
            ("Used as stated", _yes(review.used_as_stated)),
            ("Findings", f"<blockquote>{_e(review.findings)}</blockquote>"),
        ]
    )
    if second is None:
        return told + ("<p>It waits for a second reviewer.</p>" if story.state == "ended" else "")
    return told + _list(
        [
            ("Second reviewer", _e(who(second.person, names))),
            ("Filed", _e(f"{moment(second.at)}; entry #{second.seq}")),
            ("Outcome", _e(OUTCOMES.get(second.outcome, second.outcome))),
            ("Agrees with the first", _yes(second.outcome == review.outcome)),
            ("Findings", f"<blockquote>{_e(second.findings)}</blockquote>"),
        ]
    )


def _quoted(words: str) -> str:
    return f"<blockquote>{_e(words)}</blockquote>" if words else ""


def _follow_ups(story: Story, names: Names) -> str:
    if story.review is None or not story.review.follow_ups:
        return "<p>None.</p>"
    rows = [
        (
            one.what,
            who(one.owner, names),
            one.due,
            f"{moment(one.closed_at)}, {who(one.closed_by, names)}: {one.note}" if one.closed_at else "not yet",
        )
        for one in story.review.follow_ups
    ]
    return _table("What the review wants done", ("What", "Owner", "Due", "Done"), rows)


def _entries(story: Story) -> str:
    lines = []
    for number, step in enumerate(story.steps, start=1):
        said = f'<span class="said">“{_e(step.typed)}”</span>' if step.typed else ""
        text = _e(step.text)
        if step.is_refusal or not step.is_readable:
            text = f'<span class="bad">{"Refused: " if step.is_refusal else ""}</span>{text}'
        lines.append(
            f'<tr><th scope="row" class="n">{number}</th><td class="n">#{step.seq}</td>'
            f'<td class="t">{_e(_time(step.at))}'
            f"</td><td>{_e(step.who) or '-'}</td><td>{text}{said}"
            f'<code class="leaf">{_e(step.event)} {_e(step.leaf)}</code></td></tr>'
        )
    head = "".join(
        f'<th scope="col"{cls}>{name}</th>'
        for name, cls in (("No.", ' class="n"'), ("Entry", ' class="n"'), ("When", ""), ("Who", ""), ("What", ""))
    )
    return (
        f"{_scroll('every entry')}<caption>In the order of the log; commands have their own table. The last line of "
        "each is its event, and the leaf hash under which it stands in the log.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _checking(story: Story, about: About) -> str:
    whole = (
        f"Entry #{story.closing} states how many entries this request had until then, and one hash over them: none is "
        "missing."
        if story.closing is not None
        else "No closing entry in this selection states how many entries the request has, so completeness is not shown."
    )
    return (
        "<p>This page is drawn from <code>entries.jsonl</code> beside it and is not the evidence itself. "
        "<code>README.txt</code> shows how each entry is verified with tools that are not ours.</p>"
        f"<p>{_e(whole)}</p>" + _standing(about)
    )


def _timeline(story: Story) -> str:
    picture = timeline.draw(story)
    if not picture.bars:
        return f"<p>{_e(picture.told)}</p>"
    parts = []
    for bar in picture.bars:
        dashes = ' stroke-dasharray="5 4"' if bar.is_open else ""
        parts.append(
            f'<rect class="bar k{bar.kind}" x="{bar.x:.1f}" y="66" width="{bar.width:.1f}" height="46" rx="4"{dashes}/>'
            f'<text class="b" x="{bar.x + 8:.1f}" y="85">{_e(bar.name)}</text>'
            f'<text x="{bar.x + 8:.1f}" y="103">{_e(bar.length)}{" so far" if bar.is_open else ""}</text>'
            f'<text class="s" x="{bar.x:.1f}" y="130">{bar.start:%H:%M:%S}</text>'
            f'<text class="s" x="{bar.x:.1f}" y="146">{bar.start:%Y-%m-%d}</text>'
        )
    for mark in picture.marks:
        x, y = 12 + mark.x * 0.976, 50 - mark.row * 19
        shape = (
            f'<rect class="no" x="{x - 8:.1f}" y="{y - 8:.1f}" width="16" height="16"/>'
            if mark.is_refusal
            else f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="8.5"/>'
        )
        parts.append(f'{shape}<text class="m" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle">{mark.number}</text>')
    count = f"{len(picture.marks)} entries are marked"
    refused = sum(mark.is_refusal for mark in picture.marks)
    told = f"{picture.told} {count}{f', {refused} of them refusals' if refused else ''}."
    return (
        '<section aria-labelledby="timeline"><h2 id="timeline">Timeline</h2><figure>'
        f'<svg viewBox="-1 0 1002 152" role="img" aria-label="{_e(told)}">{"".join(parts)}</svg>'
        f"<figcaption>Not to scale; lengths are written out, times are UTC. Numbers are those of the table “Every "
        f"entry”; square marks are refusals. {_e(picture.told)}</figcaption></figure></section>"
    )


# --- all of them ---------------------------------------------------------------------------------------------------


def period_page(
    period: Period, integrity: approvers.Integrity, about: About, names: Names, file: Callable[[str], str]
) -> bytes:
    """Return the page of all requests; ``file`` gives the name under which a request's page lies."""
    lead = (
        '<p class="over">Emergency access, all requests</p><h1>Break-glass requests of a period</h1>'
        f"<p>Selection: {_e(about.what())}.</p>"
    )
    shown = period.rows[:MOST_ROWS]
    rows = [
        f'<tr><th scope="row" class="nw"><a href="requests/{_e(file(row.id))}.html">{_e(row.id)}</a></th>'
        f'<td class="nw">{_e(_time(row.opened_at))}</td><td>{_e(row.account or "-")}, {_e(row.level or "-")}</td>'
        f"<td>{_e(who(row.requester, names)) if row.requester else '-'}</td><td>{_e(row.state or 'unknown')}</td>"
        f"<td>{_e(', '.join(who(person, names) for person in row.approvers) or '-')}</td>"
        f'<td class="n">{_e(say(row.to_approve))}</td><td class="n">{_e(say(row.seconds_out))}</td>'
        f"<td>{_e(OUTCOMES.get(row.outcome, row.outcome) or '-')}</td></tr>"
        for row in shown
    ]
    heads = ("Request", "Opened (UTC)", "Account, level", "Requester", "State", "Approved by")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    head += '<th scope="col" class="n">To approve</th><th scope="col" class="n">Out for</th><th scope="col">Review</th>'
    more = len(period.rows) - len(shown)
    note = f"<p>{more} more stand in <code>population.csv</code>, which has all of them.</p>" if more else ""
    counted = [(state, str(count)) for state, count in period.states().items()]
    reviewed = [(OUTCOMES.get(outcome, outcome), str(count)) for outcome, count in period.outcomes().items()]
    due = sum(row.state == "ended" for row in period.real)
    body = [
        _figures(
            ("Requests", str(len(period.real))),
            *(() if not period.drills else (("Drills, not counted", str(period.drills)),)),
            ("Granted", str(sum(row.to_approve is not None for row in period.real))),
            ("Median time to approve", say(period.median_to_approve())),
            ("Ended, not reviewed", str(due)),
            ("Refusals on record", str(sum(row.refusals for row in period.real))),
        ),
        _section(
            "Population",
            "<p>Every request that has an entry in this selection, by its state at the head. Draw a sample from the "
            "list below or from <code>population.csv</code>.</p>"
            + _table("Requests by state", ("State", "Requests"), counted, numbers=(1,))
            + (
                _table("Reviews by outcome", ("Outcome", "Reviews"), reviewed, numbers=(1,))
                if reviewed
                else "<p>No review was filed.</p>"
            ),
        ),
        _section("Integrity of the approvers", _integrity(integrity, names)),
        _section(
            "All requests",
            f"{_scroll('all requests')}<caption>In the order of their first entries.</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}",
        ),
        _section(
            "How to check this page",
            "<p>This page is drawn from <code>entries.jsonl</code> beside it and is not the evidence itself. "
            "<code>README.txt</code> shows how each entry is verified with tools that are not ours.</p>"
            + _standing(about),
        ),
    ]
    return _page("Break-glass requests of a period", lead, body, about)


def _integrity(found: approvers.Integrity, names: Names) -> str:
    notes = "".join(f"<p><strong>Note:</strong> {_e(limit)}</p>" for limit in found.limits)
    outliers = found.outliers(names)
    told = (
        f"<ul>{''.join(f'<li>{_e(sentence)}</li>' for sentence in outliers)}</ul>"
        if outliers
        else f"<p>{_e(found.conclusion())}</p>"
    )
    rules = "".join(f"<li>{_e(rule)}</li>" for rule in approvers.RULES)
    people = [(who(one.person, names), *approvers.counts(one), found.standing(one)) for one in found.custodians]
    given = [
        (who(one.person, names), approvers.asker(one.requester, names), f"{one.number} of {one.of}", one.share)
        for one in found.given
    ]
    denials = [
        (
            who(one.person, names),
            f"{one.request}, {approvers.asker(one.requester, names)}",
            one.reason or "-",
            _time(one.at),
            f"#{one.seq}",
        )
        for one in found.denials
    ]
    refusals = [(who(one.person, names), one.code, str(one.number), str(one.own)) for one in found.refusals]
    return (
        f"<p>{_e(approvers.HOW)}</p>{notes}<h3>What stands out</h3>{told}"
        f"<h3>By these rules</h3><ul>{rules}</ul><h3>Each custodian</h3>"
        + _rows("Answers of each custodian", ("Custodian", *approvers.HEADS, "What can be said"), people, "was asked")
        + "<h3>Approvals, to whom</h3>"
        + _rows("Approvals of each custodian by requester", approvers.GIVEN_HEADS, given, "approved", numbers=(2, 3))
        + "<h3>Denials and their reasons</h3>"
        + _rows("Denials, in the order of the log", approvers.DENIAL_HEADS, denials, "denied")
        + "<h3>Attempts to decide that were refused</h3>"
        + _rows("Refused attempts by code", approvers.REFUSAL_HEADS, refusals, "was refused", numbers=(2, 3))
    )


def _rows(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], verb: str, *, numbers: Sequence[int] = ()
) -> str:
    if not rows:
        return f"<p>Nobody {verb} in this selection.</p>"
    more = f"<p>{approvers.more(len(rows) - approvers.MOST_ROWS)}</p>" if len(rows) > approvers.MOST_ROWS else ""
    return _table(caption, heads, rows[: approvers.MOST_ROWS], numbers=numbers) + more


# --- controls ------------------------------------------------------------------------------------------------------


def controls_page(ledger: controls.Ledger, about: About) -> bytes:
    """Return the page that leads from a control to entries."""
    lead = (
        '<p class="over">Emergency access, controls</p><h1>Which entries speak to which control</h1>'
        f"<p>{_e(controls.CAVEAT)}</p>"
    )
    body = []
    for framework, rows in controls.by_framework(ledger):
        cells = [(one.control.id, one.control.title, one.control.shows, one.told()) for one in rows]
        heads = ("Control", "Title", "What the log shows", "Entries in this selection")
        body.append(_section(framework, _table(f"{framework}: controls and entries", heads, cells)))
    body.append(_section("How to check this page", _standing(about)))
    return _page("Controls and entries", lead, body, about)


# --- parts ---------------------------------------------------------------------------------------------------------


def _page(title: str, lead: str, body: Iterable[str], about: About) -> bytes:
    names = " Names of people are as Slack had them when this was exported; the log has their ids." * about.has_names
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{_e(title)}</title><style>{_STYLE}</style></head><body>"
        f'<header class="wide">{lead}</header><main class="wide">{"".join(body)}</main>'
        f'<footer class="wide"><p>Drawn from the break-glass log{_e(f" {about.origin}" if about.origin else "")} as of '
        f"{_e(moment(about.at))}. All times are UTC.{_e(names)}</p></footer></body></html>\n"
    ).encode()


def _standing(about: About) -> str:
    origin = _e(about.origin) if about.origin else "not signed: compare the root with one that you received otherwise"
    return _list(
        [
            ("Log", origin),
            ("Selection", f"{_e(about.what())}; {about.entries} entries"),
            ("Head", f"{about.size} entries, as of {_e(moment(about.at))}"),
            ("Root", f"<code>{_e(about.root)}</code>"),
        ]
    )


def _section(title: str, inside: str) -> str:
    anchor = "".join(char if char.isalnum() else "-" for char in title.lower())
    return f'<section aria-labelledby="{_e(anchor)}"><h2 id="{_e(anchor)}">{_e(title)}</h2>{inside}</section>'


def _figures(*pairs: tuple[str, str]) -> str:
    return f'<ul class="figures">{"".join(f"<li>{_e(name)}<b>{_e(value)}</b></li>" for name, value in pairs)}</ul>'


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{_e(name)}</dt><dd>{value}</dd>' for name, value in rows)}</dl>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    def cls(place: int) -> str:
        return ' class="n"' if place in numbers else ""

    head = "".join(f'<th scope="col"{cls(place)}>{_e(name)}</th>' for place, name in enumerate(heads))
    lines = []
    for row in rows:
        first, *rest = row
        cells = "".join(f"<td{cls(place)}>{_e(cell)}</td>" for place, cell in enumerate(rest, start=1))
        lines.append(f'<tr><th scope="row">{_e(first)}</th>{cells}</tr>')
    return (
        f"{_scroll(caption, is_narrow=bool(numbers))}<caption>{_e(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _scroll(name: str, *, is_narrow: bool = False) -> str:
    """Begin a table that scrolls by itself, also by keyboard."""
    return (
        f'<div class="scroll{" few" if is_narrow else ""}" role="region" aria-label="Table: {_e(name)}" tabindex="0">'
        "<table>"
    )


def _time(at: object) -> str:
    return moment(at).removesuffix(" UTC") if at else "-"  # type: ignore[arg-type]


def _yes(flag: bool | None) -> str:  # noqa: FBT001 - what the review ticked
    return "not said" if flag is None else "yes" if flag else "no"


def _e(text: object) -> str:
    """Escape for text and for quoted attributes. Control characters, which HTML forbids, become visible."""
    return html.escape(_CONTROL.sub("\ufffd", str(text)), quote=True)
