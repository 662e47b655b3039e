"""How do custodians hold a credential with keys of their own, so that the bot alone cannot make it?

A level with ``enforced_by: vault`` has a control group on its path (OpenBao from 2.7 on, Vault Enterprise). Vault
answers the grant's token with an accessor and a token that gives nothing yet; it gives the credential once enough
members of the level's identity group have authorised that accessor, each with a login of their own.

Rules
-----
* The bot authorises nothing: its policy does not let it, and what its own identity said would not be counted.
* Vault's "approved" is not believed alone: the bot counts the identities that authorised, each once, and needs as many
  as the policy says. Known defects of control groups let less pass.
* What was authorised is taken once. The token that gave it out is ended at once; and a grant's token can be used so
  seldom that a second taking ends everything, whoever does it (``vault_plan.py``).
* Whoever authorises is shown what: the path, the request, who did so before. What Slack says is not trusted for it.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from storage.models import State
from workflows.errors import Conflict, NotAllowed, Unavailable, VaultRefused
from workflows.lifecycle import Action, now_is
from workflows.policy import say_duration
from workflows.vault import Vault
from workflows.vault_answers import must
from workflows.vault_plan import USES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from typing import Any

    from workflows.door import Case
    from workflows.engines.seam import ControlGroup
    from workflows.holding import Intent
    from workflows.issuing import Issuer
    from workflows.vault import ChildToken, Pending

log = logging.getLogger(__name__)

_ASK_AGAIN: Final = 0.5  # seconds: how often Vault is asked who has authorised
ACCESSOR: Final = re.compile(r"[A-Za-z0-9._-]{8,200}")
# How Vault calls a token that was made under a display name.
_NAMED: Final = "token-"


@dataclass(frozen=True, slots=True)
class Question:
    """What custodians are asked to authorise: ``need`` of them, within ``within``."""

    request_id: str
    accessor: str
    path: str
    group: str
    need: int
    within: timedelta

    def command(self) -> str:
        """Return what each of them types on their own machine."""
        return f"breakglass approve {self.request_id} --accessor {self.accessor}"


@dataclass(frozen=True, slots=True)
class Authorisations:
    """What Vault says of a pending credential. ``by``: the identities that authorised it, id and name."""

    is_approved: bool
    path: str
    operation: str
    by: tuple[tuple[str, str], ...]

    def counted(self, own: str) -> Mapping[str, str]:
        """Return who counts, name by id: each identity once, and never ``own``, the bot's."""
        return {entity: name for entity, name in self.by if entity and entity != own}


def authorisations(vault: Vault, accessor: str) -> Authorisations:
    """Ask who has authorised what is pending under ``accessor``.

    Raises Unavailable, VaultRefused (also when nothing is pending under it any more).
    """
    data = vault.write_own("sys/control-group/request", {"accessor": accessor})
    said = data.get("authorizations")
    if "approved" not in data:
        raise Unavailable("Vault's answer about an authorisation does not say whether it was given.")
    by = tuple(
        (str(one.get("entity_id") or ""), str(one.get("entity_name") or ""))
        for one in (said if isinstance(said, list) else ())
        if isinstance(one, dict)
    )
    return Authorisations(
        data["approved"] is True, str(data.get("request_path")), str(data.get("request_operation")), by
    )


class _Asked(Unavailable):
    """Vault asks for the custodians' keys: what was to be seen."""


def trouble(vault: Vault, child: ChildToken, path: str) -> str:
    """Read ``path`` with a token that is about to end; return why its control group is not in force, else nothing.

    Should a credential come out after all, it ends with ``child``, which the caller ends. Raises Unavailable,
    VaultRefused.
    """
    if child.uses != USES:
        return f"a grant's token can be used {child.uses or 'any number of'} times, and {USES} is right"

    def stop(pending: Pending) -> None:
        found = authorisations(vault, pending.accessor)
        if found.is_approved or found.by or found.path != path:
            raise Unavailable("Vault takes it for authorised, and nobody was asked.", code="not_held")
        raise _Asked("it is held")

    try:
        vault.read_as(replace(child, release=stop), path)
    except _Asked:
        return ""
    except Unavailable as error:
        if error.reason != "not_held":
            raise
        return error.sentence
    return "Vault gave it out and asked nobody."  # never: an answer without a question is not_held


# ------------------------------------------------------------------------------------------------------------ the bot


