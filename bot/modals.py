"""What is opened in front of a person: the forms, the credential, the Home tab, the answers to commands?

Rules
-----
* Block ids and action ids of an input are the same word (see ``views``). Slack keeps what was typed in a block while
  its ids stay, so a redrawn form loses nothing.
* What a choice depends on is drawn once that choice is made: levels and thresholds below an account, the time below a
  level. So no input ever offers what the other account had.
* The forms say what will happen next; the words are for somebody at three in the morning.
* :func:`credential` alone shows a secret, and :func:`parcel` what gives one out once. A modal is not part of any
  message history.

This module is pure.
"""

from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bot import commands, pack_view, review_words, reviews, tiers, views
from bot.blockkit import (
    MOST_OPTIONS,
    Block,
    actions,
    button,
    clean,
    clip,
    context,
    copyable,
    divider,
    escape,
    header,
    joined,
    label,
    mention,
    people,
    plain_text,
    plural,
    rich,
    say,
    section,
    typed,
    when,
)
from storage.models import Outcome
from workflows import asking
from workflows.delivery import Delivery, Parcel
from workflows.engines import ENGINES
from workflows.policy import OVERDUE, WORDS, say_duration
from workflows.reviewing import LEAST_WORDS
from workflows.ssh_keys import looks_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from storage.commands import Command, Tally
    from storage.models import FollowUp, Request
    from workflows.control_group import Question
    from workflows.door import Case
    from workflows.engines import Credential
    from workflows.policy import Account, Level, Policy, Verdict

View = dict[str, Any]

YES: Final = "yes"
NO: Final = "no"
TITLE: Final = "Emergency access"
_VERDICTS: Final = (
    {"text": plain_text("Real emergency, justified", 75), "value": Outcome.JUSTIFIED.value},
    {"text": plain_text("Unnecessary, not justified", 75), "value": Outcome.NOT_JUSTIFIED.value},
    {"text": plain_text("Misuse (a second reviewer is asked)", 75), "value": Outcome.MISUSE.value},
    {"text": plain_text("A drill", 75), "value": Outcome.DRILL.value},
)
_MOST_INPUT: Final = 3000  # characters of a plain_text_input
_LISTED: Final = 10  # cases under one heading of the Home tab
# What a credential may have, by its attribute, and what the person at the keyboard calls it.
_VALUES: Final = (
    ("User", "username"),
    ("Password", "password"),
    ("Host", "host"),
    ("Port", "port"),
    ("Database", "database"),
)


# --- parts ------------------------------------------------------------------------------------------------------------


def _modal(callback_id: str, title: str, blocks: Sequence[Block], *, submit: str = "", about: str = "") -> View:
    view: View = {
        "type": "modal",
        "callback_id": callback_id,
        "title": plain_text(title, 24),
        "close": plain_text("Cancel" if submit else "Close", 24),
        "blocks": list(blocks),
        "private_metadata": about,
    }
    if submit:
        view["submit"] = plain_text(submit, 24)
    return view


def _input(word: str, text: str, element: Block, *, hint: str = "", optional: bool = False) -> Block:
    block: Block = {
        "type": "input",
        "block_id": word,
        "label": plain_text(text, 2000),
        "element": {**element, "action_id": word},
        "optional": optional,
    }
    if hint:
        block["hint"] = plain_text(hint, 2000)
    return block


def _text(
    *, placeholder: str, initial: str = "", is_long: bool = False, least: int = 0, most: int = _MOST_INPUT
) -> Block:
    element: Block = {
        "type": "plain_text_input",
        "multiline": is_long,
        "max_length": most,
        "placeholder": plain_text(placeholder, 150),
    }
    if least > 1:
        element["min_length"] = least
    if initial := clip(clean(initial, is_line=not is_long), most):
        element["initial_value"] = initial
    return element


def _option(text: str, value: str) -> Block:
    return {"text": plain_text(text, 75), "value": value}


def _choice(kind: str, options: Sequence[Block], chosen: str | None, placeholder: str = "") -> Block:
    element: Block = {"type": kind, "options": list(options)}
    if placeholder:
        element["placeholder"] = plain_text(placeholder, 150)
    if found := next((option for option in options if option["value"] == chosen), None):
        element["initial_option"] = found
    return element


