"""Where does each engine play? A real Vault of its own, set up as an operator does, and a real target.

The contract (``test_engine_contract.py``) runs over the registry, and an engine without a stage fails it. A stage is a
function of a few lines in :data:`STAGES`: it starts the target, sets Vault up with :func:`set_up` (which does what
``breakglass vault apply`` does), and yields a :class:`Stage` that knows how to use a credential at the target.
"""

from __future__ import annotations

import itertools
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pymysql
import requests
from kubernetes_part import NAMESPACE, Cluster
from mariadb_part import MariaDB, maria_level, prepare_maria
from real_parts import Grant, level_for
from sshd_part import HOST, PRINCIPAL, Sshd, keygen

from bot.demo.parts import OpenBao, Postgres
from bot.demo.vault_setup import MANAGER, prepare_target
from workflows.engines import ENGINES, LevelSettings, Wish
from workflows.errors import Unavailable
from workflows.vault import Vault
from workflows.vault_apply import Operator, carry_out, compare
from workflows.vault_plan import LevelSetup, plan, secret_variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from workflows.engines import Credential, Engine
    from workflows.vault import ChildToken

_names: Final = itertools.count(1)
LONGEST: Final = timedelta(minutes=30)


@dataclass
class Stage:
    """An engine's level, ready to use.

    ``works``: whether a credential opens the target at this moment. ``secrets``: what of it nobody else may see.
    ``elsewhere``: values of options with which the level would reach somewhere else, by key.
    """

    bao: OpenBao
    level: LevelSetup
    role_id: str
    secret_id: str = field(repr=False)
    works: Callable[[Credential], bool]
    secrets: Callable[[Credential], tuple[str, ...]]
    elsewhere: Mapping[str, tuple[str, ...]]
    public_key: str | None = None
    is_named: bool = True  # after the request, at the target
    short: timedelta = timedelta(seconds=3)  # enough to make one on a busy machine
    is_seen: bool = True  # whether the end is looked at there
    target: Any = None  # for the tests of that engine alone

    @property
    def settings(self) -> LevelSettings:
        """The level's settings."""
        return self.level.settings

    @property
    def engine(self) -> Engine:
        """The engine."""
        return ENGINES[self.settings.engine]

    def vault(self) -> Vault:
        """Return a new Vault of the bot's."""
        return Vault(self.bao.addr, role_id=self.role_id, secret_id=self.secret_id)

    def child(self, vault: Vault, ttl: timedelta = timedelta(minutes=5), name: str = "BG-7KQ2") -> ChildToken:
        """Make a grant's own token."""
        return vault.open_child(self.settings.token_role, ttl, display_name=f"{name}-1", metadata={"request": name})

    def open(
        self, vault: Vault, ttl: timedelta = timedelta(minutes=5), name: str = ""
    ) -> tuple[Credential, Grant, ChildToken]:
        """Open a grant as the desk does; returns the credential, the grant and its child token."""
        name = name or f"BG-{next(_names):04}"  # no two requests have the same one
        options, intended_at = self.settings.options, datetime.now(UTC)
        child = self.child(vault, ttl, name)
        credential = self.engine.issue(vault, child, options, Wish(name, "U0RITA", self.public_key))
        grant = Grant(
            child.accessor,
            credential.lease_id,
            self.engine.lease_prefix(options),
            intended_at,
            name,
            credential.username,
            options,
            1,
            intended_at + ttl,
        )
        return credential, grant, child

    def is_over(self, vault: Vault, grant: Grant) -> bool:
        """Whether Vault says that it is gone, and nothing is left to be seen at the target."""
        if not self.engine.is_gone(vault, grant, frozenset()):
            return False
        try:
            self.engine.prove(vault, grant)
        except Unavailable as error:
            if error.reason != "left":
                raise
            return False
        return True

    def take_back(self, vault: Vault, grant: Grant) -> bool:
        """Revoke the grant and return whether it was over in time."""
        vault.revoke_accessor(grant.accessor)
        return until(lambda: self.is_over(vault, grant))


