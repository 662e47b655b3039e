"""How is Vault set up for a policy so that the bot can do its work and nothing else?

Pure: a policy in, the calls of an administrator out, in their order. ``breakglass vault policy`` prints them, and
``breakglass vault apply``, the demo and the tests carry them out: there is no second definition.

Rules
-----
* The bot never reads a credential itself. It makes a child token per grant through a token role whose only policy
  allows one path, and it may look up, list and revoke exactly the leases of its levels.
* Nothing that a grant's token may do is something that the bot's token may do; a policy that would say so is refused.
* The key that signs the log's heads is made in Vault and never leaves it. The bot may sign with it and see its public
  half; a new version of it is an administrator's to make.
* Levels that make the same thing at Vault must mean the same thing: what they disagree about is refused by name.
* Where custodians hold a level with keys of their own (``control_group.py``), every grant's token for that path asks
  for them, and can be used three times: to ask, to take the credential once, and the third time ends it all.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from workflows.engines import ENGINES
from workflows.engines.seam import ControlGroup, Lends, Prepared, Rule, Write
from workflows.errors import Invalid
from workflows.step_up_rules import mount_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from workflows.engines import LevelSettings
    from workflows.policy import Policy

APPROLE: Final = "breakglass-bot"
APPROLE_MOUNT: Final = "approle"
TOKEN_TTL: Final = 3600  # seconds; the bot renews it
TOKEN_MAX_TTL: Final = 24 * 3600

CUSTODIAN: Final = "breakglass-custodian"
# How often a grant's token can be used where custodians hold the credential. Vault carries out what was authorised as
# often as it is asked to, each time with a fresh credential. So the first use asks, the second takes the credential,
# and with its last use a token ends and everything that it read with it: a second taking gives nothing and ends the
# first. Nobody who has taken the bot over gets around that.
USES: Final = 3

# What custodians may with logins of their own: see what they would authorise, and do so. For whom it counts is for the
# group to say.
_CUSTODIAN: Final = (
    Rule("sys/control-group/request", ("update",), why="See what is to be authorised, and by whom it was."),
    Rule("sys/control-group/authorize", ("update",), why="It counts for members of the level's group."),
    Rule("auth/token/lookup-accessor", ("update",), why="See for which request it is: its number is in the name."),
    Rule("auth/token/lookup-self", ("read",), why="Their own login: see whose it is, and end it."),
    Rule("auth/token/revoke-self", ("update",)),
)

# What the bot may do whatever the levels are.
_ALWAYS: Final = (
    Rule("auth/token/lookup-self", ("read",), why="Its own token: look at it, renew it, see what it may do."),
    Rule("auth/token/renew-self", ("update",)),
    Rule("sys/capabilities-self", ("update",)),
    Rule("sys/capabilities-accessor", ("update",)),
    Rule(
        "auth/token/revoke-accessor",
        ("update",),
        why="Ends of grants. An accessor is known only to whoever made or may list the token.",
    ),
    Rule("auth/token/lookup-accessor", ("update",)),
    Rule("sys/leases", ("read", "list", "sudo"), why="Leases that Vault has given up on."),
)


@dataclass(frozen=True, slots=True)
class LevelSetup:
    """A level to set up: its settings, its longest time, and its name (``account/level``) for sentences.

    ``control``: whose own keys its credential needs.
    """

    settings: LevelSettings
    longest: timedelta
    name: str = "level"
    control: ControlGroup | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to be done. ``targets``: what to do at each target before, ready to paste."""

    targets: tuple[str, ...]
    writes: tuple[Write, ...]


def levels_of(policy: Policy) -> tuple[LevelSetup, ...]:
    """Return all levels of a policy, in its order."""
    return tuple(
        LevelSetup(level.settings, level.longest, f"{account.name}/{level.name}", level.control)
        for account in policy.accounts.values()
        for level in account.levels.values()
    )