class Keys:
    """Waits until custodians have authorised a credential with keys of their own."""

    def __init__(
        self,
        issuer: Issuer,
        intent: Intent,
        *,
        control: ControlGroup,
        most: timedelta,
        asked: Callable[[Question], None] | None,
        now: datetime,
    ) -> None:
        self.issuer = issuer
        self.intent = intent
        self.control = control
        self.within = min(control.ttl, most)
        self.asked = asked
        self.authorised_by: list[str] | None = None
        self._now, self._began = now, time.monotonic()

    def now(self) -> datetime:
        """Return what time it is by now."""
        return self._now + timedelta(seconds=time.monotonic() - self._began)

    def wait(self, pending: Pending) -> None:
        """Ask the custodians and return when they have authorised it. Raises Unavailable, Conflict, VaultRefused."""
        issuer = self.issuer
        own = issuer.vault.own_entity()
        # A policy that became laxer meanwhile does not win.
        need = max(self.control.approvals, issuer.row(self.intent.request_id).quorum)
        if not issuer.take_place():
            raise Unavailable("As many wait for somebody already as can. Press the button again in a minute.")
        try:
            until = self._now + self.within
            question = Question(
                self.intent.request_id, pending.accessor, pending.path, self.control.group, need, self.within
            )
            self._tell(question, until)
            if self.asked is not None:
                self.asked(question)
            while not self._is_authorised(pending, need, own):
                if issuer.is_closing or self.now() >= until:
                    why = "the bot is being stopped" if issuer.is_closing else f"waited {say_duration(self.within)}"
                    raise Unavailable(
                        f"The custodians did not authorise it with keys of their own ({why}). No credential was made. "
                        "Call them, then press the button again.",
                        code="not_authorised",
                    )
                time.sleep(_ASK_AGAIN)
                self._must_be_wanted(issuer.case(self.intent.request_id))
        finally:
            issuer.give_place()

    def _tell(self, question: Question, until: datetime) -> None:
        with self.issuer.turn(self.intent.request_id, now=self.now()) as turn:
            self._must_be_wanted(turn.case())
            turn.move(
                Action.HOLD,
                data={
                    "credential": self.intent.number,
                    "path": question.path,
                    "wrapping_accessor": question.accessor,
                    "group": question.group,
                    "need": question.need,
                    "within_seconds": int(self.within.total_seconds()),
                    "authorise_until": until,
                },
            )

    def _is_authorised(self, pending: Pending, need: int, own: str) -> bool:
        try:
            found = authorisations(self.issuer.vault, pending.accessor)
        except Unavailable as error:
            # They may have authorised it meanwhile: a Vault that is away for a moment costs nobody their trouble.
            log.warning("%s: who has authorised it is not known: %s", self.intent.request_id, error.reason)
            return False
        except VaultRefused as refused:
            failure = Unavailable(
                f"Vault no longer knows what was to be authorised. {refused.sentence}", code="not_held"
            )
        else:
            if not found.is_approved:
                return False
            counted = found.counted(own)
            if len(counted) >= need and found.path == pending.path:
                self.authorised_by = sorted(name or entity for entity, name in counted.items())
                return True
            failure = Unavailable(
                f"Vault takes it for authorised, and only {len(counted)} of {need} custodians did so. No credential "
                "was made. Have `breakglass check` run: the control group at Vault is not what the policy says.",
                code="too_few_keys",
            )
        raise failure

    def _must_be_wanted(self, case: Case) -> None:
        """Raise Conflict when the request was ended, or its opening given up, meanwhile."""
        grant = next((g for g in case.grants if g.number == self.intent.number), None)
        if case.state not in (State.APPROVED, State.ACTIVE) or grant is None or grant.ended_at is not None:
            raise Conflict(
                f"{case.request.id} {now_is(case.state)}, or was opened anew. No credential was made.", code="ended"
            )


# ------------------------------------------------------------------------------------------------------ the custodian


@dataclass(frozen=True, slots=True)
class Shown:
    """What a custodian sees before they authorise.

    ``made_for``: how the token that asks is named, by the bot: request and number of the credential, ``BG-7KQ2-1``.
    """

    accessor: str
    state: Authorisations
    made_for: str | None