def sentence(title: str, text: str) -> View:
    """Return a modal that says one thing: any refusal, any "done"."""
    return _modal(views.NOTICE, title, [section(say(text) or "Nothing is known about this.")])


def loading(title: str) -> View:
    """Return what is opened within the trigger's three seconds, before anything is looked up."""
    return _modal(views.NOTICE, title, [section("⏳ One moment…")])


# --- asking -----------------------------------------------------------------------------------------------------------


def request_form(
    accounts: Sequence[Account],
    policy: Policy,
    *,
    account: Account | None,
    level: Level | None,
    verdict: Verdict | None,
    values: Mapping[str, str] = MappingProxyType({}),
) -> View:
    """Return the request form. ``values``: what is filled in so far, by block id."""
    blocks: list[Block] = []
    if not accounts:
        return sentence(TITLE, "The policy has no account that you may ask for. Ask your team's lead.")
    offered = list(accounts[:MOST_OPTIONS])
    if account is not None and account not in offered:
        offered[-1] = account
    options = [_option(entry.title, entry.name) for entry in offered]
    if account is not None and verdict is not None and any(one.code == OVERDUE for one in verdict.unmet):
        return _blocked(options, account, level, verdict)
    blocks.append(
        _dispatching(
            _input(
                views.ACCOUNT,
                "What do you need to get into?",
                _choice("static_select", options, account.name if account else None, "Choose an account"),
            )
        )
    )
    if account is not None:
        blocks += _about(account, level, verdict, policy)
        chosen = [_option(_level_text(entry), entry.name) for entry in account.real_levels.values()]
        name = level.name if level else None
        blocks.append(
            _dispatching(
                _input(views.LEVEL, "How much access?", _choice("static_select", chosen, name, "Choose a level"))
            )
        )
        blocks.append(_thresholds(account, values.get(views.THRESHOLD)))
    blocks += _words(account, values)
    if level is not None:
        blocks.append(
            _input(
                views.DURATION,
                "For how long?",
                _text(
                    placeholder=_short(level.default),
                    initial=values.get(views.DURATION, "") or _short(level.default),
                    most=20,
                ),
                hint=f"Such as 15m or 1h. At most {say_duration(level.longest)}, counted from when you open it.",
            )
        )
        if needs_key(level):
            blocks.append(_key(values.get(views.PUBLIC_KEY, "")))
    return _modal(views.OPEN_FORM, TITLE, blocks, submit="Ask for access")


def _blocked(options: Sequence[Block], account: Account, level: Level | None, verdict: Verdict) -> View:
    """Return the form of an account that is shut to this person: what shuts it, and no way to send it off."""
    why = next(one.sentence for one in verdict.unmet if one.code == OVERDUE)
    chosen = [_option(_level_text(entry), entry.name) for entry in account.levels.values()]
    accounts = _choice("static_select", options, account.name, "Choose an account")
    levels = _choice("static_select", chosen, level.name if level else None, "Choose a level")
    return _modal(
        views.OPEN_FORM,
        TITLE,
        [
            section(f"⛔ *{say(why, 900).replace('*', '')}*"),
            *actions(views.ACCOUNT, [{**accounts, "action_id": views.ACCOUNT}]),
            *actions(views.LEVEL, [{**levels, "action_id": views.LEVEL}]),
            context("Nothing can be asked for here until then. Another account may be."),
        ],
    )


def needs_key(level: Level) -> bool:
    """Whether who asks for the level brings a public key."""
    return ENGINES[level.settings.engine].needs_public_key


def _key(typed: str) -> Block:
    # A private key that was pasted by mistake is not drawn again.
    return _input(
        views.PUBLIC_KEY,
        "Your SSH public key",
        _text(placeholder="ssh-ed25519 AAAA…", initial="" if looks_private(typed) else typed),
        hint="The one line of your .pub file, never the private key. The custodians see its fingerprint.",
    )


def _dispatching(block: Block) -> Block:
    return {**block, "dispatch_action": True}