def plan_of(policy: Policy) -> Plan:
    """Return the plan for a policy. Raises :class:`Invalid` with every problem, each after the level's name."""
    return plan(levels_of(policy), log_key_of(policy), totp_of(policy))


def log_key_of(policy: Policy) -> tuple[str, str] | None:
    """Return mount and name of the transit key that signs the log; None: it is signed otherwise, or not."""
    signer = policy.log.signer if policy.log is not None else None
    return None if signer is None or signer.kind != "vault" else (signer.settings["mount"], signer.settings["key"])


def totp_of(policy: Policy) -> str | None:
    """Return where the TOTP engine is that checks custodians' codes; None: no level takes one."""
    levels = (level for account in policy.accounts.values() for level in account.levels.values())
    return mount_of(policy) if any(level.step_up for level in levels) else None


def plan(levels: Iterable[LevelSetup], log_key: tuple[str, str] | None = None, totp: str | None = None) -> Plan:
    """Return the plan for ``levels``, the log's key (mount, name) of the transit engine and the TOTP engine's mount.

    See :func:`plan_of`.
    """
    levels = tuple(levels)
    problems: list[str] = []
    targets: dict[str, list[str]] = {}  # paragraphs, by the line that names the target
    writes: dict[str, Write] = {}
    children: dict[str, tuple[Rule, ...]] = {}  # by token role
    lent: dict[str, tuple[str, ...]] = {}  # by token role: policies that are there already
    longest: dict[str, timedelta] = {}
    bot: list[Rule] = list(_ALWAYS)
    # 1. Per level: what its engine makes, what a grant's token may, what the bot's may.
    for level in levels:
        settings, engine = level.settings, ENGINES[level.settings.engine]
        # Two levels may lend the same credential for other times, under other quorums.
        same = [other for other in levels if other.settings == settings]
        try:
            made = engine.writes(settings.options, max(other.longest for other in same))
        except Invalid as error:
            problems.append(f"{level.name}: {error.sentence}")
            continue
        for write in made:
            known = writes.get(write.path)
            joined = write if known is None else _joined(known, write)
            if joined is None:
                problems.append(f"{level.name}: another level makes {write.path} in Vault in another way.")
            else:
                writes[write.path] = joined
        rules = tuple(replace(rule, control=level.control) for rule in engine.child_rules(settings.options))
        names = engine.lent_policies(settings.options) if isinstance(engine, Lends) else ()
        lends_the_same = lent.setdefault(settings.token_role, names) == names
        if children.setdefault(settings.token_role, rules) != rules or not lends_the_same:
            # One token would open what both levels open, whichever of them was approved.
            problems.append(
                f"{level.name}: another level with another credential has the same token_role; give it one."
            )
        longest[settings.token_role] = max(level.longest, longest.get(settings.token_role, timedelta(0)))
        bot.append(
            Rule(
                f"auth/token/create/{settings.token_role}",
                ("create", "update"),
                _CHILD,
                why=f"A grant of {level.name}.",
            )
        )
        bot += engine.bot_rules(settings.options)
        if isinstance(engine, Prepared) and (steps := engine.target_steps(settings.options)):
            first, _, rest = steps.partition("\n")
            before = targets.setdefault(first, [])
            before += [part for part in rest.strip("\n").split("\n\n") if part not in tuple(before)]
    if log_key is not None:
        bot += _log_rules(*log_key)
    if totp is not None:
        # Without "read", which makes a code, and without the keys: whoever has the bot has nobody's factor.
        why = "Have a custodian's code checked; never make one."
        bot.append(Rule(f"{totp}/code/*", ("update",), {"code": ()}, why=why))
    reachable = {rule.path for rules in children.values() for rule in rules}
    problems += _ways_around(children)
    groups = {level.control.group for level in levels if level.control is not None}
    if groups:
        bot += (
            Rule("sys/control-group/request", ("update",), why="See who has authorised."),
            # A group lends its members the right; "deny" wins, should somebody put the bot into one.
            Rule("sys/control-group/authorize", ("deny",), why="Never authorise, whatever group it is in."),
        )
    problems += [
        f"The bot's own token could use {rule.path}, which is a level's." for rule in bot if rule.path in reachable
    ]
    if problems:
        raise Invalid("\n".join(dict.fromkeys(problems)))
    # 2. Per token role: its policy, and itself.
    for token_role, rules in children.items():
        allowed = lent[token_role]
        if not allowed:
            only = child_policy_name(token_role)
            allowed = (only,)
            writes[f"sys/policies/acl/{only}"] = Write(
                "PUT", f"sys/policies/acl/{only}", {"policy": hcl(rules)}, lends=True
            )
        writes[f"auth/token/roles/{token_role}"] = Write(
            "POST",
            f"auth/token/roles/{token_role}",
            {
                "allowed_policies": list(allowed),
                "allowed_policies_glob": [],
                "orphan": True,
                "renewable": False,
                "token_no_default_policy": True,
                "token_period": 0,
                "token_type": "service",
                "token_explicit_max_ttl": int(longest[token_role].total_seconds()),
                # 0: as often as it lives. See USES.
                "token_num_uses": USES if is_held(rules) else 0,
            },
            lends=True,
        )
    # 3. The key that signs the log, which nobody can take out.
    ending: list[Write] = []
    if log_key is not None:
        mount, key = log_key
        ending.append(Write("POST", f"sys/mounts/{mount}", {"type": "transit"}, made_once=True))
        ending.append(
            Write(
                "POST",
                f"{mount}/keys/{key}",
                {"type": "ed25519", "exportable": False, "allow_plaintext_backup": False},
                made_once=True,
            )
        )
    if totp is not None:
        ending.append(Write("POST", f"sys/mounts/{totp}", {"type": "totp"}, made_once=True))
    # 4. What custodians may with their own logins, through their group. Who is in it is an administrator's to say.
    if groups:
        ending.append(Write("PUT", f"sys/policies/acl/{CUSTODIAN}", {"policy": hcl(_CUSTODIAN)}))
    ending += [
        Write("POST", f"identity/group/name/{group}", {"policies": [CUSTODIAN]}, joined=("policies",))
        for group in sorted(groups)
    ]
    # 5. The bot itself.
    ending.append(Write("PUT", f"sys/policies/acl/{APPROLE}", {"policy": hcl(bot)}))
    ending.append(Write("POST", f"sys/auth/{APPROLE_MOUNT}", {"type": "approle"}, made_once=True))
    ending.append(
        Write(
            "POST",
            f"auth/{APPROLE_MOUNT}/role/{APPROLE}",
            {
                "bind_secret_id": True,
                "token_policies": [APPROLE],
                "token_no_default_policy": True,
                "token_ttl": TOKEN_TTL,
                "token_max_ttl": TOKEN_MAX_TTL,
                "token_type": "service",
            },
        )
    )
    by_hand = tuple(f"{first}\n" + "\n\n".join(paragraphs) for first, paragraphs in targets.items())
    return Plan(by_hand, (*writes.values(), *ending))


