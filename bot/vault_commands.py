"""What can be typed to set Vault up for a policy? ``breakglass vault policy | apply``.

Rules
-----
* Both say the same: what ``policy`` prints for an administrator to paste, ``apply`` does with an operator's token.
* ``apply`` shows every difference before it changes anything, and changes nothing unless it is told to.
* The token is an operator's, from the environment, and never the bot's. No secret is printed. The bot's own login goes
  into a file that did not exist and that its owner alone can read.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bot.settings import own_from_environment, policy_file
from workflows import policy as rules
from workflows.errors import Refused
from workflows.vault_apply import CHANGED, NEW, SAME, Operator, carry_out, compare, left_over, missing_secrets
from workflows.vault_plan import APPROLE, APPROLE_MOUNT, levels_of, plan_of, secret_variable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from workflows.engines.seam import Write
    from workflows.vault_apply import Difference
    from workflows.vault_plan import Plan


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``vault`` to the command line."""
    vault = commands.add_parser("vault", help="set Vault up for a policy file").add_subparsers(
        required=True, metavar="WHAT"
    )
    policy = vault.add_parser("policy", help="print what an administrator does at the targets and at Vault")
    policy.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the policy file (default: the bot's)")
    policy.set_defaults(run=_policy)
    apply = vault.add_parser("apply", help="do it at Vault with an operator's token (VAULT_ADDR, VAULT_TOKEN)")
    apply.add_argument("file", type=Path, nargs="?", metavar="FILE", help="the policy file (default: the bot's)")
    how = apply.add_mutually_exclusive_group(required=True)
    how.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    how.add_argument("--yes", action="store_true", help="show what changes, and change it")
    apply.add_argument(
        "--credentials-to",
        type=Path,
        metavar="FILE",
        help="then write the bot's role id and a new secret id into a new file, readable by you alone",
    )
    apply.set_defaults(run=_apply)


def _policy(options: argparse.Namespace) -> int:
    file = options.file or policy_file(os.environ)
    policy = rules.load(file)
    sys.stdout.write(instructions(plan_of(policy), f"{file}, sha256 {policy.hash}"))
    return 0


def _apply(options: argparse.Namespace) -> int:
    policy = rules.load(options.file or policy_file(os.environ))
    plan = plan_of(policy)
    settings = own_from_environment(os.environ, missing="give an operator's token, not the bot's.")
    if options.credentials_to is not None and options.credentials_to.exists():
        raise Refused(f"{options.credentials_to} is there already, and is not overwritten: name another file.")
    operator = Operator(
        settings.vault_address, settings.vault_token, namespace=settings.vault_namespace, ca_file=settings.vault_ca_file
    )
    operator.must_be_an_operator()
    # 1. What is different. All of it is known before anything is written.
    differences = compare(operator, plan)
    for one in differences:
        sys.stdout.write(_shown(one))
    for name in left_over(operator, plan):
        sys.stdout.write(f"left     sys/policies/acl/{name}\n           no level needs it: look at it, and remove it\n")
    counted = {state: sum(one.state == state for one in differences) for state in (NEW, CHANGED, SAME)}
    sys.stdout.write(f"{counted[NEW]} new, {counted[CHANGED]} changed, {counted[SAME]} as they should be.\n")
    # 2. Do it.
    if options.dry_run:
        for name in missing_secrets(differences, os.environ):
            sys.stdout.write(f"Set {name} before --yes: only you know what is to be in there.\n")
        sys.stdout.write("Nothing was changed.\n")
        return 0
    levels = levels_of(policy)
    done = sum(1 for _ in carry_out(operator, differences, levels, os.environ))
    sys.stdout.write(f"Done: {done} written.\n" if done else "Nothing to do.\n")
    # 3. Who is in the custodians' groups is not in the policy: say what is missing there.
    for sentence in operator.group_trouble(levels):
        sys.stdout.write(f"MISSING  {sentence}\n")
    # 4. The bot's login.
    if options.credentials_to is not None:
        _write_credentials(operator, options.credentials_to)
        sys.stdout.write(f"The bot's login is in {options.credentials_to}, readable by you alone.\n")
    return 0


def _shown(one: Difference) -> str:
    lines = [f"{one.state:<8} {one.write.path}", *(f"           {line}" for line in one.lines)]
    return "\n".join(lines) + "\n"


def _write_credentials(operator: Operator, file: Path) -> None:
    try:
        # Before a secret id is made, so that none is made in vain.
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        failure = Refused(f"{file} cannot be written: {error.strerror}.")
    else:
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                role_id, secret_id = operator.new_credentials()
                out.write(f"VAULT_ROLE_ID={role_id}\nVAULT_SECRET_ID={secret_id}\n")
        except BaseException:
            file.unlink()
            raise
        return
    raise failure


def instructions(plan: Plan, title: str) -> str:
    """Return what an administrator does for a plan: SQL for the targets, then a shell's lines for Vault's client."""
    parts = [
        f"# How to set up what {title} needs.",
        "# `breakglass vault apply --dry-run` shows how Vault differs from it; `--yes` does the second part.",
        "",
        "# 1. At each target, as its administrator",
    ]
    for steps in plan.targets or ("# (nothing)",):
        parts += ["", steps.rstrip()]
    parts += ["", "# 2. At Vault, with an administrator's token, in this order"]
    secret_names = [secret_variable(write, key) for write in plan.writes for key in write.secrets]
    if secret_names:
        parts.append(f"#    Set before, without leaving it in the shell's history: {', '.join(secret_names)}")
    for write in plan.writes:
        parts += ["", *_lines(write)]
    own = f"auth/{APPROLE_MOUNT}/role/{APPROLE}"
    parts += [
        "",
        "# 3. The bot's login: VAULT_ROLE_ID and VAULT_SECRET_ID",
        "",
        f"vault read {own}/role-id",
        f"vault write -force {own}/secret-id",
    ]
    return "\n".join(parts) + "\n"


def _lines(write: Write) -> Sequence[str]:
    kind = write.body.get("type")
    for listing, command in (("sys/mounts/", "secrets"), ("sys/auth/", "auth")):
        if write.path.startswith(listing):
            return (f"vault {command} enable -path={write.path.removeprefix(listing)} {kind}",)
    if write.path.startswith("sys/policies/acl/"):
        name = write.path.removeprefix("sys/policies/acl/")
        return (f"vault policy write {name} - <<'END'", str(write.body["policy"]).rstrip(), "END")
    if not write.secrets:
        return (f"vault write {write.path} - <<'END'", json.dumps(dict(write.body), indent=2), "END")
    # Arguments can be seen by every local user: a secret comes in through the pipe.
    words = [
        shlex.quote(f"{key}={value if isinstance(value, str) else json.dumps(value)}")
        for key, values in write.body.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    first, *others = write.secrets
    words += [f'{key}="${secret_variable(write, key)}"' for key in others]
    return (
        f"""printf %s "${secret_variable(write, first)}" | vault write {write.path} {first}=- \\""",
        *(f"  {word} \\" for word in words[:-1]),
        f"  {words[-1]}",
    )