def _level_text(level: Level) -> str:
    return f"{level.title} (up to {_short(level.longest)})" if len(level.title) < 55 else level.title


def _about(account: Account, level: Level | None, verdict: Verdict | None, policy: Policy) -> list[Block]:
    lines = [escape(account.system, 400), f"*First try*: {escape(account.standard_path, 1100)}"]
    asked = verdict.counting if verdict else ()
    lines.append(f"*Who is asked*: {people(asked)}. Owner: {mention(account.owner)}.")
    if level is not None and verdict is not None:
        sign = "🔑" if verdict.is_allowed else "⛔"
        lines.append(f"{sign} *{say(verdict.sentence, 600).replace('*', '')}*")
    small = (
        "Leadership and security are told at once, every step is on record, and the use is reviewed within "
        f"{say_duration(policy.review_within)}."
    )
    return [*(section(text) for text in joined(lines)), context(small)]


def _thresholds(account: Account, chosen: str | None) -> Block:
    # An option shows 75 characters; a threshold may be longer, so its full text stands in the hint.
    entries = list(account.thresholds.values())
    options = [_option(entry.text, entry.id) for entry in entries]
    cut = [entry.text for entry in entries if len(entry.text) > 75]
    return _input(
        views.THRESHOLD,
        "Which documented threshold is met?",
        _choice("radio_buttons" if len(options) <= 10 else "static_select", options, chosen),
        hint="In full: " + " / ".join(cut) if cut else "",
    )


def _words(account: Account | None, values: Mapping[str, str]) -> list[Block]:
    def text(word: str, placeholder: str, *, is_long: bool = True) -> Block:
        least, most = WORDS[word]
        return _text(
            placeholder=placeholder, initial=values.get(word, ""), is_long=is_long, least=least, most=min(most, 3000)
        )

    path = f"The standard path is: {account.standard_path}" if account else ""
    return [
        _input(
            views.REASON, "Why do you need it?", text(views.REASON, "What is broken, and what will you do with it?")
        ),
        _input(
            views.STANDARD_PATH,
            "What did you try first, and why is it not enough?",
            text(views.STANDARD_PATH, "Whom did you page, when, what came back?"),
            hint=path,
        ),
        _input(views.INCIDENT, "Incident reference", text(views.INCIDENT, "Such as INC-4711 or a link", is_long=False)),
    ]


def _short(span: timedelta) -> str:
    """Return a duration as it is typed, "1h30m"."""
    rest, out = int(span.total_seconds()), ""
    for letter, unit in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, unit)
        out += f"{count}{letter}" if count else ""
    return out or "1m"


# --- deciding ---------------------------------------------------------------------------------------------------------


def deny_form(about: str) -> View:
    """Return the form that asks for the reason. ``about`` is the button's value, "BG-7KQ2 3"."""
    name = about.partition(" ")[0]
    reason = _text(placeholder="The requester and the review read this", is_long=True, most=2000)
    return _modal(
        views.DENY_FORM,
        f"Deny {name}",
        [_input(views.REASON, "Why do you deny it?", reason, hint="One denial ends the request at once.")],
        submit="Deny",
        about=about,
    )


def shorten_form(case: Case, policy: Policy, about: str) -> View:
    """Return the form that approves for a shorter time, and with a second factor where the level takes one."""
    takes_code = views.takes_code(case, policy)
    asked = timedelta(seconds=case.request.asked_seconds)
    blocks = [
        section(f"{mention(case.request.requester)} asks for *{views.what(case, policy)}* for {say_duration(asked)}."),
        rich([label("Why"), typed(case.request.reason)]),
        _input(
            views.DURATION,
            "Approve for how long?",
            _text(placeholder=_short(asked), initial=_short(asked), most=20),
            hint=f"From 1m to {_short(asked)}. When custodians differ, the shortest time counts.",
        ),
    ]
    if takes_code:
        hint = "Six digits, of your own authenticator. Each code works once. You answer for this decision."
        blocks.append(_input(views.CODE, "Your code", _text(placeholder="123456", most=12), hint=hint))
    return _modal(views.SHORTEN_FORM, f"Approve {case.request.id}", blocks, submit="Approve", about=about)