class Custodian(Vault):
    """A custodian's own door to Vault, on their own machine: with their token, or a user name and a password."""

    def __init__(
        self, address: str, token: str = "", *, namespace: str | None = None, ca_file: str | None = None
    ) -> None:
        # Without a token a login follows.
        super().__init__(address, token=token or "none", namespace=namespace, ca_file=ca_file)
        self._is_mine = False

    def log_in_as(self, user: str, password: str, *, method: str, mount: str) -> None:
        """Log in with a user name (``userpass``, ``ldap`` …). Raises NotAllowed, Unavailable, VaultRefused."""
        answer = self._send("", "post", f"auth/{mount}/login/{user}", {"password": password})
        if answer.status in {400, 401, 403, 404}:
            raise NotAllowed(f"Vault does not let {user!r} in ({method}): look at name, password and mount.")
        must(answer, "log in", quiet=True)
        auth = answer.body.get("auth")
        if not isinstance(auth, dict) or not auth.get("client_token"):
            raise Unavailable("Vault's answer to the login has no token in it: a second factor cannot be given here.")
        self._token = str(auth["client_token"])
        self._is_mine = True

    def log_out(self) -> None:
        """End the token that :meth:`log_in_as` got; a token that was given stays."""
        if self._is_mine:
            self._is_mine = False
            self._send(self._token, "post", "auth/token/revoke-self")

    def look(self, accessor: str) -> Shown:
        """Return what is pending under ``accessor``. Raises Conflict when nothing is, NotAllowed, Unavailable."""
        self._known()
        try:
            state = authorisations(self, accessor)
        except VaultRefused as error:
            if "denied" in error.sentence:
                raise NotAllowed(
                    "Vault does not let you see what is to be authorised: your login needs the policy "
                    "breakglass-custodian, which comes with the level's group."
                ) from None
            raise Conflict(
                "Nothing waits under this accessor: its time is over, it was given up, or it is mistyped. Look at the "
                "request's thread, or ask its requester to press the button again.",
                code="nothing_pending",
            ) from None
        return Shown(accessor, state, self._made_for(accessor))

    def authorise(self, accessor: str) -> Authorisations:
        """Authorise what is pending under ``accessor``, and return how it stands then.

        Raises Conflict when this identity did so before, NotAllowed when it does not count, Unavailable.
        """
        own = self._known()
        answer = self._own("post", "sys/control-group/authorize", {"accessor": accessor})
        if "already authorized" in answer.words:
            raise Conflict("You have authorised this before; it counts once.", code="doubled")
        must(answer, "authorise it")
        state = authorisations(self, accessor)
        # Vault takes the word of somebody outside the group, says nothing, and does not count it.
        if own not in state.counted(""):
            raise NotAllowed("Vault did not count it: your identity is not a member of the level's group.")
        return state

    def _known(self) -> str:
        """Return the custodian's identity. A token without one (root's) counts for nothing."""
        own = self.own_entity()
        if not own:
            raise NotAllowed("Your token stands for nobody in particular (a root token?): log in as yourself.")
        return own

    def _made_for(self, accessor: str) -> str | None:
        """Return the request in the name of the token that asks; None when that may not be seen."""
        try:
            found = self._own("post", "auth/token/lookup-accessor", {"accessor": accessor})
        except Unavailable:
            return None
        name = str(found.data.get("display_name") or "")
        return name.removeprefix(_NAMED) if found.ok and name.startswith(_NAMED) else None

    def _log_in(self, *, stale: str) -> str:  # noqa: ARG002
        raise NotAllowed("Vault does not accept your token for this: log in again, as yourself.")


# ------------------------------------------------------------------------------------------------------- the operator


def group_problems(control: ControlGroup, group: Mapping[str, Any] | None, bot: str) -> tuple[str, ...]:
    """Return what is wrong with an identity group as Vault shows it; ``bot``: the bot's identity, empty if unknown."""
    if group is None:
        return (f"the identity group {control.group!r} does not exist.",)
    listed = group.get("member_entity_ids")
    members = set(map(str, listed)) if isinstance(listed, list) else set()
    found = []
    if bot and bot in members:
        found.append(f"the bot itself is a member of {control.group!r}: take it out, or it could authorise.")
    if len(members - {bot}) < control.approvals:
        found.append(
            f"{control.group!r} has {len(members - {bot})} members of its own, and {control.approvals} must authorise: "
            "add their identities."
        )
    if group.get("member_group_ids"):
        found.append(
            f"{control.group!r} has groups inside it, whose members count or not by Vault's version: name people."
        )
    return tuple(found)
