"""How does a Kubernetes token come out of Vault's engine, and how is it shown to be gone?

Rules
-----
* Kubernetes cannot take a token back: what it signed is good until its end, as long as its service account exists. So
  each grant gets a service account of its own with a binding of its own, both made for the lease and deleted with it.
  A role of the engine that hands out tokens of an account that exists is refused: such a token would outlive the grant.
* The grant ends by the deletion, not by the token's own time: Kubernetes signs none for less than ten minutes. While
  Vault is down at the end of a shorter grant, its token works for what is left of these ten minutes.
* The engine is asked for one namespace. The grant's own token can ask for no other, nor for a binding to the cluster.
* What is left at Vault is looked for as for every lease (``leases.py``). With a ``watch_role`` the bot then looks at the
  cluster, with a token that can only list service accounts and bindings: none may be left that has the request's name.
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

from workflows.engines.leases import MOUNT, NAME, Leased
from workflows.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workflows.engines import Held, Wish
    from workflows.vault import ChildToken, Vault

# RFC 1123 labels, as Kubernetes wants a namespace to be: it becomes a part of the address that is asked.
NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SERVER: Final = re.compile(r"https://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(:[1-9][0-9]{0,4})?")
FILE: Final = re.compile(r"(/[A-Za-z0-9._-]+)+")

SHORTEST: Final = timedelta(minutes=10)  # Kubernetes refuses a TokenRequest for less
WATCH_TTL: Final = timedelta(hours=1)
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
        return (
            "(f=$(mktemp) && trap 'rm -f \"$f\"' EXIT && "
            f'printf %s {shlex.quote(self.kubeconfig())} > "$f" && KUBECONFIG="$f" "${{SHELL:-sh}}")',
        )


class Kubernetes(Leased):
    """Vault's Kubernetes secrets engine; one Vault role per level."""

    keys: Final = {
        "mount": True,
        "role": True,
        "namespace": True,
        "server": True,  # the cluster's API, as the responder and the bot reach it
        "ca_file": False,  # its authority's certificate, on the responders' machines and on the bot's
        "watch_role": False,  # of the same mount: what the bot looks at the cluster with
    }
    needs_public_key: Final = False

    def problems(self, options: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong, by key."""
        found: dict[str, str] = {}
        if not MOUNT.fullmatch(options["mount"]):
            found["mount"] = f"{options['mount']!r} is not the path of a Vault mount."
        for key in ("role", "watch_role"):
            if key in options and not NAME.fullmatch(options[key]):
                found[key] = f"{options[key]!r} is not the name of a Vault role."
        if options.get("watch_role") == options["role"]:
            found["watch_role"] = "The bot would look with a credential of the level itself: name another role."
        if not NAMESPACE.fullmatch(options["namespace"]):
            found["namespace"] = f"{options['namespace']!r} is not the name of a Kubernetes namespace."
        if not SERVER.fullmatch(options["server"]):
            found["server"] = f"{options['server']!r} is not the address of a cluster, such as https://k8s:6443."
        if "ca_file" in options and not FILE.fullmatch(options["ca_file"]):
            found["ca_file"] = f"{options['ca_file']!r} is not the full path of a file."
        return found

    def path(self, options: Mapping[str, str]) -> str:
        """Return the path that makes a service account when it is written to."""
        return f"{options['mount']}/creds/{options['role']}"

    def lease_prefix(self, options: Mapping[str, str]) -> str:
        """Return the path again: lease ids begin with what was asked."""
        return self.path(options)

    def issue(self, vault: Vault, child: ChildToken, options: Mapping[str, str], wish: Wish) -> ServiceAccount:
        """Make a service account and return its token. Raises Unavailable (also when the cluster is down), VaultRefused.

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
        if not name.startswith(_mark(wish.request_id)):
            raise Unavailable(
                f"What Vault gave for {path!r} is not named after the request: either the account was there before, and "
                "then its token would outlive the lease, or the role's name_template does not use the display name."
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
        mark = _mark(grant.request_id)
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
        return frozenset(name for name in _listed(vault, options, _ACCOUNTS) if name.startswith("bg-"))


def _mark(request_id: str) -> str:
    return f"{request_id.lower()}-"


def _asked(options: Mapping[str, str], ttl: timedelta) -> dict[str, Any]:
    return {"kubernetes_namespace": options["namespace"], "ttl": int(ttl.total_seconds())}


def _listed(vault: Vault, options: Mapping[str, str], path: str) -> frozenset[str]:
    """Return the names of everything of one kind in the level's namespace. Raises Unavailable."""
    watch, body = f"{options['mount']}/creds/{options['watch_role']}", _asked(options, WATCH_TTL)
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