# --- the credential ---------------------------------------------------------------------------------------------------


def revealing(name: str) -> View:
    """Return what stands in front of the requester while the credential is made. ``name`` is the request's id."""
    return _modal(
        views.CREDENTIAL,
        name,
        [section("🔑 Your credential is being made…\nIt appears here in a moment. Keep this window open.")],
    )


def held(name: str, copies: Sequence[str]) -> View:
    """Return what stands there while the log's required copies are waited for."""
    listed = ", ".join(f"`{escape(copy, 100)}`" for copy in copies)
    return _modal(
        views.CREDENTIAL,
        name,
        [
            section(
                f"⏳ Waiting for the log's copy {listed}…\nYour credential is made only when what led to it is on "
                "record there. It appears here by itself; keep this window open."
            )
        ],
    )


def asked(question: Question) -> View:
    """Return what stands there while custodians are asked to authorise it with keys of their own."""
    return _modal(
        views.CREDENTIAL,
        question.request_id,
        [
            section(
                f"⏳ Waiting for {plural(question.need, 'custodian')} with keys of their own…\nVault gives your "
                f"credential out only when they have authorised it, within {say_duration(question.within)}. They were "
                "told in the thread; each of them types this. It appears here by itself; keep this window open."
            ),
            rich([copyable(question.command())]),
        ],
    )


def credential(case: Case, made: Credential, *, now: datetime) -> View:
    """Return the only view that shows a secret: the line to paste, then each value in a box of its own."""
    until = case.request.expires_at or now + made.ttl
    blocks: list[Block] = [
        section(
            f"*Until {when(until)}.* Press *Done* in our direct message when you are finished.\n"
            "This is shown once and is not kept anywhere. If you lose it, press *Show again* there: you get a fresh "
            "one, and this one ends."
        )
    ]
    lines = made.lines()
    for number, line in enumerate(lines):
        blocks.append(rich([label("Paste this into a terminal" if number == 0 else "Or this"), copyable(line)]))
    for text, attribute in _VALUES:
        # An engine's own word for the account goes before the name that uses are attributed by.
        found = getattr(made, "login", None) if attribute == "username" else None
        found = found or getattr(made, attribute, None)
        if found not in (None, ""):
            blocks.append(rich([label(text), copyable(str(found))]))
    # What only some engines have, in their own words.
    for text, value in getattr(made, "shown", ()):
        blocks.append(rich([label(text), copyable(value)]))
    return _modal(views.CREDENTIAL, case.request.id, blocks)


def handed_over(case: Case, made: Credential | Parcel, *, now: datetime) -> View:
    """Return what a requester is shown at Reveal, in whatever way the level delivers."""
    return parcel(case, made) if isinstance(made, Parcel) else credential(case, made, now=now)


def parcel(case: Case, made: Parcel) -> View:
    """Return the view of a credential that nobody has seen yet: how to open it, once."""
    row = case.request
    end = f" The access ends {when(made.ends_at)}." if made.ends_at else ""
    blocks: list[Block] = [
        section(
            f"*Open it before {when(made.until, '{time_secs}')}: it works once.* Neither the bot nor Slack has the "
            f"credential; Vault gives it to whoever opens it first.{end}"
        )
    ]
    if made.way is Delivery.CLI:
        blocks += [
            rich([label("Type this into a terminal"), copyable(f"breakglass open {row.id}")]),
            rich([label("It asks for this code"), copyable(made.code())]),
        ]
    else:
        blocks.append(rich([label("Paste this into a terminal"), copyable(made.command())]))
        if made.username:
            blocks.append(rich([label("User"), copyable(made.username)]))
        for text, key in (("Host", "host"), ("Port", "port"), ("Database", "database")):
            if key in made.options:
                blocks.append(rich([label(text), copyable(made.options[key])]))
    blocks.append(
        section(
            "It says that it was opened before, and that was not you? Press *Already used* in our direct message: the "
            "access ends and security is called. Too late, or lost? *Show again* there. Finished? *Done*."
        )
    )
    return _modal(views.CREDENTIAL, row.id, blocks)


# --- the commands -----------------------------------------------------------------------------------------------------


