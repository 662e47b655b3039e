"""How does a Kubernetes token come out of Vault's engine, and how is it shown to be gone?

Rules
-----
* Kubernetes cannot take a token back: what it signed is good until its end, as long as its service account exists. So
  each grant gets a service account of its own with a binding of its own, both made for the lease and deleted with it.
  A role of the engine that hands out tokens of an account that exists is refused: such a token would outlive the grant.
* The grant ends by the deletion, not by the token's own time: Kubernetes signs none for less than ten minutes. While
  Vault is down at the end of a shorter grant, its token works for what is left of these ten minutes.
* The engine is asked for one namespace. The grant's own token can ask for no other, nor for a binding to the cluster.
* What is left at Vault is looked for as for every lease (``leases.py``). With a ``watch_role`` the bot then looks at
  the cluster, with a token that can only list service accounts and bindings: none of the request's name may be left.
* Kubernetes does not cut what is open already: a ``kubectl exec`` or a watch that began before the end can go on.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import requests

from workflows.engines.database_sql import USERNAME
from workflows.engines.leases import Leased
from workflows.engines.naming import creds_path, mark_of, role_problems, watch_path
from workflows.engines.seam import Rule, Write, lease_rules
from workflows.errors import Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.engines import Held, Wish
    from workflows.vault import ChildToken, Vault

# RFC 1123 labels, as Kubernetes wants a namespace to be: it becomes a part of the address that is asked.
NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SERVER: Final = re.compile(r"https://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(:[1-9][0-9]{0,4})?")
BOUND: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
FILE: Final = re.compile(r"(/[A-Za-z0-9._-]+)+")

SHORTEST: Final = timedelta(minutes=10)  # Kubernetes refuses a TokenRequest for less
WATCH_TTL: Final = timedelta(hours=1)
_MARKED: Final = re.compile(r"bg-[a-z0-9]+-.+")
WATCH_BOUND: Final = "breakglass-watch"  # the role in the cluster that the bot's own tokens get
MANAGER: Final = "breakglass-vault"  # Vault's own account in the cluster
_ROLE: Final = "Role"
_TIMEOUT: Final = (2.0, 5.0)  # seconds to connect, and for an answer
_MOST: Final = 500  # items of a list in one answer
_ACCOUNTS: Final = "api/v1/namespaces/{namespace}/serviceaccounts"
_BINDINGS: Final = "apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings"


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account that Vault made for one grant, and its token."""

    username: str
    token: str = field(repr=False)
    server: str
    namespace: str
    ca_file: str | None
    lease_id: str
    ttl: timedelta

    @property
    def shown(self) -> tuple[tuple[str, str], ...]:
        """What is shown beside the line."""
        return (("Server", self.server), ("Namespace", self.namespace), ("Token", self.token))

    def kubeconfig(self) -> str:
        """Return what kubectl reads, in one line of JSON (which is YAML)."""
        cluster = {"server": self.server} | ({"certificate-authority": self.ca_file} if self.ca_file else {})
        context = {"cluster": "breakglass", "user": self.username, "namespace": self.namespace}
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "breakglass", "cluster": cluster}],
                "users": [{"name": self.username, "user": {"token": self.token}}],
                "contexts": [{"name": "breakglass", "context": context}],
                "current-context": "breakglass",
            }
        )

    def lines(self) -> tuple[str, ...]:
        """Return the line that opens a shell in which kubectl uses the token, quoted for a POSIX shell.

        kubectl takes a token from its file or from its arguments, and these every local user can list. So a file that
        only its owner reads is there as long as that shell; ``printf`` is the shell's own.
        """
        quoted = shlex.quote(self.kubeconfig())
        kept = "f=$(mktemp) && trap 'rm -f \"$f\"' EXIT"
        return (f'({kept} && printf %s {quoted} > "$f" && KUBECONFIG="$f" "${{SHELL:-sh}}")',)


