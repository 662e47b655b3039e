"""How does a custodian get a second factor, and who may give them one?

An operator does it, with a Vault token of their own: whoever has the bot can enrol nobody.

Rules
-----
* A key is good for nothing until the person has shown one code of it; without that it is deleted again.
* What was done is on record before it is said to be done: without the entry the key is deleted as well.
* A key that is there is not replaced by accident.
* The key's secret is returned once, to be shown on a screen. It is in no entry, no error and no repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlmodel import col, select

from storage.models import Request
from workflows.door import Door
from workflows.errors import Invalid, Refused
from workflows.policy_file import USER
from workflows.step_up import ENROL, UNENROL, SecondFactor, key_name
from workflows.vault_answers import CodeAnswer, must
from workflows.vault_apply import Operator

if TYPE_CHECKING:
    from datetime import datetime

    from storage.audit import Actor
    from storage.database import Database
    from workflows.policy import Policy

ISSUER: Final = "break glass"
PERIOD: Final = 30  # seconds
_PICTURE: Final = 400  # pixels of the picture of the code


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that nobody has proved yet. ``picture``: the address as a QR code, a PNG in base64."""

    name: str
    address: str = field(repr=False)
    picture: str = field(repr=False)


class TotpOperator(Operator):
    """An administrator's door to the TOTP engine."""

    def who(self) -> str:
        """Return what Vault calls whoever acts. Raises Unavailable, VaultRefused."""
        answer = self._own("get", "auth/token/lookup-self")
        must(answer, "look up the token")
        return str(answer.data.get("display_name") or "")[:100]

    def has_key(self, mount: str, name: str) -> bool:
        """Whether there is a key of that name. Raises Unavailable, VaultRefused."""
        answer = self._own("get", f"{mount}/keys/{name}")
        if answer.status == 404 and not answer.words:
            return False
        must(answer, f"look at {mount}/keys (is the engine there? see breakglass vault apply)")
        return True

    def make_key(self, mount: str, name: str, account: str) -> NewKey:
        """Make a key, in place of one of that name. Raises Unavailable, VaultRefused."""
        wanted: dict[str, Any] = {"generate": True, "exported": True, "issuer": ISSUER, "account_name": account}
        wanted |= {"period": PERIOD, "skew": 1, "digits": 6, "qr_size": _PICTURE}
        answer = self._own("post", f"{mount}/keys/{name}", wanted)
        must(answer, "make a key", quiet=True)
        return NewKey(name, str(answer.data.get("url") or ""), str(answer.data.get("barcode") or ""))

    def drop_key(self, mount: str, name: str) -> None:
        """Delete a key; one that is not there is fine. Raises Unavailable, VaultRefused."""
        must(self._own("delete", f"{mount}/keys/{name}"), "delete a key")


class Enrolment(Door):
    """Enrols one person; nothing is on record, and no key stays, before :meth:`prove`."""

    def __init__(
        self, database: Database, operator: TotpOperator, policy: Policy, *, team: str, person: str, who: Actor
    ) -> None:
        super().__init__(database)
        if not USER.fullmatch(person):
            raise Invalid("Name the person by their Slack user id, as U0123ABCD: it is in their profile.")
        self._operator, self._who = operator, who
        self._factor = SecondFactor(database, operator, lambda: policy)
        self._mount = self._factor.mount
        self.team, self.person, self.name = team, person, key_name(team, person)
        self._replaces = False

    def begin(self, *, replace: bool) -> NewKey:
        """Make the key. Raises Refused when there is one and it is not to be replaced, Unavailable, VaultRefused."""
        self._operator.must_be_an_operator()
        self.database.ping()  # before anything is made that could not be put on record
        self._replaces = self._operator.has_key(self._mount, self.name)
        if self._replaces and not replace:
            raise Refused(
                f"{self.person} is enrolled already. With --replace they get a new key, and the one that they have is "
                "worth nothing from then on; with --remove they have none.",
                code="enrolled",
            )
        return self._operator.make_key(self._mount, self.name, self.person)

    def prove(self, code: str, *, now: datetime) -> bool:
        """Have the first code checked; with a right one the person is enrolled, on record. False: it is wrong."""
        typed = "".join(code.split())
        if not typed.isascii() or not typed.isdigit():
            return False
        if self._operator.check_code(self._mount, self.name, typed) is not CodeAnswer.RIGHT:
            return False
        self._factor.note_used(self.team, self.person, typed, now=now)
        told = {"person": self.person, "team": self.team, "at_vault": self._operator.who(), "replaces": self._replaces}
        self.record(ENROL, self._who, told, now=now)
        return True

    def give_up(self) -> None:
        """Delete the key that was not proved. Raises Unavailable, VaultRefused."""
        self._operator.drop_key(self._mount, self.name)

    def remove(self, *, now: datetime) -> None:
        """Take the person's second factor away, on record. Raises Refused when there is none."""
        self._operator.must_be_an_operator()
        self.database.ping()
        if not self._operator.has_key(self._mount, self.name):
            raise Refused(f"{self.person} is not enrolled. Nothing was changed.", code="not_enrolled")
        told = {"person": self.person, "team": self.team, "at_vault": self._operator.who()}
        self._operator.drop_key(self._mount, self.name)
        self.record(UNENROL, self._who, told, now=now)


def newest_team(database: Database) -> str:
    """Return the workspace of the newest request; empty when there is none."""
    with database.read() as session:
        return session.exec(select(Request.team).order_by(col(Request.opened_at).desc()).limit(1)).first() or ""
