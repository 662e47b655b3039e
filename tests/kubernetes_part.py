"""What does a Kubernetes cluster answer to Vault's engine, to kubectl and to the bot? A stand-in for the tests.

No cluster was at hand. This answers as the API of Kubernetes does, as far as it is used: service accounts, their token
requests, role bindings, and pods to see what a token may do. It keeps to the rules of the real one that matter here:

* Who has no good token gets 401, who has no right gets 403, each as a ``Status``.
* A token is signed, has an end, and is good only while its service account, with the same uid, exists.
* A token request for less than ten minutes is refused with 422.
* Whoever makes a binding needs the verb ``bind`` for that role.
* A path, a method or a field that is not known is an answer that Vault's engine fails on, and is kept in ``strange``.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from outside import HOST, Authority

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUP: Final = "rbac.authorization.k8s.io"
NAMESPACE: Final = "shop"
Document = dict[str, Any]


class Refusal(Exception):
    """What the API server says no with."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass
class Caller:
    """Who a token stands for: a service account's name, and the roles that are bound to it."""

    name: str
    roles: frozenset[str]


@dataclass
class Cluster:
    """The API server: one namespace's objects by kind and name, over HTTPS. ``roles``: what each role allows."""

    folder: Path
    roles: dict[str, set[tuple[str, str]]] = field(
        default_factory=lambda: {"repair": {("get", "pods"), ("list", "pods")}}
    )
    objects: dict[str, dict[str, Document]] = field(
        default_factory=lambda: {"serviceaccounts": {}, "rolebindings": {}, "pods": {}}
    )
    strange: list[str] = field(default_factory=list)
    is_stubborn: bool = False  # whether it says "deleted" and deletes nothing
    page: int = 500

    def __post_init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        authority = Authority(self.folder, "cluster authority")
        self.ca_file = authority.file
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.issue("cluster"))
        self._turn = threading.RLock()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self._add("pods", {"metadata": {"name": "checkout-1"}})
        self.manager_token = ""

    # ------------------------------------------------------------------------------------------------- up and down

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://{HOST}:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, document = outer.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
                content = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _answer  # noqa: N815 - the standard library's names

            def log_message(self, *_: object) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, address: Any) -> None:
                # The handshake is the connection's own thread's: one that stalls must not hold up the others.
                super().finish_request(outer._context.wrap_socket(request, server_side=True), address)

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Listening((HOST, self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Let go of the port; what is kept alive is answered 503 from now on."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def apply(self, steps: str) -> None:
        """Do what an administrator does who pastes an engine's steps; ``manager_token`` is Vault's from then on."""
        pasted = re.findall(r"^kubectl apply -f - <<'EOF'\n(.*?)\nEOF$", steps, re.MULTILINE | re.DOTALL)
        for item in [item for one in pasted for item in json.loads(one)["items"]]:
            name = item["metadata"]["name"]
            assert item["metadata"]["namespace"] == NAMESPACE
            if item["kind"] == "Role":
                self.roles[name] = {
                    (verb, about)
                    for rule in item["rules"]
                    for verb in rule["verbs"]
                    for about in rule.get("resourceNames", rule["resources"])
                }
            elif item["kind"] == "Secret":
                account = item["metadata"]["annotations"]["kubernetes.io/service-account.name"]
                self.manager_token = self._sign(account, 10**8, ["https://kubernetes.default.svc"])
            else:
                self._add(f"{item['kind'].lower()}s", item)

    # ------------------------------------------------------------------------------------------------- what it answers

    def names(self, kind: str) -> set[str]:
        """Return the names of everything of a kind."""
        with self._turn:
            return set(self.objects[kind])

    def answer(self, method: str, address: str, authorization: str, body: bytes) -> tuple[int, Document]:
        """Answer one request."""
        split = urlsplit(address)
        try:
            with self._turn:
                caller = self._who(authorization)
                return self._do(caller, method, split.path, parse_qs(split.query), _read(body))
        except Refusal as refusal:
            return refusal.code, refusal.body
        except (LookupError, ValueError, TypeError) as error:
            self.strange.append(f"{method} {address} {body!r}: {error!r}")
            return 400, Refusal(400, "BadRequest", "the request is not understood").body

    def _do(
        self, caller: Caller, method: str, path: str, query: dict[str, list[str]], body: Document
    ) -> tuple[int, Document]:
        core, rbac = f"/api/v1/namespaces/{NAMESPACE}/", f"/apis/{GROUP}/v1/namespaces/{NAMESPACE}/"
        group = GROUP if path.startswith(rbac) else ""
        parts = path.removeprefix(rbac if group else core).split("/")
        kind = parts[0]
        if f"/namespaces/{NAMESPACE}/" not in path:
            # Of another namespace nobody here has a right.
            raise Refusal(403, "Forbidden", f"{caller.name} cannot {method} {path}")
        if kind not in self.objects or (kind == "rolebindings") != bool(group):
            raise LookupError(path)
        match (method, len(parts)):
            case ("GET", 1):
                self._must(caller, "list", kind)
                return 200, self._list(kind, query)
            case ("POST", 1):
                self._must(caller, "create", kind)
                return 201, self._create(caller, kind, body)
            case ("POST", 3) if kind == "serviceaccounts" and parts[2] == "token":
                self._must(caller, "create", "serviceaccounts/token")
                return 201, self._token(parts[1], body)
            case ("DELETE", 2):
                self._must(caller, "delete", kind)
                return 200, self._delete(kind, parts[1])
            case ("GET", 2):
                self._must(caller, "get", kind)
                return 200, self._there(kind, parts[1])
        raise LookupError(method)

    def _list(self, kind: str, query: dict[str, list[str]]) -> Document:
        start = int(query.get("continue", ["0"])[0])
        most = min(self.page, int(query.get("limit", [str(self.page)])[0]))
        found = [self.objects[kind][name] for name in sorted(self.objects[kind])]
        more = {"continue": str(start + most)} if start + most < len(found) else {}
        return {"kind": "List", "apiVersion": "v1", "metadata": more, "items": found[start : start + most]}

    def _create(self, caller: Caller, kind: str, body: Document) -> Document:
        if body["metadata"]["namespace"] != NAMESPACE:
            raise ValueError("the body and the address are of two namespaces")
        if body["metadata"]["name"] in self.objects[kind]:
            raise Refusal(409, "AlreadyExists", f'{kind} "{body["metadata"]["name"]}" already exists')
        if kind == "rolebindings":
            if body["roleRef"]["name"] not in self.roles or body["roleRef"]["kind"] != "Role":
                raise ValueError("no such role")
            if any(subject["namespace"] != NAMESPACE for subject in body["subjects"]):
                raise ValueError("another namespace's account")
            self._must(caller, "bind", body["roleRef"]["name"])
        return self._add(kind, body)

    def _token(self, name: str, body: Document) -> Document:
        self._there("serviceaccounts", name)
        spec = body["spec"]
        seconds = spec["expirationSeconds"]
        if seconds < 600:
            message = "spec.expirationSeconds: Invalid value: may not specify a duration less than 10 minutes"
            raise Refusal(422, "Invalid", message)
        audiences = spec.get("audiences") or ["https://kubernetes.default.svc"]
        token = self._sign(name, seconds, audiences)
        ends = datetime.fromtimestamp(_claims(token)["exp"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": None},
            "status": {"token": token, "expirationTimestamp": ends},
        }

    def _delete(self, kind: str, name: str) -> Document:
        found = self._there(kind, name)
        if not self.is_stubborn:
            del self.objects[kind][name]
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"uid": found["metadata"]["uid"]}}

    # ------------------------------------------------------------------------------------------------------ its state

    def _there(self, kind: str, name: str) -> Document:
        found = self.objects[kind].get(name)
        if found is None:
            raise Refusal(404, "NotFound", f'{kind} "{name}" not found')
        return found

    def _add(self, kind: str, body: Document) -> Document:
        given = {"uid": str(uuid.uuid4()), "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        made = body | {"metadata": body["metadata"] | given}
        self.objects[kind][body["metadata"]["name"]] = made
        return made

    def _must(self, caller: Caller, verb: str, kind: str) -> None:
        if not any((verb, kind) in self.roles[role] for role in caller.roles):
            raise Refusal(403, "Forbidden", f"{caller.name} cannot {verb} {kind} in the namespace {NAMESPACE}")

    def _who(self, authorization: str) -> Caller:
        if self._server is None:
            raise Refusal(503, "ServiceUnavailable", "the server is shutting down")
        no = Refusal(401, "Unauthorized", "Unauthorized")
        try:
            token = authorization.removeprefix("Bearer ")
            head, claims, signature = token.split(".")
            self._key.public_key().verify(
                _unpacked(signature), f"{head}.{claims}".encode(), padding.PKCS1v15(), hashes.SHA256()
            )
            told = _claims(token)
        except (InvalidSignature, ValueError):
            raise no from None
        account = told["kubernetes.io"]["serviceaccount"]
        known = self.objects["serviceaccounts"].get(account["name"])
        if told["exp"] <= time.time() or known is None or known["metadata"]["uid"] != account["uid"]:
            raise no
        bound = frozenset(
            binding["roleRef"]["name"]
            for binding in self.objects["rolebindings"].values()
            if any(subject["name"] == account["name"] for subject in binding["subjects"])
        )
        return Caller(account["name"], bound)

    def _sign(self, name: str, seconds: int, audiences: list[str]) -> str:
        now = int(time.time())
        uid = self.objects["serviceaccounts"][name]["metadata"]["uid"]
        claims = {
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "nbf": now,
            "iss": "https://kubernetes.default.svc",
            "kubernetes.io": {"namespace": NAMESPACE, "serviceaccount": {"name": name, "uid": uid}},
            "sub": f"system:serviceaccount:{NAMESPACE}:{name}",
        }
        signed = f"{_packed({'alg': 'RS256', 'kid': 'test'})}.{_packed(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


# Vault's engine sends Kubernetes' protobuf: "k8s", a NUL, and a message whose first field tells kind and version, and
# whose second holds the object. By kind: the numbers of the fields that Kubernetes has (of those that are sent).
_TEXT, _NUMBER = str, int
_PAIR: Final = {1: ("key", _TEXT), 2: ("value", _TEXT)}
_OWNER: Final = {1: ("kind", _TEXT), 3: ("name", _TEXT), 4: ("uid", _TEXT), 5: ("apiVersion", _TEXT)}
_META: Final = {
    1: ("name", _TEXT),
    2: ("generateName", _TEXT),
    3: ("namespace", _TEXT),
    4: ("selfLink", _TEXT),
    5: ("uid", _TEXT),
    6: ("resourceVersion", _TEXT),
    7: ("generation", _NUMBER),
    8: ("creationTimestamp", {}),
    11: ("labels", [_PAIR]),
    12: ("annotations", [_PAIR]),
    13: ("ownerReferences", [_OWNER]),
}
_SUBJECT: Final = {1: ("kind", _TEXT), 2: ("apiGroup", _TEXT), 3: ("name", _TEXT), 4: ("namespace", _TEXT)}
_KINDS: Final[dict[str, dict[int, Any]]] = {
    "ServiceAccount": {1: ("metadata", _META)},
    "RoleBinding": {
        1: ("metadata", _META),
        2: ("subjects", [_SUBJECT]),
        3: ("roleRef", {1: ("apiGroup", _TEXT), 2: ("kind", _TEXT), 3: ("name", _TEXT)}),
    },
    "TokenRequest": {
        1: ("metadata", _META),
        2: ("spec", {1: ("audiences", [_TEXT]), 4: ("expirationSeconds", _NUMBER)}),
        3: ("status", {1: ("token", _TEXT), 2: ("expirationTimestamp", {})}),
    },
    "DeleteOptions": {},
}


def _read(body: bytes) -> Document:
    """Read what was sent, as JSON or as protobuf. What is not known raises ValueError or LookupError."""
    if not body.startswith(b"k8s\0"):
        return json.loads(body) if body else {}
    envelope = dict(_fields(body[4:]))
    kind = dict(_fields(envelope[1]))[2].decode()
    return {"kind": kind} | _message(envelope.get(2, b""), _KINDS[kind])


def _message(data: bytes, schema: dict[int, Any]) -> Document:
    found: Document = {}
    for number, value in _fields(data):
        name, form = schema[number]
        one = form[0] if isinstance(form, list) else form
        read = value if one is _NUMBER else value.decode() if one is _TEXT else _message(value, one)
        if form == [_PAIR]:
            found.setdefault(name, {})[read["key"]] = read["value"]
        elif isinstance(form, list):
            found.setdefault(name, []).append(read)
        else:
            found[name] = read
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Give the fields of a protobuf message: numbers, and what has a length."""
    while data:
        tag, data = _varint(data)
        value, data = _varint(data)
        if tag & 7 == 2:
            value, data = data[:value], data[value:]
        elif tag & 7:
            raise ValueError(f"wire type {tag & 7}")
        yield tag >> 3, value


def _varint(data: bytes) -> tuple[Any, bytes]:
    value = 0
    for index, byte in enumerate(data):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, data[index + 1 :]
    raise ValueError("cut off")


def _packed(document: Document) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _claims(token: str) -> Document:
    claims: Document = json.loads(_unpacked(token.split(".")[1]))
    return claims