class Kubernetes(Leased):
    """Vault's Kubernetes secrets engine; one Vault role per level."""

    keys: Final = {
        "mount": True,
        "role": True,
        "namespace": True,
        "server": True,  # the cluster's API, as the responder and the bot reach it
        "ca_file": False,  # its authority's certificate, on the responders' machines and on the bot's
        "watch_role": False,  # of the same mount: what the bot looks at the cluster with
        # Vault is set up by these, and the bot does not need them.
        "bound_role": False,  # the cluster's role whose rights the service accounts get
        "bound_type": False,  # Role unless stated, or ClusterRole
    }
    needs_public_key: Final = False

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found = role_problems(options)
        if not NAMESPACE.fullmatch(options["namespace"]):
            found["namespace"] = f"{options['namespace']!r} is not the name of a Kubernetes namespace."
        if not SERVER.fullmatch(options["server"]):
            found["server"] = f"{options['server']!r} is not the address of a cluster, such as https://k8s:6443."
        if "ca_file" in options and not FILE.fullmatch(options["ca_file"]):
            found["ca_file"] = f"{options['ca_file']!r} is not the full path of a file."
        if "bound_role" in options and not BOUND.fullmatch(options["bound_role"]):
            found["bound_role"] = f"{options['bound_role']!r} is not the name of a role of Kubernetes."
        if options.get("bound_type", _ROLE) not in {_ROLE, "ClusterRole"}:
            found["bound_type"] = "It is Role or ClusterRole."
        return found

    def path(self, options: Mapping[str, str]) -> str:
        """Return the path that makes a service account when it is written to."""
        return creds_path(options)

    def lease_prefix(self, options: Mapping[str, str]) -> str:
        """Return the path again: lease ids begin with what was asked."""
        return self.path(options)

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> ServiceAccount:
        """Make a service account and return its token. Raises Unavailable, VaultRefused.

        From the answer on whatever is wrong is Unavailable: there is a lease now, and it is to be seen gone.
        """
        path = self.path(options)
        secret = vault.make_as(child, path, _asked(options, max(child.ttl, SHORTEST)))
        data = secret.data
        name, token = data.get("service_account_name"), data.get("service_account_token")
        if not isinstance(name, str) or not isinstance(token, str) or not name or not token:
            raise Unavailable(f"What Vault gave for {path!r} is not a service account's token.")
        if data.get("service_account_namespace") != options["namespace"]:
            raise Unavailable(f"What Vault gave for {path!r} is of another namespace than {options['namespace']!r}.")
        if not name.startswith(mark_of(wish.request_id)):
            raise Unavailable(
                f"What Vault gave for {path!r} is not named after the request: either that account was there before, "
                "so that its token would outlive the lease, or the role's name_template lacks the display name."
            )
        return ServiceAccount(
            name,
            token,
            options["server"],
            options["namespace"],
            options.get("ca_file"),
            secret.lease_id,
            min(child.ttl, secret.lease_duration),
        )

    def prove(self, vault: Vault, grant: Held) -> tuple[str, ...]:
        """See that no service account and no binding of the request is left in the cluster."""
        if "watch_role" not in grant.options:
            return ()
        mark = mark_of(grant.request_id)
        left = {
            what: sum(name.startswith(mark) for name in _listed(vault, grant.options, path))
            for what, path in (("service accounts", _ACCOUNTS), ("role bindings", _BINDINGS))
        }
        if any(left.values()):
            said = " and ".join(f"{count} {what}" for what, count in left.items())
            raise Unavailable(
                f"Vault says that it is gone, and at {grant.options['server']} {said} of it are left.", code="left"
            )
        return ("its service account does not exist", "no role binding of it is left")

    def identities(self, vault: Vault, options: Mapping[str, str]) -> frozenset[str]:
        """Return the service accounts of the namespace that are named after a request."""
        if "watch_role" not in options:
            return frozenset()
        return frozenset(name for name in _listed(vault, options, _ACCOUNTS) if _MARKED.fullmatch(name))

    def child_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the right to make a service account in that one namespace, and no binding to the whole cluster."""
        return (Rule(self.path(options), ("update",), {"kubernetes_namespace": (options["namespace"],), "ttl": ()}),)

    def bot_rules(self, options: Mapping[str, str]) -> tuple[Rule, ...]:
        """Return the rights to see and end the level's leases, and to look at the cluster."""
        rules = lease_rules(self.lease_prefix(options))
        if "watch_role" in options:
            watch, only = watch_path(options), {"kubernetes_namespace": (options["namespace"],), "ttl": ()}
            why = "Can only look at a cluster, to see there that a credential is gone."
            ends = {"lease_id": (f"{watch}/*",), "sync": (True, False)}
            rules += (Rule(watch, ("update",), only, why=why), Rule("sys/leases/revoke", ("update",), ends))
        return rules

    def writes(self, options: Mapping[str, str], longest: timedelta) -> tuple[Write, ...]:
        """Return the mount, its cluster and the roles. Raises Invalid without ``bound_role``."""
        if "bound_role" not in options:
            missing = "Vault cannot be set up for this level without 'bound_role': the cluster's role that it lends."
            raise Invalid(missing, fields={"bound_role": missing})
        mount, namespace, longest = options["mount"], options["namespace"], max(longest, SHORTEST)
        made = [
            Write("POST", f"sys/mounts/{mount}", {"type": "kubernetes"}, made_once=True),
            Write(
                "POST",
                f"{mount}/config",
                {"kubernetes_host": options["server"], "disable_local_ca_jwt": True},
                secrets=("service_account_jwt", "kubernetes_ca_cert"),
            ),
            _role(
                f"{mount}/roles/{options['role']}",
                namespace,
                options["bound_role"],
                options.get("bound_type", _ROLE),
                name_template=USERNAME,
                longest=longest,
                lends=True,
            ),
        ]
        if "watch_role" in options:
            # A name of its own kind: what the bot looks with is no emergency.
            named = USERNAME.replace('"%s-%s"', '"watch-%s-%s"')
            watch = f"{mount}/roles/{options['watch_role']}"
            made.append(_role(watch, namespace, WATCH_BOUND, _ROLE, name_template=named, longest=WATCH_TTL))
        return tuple(made)

    def target_steps(self, options: Mapping[str, str]) -> str:
        """Return what an administrator of the cluster applies: Vault's own account, and a role that can only look.

        ``bound_role`` is there; the role of that name is the administrator's own.
        """
        kind, bound = options.get("bound_type", _ROLE), options["bound_role"]
        accounts = {"apiGroups": [""], "resources": ["serviceaccounts"]}
        bindings = {"apiGroups": [_GROUP], "resources": ["rolebindings"]}
        makes = [
            {**accounts, "verbs": ["create", "delete"]},
            {**bindings, "verbs": ["create", "delete"]},
            {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
        ]
        token = {"annotations": {"kubernetes.io/service-account.name": MANAGER}, **_meta(options, MANAGER)}
        paragraphs: dict[str, tuple[_Document, ...]] = {
            "Vault's own account, which makes accounts and binds them": (
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(options, MANAGER)},
                *_given(options, MANAGER, makes),
                # A token of its that does not end: Kubernetes fills it in.
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "type": "kubernetes.io/service-account-token",
                    "metadata": token,
                },
            ),
            f"It may lend the {kind} {bound}": _given(
                options, f"{MANAGER}-{kind.lower()}-{bound}", [_bind(kind, bound)]
            ),
        }
        if "watch_role" in options:
            looks = [{**accounts, "verbs": ["list"]}, {**bindings, "verbs": ["list"]}]
            paragraphs["What the bot looks with: it sees accounts and bindings, and nothing else"] = (
                _role_in(options, WATCH_BOUND, looks),
                *_given(options, f"{MANAGER}-role-{WATCH_BOUND}", [_bind(_ROLE, WATCH_BOUND)]),
            )
        first = (
            f"# At {options['server']}, in the namespace {options['namespace']}; then Vault's token with: "
            f"kubectl -n {options['namespace']} get secret {MANAGER} -o jsonpath='{{.data.token}}' | base64 -d"
        )
        return "\n".join([first, "\n\n".join(_applied(what, items) for what, items in paragraphs.items())])


