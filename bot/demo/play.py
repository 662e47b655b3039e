"""Does the whole thing hold? The story lived by its people, with every claim checked where it counts.

Rules
-----
* People only do what a person can do on the page; what they get is what the page shows.
* The credential is tried at the target, with ``psql`` and the very line that the modal shows.
* A claim that does not hold is printed as such, and the exit code is 1. Nothing is retried to make it hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg

from bot import views
from bot.sandbox.driver import Driver, PersonDriver, wait_for
from storage.verify import verify_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from bot.demo.run import Demo

CHANNEL: Final = "C0INCIDENT"
PATIENCE: Final = 10.0  # seconds that anything on the way may take before the claim fails


@dataclass
class Story:
    """A timeline and the claims that were checked."""

    began: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)
    held: int = 0

    def tell(self, who: str, what: str) -> None:
        """Print what somebody did or saw."""
        print(f"{time.monotonic() - self.began:6.2f} s  {who:<6} {what}", flush=True)

    def claim(self, what: str, holds: object) -> None:
        """Print whether something is so."""
        if holds:
            self.held += 1
        else:
            self.failed.append(what)
        print(f"{time.monotonic() - self.began:6.2f} s  {'':<6} {'[holds]' if holds else '[FAILS]'} {what}", flush=True)


def play(demo: Demo) -> int:
    """Live the story on a running demo. Returns 0 when every claim held, else 1."""
    story = Story()
    try:
        _live(demo, story)
    except TimeoutError as late:
        story.claim(str(late), holds=False)
    total = time.monotonic() - story.began
    if story.failed:
        print(f"\n{len(story.failed)} of {story.held + len(story.failed)} claims FAILED:")
        for what in story.failed:
            print(f"  {what}")
        return 1
    print(f"\nAll {story.held} claims held, in {total:.1f} s.")
    return 0


def _live(demo: Demo, story: Story) -> None:
    people = Driver(demo.url)
    rita, carl, olga = people.as_("U0RITA"), people.as_("U0CARL"), people.as_("U0OLGA")
    sam, ada, lena = people.as_("U0SAM"), people.as_("U0ADA"), people.as_("U0LENA")

    # 1. Rita asks.
    rita.command("/breakglass orders-db read 15m checkout is down", CHANNEL)
    form = rita.wait_for_view(views.OPEN_FORM)
    story.tell("Rita", "types /breakglass orders-db read 15m checkout is down, and gets the form filled in")
    answer = rita.fill(form).submit(
        {
            views.THRESHOLD: "customer-impact",
            views.REASON: "Checkout is down for every customer; I need to see the stuck orders",
            views.STANDARD_PATH: "Paged the database on-call at 02:58 and 03:05, nobody answers",
            views.INCIDENT: "INC-2031",
        }
    )
    story.claim("the form is accepted", answer["result"] in {"closed", "updated"})
    card = _wait(lambda: next(_cards(rita), None), "the card in #incidents")
    request_id = _request_id(card)
    story.tell("Rita", f"sees her request {request_id} as a card in #incidents")

    # 2. Everybody who must know does.
    _wait(lambda: _thread(lena, card), "the first post in the thread")
    story.claim("leadership and security were mentioned at once", _mentioned(lena) and _mentioned(sam))
    asked = _wait(lambda: _dm_with(carl, views.APPROVE), "Carl's message")
    story.tell("Carl", "gets a direct message with Approve, Approve for less… and Deny…")

    # 3. A stranger and the requester try to approve; nothing comes of it.
    for who, person in (("Olga", olga), ("Rita", rita)):
        person.click(card, views.APPROVE)
        said = _wait(person.ephemerals, f"an answer to {who}'s click")[-1]["text"]
        story.tell(who, f"clicks Approve and is told: {_with_names(people, said)}")
    story.claim("the card still waits for a custodian", rita.has(_fresh(rita, card), views.APPROVE))
    story.claim("no emergency login exists at PostgreSQL", _logins(demo) == 0)

    # 4. Carl approves.
    clicked = time.monotonic()
    carl.click(asked, views.APPROVE)
    handover = _wait(lambda: _dm_with(rita, views.REVEAL), "Rita's Reveal button")
    story.tell("Carl", f"approves; Rita has her Reveal button after {time.monotonic() - clicked:.2f} s")
    story.claim("still no emergency login exists: nothing is issued before it is opened", _logins(demo) == 0)

    # 5. Rita opens the credential and works with it.
    clicked = time.monotonic()
    rita.click(handover, views.REVEAL)
    line = _wait(lambda: _psql_line(rita), "the psql line in the modal")
    story.tell("Rita", f"presses Reveal and has the psql line after {time.monotonic() - clicked:.2f} s")
    story.claim("the login exists now, and is one", _logins(demo) == 1)
    counted = _psql(demo, line, "SELECT count(*) FROM orders")
    story.tell("Rita", f"runs  select count(*) from orders;  with it: {counted.stdout.strip()}")
    story.claim("SELECT works on what the level allows", counted.returncode == 0)
    refused = _psql(demo, line, "SELECT * FROM payment_cards")
    story.claim("payment cards are refused", "permission denied" in refused.stderr)
    # The level's sessions begin as read-only, which a session can change for itself; the rights are what counts.
    refused = _psql(demo, line, "BEGIN READ WRITE; DELETE FROM orders")
    story.claim("changing orders is refused", "permission denied" in refused.stderr)
    story.claim("the secret is in no message, no log entry and no file of the bot", not _spilled(demo, people, line))

    # 6. Rita hands it back, with a session still open.
    with psycopg.connect(_conninfo(line), autocommit=True) as session:
        rita.close()
        active = _wait(lambda: _dm_with(rita, views.RELEASE), "Rita's Done button")
        clicked = time.monotonic()
        rita.click(active, views.RELEASE)
        _wait(lambda: _cannot_log_in(line), "the login to be refused")
        story.tell("Rita", f"presses Done; a new login is refused after {time.monotonic() - clicked:.2f} s")
        _wait(lambda: _is_cut(session), "the open session to be cut")
        story.claim("the session that was still open is cut", holds=True)
    ended = _wait(lambda: "confirmed" in _words(_thread(rita, card)), "the thread to say that it is over")
    story.claim("the thread says so, and the login is gone", ended and _logins(demo) == 0)
    story.claim("psql with the same line is refused", _psql(demo, line, "SELECT 1").returncode != 0)

    # 7. Sam reviews.
    owed = _wait(lambda: _dm_with(sam, views.REVIEW), "Sam's review button")
    sam.click(owed, views.REVIEW)
    sam.fill(sam.wait_for_view(views.REVIEW_FORM)).submit(
        {
            views.THRESHOLD_MET: "yes",
            views.THRESHOLD_WHY: "Checkout failed for every customer, as the alert and the status page say.",
            views.STANDARD_PATH_ENOUGH: "no",
            views.STANDARD_PATH_WHY: "The database rota was paged twice and had not answered after 20 minutes.",
            views.USED_AS_STATED: "yes",
            views.OUTCOME: "justified",
            views.FINDINGS: "Nobody on the database rota answered for 20 minutes. Access was used to read orders only.",
        }
    )
    _wait(lambda: not rita.has(_fresh(rita, card), views.REVIEW), "the review on the card")
    story.tell("Sam", "files the review: the threshold was met, standard escalation would not have worked")

    # 8. Ada exports and verifies.
    ada.command(f"/breakglass export {request_id}", CHANNEL)
    file = _wait(lambda: next((f for m in ada.dm() for f in m.get("files") or ()), None), "the export")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file["name"]
        path.write_bytes(ada.download(file))
        report = verify_file(path)
        story.tell("Ada", f"gets {file['name']} with {report.entries} entries")
        story.claim("the export verifies", report.ok)
        events = [json.loads(json.loads(line)["body"])["event"] for line in path.read_text().splitlines()[1:-1]]
        path.write_bytes(path.read_bytes().replace(b"Checkout is down", b"Checkout is fine", 1))
        story.claim("with one word changed it does not", not verify_file(path).ok)
    story.claim("both attempts without the right are in it", events.count("request:approve") == 3)
    posts = _thread(rita, card)
    covered = [seq for post in posts for seq in _entries_of(people, post)]
    story.claim("the thread has every step of the log, in order, once", covered == sorted(set(covered)) and covered)


def _with_names(people: Driver, text: str) -> str:
    """Return what a person reads where the message has ids."""
    for person in people.workspace()["people"]:
        text = text.replace(f"<@{person['id']}>", person["real_name"])
    return text


def _wait(look: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - whatever was looked for
    return wait_for(look, PATIENCE, what=what)


def _cards(person: PersonDriver) -> Iterator[Mapping[str, Any]]:
    return (m for m in reversed(person.messages(CHANNEL)) if m.get("is_bot") and person.has(m, views.APPROVE))


def _fresh(person: PersonDriver, message: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(m for m in person.messages(message["channel"]) if m["ts"] == message["ts"])


def _thread(person: PersonDriver, card: Mapping[str, Any]) -> list[dict[str, Any]]:
    return person.thread(CHANNEL, card["ts"])[1:]


def _dm_with(person: PersonDriver, action_id: str) -> Mapping[str, Any] | None:
    try:
        return next((m for m in reversed(person.dm()) if person.has(m, action_id)), None)
    except StopIteration:
        return None  # the bot has not written to this person yet


def _mentioned(person: PersonDriver) -> bool:
    return bool(person.conversation(CHANNEL)["mentions"])


def _request_id(card: Mapping[str, Any]) -> str:
    return next(word for word in json.dumps(card["blocks"]).replace('"', " ").split() if word.startswith("BG-"))


def _words(messages: list[dict[str, Any]]) -> str:
    return " ".join(json.dumps(message.get("blocks") or message["text"]) for message in messages)


def _psql_line(person: PersonDriver) -> str | None:
    view = person.view()
    words = _texts(view["blocks"]) if view else ()
    return next((text for text in words if text.startswith("PGPASSWORD=")), None)


def _texts(found: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    if isinstance(found, dict):
        if isinstance(found.get("text"), str):
            yield found["text"]
        for value in found.values():
            yield from _texts(value)
    elif isinstance(found, list):
        for value in found:
            yield from _texts(value)


def _psql(demo: Demo, line: str, statement: str) -> subprocess.CompletedProcess[str]:
    """Paste the line into a shell, as Rita does."""
    path = f"{demo.pg.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return subprocess.run(
        ["/bin/sh", "-c", f'{line} -X -A -t -c "$1"', "sh", statement],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={"PATH": path, "HOME": str(demo.directory)},
    )


def _conninfo(line: str) -> str:
    import shlex  # noqa: PLC0415

    password, _, target = shlex.split(line)
    return f"{target} password='{password.removeprefix('PGPASSWORD=')}' connect_timeout=5"


def _cannot_log_in(line: str) -> bool:
    try:
        psycopg.connect(_conninfo(line)).close()
    except psycopg.OperationalError:
        return True
    return False


def _is_cut(session: psycopg.Connection[Any]) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.Error:
        return True
    return False


def _logins(demo: Demo) -> int:
    """Count the emergency logins that exist at the target."""
    with psycopg.connect(demo.pg.dsn) as server:
        row = server.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'bg-%'").fetchone()
        return int(row[0]) if row else -1


def _spilled(demo: Demo, people: Driver, line: str) -> list[str]:
    """Return where the password stands other than in the modal's own calls."""
    password = _conninfo(line).split("password='")[1].split("'")[0]
    spilled = [
        entry.get("method") or entry["kind"]
        for entry in people.journal()
        if password in json.dumps(entry) and entry.get("method") not in {"views.open", "views.update"}
    ]
    files = (*demo.directory.glob("*.db*"), demo.bot.log)
    return spilled + [str(file) for file in files if password.encode() in file.read_bytes()]


def _entries_of(people: Driver, post: Mapping[str, Any]) -> range:
    """Return the log entries that a post stands for, from its metadata."""
    for entry in people.journal(method="chat.postMessage"):
        if (entry.get("result") or {}).get("ts") == post["ts"]:
            metadata = entry["args"]["metadata"]
            payload = (json.loads(metadata) if isinstance(metadata, str) else metadata)["event_payload"]
            return range(int(payload["first"]), int(payload["last"]) + 1)
    return range(0)