def _ways_around(children: Mapping[str, tuple[Rule, ...]]) -> list[str]:
    """Say which paths custodians hold with their own keys in one level and not, or otherwise, in another."""
    controls: dict[str, set[ControlGroup | None]] = {}
    for rules in children.values():
        for rule in rules:
            controls.setdefault(rule.path, set()).add(rule.control)
    return [
        f"{path} is held by custodians' own keys in one level, and in another it is not, or by others: that would be a "
        "way around them. Give both the same enforced_by, vault_group, quorum and open_within."
        for path, found in controls.items()
        if len(found) > 1
    ]


def is_held(rules: Iterable[Rule]) -> bool:
    """Whether custodians hold what these rules open with keys of their own."""
    return any(rule.control is not None for rule in rules)


def child_policy_name(token_role: str) -> str:
    """Return the name of the policy that a token role hands out."""
    return f"breakglass-{token_role}"


def secret_variable(write: Write, key: str) -> str:
    """Return the name of the environment variable in which an operator brings a secret of a call."""
    return re.sub(r"[^A-Z0-9]+", "_", f"VAULT_SECRET_{write.path}_{key}".upper())


def hcl(rules: Sequence[Rule]) -> str:
    """Write rules as a Vault policy; those of one path become one block, at the place of the first."""
    together: dict[str, Rule] = {}
    for rule in rules:
        known = together.get(rule.path)
        together[rule.path] = rule if known is None else _either(known, rule)
    return "\n".join(_block(rule) for rule in together.values()) + "\n"