_GROUP: Final = "rbac.authorization.k8s.io"
_Document = dict[str, Any]


def _meta(options: Mapping[str, str], name: str) -> _Document:
    return {"name": name, "namespace": options["namespace"]}


def _bind(kind: str, name: str) -> _Document:
    """Return the right to lend a role. Without it Kubernetes lets nobody lend a right that they do not have."""
    return {"apiGroups": [_GROUP], "resources": [f"{kind.lower()}s"], "verbs": ["bind"], "resourceNames": [name]}


def _role_in(options: Mapping[str, str], name: str, rules: list[_Document]) -> _Document:
    return {"apiVersion": f"{_GROUP}/v1", "kind": _ROLE, "metadata": _meta(options, name), "rules": rules}


def _given(options: Mapping[str, str], name: str, rules: list[_Document]) -> tuple[_Document, _Document]:
    """Return a role, and its binding to Vault's own account."""
    binding = {
        "apiVersion": f"{_GROUP}/v1",
        "kind": "RoleBinding",
        "metadata": _meta(options, name),
        "subjects": [{"kind": "ServiceAccount", **_meta(options, MANAGER)}],
        "roleRef": {"apiGroup": _GROUP, "kind": _ROLE, "name": name},
    }
    return _role_in(options, name, rules), binding


