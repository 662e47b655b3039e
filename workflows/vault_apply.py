"""How is a plan carried out at Vault, with an operator's token, and what would change?

Rules
-----
* Nothing is written before everything was looked at, and what is as planned already is not written: a second time there
  is nothing to do.
* What hands out a level's rights comes last, after the target was looked at: a group role that could become more than
  it should is refused, and no grant can be made from it.
* What others put into the same place stays: further roles of a connection are not taken from it. What is made once (a
  mount, a key) is never changed.
* No difference and no error holds a secret, neither what an operator brought nor what Vault answered.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from workflows.control_group import group_problems
from workflows.engines import ENGINES
from workflows.engines.seam import Inspected
from workflows.errors import Refused, Unavailable, VaultRefused
from workflows.vault import Vault
from workflows.vault_answers import must
from workflows.vault_plan import APPROLE, APPROLE_MOUNT, secret_variable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from workflows.engines import LevelSettings
    from workflows.engines.seam import Write
    from workflows.vault_plan import LevelSetup, Plan

NEW: Final = "new"
CHANGED: Final = "changed"
SAME: Final = "same"

# Where Vault lists its mounts; the path of one of them is not answered by every version.
_LISTS: Final = ("sys/mounts/", "sys/auth/")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing of a plan beside what Vault has. ``lines``: what changes, as of ``diff``."""

    state: str
    write: Write
    body: Mapping[str, object] = field(repr=False)  # as it is to be written, without its secrets
    lines: tuple[str, ...] = ()


class Operator(Vault):
    """An administrator's door to Vault: what the bot's own token could not do."""

    def __init__(self, address: str, token: str, *, namespace: str | None = None, ca_file: str | None = None) -> None:
        super().__init__(address, token=token, namespace=namespace, ca_file=ca_file)
        self._mounts: dict[str, Mapping[str, Any]] = {}

    def must_be_an_operator(self) -> None:
        """Refuse the bot's own token. Raises Refused, Unavailable (also for a token that Vault does not know)."""
        self.log_in()
        answer = self._own("get", "auth/token/lookup-self")
        must(answer, "look up the token")
        if APPROLE in answer.data.get("policies", ()):
            raise Refused("VAULT_TOKEN is the bot's own token: set Vault up with an operator's.")

    def look(self, write: Write) -> Mapping[str, Any] | None:
        """Return the thing at a path as Vault shows it; None: it is not there. Raises Unavailable, VaultRefused."""
        for listing in _LISTS:
            if write.path.startswith(listing):
                return self._mount(listing.rstrip("/"), write.path.removeprefix(listing))
        answer = self._own("get", write.path)
        if answer.status == 404 or (answer.status == 400 and write.made_once):
            return None
        if answer.status == 400 and "no handler" in answer.words:
            return None
        must(answer, f"look at {write.path}")
        # Vault does not show it when it is 0, and what is not shown would count as right.
        return {"token_num_uses": 0, **answer.data} if write.path.startswith("auth/token/roles/") else answer.data

    def bot_entity(self) -> str:
        """Return the id of the bot's identity; empty when it never logged in. Raises Unavailable, VaultRefused."""
        role = self._own("get", f"auth/{APPROLE_MOUNT}/role/{APPROLE}/role-id")
        mount = self._mount("sys/auth", APPROLE_MOUNT)
        if role.status == 404 or mount is None:
            return ""
        must(role, "read the bot's role id", quiet=True)
        alias = {"alias_name": role.data["role_id"], "alias_mount_accessor": mount["accessor"]}
        answer = self._own("post", "identity/lookup/entity", alias)
        if answer.status != 404:
            must(answer, "look for the bot's identity")
        return str(answer.data.get("id") or "")

    def group_trouble(self, levels: Iterable[LevelSetup]) -> tuple[str, ...]:
        """Return what is wrong with the groups whose members hold levels with their own keys, a sentence each.

        Raises Unavailable, VaultRefused.
        """
        controls = list(dict.fromkeys(level.control for level in levels if level.control is not None))
        bot = self.bot_entity() if controls else ""
        found: list[str] = []
        for control in controls:
            answer = self._own("get", f"identity/group/name/{control.group}")
            if answer.status != 404:
                must(answer, f"look at the group {control.group}")
            found += group_problems(control, answer.data if answer.ok else None, bot)
        return tuple(dict.fromkeys(found))

    def carry_out(self, write: Write, body: Mapping[str, object], secrets: Mapping[str, str]) -> None:
        """Write one thing. Raises Unavailable, VaultRefused, with Vault's words but none of the secrets."""
        answer = self._own(write.method.lower(), write.path, {**body, **secrets})
        try:
            must(answer, f"write {write.path}")
        except (Unavailable, VaultRefused) as error:
            failure = type(error)(_without(error.sentence, secrets.values()))
        else:
            self._mounts.clear()
            return
        raise failure

    def policies(self) -> frozenset[str]:
        """Return the names of all policies. Raises Unavailable, VaultRefused."""
        answer = self._own("list", "sys/policies/acl")
        must(answer, "list the policies")
        return frozenset(map(str, answer.data.get("keys") or ()))

    def new_credentials(self) -> tuple[str, str]:
        """Return the bot's role id and a new secret id. Raises Unavailable, VaultRefused."""
        path = f"auth/{APPROLE_MOUNT}/role/{APPROLE}"
        role = self._own("get", f"{path}/role-id")
        must(role, "read the bot's role id", quiet=True)
        secret = self._own("post", f"{path}/secret-id", {})
        must(secret, "make a secret id for the bot", quiet=True)
        return str(role.data["role_id"]), str(secret.data["secret_id"])

    def _mount(self, listing: str, name: str) -> Mapping[str, Any] | None:
        if listing not in self._mounts:
            answer = self._own("get", listing)
            must(answer, f"look at {listing}")
            self._mounts[listing] = answer.data
        found = self._mounts[listing].get(f"{name}/")
        return found if isinstance(found, dict) else None


