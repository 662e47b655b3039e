"""What does the environment say? One frozen value, with every problem listed at once.

Rules
-----
* Nothing else in the program reads the environment.
* A secret is never in a repr, an error or a log line.
* What is missing or malformed is named together, so that one run of ``breakglass serve`` shows all there is to mend.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from workflows.delivery import ADDRESS
from workflows.errors import BreakGlassError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SLACK_API: Final = "https://slack.com/api/"
LOOPBACK: Final = "127.0.0.1"


class SettingsInvalid(BreakGlassError):
    """The environment is not complete. ``problems`` has a sentence for each variable at fault."""

    code = "settings"

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and with which files (PEM). ``client_ca``: who has no certificate of it is not let in."""

    host: str
    port: int
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the bot is told from outside. See ``bot/OPERATIONS.md`` for each variable."""

    slack_bot_token: str = field(repr=False)
    slack_app_token: str = field(repr=False)
    vault_address: str
    policy_file: Path
    database_url: str = field(default="sqlite:///breakglass.db", repr=False)  # may hold a password
    slack_api_url: str = SLACK_API
    vault_role_id: str = field(default="", repr=False)
    vault_secret_id: str = field(default="", repr=False)
    vault_token: str = field(default="", repr=False)
    vault_namespace: str | None = None
    vault_ca_file: str | None = None
    vault_public_address: str = ""  # where responders reach it; empty: where the bot does
    policy_signers: Path | None = None  # whose signature puts a policy into force, if the policy allows it
    patience: timedelta = timedelta(seconds=30)
    metrics: tuple[str, int] | None = None  # host and port; None: there are none
    capture: Listen | None = None  # where lines of targets come in; None: nowhere
    # The policy names variables that hold the secrets of the log's copies; who builds a copy reads them here.
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class OwnSettings:
    """Where a person reaches Vault, and their own token there; empty when they log in by name."""

    vault_address: str
    vault_token: str = field(repr=False)
    vault_namespace: str | None
    vault_ca_file: str | None


def own_from_environment(environment: Mapping[str, str], *, missing: str) -> OwnSettings:
    """Read a person's own ``environment``. Raises :class:`SettingsInvalid` with every problem.

    ``missing`` is what to do without a token; "": they log in by name, and one that happens to be there is not used.
    """
    address, token = (environment.get(name, "").strip() for name in ("VAULT_ADDR", "VAULT_TOKEN"))
    problems = []
    if not address.startswith("http"):
        problems.append("VAULT_ADDR is not set: where Vault or OpenBao answers, as https://vault.example.com:8200.")
    if not token and missing:
        problems.append(f"VAULT_TOKEN is not set: {missing}")
    if problems:
        raise SettingsInvalid(tuple(problems))
    return OwnSettings(
        vault_address=address.rstrip("/"),
        vault_token=token if missing else "",
        vault_namespace=environment.get("VAULT_NAMESPACE", "").strip() or None,
        vault_ca_file=environment.get("VAULT_CACERT", "").strip() or None,
    )


def policy_file(environment: Mapping[str, str]) -> Path:
    """Return where the policy file is."""
    return Path(environment.get("BREAKGLASS_POLICY", "").strip() or "breakglass.yml")


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Read ``environment`` (``os.environ``). Raises :class:`SettingsInvalid` with every problem."""
    problems: list[str] = []

    def get(name: str, default: str = "") -> str:
        return environment.get(name, "").strip() or default

    def need(name: str, what: str, prefix: str = "") -> str:
        value = get(name)
        if not value:
            problems.append(f"{name} is not set: {what}.")
        elif prefix and not value.startswith(prefix):
            problems.append(f"{name} does not begin with {prefix}: {what}.")
        return value

    bot_token = need("SLACK_BOT_TOKEN", "the bot token, from the app's page “OAuth & Permissions”", "xoxb-")
    app_token = need("SLACK_APP_TOKEN", "an app-level token with connections:write, from “Basic Information”", "xapp-")
    vault_address = need("VAULT_ADDR", "where Vault or OpenBao answers, as http://host:port", "http")
    public = get("VAULT_PUBLIC_ADDR").rstrip("/")
    if public and not ADDRESS.fullmatch(public):
        problems.append("VAULT_PUBLIC_ADDR is not an address as https://vault.example.com:8200: it goes into commands.")
    role_id, secret_id, token = get("VAULT_ROLE_ID"), get("VAULT_SECRET_ID"), get("VAULT_TOKEN")
    if not token and not (role_id and secret_id):
        problems.append("Vault's login is not set: give VAULT_ROLE_ID and VAULT_SECRET_ID, or VAULT_TOKEN.")
    policy_file = Path(get("BREAKGLASS_POLICY", "breakglass.yml"))
    if not policy_file.is_file():
        problems.append(
            f"BREAKGLASS_POLICY names {policy_file}, which is not there: write one, see workflows/POLICY.md."
        )
    signers = get("BREAKGLASS_POLICY_SIGNERS")
    policy_signers = Path(signers) if signers else None
    if policy_signers is not None and not policy_signers.is_file():
        problems.append(
            f"BREAKGLASS_POLICY_SIGNERS names {policy_signers}, which is not there: a file of allowed signers, as "
            "ssh-keygen -Y verify reads it."
        )
    slack_api_url = get("SLACK_API_URL", SLACK_API)
    if not slack_api_url.startswith(("http://", "https://")):
        problems.append("SLACK_API_URL does not begin with https://: leave it out for Slack itself.")
    seconds = get("BREAKGLASS_PATIENCE_SECONDS", "30")
    if not seconds.isascii() or not seconds.isdigit() or not 1 <= int(seconds) <= 600:
        problems.append("BREAKGLASS_PATIENCE_SECONDS is not a whole number from 1 to 600.")
        seconds = "30"
    metrics_address, metrics = get("METRICS_ADDRESS"), None
    if metrics_address:
        metrics = _address(metrics_address)
        if metrics is None:
            problems.append(
                "METRICS_ADDRESS is not HOST:PORT, as 127.0.0.1:9464, nor a port alone, which is loopback's."
            )
    capture = _capture(get, problems)
    if problems:
        raise SettingsInvalid(tuple(problems))
    return Settings(
        slack_bot_token=bot_token,
        slack_app_token=app_token,
        vault_address=vault_address.rstrip("/"),
        policy_file=policy_file,
        policy_signers=policy_signers,
        database_url=get("BREAKGLASS_DATABASE_URL", "sqlite:///breakglass.db"),
        slack_api_url=slack_api_url.rstrip("/") + "/",
        vault_role_id=role_id,
        vault_secret_id=secret_id,
        vault_token=token,
        vault_namespace=get("VAULT_NAMESPACE") or None,
        vault_ca_file=get("VAULT_CACERT") or None,
        vault_public_address=public,
        patience=timedelta(seconds=int(seconds)),
        metrics=metrics,
        capture=capture,
        environment=MappingProxyType(dict(environment)),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _capture(get: Callable[[str], str], problems: list[str]) -> Listen | None:
    """Read where lines of targets come in, and append what is wrong with it to ``problems``."""
    certificate, key, client_ca = (get(f"CAPTURE_TLS_{name}") for name in ("CERT", "KEY", "CLIENT_CA"))
    if not (text := get("CAPTURE_ADDRESS")):
        return None
    address = _address(text)
    if address is None:
        problems.append("CAPTURE_ADDRESS is not HOST:PORT, as 0.0.0.0:9465, nor a port alone, which is loopback's.")
        return None
    if bool(certificate) != bool(key):
        problems.append("CAPTURE_TLS_CERT and CAPTURE_TLS_KEY go together: the files of a certificate and its key.")
    elif client_ca and not certificate:
        problems.append("CAPTURE_TLS_CLIENT_CA is of no use without CAPTURE_TLS_CERT and CAPTURE_TLS_KEY.")
    elif not certificate and not is_loopback(address[0]):
        problems.append("CAPTURE_ADDRESS is not loopback, so it needs CAPTURE_TLS_CERT and CAPTURE_TLS_KEY.")
    return Listen(*address, certificate or None, key or None, client_ca or None)


def _address(text: str) -> tuple[str, int] | None:
    """Read ``HOST:PORT``, ``[::1]:PORT`` or ``PORT``; None: it is none of them."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") and host.endswith("]") else host
    is_named = bool(host) or not colon
    if not is_named or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        return None
    if ":" in host and not text.startswith("["):
        return None
    return host or LOOPBACK, int(port)