def until(what: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Return whether ``what`` came true within ``seconds``."""
    late = time.monotonic() + seconds
    while not what():
        if time.monotonic() > late:
            return False
        time.sleep(0.02)
    return True


def set_up(bao: OpenBao, *levels: LevelSetup, secrets: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Do what ``breakglass vault apply`` does for the levels, and return the bot's role id and secret id.

    ``secrets``: what the operator brings for the keys that an engine leaves open.
    """
    made, operator = plan(levels), Operator(bao.addr, bao.root_token)
    brought = {secret_variable(write, key): (secrets or {})[key] for write in made.writes for key in write.secrets}
    list(carry_out(operator, compare(operator, made), levels, brought))
    return operator.new_credentials()


# --- database --------------------------------------------------------------------------------------------------------


def _logs_in(pg: Postgres, user: str, password: str) -> bool:
    try:
        psycopg.connect(
            host=pg.host, port=pg.port, dbname="orders", user=user, password=password, connect_timeout=5
        ).close()
    except psycopg.OperationalError:
        return False
    return True


@contextmanager
def database(folder: Path) -> Iterator[Stage]:
    """PostgreSQL, and Vault's database engine."""
    with Postgres(folder / "postgres", durable=False) as pg, OpenBao(folder / "bao", persistent=True) as bao:
        level = level_for(pg, "orders-ro", "bg_orders_ro")
        login = set_up(bao, level, secrets={"password": prepare_target(pg).password})
        yield Stage(
            bao,
            level,
            *login,
            works=lambda made: _logs_in(pg, made.username, made.password),
            secrets=lambda made: (made.password,),
            elsewhere={"mount": ("../sys", "a//b", "a*"), "role": ("a/b", "..", "*"), "host": ("a b", "$(id)")},
        )


# --- mariadb ---------------------------------------------------------------------------------------------------------


@contextmanager
def mariadb(folder: Path) -> Iterator[Stage]:
    """MariaDB, and Vault's database engine."""
    with MariaDB(folder / "mariadb", durable=False) as server, OpenBao(folder / "bao", persistent=True) as bao:
        level, other = (maria_level(server, f"shop-{name}", f"bg_shop_{name}") for name in ("ro", "rw"))
        target = prepare_maria(server, level, other)

        def works(made: Credential) -> bool:
            try:
                server.connect(user=made.username, password=made.password, database=made.database).close()
            except pymysql.Error:
                return False
            return True

        yield Stage(
            bao,
            level,
            *set_up(bao, level, secrets={"password": target.password}),
            works=works,
            secrets=lambda made: (made.password,),
            elsewhere={"mount": ("../sys", "a//b", "a*"), "role": ("a/b", "..", "*"), "host": ("a b", "$(id)")},
        )


# --- path ------------------------------------------------------------------------------------------------------------


@contextmanager
def path(folder: Path) -> Iterator[Stage]:
    """PostgreSQL once more, through the engine that knows nothing of it."""
    with Postgres(folder / "postgres", durable=False) as pg, OpenBao(folder / "bao", persistent=True) as bao:
        role = level_for(pg, "orders-ro", "bg_orders_ro")
        set_up(bao, role, secrets={"password": prepare_target(pg).password})
        options = {
            "path": "database/creds/orders-ro",
            "identity_field": "username",
            "exports": "username=PGUSER, password=PGPASSWORD",
            "shows": "username, password",
        }
        level = LevelSetup(LevelSettings(engine="path", token_role="bg-any", options=options), LONGEST)
        yield Stage(
            bao,
            level,
            *set_up(bao, level),
            works=lambda made: _logs_in(pg, made.username, dict(made.variables)["PGPASSWORD"]),
            secrets=lambda made: (dict(made.shown)["password"],),
            elsewhere={
                "path": (
                    *("sys/raw/core", "auth/token/create", "SYS/x", "identity/entity", "cubbyhole/x", "orders", ""),
                    *("/database/creds/x", "database//x", "database/../sys/x", "database/creds/*", "database/creds/+"),
                    *("database/creds/x/", "database/creds/x?list=true", "database/creds/x#", "database/creds/a b"),
                ),
                "identity_field": ("", "password", "secret_key", "access_token", "private_key", "a-b"),
                "exports": (
                    "username",
                    "username=pguser",
                    "username=PATH",
                    "username=LD_PRELOAD",
                    "a=B, c=B",
                    "a=B;id",
                ),
                "shows": ("user name", "a, a", "a,", "$(id)"),
            },
            is_seen=False,
            target=pg,
        )


# --- ssh -------------------------------------------------------------------------------------------------------------


@contextmanager
def ssh(folder: Path) -> Iterator[Stage]:
    """An sshd that trusts Vault's authority, and a responder's key."""
    key = folder / "key"
    with OpenBao(folder / "bao", persistent=True) as bao:
        bao.call("POST", "sys/mounts/ssh", {"type": "ssh"})
        authority = bao.call("POST", "ssh/config/ca", {"generate_signing_key": True, "key_type": "ed25519"})["data"]
        with Sshd(folder / "sshd", authority["public_key"]) as sshd:
            options = {
                "mount": "ssh",
                "role": "shop",
                "watch_role": "shop-watch",
                "watch_user": "root",
                "host": HOST,
                "port": str(sshd.port),
                "host_key": sshd.host_key,
                "user": sshd.account,
                "principal": PRINCIPAL,
                "dedicated": "true",
            }
            level = LevelSetup(LevelSettings(engine="ssh", token_role="bg-shop", options=options), LONGEST)

            def works(made: Credential) -> bool:
                certificate, known = folder / f"{made.username}-cert.pub", folder / "known_hosts"
                certificate.write_text(f"{made.certificate}\n", encoding="utf-8")
                known.write_text(f"[{HOST}]:{sshd.port} {sshd.host_key}\n", encoding="utf-8")
                words = ["ssh", "-F", "none", "-i", str(key), "-p", str(sshd.port), "-l", sshd.account]
                for word in (
                    "IdentitiesOnly=yes",
                    "IdentityAgent=none",
                    "BatchMode=yes",
                    f"UserKnownHostsFile={known}",
                ):
                    words += ["-o", word]
                words += ["-o", f"CertificateFile={certificate}", HOST, "true"]
                return subprocess.run(words, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0

            yield Stage(
                bao,
                level,
                *set_up(bao, level),
                works=works,
                secrets=lambda _: (),  # a certificate opens nothing without the key, which never leaves the responder
                elsewhere={"mount": ("../sys", "a//b", "a*"), "role": ("a/b", "..", "*"), "host": ("a b", "$(id)")},
                public_key=keygen(key),
                short=timedelta(seconds=15),
            )


# --- static ----------------------------------------------------------------------------------------------------------


@contextmanager
def static(folder: Path) -> Iterator[Stage]:
    """PostgreSQL with an account that exists."""
    with Postgres(folder / "postgres", durable=False) as pg, OpenBao(folder / "bao", persistent=True) as bao:
        options = {
            "mount": "fixed",
            "role": "repair",
            "watch_role": "orders-watch",
            "manager": MANAGER,
            "host": pg.host,
            "port": str(pg.port),
            "database": "orders",
            "account": "orders_repair",
        }
        level = LevelSetup(LevelSettings(engine="static", token_role="bg-repair", options=options), LONGEST)
        target = prepare_target(pg, groups=())
        with psycopg.connect(pg.dsn_for("orders"), autocommit=True) as server:
            server.execute(ENGINES["static"].target_steps(options).encode())
        yield Stage(
            bao,
            level,
            *set_up(bao, level, secrets={"password": target.password}),
            works=lambda made: _logs_in(pg, made.username, made.password),
            secrets=lambda made: (made.password,),
            elsewhere={"mount": ("../sys", "a//b", "a*"), "role": ("a/b", "..", "*"), "host": ("a b", "$(id)")},
            is_named=False,
        )


# --- token -----------------------------------------------------------------------------------------------------------


@contextmanager
def token(folder: Path) -> Iterator[Stage]:
    """Vault itself, with a policy of an administrator's that lets tokens read the list of mounts."""
    with OpenBao(folder / "bao", persistent=True) as bao:
        bao.call("PUT", "sys/policies/acl/operator", {"policy": 'path "sys/mounts" { capabilities = ["read"] }'})
        options = {"address": bao.addr, "policies": "operator"}
        level = LevelSetup(LevelSettings(engine="token", token_role="bg-vault", options=options), LONGEST)

        def works(made: Credential) -> bool:
            answer = requests.get(f"{made.address}/v1/sys/mounts", headers={"X-Vault-Token": made.token}, timeout=30)
            return answer.status_code == 200

        yield Stage(
            bao,
            level,
            *set_up(bao, level),
            works=works,
            secrets=lambda made: (made.token,),
            is_seen=False,
            elsewhere={
                "address": (
                    "",
                    "vault:8200",
                    "ftp://vault",
                    "https://vault/$(id)",
                    "https://vault 8200",
                    "https://-x'",
                ),
                "policies": ("", "root", "operator, root", "a/b", "operator, operator", "*", "operator,"),
                "outlives": ("true", "yes"),
            },
        )


# --- kubernetes ------------------------------------------------------------------------------------------------------


def kubernetes_level(cluster: Cluster, **more: str) -> LevelSetup:
    """Return a level of the cluster's; ``more`` are further options."""
    options = {
        "mount": "kubernetes",
        "role": "repair",
        "namespace": NAMESPACE,
        "server": cluster.url,
        "ca_file": str(cluster.ca_file),
        "watch_role": "watch",
        "bound_role": "repair",
        **more,
    }
    return LevelSetup(LevelSettings(engine="kubernetes", token_role="bg-shop", options=options), LONGEST)


def kubernetes_secrets(cluster: Cluster, level: LevelSetup) -> dict[str, str]:
    """Apply the engine's steps at the cluster, and return what the operator brings to Vault for it."""
    cluster.apply(ENGINES["kubernetes"].target_steps(level.settings.options))
    return {
        "service_account_jwt": cluster.manager_token,
        "kubernetes_ca_cert": cluster.ca_file.read_text(encoding="utf-8"),
    }


@contextmanager
def kubernetes(folder: Path) -> Iterator[Stage]:
    """Vault's real engine before a stand-in for the cluster."""
    (folder / "cluster").mkdir(parents=True)
    with Cluster(folder / "cluster") as cluster, OpenBao(folder / "bao", persistent=True) as bao:
        level = kubernetes_level(cluster)

        def works(made: Credential) -> bool:
            answer = requests.get(
                f"{made.server}/api/v1/namespaces/{made.namespace}/pods",
                headers={"Authorization": f"Bearer {made.token}"},
                verify=cluster.ca_file,
                timeout=30,
            )
            return answer.status_code == 200

        yield Stage(
            bao,
            level,
            *set_up(bao, level, secrets=kubernetes_secrets(cluster, level)),
            works=works,
            secrets=lambda made: (made.token,),
            elsewhere={
                "mount": ("../sys", "a//b", "a*", ""),
                "role": ("a/b", "..", "*", ""),
                "watch_role": ("a/b", "repair"),
                "namespace": ("", "a/b", "Shop", "a.b", "-a", "a" * 64, "*"),
                "server": ("", "http://cluster:6443", "https://cluster/x", "https://u@cluster", "https://a b"),
                "ca_file": ("ca.pem", "/a/../b;", "/a b", "https://x"),
                "bound_role": ("", "A", "a/b", "*"),
                "bound_type": ("role", "Group"),
            },
            target=cluster,
        )
        assert cluster.strange == []


STAGES: Final[Mapping[str, Callable[[Path], AbstractContextManager[Stage]]]] = {
    "database": database,
    "kubernetes": kubernetes,
    "mariadb": mariadb,
    "path": path,
    "ssh": ssh,
    "static": static,
    "token": token,
}
