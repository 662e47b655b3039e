"""What does the bot say to Vault (HashiCorp Vault or OpenBao), and what can it believe of the answer?

The only file that imports hvac.

Rules
-----
* A lease is a child of the token that read it and dies with it. So a grant is one orphan child token, which alone reads
  its credential; its accessor is the kill switch, and the bot's own token is never the parent of a grant.
* Two kinds of failure leave this file: :class:`Unavailable` (sealed, unreachable, overloaded, time-out, an internal
  error: try again) and :class:`VaultRefused` (a lasting no). What an answer means stands in ``vault_answers.py``.
* No error carries a token, a secret or an exception of hvac or requests: those hold the request, and with it the token
  in its headers. Hence errors are raised outside ``except`` blocks, where they get no ``__context__``.
* Every call has an end: 2 s to connect, 5 s to answer.
* Threads share nothing but the token: one connection pool per thread.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import requests
from hvac.adapters import RawAdapter

from workflows.errors import BreakGlassError, Conflict, Unavailable, VaultRefused
from workflows.vault_answers import (
    Answer,
    ChildToken,
    CodeAnswer,
    Health,
    Lease,
    Pending,
    Secret,
    TokenFacts,
    Wrapped,
    decode,
    is_unknown_accessor,
    is_wrapping,
    leased,
    must,
    of_code,
    read_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# What the calls take and return comes from here for whoever makes them.
__all__ = ["ChildToken", "Health", "Lease", "Pending", "Secret", "TokenFacts", "Vault", "Wrapped"]

CONNECT_TIMEOUT: Final = 2.0  # seconds
READ_TIMEOUT: Final = 5.0  # seconds
LOOK_AT_LEAST_EVERY: Final = timedelta(minutes=5)  # how often the bot's own token is looked at

_SIGNATURE: Final = re.compile(r"vault:v([1-9][0-9]{0,8}):([A-Za-z0-9+/=]+)", re.ASCII)


class Vault:
    """Plain calls to one Vault, safe to share between threads.

    Either an AppRole (``role_id``, ``secret_id``) or a ``token``. With an AppRole the bot logs in by itself, at the
    first call and again whenever its token is gone. ``ca_file`` is a bundle of certificates for a private authority.
    """

    def __init__(
        self,
        address: str,
        *,
        role_id: str = "",
        secret_id: str = "",
        token: str = "",
        approle_mount: str = "approle",
        namespace: str | None = None,
        ca_file: str | None = None,
    ) -> None:
        if not token and not (role_id and secret_id):
            raise VaultRefused("The bot has no way to log in to Vault: give a role id with a secret id, or a token.")
        self._address = address
        self._role_id = role_id
        self._secret_id = secret_id
        self._token = token
        self._approle_mount = approle_mount
        self._namespace = namespace
        self._ca_file = ca_file
        self._login_turn = threading.Lock()
        self._look_next: datetime | None = None
        self._of_thread = threading.local()
        self._watchers: dict[str, tuple[float, Secret]] = {}

    def __repr__(self) -> str:
        return f"Vault({self._address!r})"

    @property
    def address(self) -> str:
        """Where the bot reaches it."""
        return self._address

    @property
    def namespace(self) -> str | None:
        """Vault's namespace that everything is in."""
        return self._namespace

    # ------------------------------------------------------------------------------------------------ a grant's life

    def open_child(
        self, token_role: str, ttl: timedelta, *, display_name: str, metadata: Mapping[str, str]
    ) -> ChildToken:
        """Create a grant's own token through ``auth/token/create/<token_role>``.

        It ends after ``ttl`` (whole seconds) whatever happens, cannot be renewed and has only the policies of its role.
        The display name reaches the user name at the target. Raises Unavailable, VaultRefused.
        """
        seconds = _whole_seconds(ttl)
        answer = self._own(
            "post",
            f"auth/token/create/{token_role}",
            {
                "ttl": seconds,
                "explicit_max_ttl": seconds,
                "renewable": False,
                "no_default_policy": True,
                "display_name": display_name,
                "meta": dict(metadata),
            },
        )
        must(answer, f"create a token with the role {token_role!r}")
        auth = answer.body.get("auth")
        if not isinstance(auth, dict) or not auth.get("client_token") or not auth.get("accessor"):
            raise Unavailable("Vault's answer to a new token has no token in it.")
        life = timedelta(seconds=auth["lease_duration"])
        return ChildToken(str(auth["accessor"]), str(auth["client_token"]), life, int(auth.get("num_uses") or 0))

    def read_as(self, child: ChildToken, path: str) -> Secret:
        """Read ``path`` (such as ``database/creds/orders-ro``) with the grant's own token.

        Raises Unavailable, also when the target behind the engine does not answer, and VaultRefused.
        """
        answer = self._send(child.token, "get", path)
        must(answer, f"read {path!r}", quiet=True)
        if child.release is not None:
            answer = self._released(child.release, answer, path)
        return leased(answer, path)

    def _released(self, release: Callable[[Pending], None], answer: Answer, path: str) -> Answer:
        """Wait until what is pending was authorised, take it once, and see that nobody can take it again."""
        found = answer.body.get("wrap_info")
        if answer.data or not isinstance(found, dict) or not found.get("token") or not found.get("accessor"):
            # Not VaultRefused: something may have come out, and whoever called must see it gone.
            raise Unavailable(
                f"Vault gave {path!r} out without asking for the custodians' own keys. It is taken back; have "
                "`breakglass vault apply` run, and `breakglass check`.",
                code="not_held",
            )
        ttl = timedelta(seconds=found.get("ttl") or 0)
        pending = Pending(str(found["accessor"]), str(found["token"]), str(found.get("creation_path") or ""), ttl)
        try:
            release(pending)
            taken = self._send(pending.token, "post", "sys/wrapping/unwrap")
        except BreakGlassError:
            with suppress(Unavailable, VaultRefused):
                self.revoke_accessor(pending.accessor)
            raise
        # Authorised once, it could be taken again and again.
        self.revoke_accessor(pending.accessor)
        if taken.status in {400, 403}:
            raise Unavailable(
                "Vault did not give the credential out although it was authorised: its time was over, or it was taken "
                "already. Press the button again.",
                code="not_given",
            )
        must(taken, f"give out {path!r}", quiet=True)
        return taken

    def wrap_as(self, child: ChildToken, path: str, ttl: timedelta) -> Wrapped:
        """Read ``path`` with the grant's own token into a token that gives it out once, within ``ttl``.

        Whoever calls this never has the secret. Raises Unavailable, VaultRefused as :meth:`read_as`.
        """
        began = time.monotonic()
        answer = self._send(child.token, "get", path, wrap=_whole_seconds(ttl))
        took = timedelta(seconds=time.monotonic() - began)
        must(answer, f"read {path!r}", quiet=True)
        found = answer.body.get("wrap_info")
        made_at = read_time(found.get("creation_time")) if isinstance(found, dict) else None
        if not isinstance(found, dict) or not found.get("token") or not found.get("accessor") or made_at is None:
            raise Unavailable(f"Vault gave no wrapping token for {path!r}.")
        return Wrapped(
            str(found["accessor"]),
            str(found["token"]),
            str(found.get("creation_path")),
            timedelta(seconds=found.get("ttl") or 0),
            made_at,
            took,
        )

    def wrapped_at(self, token: str) -> str:
        """Return the path at which what is wrapped was read; the token stays good. Asks without any other token.

        Raises :class:`Conflict` (code ``spent``) when the token gives nothing any more, Unavailable, VaultRefused.
        """
        answer = self._send("", "post", "sys/wrapping/lookup", {"token": token})
        self._must_wrap(answer, "look a wrapping token up")
        return str(answer.data.get("creation_path") or "")

    def unwrap(self, token: str) -> Secret:
        """Take out what is wrapped, with the wrapping token alone; it works once. Raises as :meth:`wrapped_at`."""
        answer = self._send(token, "post", "sys/wrapping/unwrap")
        self._must_wrap(answer, "open a wrapping token")
        return leased(answer, "the wrapping token")

    def _must_wrap(self, answer: Answer, what: str) -> None:
        if answer.status == 400 and "wrapping token" in answer.words:
            raise Conflict("It was opened before, or its time is over.", code="spent")
        must(answer, what, quiet=True)

    def make_as(self, child: ChildToken, path: str, body: Mapping[str, Any]) -> Secret:
        """Write to ``path`` (such as ``kubernetes/creds/shop``) with the grant's own token, for what has a lease.

        Raises Unavailable, also when the target behind the engine does not answer, and VaultRefused.
        """
        answer = self._send(child.token, "post", path, body)
        must(answer, f"write to {path!r}", quiet=True)
        return leased(answer, path)

    def write_as(self, child: ChildToken, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write to ``path`` (such as ``ssh/sign/shop``) with the grant's own token and return the answer's data.

        What comes back has no lease: nothing at Vault takes it back. Raises Unavailable, VaultRefused.
        """
        answer = self._send(child.token, "post", path, body)
        must(answer, f"write to {path!r}", quiet=True)
        return answer.data

    def write_own(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write to ``path`` with the bot's own token and return the answer's data. Raises Unavailable, VaultRefused."""
        answer = self._own("post", path, body)
        must(answer, f"write to {path!r}", quiet=True)
        return answer.data

    def watcher(self, path: str, body: Mapping[str, Any] | None = None) -> Secret:
        """Return a credential of the bot's own, with which it only looks at a target; the same while it lives.

        It is read, or made with ``body`` where the engine wants one, and ends with the bot's token. Raises Unavailable,
        VaultRefused.
        """
        key = _watch_key(path, body)
        known = self._watchers.get(key)
        if known is not None and time.monotonic() < known[0]:
            return known[1]
        answer = self._own("get" if body is None else "post", path, body)
        must(answer, f"read {path!r}", quiet=True)
        secret = leased(answer, path)
        # Not up to its last moment: whoever gets it now uses it for a while.
        self._watchers[key] = (time.monotonic() + secret.lease_duration.total_seconds() * 0.8, secret)
        return secret

    def forget_watcher(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """Ask for another next time: its target does not take this one."""
        self._watchers.pop(_watch_key(path, body), None)

    def end_watcher(self, path: str) -> None:
        """Have the watching credential ended now, as its target may sweep then. Raises Unavailable, VaultRefused."""
        known = self._watchers.pop(_watch_key(path, None), None)
        if known is not None:
            self.revoke_lease(known[1].lease_id, sync=True)

    def end_watchers(self) -> None:
        """Have every watching credential ended. Raises Unavailable, VaultRefused."""
        for path in tuple(self._watchers):
            self.end_watcher(path)

    def revoke_accessor(self, accessor: str) -> None:
        """End a grant's token and put its leases up for revocation; one that is gone already is fine.

        The answer comes **before** the leases are gone: confirm with :meth:`leases`. Raises Unavailable, VaultRefused.
        """
        self.end_accessor(accessor)

    def end_accessor(self, accessor: str) -> bool:
        """End a token as :meth:`revoke_accessor` and say whether it was still there: a wrapping token, unopened."""
        answer = self._own("post", "auth/token/revoke-accessor", {"accessor": accessor})
        if is_unknown_accessor(answer):
            return False
        must(answer, "revoke a token by its accessor")
        warnings = answer.body.get("warnings")
        return not (isinstance(warnings, list) and any("No token found" in str(one) for one in warnings))

    def accessor_is_gone(self, accessor: str) -> bool:
        """Whether Vault no longer knows the token. Raises Unavailable, VaultRefused."""
        answer = self._own("post", "auth/token/lookup-accessor", {"accessor": accessor})
        if is_unknown_accessor(answer):
            return True
        must(answer, "look up a token by its accessor")
        return False

    def token_end(self, accessor: str) -> tuple[datetime, int]:
        """Return when a grant's token ends, and the whole seconds until then. Raises Unavailable, VaultRefused."""
        answer = self._own("post", "auth/token/lookup-accessor", {"accessor": accessor})
        must(answer, "look up a token by its accessor")
        ends_at, left = read_time(answer.data.get("expire_time")), answer.data.get("ttl")
        if ends_at is None or type(left) is not int:
            raise Unavailable("Vault's answer about a token does not say when it ends.")
        return ends_at, left

    def token_facts(self, accessor: str) -> TokenFacts | None:
        """Look a token up by its accessor; None when Vault does not know it. Raises Unavailable, VaultRefused."""
        answer = self._own("post", "auth/token/lookup-accessor", {"accessor": accessor})
        if is_unknown_accessor(answer):
            return None
        must(answer, "look up a token by its accessor")
        policies = answer.data.get("policies")
        if not isinstance(policies, list):
            raise Unavailable("Vault's answer about a token has no policies in it.")
        return TokenFacts(
            str(answer.data.get("display_name") or ""),
            frozenset(map(str, policies)),
            str(answer.data.get("role") or ""),
            timedelta(seconds=answer.data.get("ttl") or 0),
        )

    # ------------------------------------------------------------------------------------------------------- leases

    def leases(self, prefix: str) -> frozenset[str]:
        """Return the full ids of the leases under ``prefix`` (such as ``database/creds/orders-ro``).

        That includes those that are over and whose revocation has not succeeded. Raises Unavailable, VaultRefused.
        """
        prefix = prefix.strip("/")
        answer = self._own("list", f"sys/leases/lookup/{prefix}/")
        if answer.status == 404 and not answer.words:
            return frozenset()  # an empty list is a 404 without a word
        must(answer, f"list the leases under {prefix!r}")
        keys = answer.data.get("keys")
        if not isinstance(keys, list):
            raise Unavailable(f"Vault's list of the leases under {prefix!r} has no list in it.")
        return frozenset(f"{prefix}/{key}" for key in map(str, keys) if not is_wrapping(key))

    def lease(self, lease_id: str) -> Lease | None:
        """Look one lease up; None when Vault does not know it. Raises Unavailable, VaultRefused."""
        answer = self._own("put", "sys/leases/lookup", {"lease_id": lease_id})
        if answer.status == 400 and "invalid lease" in answer.words:
            return None
        must(answer, "look up a lease")
        issued = read_time(answer.data.get("issue_time"))
        if issued is None:
            raise Unavailable("Vault's answer about a lease has no issue time in it.")
        return Lease(
            str(answer.data.get("id") or lease_id),
            issued,
            read_time(answer.data.get("expire_time")),
            timedelta(seconds=answer.data.get("ttl") or 0),
        )

    def revoke_lease(self, lease_id: str, *, sync: bool) -> None:
        """Revoke one lease; an unknown one is fine.

        ``sync=True`` answers when the credential is gone and raises Unavailable when the target did not do it, without
        queueing a retry; ``sync=False`` queues it. Raises Unavailable, VaultRefused.
        """
        answer = self._own("put", "sys/leases/revoke", {"lease_id": lease_id, "sync": sync})
        if answer.status == 400:
            # In whatever words the engine says it; an unknown lease is no error, and what may not be done is a 403.
            raise Unavailable("Vault could not take the credential back at its target; it is tried again.")
        must(answer, "revoke a lease")

    def irrevocable(self) -> frozenset[str]:
        """Return the ids of leases that Vault has given up revoking: only a synchronous revocation ends them.

        Raises Unavailable, VaultRefused.
        """
        answer = self._own("get", "sys/leases", params={"type": "irrevocable"})
        must(answer, "list the irrevocable leases")
        found = answer.data.get("leases")
        if not isinstance(found, list):
            return frozenset()
        return frozenset(str(one["lease_id"]) for one in found if isinstance(one, dict) and one.get("lease_id"))

    # --------------------------------------------------------------------------------------------- the log's signature

    def sign(self, mount: str, key: str, data: bytes, *, version: int) -> bytes:
        """Have ``data`` signed with one version of an Ed25519 key of the transit engine; returns the 64 bytes.

        The key never leaves Vault. The version is named, since a rotation in Vault would otherwise change the signer
        without the log's knowing. Raises Unavailable, VaultRefused.
        """
        answer = self._own(
            "post", f"{mount}/sign/{key}", {"input": base64.b64encode(data).decode(), "key_version": version}
        )
        must(answer, f"sign with the key {key!r}")
        found = _SIGNATURE.fullmatch(str(answer.data.get("signature")))
        signature = decode(found[2]) if found and int(found[1]) == version else b""
        if len(signature) != 64:
            raise Unavailable(f"Vault's answer to signing with {key!r} has no Ed25519 signature of that version in it.")
        return signature

    def public_keys(self, mount: str, key: str) -> dict[int, bytes]:
        """Return the public halves (32 bytes) of an Ed25519 key of the transit engine by version, the oldest first.

        Raises Unavailable, VaultRefused (also when the key is of another type).
        """
        answer = self._own("get", f"{mount}/keys/{key}")
        must(answer, f"read the public half of the key {key!r}")
        if answer.data.get("type") != "ed25519":
            raise VaultRefused(f"The key {key!r} in Vault is not of type ed25519: make one of that type.")
        listed = answer.data.get("keys")
        found = {
            int(version): decode(str(facts.get("public_key")))
            for version, facts in (listed.items() if isinstance(listed, dict) else ())
            if str(version).isdigit() and isinstance(facts, dict)
        }
        if not found or any(len(public) != 32 for public in found.values()):
            raise Unavailable(f"Vault's answer about the key {key!r} has no public key in it.")
        return dict(sorted(found.items()))

    # ------------------------------------------------------------------------------------------------------ checks

    def check_code(self, mount: str, name: str, code: str) -> CodeAnswer:
        """Have a one-time code checked with a key of the TOTP engine. Raises Unavailable, VaultRefused."""
        return of_code(self._own("post", f"{mount}/code/{name}", {"code": code}))

    def health(self) -> Health:
        """Ask how Vault is. Raises Unavailable when nobody answers."""
        # The codes say what the body says; by default a standby or a sealed server is an HTTP error.
        answer = self._send("", "get", "sys/health", params={"standbyok": "true", "sealedcode": 200, "uninitcode": 200})
        if "sealed" not in answer.body:
            raise Unavailable(f"What answers at {self._address} is not Vault.")
        said = answer.body
        return Health(
            initialized=bool(said.get("initialized")),
            sealed=bool(said.get("sealed")),
            standby=bool(said.get("standby")),
            version=str(said.get("version", "")),
            server_time=datetime.fromtimestamp(int(said.get("server_time_utc", 0)), UTC),
        )

    def capabilities(self, path: str, *, accessor: str | None = None) -> frozenset[str]:
        """Return what the bot's token may do at ``path``, or the token with that accessor: "read", "list", "deny" …

        Raises Unavailable, VaultRefused.
        """
        if accessor is None:
            answer = self._own("post", "sys/capabilities-self", {"paths": [path]})
        else:
            answer = self._own("post", "sys/capabilities-accessor", {"paths": [path], "accessor": accessor})
        must(answer, "ask for capabilities")
        found = answer.data.get(path, answer.body.get("capabilities"))
        return frozenset(map(str, found)) if isinstance(found, list) else frozenset()

    def own_capabilities(self, paths: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return what the bot's token may do at each of the paths. Raises Unavailable, VaultRefused."""
        return self._capabilities("sys/capabilities-self", paths, {})

    def capabilities_of(self, accessor: str, paths: Sequence[str]) -> dict[str, frozenset[str]]:
        """Return what the token with that accessor may do at each of the paths. Raises Unavailable, VaultRefused."""
        return self._capabilities("sys/capabilities-accessor", paths, {"accessor": accessor})

    def _capabilities(self, whose: str, paths: Sequence[str], more: Mapping[str, str]) -> dict[str, frozenset[str]]:
        answer = self._own("post", whose, {"paths": list(paths), **more})
        must(answer, "ask for capabilities")
        if any(not isinstance(answer.data.get(path), list) for path in paths):
            raise Unavailable("Vault's answer about a token's rights leaves some of them out.")
        return {path: frozenset(map(str, answer.data[path])) for path in paths}

    def is_refused(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bool:
        """Try a call that the bot has no business with; say whether Vault denied it. Raises Unavailable.

        What comes back is thrown away, so nothing may be tried that would do harm if it were allowed.
        """
        answer = self._own(method, path, body)
        if answer.status in {429, 503}:
            must(answer, f"try {path!r}")
        return answer.status == 403

    # --------------------------------------------------------------------------------------------- the bot's own token

    def own_entity(self) -> str:
        """Return the id of the identity behind the token in use; empty when it has none. Unavailable, VaultRefused."""
        answer = self._own("get", "auth/token/lookup-self")
        must(answer, "look up its own token")
        return str(answer.data.get("entity_id") or "")

    def log_in(self) -> None:
        """Log in now instead of at the first call; a given token is only looked at. Raises Unavailable."""
        if self._role_id:
            self._log_in(stale=self._token)
        elif self._is_dead(self._token):
            raise Unavailable("Vault does not accept the bot's token any more: give it a new one.", code="no_login")

    def log_out(self) -> None:
        """End the bot's own token, and with it every credential that only looks; a token that was given stays.

        For a command that is done. Raises Unavailable, VaultRefused.
        """
        if not self._role_id:
            self.end_watchers()
        if not self._role_id or not self._token:
            return
        answer = self._send(self._token, "get", "auth/token/lookup-self")
        if answer.status == 403:
            return
        must(answer, "look up the bot's own token")
        self.revoke_accessor(str(answer.data.get("accessor")))
        self._token = ""
        self._watchers.clear()

    def keep_alive(self, now: datetime) -> None:
        """Renew the bot's token when less than half of its life is left, or log in again when renewing is over.

        Called by the scheduler; looks only as often as the token's life asks for. Raises Unavailable.
        """
        if self._look_next is not None and now < self._look_next:
            return
        if not self._token:
            self._log_in(stale="")
        token = self._token
        answer = self._send(token, "get", "auth/token/lookup-self")
        if answer.status == 403:
            self._log_in(stale=token)
            return  # looked at again at the next call
        must(answer, "look up the bot's own token")
        left, life = int(answer.data.get("ttl") or 0), int(answer.data.get("creation_ttl") or 0)
        if life and left < life / 2:
            # Without an increment Vault repeats the last one, however short.
            renewed = self._send(token, "post", "auth/token/renew-self", {"increment": life})
            auth = renewed.body.get("auth")
            left = int(auth.get("lease_duration") or 0) if isinstance(auth, dict) else left
            if left < life / 2 and self._role_id:
                # Its longest life is nearly over. Grants do not notice: their tokens are nobody's children.
                self._log_in(stale=token)
                left = life
        wait = timedelta(seconds=left / 4) if life else LOOK_AT_LEAST_EVERY
        self._look_next = now + min(wait, LOOK_AT_LEAST_EVERY)

    def _log_in(self, *, stale: str) -> str:
        """Get a new token unless another thread has already replaced ``stale``; returns the token to use."""
        with self._login_turn:
            if self._token and self._token != stale:
                return self._token
            if not self._role_id:
                raise Unavailable("Vault does not accept the bot's token any more: give it a new one.", code="no_login")
            answer = self._send(
                "",
                "post",
                f"auth/{self._approle_mount}/login",
                {"role_id": self._role_id, "secret_id": self._secret_id},
            )
            if answer.status in {400, 401, 403, 404}:
                # Unavailable, not refused: whoever operates the bot repairs this, and what was decided waits for it.
                sentence = "Vault does not accept the bot's role id and secret id: give it new ones."
                raise Unavailable(sentence, code="no_login")
            must(answer, "log in")
            auth = answer.body.get("auth")
            if not isinstance(auth, dict) or not auth.get("client_token"):
                raise Unavailable("Vault's answer to the login has no token in it.")
            self._token = str(auth["client_token"])
            self._watchers.clear()  # they were the old token's leases
            self._look_next = None
            return self._token

    def _is_dead(self, token: str) -> bool:
        """Whether Vault does not know the bot's own token any more (its policy lets it look itself up)."""
        answer = self._send(token, "get", "auth/token/lookup-self")
        if answer.status == 403:
            return True
        must(answer, "look up the bot's own token")
        return False

    # -------------------------------------------------------------------------------------------------------- the wire

    def _own(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, params: Mapping[str, Any] | None = None
    ) -> Answer:
        """Call with the bot's own token; when that is gone, log in and call once more."""
        token = self._token or self._log_in(stale="")
        answer = self._send(token, method, path, body, params=params)
        # 403 is both "you may not" and "I do not know that token".
        if answer.status == 403 and self._is_dead(token):
            answer = self._send(self._log_in(stale=token), method, path, body, params=params)
        return answer

    def _send(
        self,
        token: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        wrap: int = 0,
    ) -> Answer:
        """Send one request; ``wrap``: have the answer wrapped, for so many seconds.

        Raises Unavailable when no answer of Vault's comes back.
        """
        headers = {"X-Vault-Token": token} if token else {}
        if wrap:
            headers["X-Vault-Wrap-TTL"] = f"{wrap}s"
        try:
            response = self._adapter().request(
                method,
                # A "?" or "#" in a name from the policy file must not become part of the address.
                f"/v1/{quote(path, safe='/')}",
                headers=headers,
                raise_exception=False,
                timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
                json=body,
                params=params,
            )
            found = response.json() if response.content.strip() else {}
        except requests.Timeout:
            failure = Unavailable("Vault did not answer in time.")
        except requests.ConnectionError:
            failure = Unavailable("Vault cannot be reached.")
        except ValueError:
            # Not JSON (a proxy's page), or an address, token or header that requests refuses to send.
            failure = Unavailable("Vault gave no answer that can be read; check its address.")
        except requests.RequestException:
            failure = Unavailable("Vault cannot be asked; check its address.")
        else:
            return Answer(response.status_code, found if isinstance(found, dict) else {})
        raise failure

    def _adapter(self) -> RawAdapter:
        """Return this thread's connection to Vault."""
        known: RawAdapter | None = getattr(self._of_thread, "adapter", None)
        if known is None:
            session = requests.Session()
            # A token must not go through a proxy, nor a .netrc into a header, because a shell variable says so.
            session.trust_env = False
            if self._ca_file:
                session.verify = self._ca_file
            known = RawAdapter(self._address, token="", session=session, namespace=self._namespace)
            self._of_thread.adapter = known
        return known


def _watch_key(path: str, body: Mapping[str, Any] | None) -> str:
    return path if body is None else f"{path} {json.dumps(body, sort_keys=True)}"


def _whole_seconds(ttl: timedelta) -> int:
    seconds = int(ttl.total_seconds())
    if seconds < 1:
        # Zero means "as long as the system allows" to Vault.
        raise VaultRefused("A token for less than a second cannot be asked for.")
    return seconds
