"""How is an account that exists at PostgreSQL lent for a while, and disabled in between?

Rules
-----
* It is Vault's database engine with statements about one fixed role, so the lease, its time and its end are Vault's. At
  the grant the role may log in, with a fresh password; at the end it gets a random one that nobody has ever seen, may
  not log in, and its sessions are cut.
* One grant has the account at a time. The bot refuses a second one (:meth:`Static.alone`); so does the target itself,
  where the account is marked, in its comment, with the name that Vault made for the lease (``bg-7kq2-…``). A revocation
  that comes late finds another's mark and does nothing, so overlapping grants never end each other.
* The name is the same for everybody: who did something follows from the time, and from the mark.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from workflows.engines import database_rights, database_sql
from workflows.engines.database import Database, one, watching
from workflows.engines.naming import mark_of, watch_path
from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from workflows.engines import Credential, Held, Wish
    from workflows.engines.database import Login
    from workflows.vault import ChildToken, Vault

# "{account}" is filled in here, "{{…}}" by Vault. Vault does not split a statement with the word END at its semicolons.
# Enabled and not over: lent through another bot, or never disabled. Two at once collide at the role's row, and one of
# them fails.
_CREATION: Final = (
    (
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname='{account}' AND rolcanlogin "
        "AND (rolvaliduntil IS NULL OR rolvaliduntil > now())) "
        "OR EXISTS (SELECT FROM pg_stat_activity WHERE usename='{account}') "
        "THEN RAISE EXCEPTION 'the account is in use'; END IF; END $$"
    ),
    (
        "ALTER ROLE \"{account}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}' "
        "CONNECTION LIMIT {connections}"
    ),
    "COMMENT ON ROLE \"{account}\" IS '{{name}}'",
)
_OURS: Final = (
    "r.rolname='{account}' AND (coalesce(shobj_description(r.oid,'pg_authid'),'') NOT LIKE 'bg-%' "
    "OR shobj_description(r.oid,'pg_authid')='{{name}}')"
)
_SESSIONS: Final = f"FROM pg_stat_activity a JOIN pg_roles r ON r.oid=a.usesysid WHERE {_OURS}"
# The order and the COMMIT are as in database_sql.REVOCATION. The mark stays: it says who had the account last.
_REVOCATION: Final = (
    (
        f"DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles r WHERE {_OURS}) THEN "
        "EXECUTE format('ALTER ROLE \"{account}\" NOLOGIN PASSWORD %L', "
        "gen_random_uuid()::text || gen_random_uuid()::text); END IF; END $$"
    ),
    "COMMIT",
    f"SELECT pg_terminate_backend(a.pid) {_SESSIONS}",
    f"SELECT pg_terminate_backend(a.pid,5000) {_SESSIONS}",
    f"DO $$ BEGIN IF EXISTS (SELECT {_SESSIONS}) THEN RAISE EXCEPTION 'a session does not end'; END IF; END $$",
)


class Static(Database):
    """Vault's database secrets engine with its PostgreSQL plugin, on one role that exists."""

    keys: Mapping[str, bool] = MappingProxyType(
        {
            **dict.fromkeys(("mount", "role", "host", "port", "database", "account"), True),
            **dict.fromkeys(("watch_role", "connection", "sslmode", "manager", "connections"), False),
        }
    )
    set_up_by: Mapping[str, str] = MappingProxyType({"manager": "the role with which Vault enables the account"})

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found = super().problems(_as_group(options))
        if "group" in found:
            found["account"] = found.pop("group")
        return found

    def alone(self, options: Mapping[str, str]) -> str:
        """Return the account and its server."""
        return f"{options['account']} at {options['host']}:{options['port']}"

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> Login:
        """Enable the account and return its login. Raises Unavailable, also when it is lent already, VaultRefused."""
        try:
            made = super().issue(vault, child, options, wish)
        except Unavailable as error:
            mark = self._holder(vault, options, wish.request_id)
            if mark is None:
                raise
            said = f"{error.sentence} {self.alone(options)} is enabled already{mark and f' ({mark})'}."
            failure = Unavailable(said, code="in_use")
        else:
            return made
        raise failure

    def credential(
        self, options: Mapping[str, str], data: Mapping[str, object], lease_id: str, ttl: timedelta
    ) -> Login:
        """Return the login. The name in Vault's answer is only the mark."""
        return replace(super().credential(options, data, lease_id, ttl), username=options["account"])

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """See that the account cannot log in, and that no session of it is open; or that it is another request's."""
        account = grant.options["account"]
        with watching(vault, grant.options) as target:
            if target is None:
                return ()
            able, mark, sessions = _state(target, account)
        if able and _is_anothers(mark, grant.request_id):
            return (f"the account {account} is {mark}'s now",)
        if able or sessions:
            if not able:
                # A session that began in the last moment: the end of a watching login sweeps those away.
                vault.end_watcher(watch_path(grant.options))
            raise Unavailable(
                f"Vault says that it is gone, and at {grant.options['host']} the account {account} "
                f"{'can log in' if able else 'cannot log in'} and has {sessions} sessions.",
                code="left",
            )
        return (f"the account {account} cannot log in", "no session of it is open")

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the account if it can log in."""
        with watching(vault, options) as target:
            if target is None or not _state(target, options["account"])[0]:
                return frozenset()
        return frozenset({options["account"]})

    def creation(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the statements that enable the account."""
        return _filled(_CREATION, options)

    def revocation(self, options: Mapping[str, str]) -> tuple[str, ...]:
        """Return the statements that disable it."""
        return _filled(_REVOCATION, options)

    def excess(self, vault: Vault, options: Mapping[str, str]) -> tuple[str, ...]:
        """Look at what the account could do, and whether it is disabled while nobody has it."""
        with watching(vault, options) as target:
            if target is None:
                return ()
            found = database_rights.excess(target, _as_group(options))
            able, mark, _ = _state(target, options["account"])
        if able and not mark.startswith("bg-"):
            return (*found, f"The account {options['account']} can log in while nobody has it: ALTER ROLE … NOLOGIN.")
        return found

    def rehearse(
        self, credential: Credential, options: Mapping[str, str], above: Sequence[Mapping[str, str]]
    ) -> tuple[str, ...]:
        """Log in and try what the level is for, and what it is not for."""
        return super().rehearse(credential, _as_group(options), above)

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return the SQL for the server's administrator. ``manager`` is there."""
        account = options["account"]
        return (
            f"{super().target_steps(_as_group(options))}\n"
            "-- The account that is lent as it is. From now on it is enabled only for the time of a grant.\n"
            f"ALTER ROLE {account} NOLOGIN;\n"
        )

    def _holder(self, vault: Vault, options: Mapping[str, str], request_id: str) -> str | None:
        """Return whose mark an enabled account bears ("" for nobody's); None: it is free, or nobody can look."""
        try:
            with watching(vault, options) as target:
                able, mark, _ = (False, "", 0) if target is None else _state(target, options["account"])
        except Unavailable:
            return None
        return mark if able and not mark.startswith(mark_of(request_id)) else None


def _as_group(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a level whose logins get the rights of the account, which is what the account has."""
    return {**options, "group": options["account"]}


def _filled(statements: tuple[str, ...], options: Mapping[str, str]) -> tuple[str, ...]:
    connections = options.get("connections", str(database_sql.CONNECTIONS))
    return tuple(
        line.replace("{account}", options["account"]).replace("{connections}", connections) for line in statements
    )


def _state(target: Any, account: str) -> tuple[bool, str, int]:  # noqa: ANN401 - a session, as watching() opens it
    """Return whether the account can log in now, whose mark it bears, and how many sessions it has."""
    able, mark, sessions = one(
        target,
        "SELECT coalesce(bool_or(rolcanlogin AND coalesce(rolvaliduntil > now(), true)), false), "
        "coalesce(max(shobj_description(oid, 'pg_authid')), ''), "
        "(SELECT count(*) FROM pg_stat_activity WHERE usename = %(account)s) FROM pg_roles WHERE rolname = %(account)s",
        {"account": account},
    )
    return bool(able), str(mark), int(sessions)


def _is_anothers(mark: str, request_id: str) -> bool:
    return mark.startswith("bg-") and not mark.startswith(mark_of(request_id))
