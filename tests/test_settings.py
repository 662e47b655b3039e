"""Is the environment read strictly, with every problem at once and no secret repeated?"""

from __future__ import annotations

import pytest

from bot.settings import Listen, SettingsInvalid, from_environment


@pytest.fixture
def whole(tmp_path):
    """An environment in which nothing is missing."""
    policy = tmp_path / "breakglass.yml"
    policy.write_text("version: 1\n", encoding="utf-8")
    return {
        "SLACK_BOT_TOKEN": "xoxb-secret-1",
        "SLACK_APP_TOKEN": "xapp-secret-2",
        "VAULT_ADDR": "http://127.0.0.1:8200/",
        "VAULT_ROLE_ID": "role-secret-3",
        "VAULT_SECRET_ID": "secret-4",
        "BREAKGLASS_POLICY": str(policy),
        "BREAKGLASS_DATABASE_URL": "postgresql://bot:secret-5@localhost/bg",
    }


def test_a_whole_environment_is_read(whole):
    """Addresses come out in one form, defaults are filled in."""
    settings = from_environment(whole)
    assert settings.vault_address == "http://127.0.0.1:8200"
    assert settings.slack_api_url == "https://slack.com/api/"
    assert settings.patience.total_seconds() == 30


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("9464", ("127.0.0.1", 9464)),
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("metrics.internal:80", ("metrics.internal", 80)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_metrics_are_off_or_on_loopback_unless_a_host_is_named(whole, text, address):
    """Who gives a port alone opens nothing to the network."""
    assert from_environment(whole | {"METRICS_ADDRESS": text}).metrics == address


def test_the_ingest_endpoint_needs_a_certificate_unless_it_is_loopback(whole):
    """A token does not travel in clear; what is half said is named."""
    assert from_environment(whole).capture is None
    assert from_environment(whole | {"CAPTURE_ADDRESS": "9465"}).capture == Listen("127.0.0.1", 9465)
    tls = {"CAPTURE_TLS_CERT": "cert.pem", "CAPTURE_TLS_KEY": "key.pem", "CAPTURE_TLS_CLIENT_CA": "ca.pem"}
    found = from_environment(whole | {"CAPTURE_ADDRESS": "bot.example.com:9465"} | tls).capture
    assert found == Listen("bot.example.com", 9465, "cert.pem", "key.pem", "ca.pem")
    for address, *left_out in (
        ("bot.example.com:9465", *tls),
        ("9465", "CAPTURE_TLS_KEY"),
        ("9465", "CAPTURE_TLS_CERT"),
        ("9465", "CAPTURE_TLS_CERT", "CAPTURE_TLS_KEY"),
    ):
        given = {name: value for name, value in tls.items() if name not in left_out}
        with pytest.raises(SettingsInvalid, match="CAPTURE_TLS_"):
            from_environment(whole | {"CAPTURE_ADDRESS": address} | given)


def test_every_problem_is_named_at_once():
    """An empty environment gives a sentence for each variable that is needed."""
    with pytest.raises(SettingsInvalid) as invalid:
        from_environment({})
    named = " ".join(invalid.value.problems)
    for name in ("SLACK_BOT_TOKEN", "SLACK_APP_TOKEN", "VAULT_ADDR", "VAULT_ROLE_ID", "BREAKGLASS_POLICY"):
        assert name in named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLACK_BOT_TOKEN", "xapp-wrong-kind"),
        ("SLACK_APP_TOKEN", "xoxb-wrong-kind"),
        ("VAULT_ADDR", "vault.internal"),
        ("VAULT_SECRET_ID", " "),
        ("BREAKGLASS_POLICY", "nowhere.yml"),
        ("SLACK_API_URL", "slack"),
        ("BREAKGLASS_PATIENCE_SECONDS", "0"),
        ("BREAKGLASS_PATIENCE_SECONDS", "half a minute"),
        ("CAPTURE_ADDRESS", "here"),
        ("METRICS_ADDRESS", "here"),
        ("METRICS_ADDRESS", ":9464"),
        ("METRICS_ADDRESS", "127.0.0.1:0"),
        ("METRICS_ADDRESS", "127.0.0.1:65536"),
        ("METRICS_ADDRESS", "::1:9464"),
    ],
)
def test_a_malformed_variable_is_named_and_its_value_is_not_repeated(whole, name, value):
    """One wrong value is one sentence; a token that was put into the wrong variable is not printed."""
    with pytest.raises(SettingsInvalid) as invalid:
        from_environment(whole | {name: value})
    (problem,) = invalid.value.problems
    assert name in problem
    assert "wrong-kind" not in problem


def test_no_secret_is_in_the_repr(whole):
    """Printing the settings shows none of the five secrets."""
    shown = repr(from_environment(whole))
    for secret in ("secret-1", "secret-2", "secret-3", "secret-4", "secret-5"):
        assert secret not in shown