# Children with only what the bot sends: no policies of its own choice, no period, no id.
_CHILD: Final = {
    "ttl": (),
    "explicit_max_ttl": (),
    "display_name": (),
    "meta": (),
    "renewable": (False,),
    "no_default_policy": (True,),
}


def _log_rules(mount: str, key: str) -> tuple[Rule, ...]:
    return (
        Rule(
            f"{mount}/sign/{key}",
            ("update",),
            {"input": (), "key_version": ()},
            why="The log's heads: sign them, and see what with.",
        ),
        Rule(f"{mount}/keys/{key}", ("read",)),
    )


def _joined(one: Write, other: Write) -> Write | None:
    """Return the call that makes what both make; None when they contradict each other."""
    if replace(one, body={}) != replace(other, body={}) or one.body.keys() != other.body.keys():
        return None
    body = dict(one.body)
    for key, value in other.body.items():
        mine = body[key]
        if key in one.joined and isinstance(mine, list) and isinstance(value, list):
            body[key] = sorted({*mine, *value})
        elif mine != value:
            return None
    return replace(one, body=body)


def _either(one: Rule, other: Rule) -> Rule:
    """Return the right to do what either rule allows."""
    if one.control is not None or other.control is not None:
        raise AssertionError(f"{one.path}: what needs custodians' keys is joined with what does not")
    capabilities = tuple(dict.fromkeys((*one.capabilities, *other.capabilities)))
    if not one.allowed_parameters or not other.allowed_parameters:
        return Rule(one.path, capabilities, why=one.why or other.why)
    limits: dict[str, tuple[str | bool, ...]] = {}
    for key in dict.fromkeys((*one.allowed_parameters, *other.allowed_parameters)):
        values = [rule.allowed_parameters[key] for rule in (one, other) if key in rule.allowed_parameters]
        limits[key] = tuple(dict.fromkeys(value for some in values for value in some)) if all(values) else ()
    return Rule(one.path, capabilities, limits, why=one.why or other.why)


def _block(rule: Rule) -> str:
    # JSON's strings are HCL's.
    lines = [f"# {rule.why}"] if rule.why else []
    lines += [f"path {json.dumps(rule.path)} {{", f"  capabilities = {json.dumps(list(rule.capabilities))}"]
    if rule.allowed_parameters:
        lines.append("  allowed_parameters = {")
        lines += [
            f"    {json.dumps(key)} = {json.dumps(list(values))}" for key, values in rule.allowed_parameters.items()
        ]
        lines.append("  }")
    if rule.control is not None:
        lines += [
            "  control_group = {",
            f'    ttl = "{int(rule.control.ttl.total_seconds())}s"',
            # One factor: of several, one approval would count for each.
            '    factor "custodians" {',
            f"      controlled_capabilities = {json.dumps(list(rule.capabilities))}",
            "      identity {",
            f"        group_names = {json.dumps([rule.control.group])}",
            # Stated always: left out, some versions let everybody through.
            f"        approvals = {rule.control.approvals}",
            "      }",
            "    }",
            "  }",
        ]
    return "\n".join([*lines, "}"])