def commands_page(about: str, page: int, found: Sequence[Command | None], *, has_more: bool) -> View:
    """Return one page, counted from 0, of the commands that a post is about. ``about``: its request and entries."""
    request_id = about.partition(" ")[0]
    return _modal(views.NOTICE, request_id, commands.window(found, about, page, has_more=has_more))


# --- the review -------------------------------------------------------------------------------------------------------


def review_form(case: Case, policy: Policy, about: str, use: Tally) -> View:
    """Return the review form: what was said before and what was run, then the questions. ``use``: what was run."""
    row = case.request
    account = policy.accounts.get(row.account)
    level = account.levels.get(row.level) if account else None
    source = (level.capture_source if level else None) or ""
    asked = [
        section("\n".join(line for line in views.used(case, policy) if line)),
        rich(
            [
                label("Why"),
                typed(row.reason, 1000),
                label("Documented threshold", views.threshold_text(case, policy)),
                label("Tried on the standard path"),
                typed(row.standard_path, 1000),
            ]
        ),
        *commands.review(use, was_issued=any(grant.issued_at for grant in case.grants), source=source),
        *actions("pack", pack_view.offer(about)),
        divider(),
    ]
    verdict = _input(views.OUTCOME, "Verdict", _choice("radio_buttons", _VERDICTS, None))
    if views.awaits_second(case):
        own = _text(placeholder="In your own words", is_long=True, least=LEAST_WORDS)
        below = [verdict, _input(views.FINDINGS, "What did you find?", own)]
        title = f"Second review {row.id}"
        return _modal(
            reviews.SECOND_FORM, title, [*asked, *review_words.filed(case), *below], submit="File", about=about
        )
    both = [_option("Yes", YES), _option("No", NO)]
    blocks = [
        *asked,
        _input(views.THRESHOLD_MET, "Was the documented threshold met?", _choice("radio_buttons", both, None)),
        _why(views.THRESHOLD_WHY, "How do you know?", "An alert, a dashboard, a ticket: what shows it"),
        _input(
            views.STANDARD_PATH_ENOUGH, "Could standard escalation have worked?", _choice("radio_buttons", both, None)
        ),
        _why(views.STANDARD_PATH_WHY, "Why, or why not?", "Who was asked, and how long it would have taken"),
        _input(views.USED_AS_STATED, "Was the access used as stated?", _choice("radio_buttons", both, None)),
        verdict,
        _input(views.FINDINGS, "What did you find?", _text(placeholder="Also when all was in order", is_long=True)),
    ]
    for number, (action, owner, due) in enumerate(views.FOLLOW_UPS, start=1):
        blocks += [
            _input(
                action,
                f"Follow-up {number}",
                _text(placeholder="What is to be done", most=500),
                optional=True,
                hint="With an owner and a date, or leave all three empty." if number == 1 else "",
            ),
            _input(
                owner,
                f"Owner of follow-up {number}",
                {"type": "users_select", "placeholder": plain_text("Choose a person", 150)},
                optional=True,
            ),
            _input(due, f"Follow-up {number} is due", {"type": "datepicker"}, optional=True),
        ]
    return _modal(views.REVIEW_FORM, f"Review {row.id}", blocks, submit="File", about=about)


def _why(word: str, text: str, placeholder: str) -> Block:
    return _input(word, text, _text(placeholder=placeholder, is_long=True, least=LEAST_WORDS, most=2000))


# --- the Home tab and the answers to commands -------------------------------------------------------------------------