def compare(operator: Operator, plan: Plan) -> tuple[Difference, ...]:
    """Look at everything that is planned; nothing is written. Raises Unavailable, VaultRefused."""
    return tuple(_difference(write, operator.look(write)) for write in plan.writes)


def missing_secrets(differences: Iterable[Difference], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the variables that an operator has to set: those of things that are new."""
    return tuple(
        secret_variable(one.write, key)
        for one in differences
        for key in one.write.secrets
        if one.state == NEW and not environment.get(secret_variable(one.write, key))
    )


def carry_out(
    operator: Operator, differences: Iterable[Difference], levels: Iterable[LevelSetup], environment: Mapping[str, str]
) -> Iterator[Difference]:
    """Write what differs, and yield each thing when it is done.

    Secrets are those of ``environment``. Raises Refused when a level's rights at its target are too many: then no level
    was given out, and those that were there before are as they were. Raises Unavailable, VaultRefused.
    """
    due = [one for one in differences if one.state != SAME]
    if missing := missing_secrets(due, environment):
        raise Refused(f"Set {', '.join(missing)} in the environment: only you know what is to be in there.")
    for one in due:
        if not one.write.lends:
            yield _done(operator, one, environment)
    refuse_excess(operator, levels)
    for one in due:
        if one.write.lends:
            yield _done(operator, one, environment)


def refuse_excess(operator: Vault, levels: Iterable[LevelSetup]) -> None:
    """Look at each target that can be looked at. Raises Refused with everything that a level could do and must not."""
    found: list[str] = []
    seen: list[LevelSettings] = []
    for level in levels:
        engine = ENGINES[level.settings.engine]
        if isinstance(engine, Inspected) and level.settings not in seen:
            seen.append(level.settings)
            found += [f"{level.name}: {sentence}" for sentence in engine.excess(operator, level.settings.options)]
    operator.end_watchers()
    if found:
        raise Refused("\n".join([*found, "No level was given out; mend the target first."]))


def left_over(operator: Operator, plan: Plan) -> tuple[str, ...]:
    """Return the names of policies of ours that no level needs any more. Raises Unavailable, VaultRefused."""
    planned = {write.path.removeprefix("sys/policies/acl/") for write in plan.writes}
    return tuple(sorted(name for name in operator.policies() - planned if name.startswith("breakglass-")))


def _done(operator: Operator, one: Difference, environment: Mapping[str, str]) -> Difference:
    brought = {key: environment.get(secret_variable(one.write, key), "") for key in one.write.secrets}
    operator.carry_out(one.write, one.body, {key: value for key, value in brought.items() if value})
    return one


def _difference(write: Write, found: Mapping[str, Any] | None) -> Difference:
    if found is None:
        return Difference(NEW, write, write.body)
    shown = _shown(found)
    body = dict(write.body)
    lines: list[str] = []
    for key, wanted in write.body.items():
        if key not in shown:
            continue  # what Vault does not show (how a key was made) cannot have changed for all that is known
        value = shown[key]
        if key in write.joined and isinstance(wanted, list):
            others = [other for other in _listed(value) if other not in wanted and other != "*"]
            wanted = body[key] = sorted({*wanted, *others})  # noqa: PLW2901
            value = sorted(_listed(value))
        if not _is_same(wanted, value):
            lines += _diff(key, value, wanted)
    if lines and write.made_once:
        raise Refused(f"{write.path} is there already, and is another: {'; '.join(lines)}. Name another place.")
    return Difference(CHANGED if lines else SAME, write, body, tuple(lines))


def _shown(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings flat: an engine keeps those of a connection one level deeper."""
    details = found.get("connection_details")
    return {**(details if isinstance(details, dict) else {}), **found}


def _is_same(wanted: object, value: object) -> bool:
    if isinstance(wanted, list):
        return wanted == _listed(value)
    if isinstance(wanted, str) and isinstance(value, str):
        return wanted.strip() == value.strip()
    return wanted == value or (not isinstance(wanted, (bool, dict)) and str(wanted) == str(value))


def _listed(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(one) for one in value]
    return [one.strip() for one in str(value).split(",")] if value else []


def _diff(key: str, old: object, new: object) -> list[str]:
    """Return the lines of a small diff between two values of a setting."""
    before, after = _lines(old), _lines(new)
    if len(before) == len(after) == 1:
        return [f"- {key} = {before[0]}", f"+ {key} = {after[0]}"]
    changed = list(difflib.unified_diff(before, after, lineterm="", n=1))[2:]
    return [f"  {key}:", *(f"  {line}" for line in changed)]


def _lines(value: object) -> list[str]:
    if isinstance(value, list):
        return [str(one) for one in value] or ["(nothing)"]
    return value.strip().splitlines() if isinstance(value, str) and value.strip() else [json.dumps(value)]


def _without(sentence: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        sentence = sentence.replace(secret, "…")
    return sentence