def _applied(what: str, items: tuple[_Document, ...]) -> str:
    shown = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1)
    return f"# {what}.\nkubectl apply -f - <<'EOF'\n{shown}\nEOF"


def _role(
    path: str, namespace: str, bound: str, kind: str, *, name_template: str, longest: timedelta, lends: bool = False
) -> Write:
    seconds = int(longest.total_seconds())
    return Write(
        "POST",
        path,
        {
            "allowed_kubernetes_namespaces": [namespace],
            "kubernetes_role_name": bound,
            "kubernetes_role_type": kind,
            "name_template": name_template,
            "token_default_ttl": seconds,
            "token_max_ttl": seconds,
        },
        joined=("allowed_kubernetes_namespaces",),
        lends=lends,
    )


def _asked(options: Mapping[str, str], ttl: timedelta) -> dict[str, Any]:
    return {"kubernetes_namespace": options["namespace"], "ttl": int(ttl.total_seconds())}


def _listed(vault: Vault, options: Mapping[str, str], path: str) -> frozenset[str]:
    """Return the names of everything of one kind in the level's namespace. Raises Unavailable."""
    watch, body = watch_path(options), _asked(options, WATCH_TTL)
    token = vault.watcher(watch, body).data.get("service_account_token")
    url = f"{options['server']}/{path.format(namespace=options['namespace'])}"
    names: set[str] = set()
    more = ""
    try:
        with requests.Session() as session:
            session.trust_env = False  # the token must not go through a proxy because a shell variable says so
            session.verify = options.get("ca_file", True)
            while True:
                answer = session.get(
                    url,
                    params={"limit": _MOST} | ({"continue": more} if more else {}),
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=_TIMEOUT,
                    allow_redirects=False,  # nor to another place
                )
                found = answer.json() if answer.status_code == 200 else {}
                names |= {str(item["metadata"]["name"]) for item in found["items"]}
                more = str(found["metadata"].get("continue") or "")
                if not more:
                    return frozenset(names)
    except (requests.RequestException, OSError, ValueError, LookupError, TypeError):
        # What was not clearly said counts as not said. A token that the cluster lost is not shown again and again.
        vault.forget_watcher(watch, body)
        failure = Unavailable(
            f"The cluster at {options['server']} cannot be looked at, so nothing is shown to be gone."
        )
    raise failure