def home(
    policy: Policy,
    *,
    waiting: Sequence[Case],
    mine: Sequence[Case],
    reviews: Sequence[Case],
    follow_ups: Sequence[FollowUp] = (),
    now: datetime,
) -> View:
    """Return the Home tab: what waits for this person, what they asked for, and how to ask."""
    blocks: list[Block] = [
        header(TITLE),
        section(f"Type `{views.COMMAND}` in any channel, or press the button."),
        *actions("ask", [button("Ask for access…", views.ASK, "form", style="primary")]),
    ]
    lists: tuple[tuple[str, Sequence[Case], Callable[[Case], list[Block]]], ...] = (
        ("Waiting for your decision", waiting, lambda case: views.deciding(case, policy)),
        ("Your requests", mine, views.requesting),
        ("Reviews for you to file", reviews, views.reviewing),
    )
    for number, (title, cases, buttons) in enumerate(lists):
        blocks += [divider(), section(f"*{title}* ({len(cases)})")]
        for case in cases[:_LISTED]:
            blocks.append(section(_entry(case, policy)))
            if number == 0:  # nobody should decide without having read why
                blocks.append(rich([typed(case.request.reason, 600), label("Incident", case.request.incident)]))
            blocks += actions(f"{views.BUTTONS} {number} {case.request.id}", buttons(case))
        if len(cases) > _LISTED:
            blocks.append(context(f"And {len(cases) - _LISTED} more: type `{views.COMMAND} status`."))
        if not cases:
            blocks.append(context("Nothing at the moment."))
    if follow_ups:
        blocks += [divider(), section(f"*Follow-ups of yours* ({len(follow_ups)})")]
        for one in follow_ups[:_LISTED]:
            blocks.append(section("\n".join(review_words.listed([one]))))
            blocks += actions(f"{views.BUTTONS} {one.id}", review_words.closing(one))
    return {"type": "home", "blocks": [*blocks, context(f"As of {when(now)}.")]}


def home_notice(text: str) -> View:
    """Return a Home tab that only says why it cannot be shown."""
    return {"type": "home", "blocks": [header(TITLE), section(say(text) or "-")]}


def _entry(case: Case, policy: Policy) -> str:
    clock = views.clock_words(case, policy)
    first = f"{views.state_words(case.state)} · *{case.request.id}*"
    return f"{first}\n{mention(case.request.requester)}, {views.what(case, policy)}. {clock}".strip()


def help_text() -> str:
    """Return the answer to ``/breakglass help``."""
    command = views.COMMAND
    return "\n".join(
        (
            "*Emergency access, when the standard way is not enough*",
            f"`{command}` opens the form. `{command} orders-db read 15m checkout is down` opens it filled in.",
            f"`{command} status` lists what is open for you; `{command} status BG-7KQ2` shows one request.",
            f"`{command} review BG-7KQ2` opens the review form, for reviewers.",
            f"`{command} away until friday @deputy` says who is asked besides you; `{command} back` ends it.",
            f"`{command} reassign BG-7KQ2 @sam` gives a review to another reviewer.",
            f"`{command} export BG-7KQ2` sends you its log, for auditors.",
            f"`{command} hold BG-7KQ2 why` keeps its log from being pruned, for auditors and security.",
            f"`{command} unhold BG-7KQ2 why` ends that.",
            f"`{command} drill orders-db` rehearses it; `{command} drill history orders-db` says how that went.",
            "What happens: custodians are asked, you open the credential, it ends by itself, the use is reviewed.",
        )
    )


def status_text(
    cases: Iterable[Case],
    policy: Policy,
    follow_ups: Sequence[FollowUp] = (),
    waiting: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Return the answer to ``/breakglass status``. ``waiting``: by request, lines about those who were asked."""
    entries_of = ("\n".join((_entry(case, policy), *waiting.get(case.request.id, ()))) for case in cases)
    told = [*entries_of, *review_words.listed(follow_ups)]
    if not told:
        return f"Nothing is open that concerns you. `{views.COMMAND}` asks for access."
    texts = joined(told)
    return texts[0] if len(texts) == 1 else f"{texts[0]}\n… and more; see the Home tab."


def asked_text(row: Request) -> str:
    """Return what the requester reads when the form has been sent: a sentence for :func:`sentence`."""
    # A span, because a sentence knows no time zone: it is read at once, so it is true.
    until = f" It lapses in {say_duration(row.lapse_at - row.opened_at)} if too few answer." if row.lapse_at else ""
    needed = f"{row.quorum} of {plural(len(row.custodians), 'custodian')} must approve{tiers.whose(row)}"
    return (
        f"{row.id} is on its way. {needed}: {people(asking.asked(row))}.{tiers.later(row)}{until} "
        "You get a direct message when there is something to do. You can close this window."
    )
