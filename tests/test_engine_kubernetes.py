"""A Kubernetes token comes from an account that was made for one grant, and ends with that account.

Against Vault's real engine, before a stand-in for the cluster (``kubernetes_part.py``): no cluster was at hand.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from kubernetes_part import NAMESPACE, _claims
from stages import STAGES, set_up, until

from workflows.engines import ENGINES, Wish
from workflows.errors import Invalid, Unavailable

ENGINE = ENGINES["kubernetes"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Vault and the cluster."""
    with STAGES["kubernetes"](tmp_path_factory.mktemp("kubernetes")) as stage:
        yield stage


@pytest.fixture
def cluster(stage):
    """The cluster, up and obedient again after the test."""
    yield stage.target
    stage.target.is_stubborn, stage.target.page = False, 500
    stage.target.objects["pods"] = {"checkout-1": stage.target.objects["pods"]["checkout-1"]}


@pytest.fixture
def vault(stage):
    """The bot's Vault."""
    return stage.vault()


def _ask(cluster, token, path):
    """Ask the cluster as kubectl does, and return the status."""
    return requests.get(
        f"{cluster.url}{path}", headers={"Authorization": f"Bearer {token}"}, verify=cluster.ca_file, timeout=30
    ).status_code


# ----------------------------------------------------------------------------------------- an account for one grant


def test_the_account_is_made_for_the_grant_and_deleted_with_it(stage, vault, cluster):
    """Account and binding carry the request's name, and neither is there after the end; the token is refused then."""
    credential, grant, _ = stage.open(vault, name="BG-K8AC")
    assert credential.username.startswith("bg-k8ac-")
    assert credential.username in cluster.names("serviceaccounts")
    assert credential.username in cluster.names("rolebindings")
    assert stage.take_back(vault, grant)
    assert not {name for kind in cluster.objects for name in cluster.names(kind) if name.startswith("bg-k8ac-")}
    assert _ask(cluster, credential.token, f"/api/v1/namespaces/{NAMESPACE}/pods") == 401


def test_a_short_grants_token_says_ten_minutes_and_ends_with_the_grant(stage, vault, cluster):
    """Kubernetes signs none for less than ten minutes: the account's deletion ends it, not the token's own time."""
    credential, grant, _ = stage.open(vault, ttl=timedelta(seconds=2))
    claims = _claims(credential.token)
    assert claims["exp"] - claims["iat"] == 600
    assert credential.ttl == timedelta(seconds=2)
    assert until(lambda: _ask(cluster, credential.token, f"/api/v1/namespaces/{NAMESPACE}/pods") == 401)
    assert until(lambda: stage.is_over(vault, grant))


def test_it_may_do_what_the_bound_role_says(stage, vault, cluster):
    """The token sees the pods of its namespace, and neither accounts nor another namespace."""
    credential, grant, _ = stage.open(vault)
    assert _ask(cluster, credential.token, f"/api/v1/namespaces/{NAMESPACE}/pods/checkout-1") == 200
    assert _ask(cluster, credential.token, f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts") == 403
    assert _ask(cluster, credential.token, "/api/v1/namespaces/kube-system/pods") == 403
    assert stage.take_back(vault, grant)


@pytest.mark.parametrize(
    "more",
    [{"kubernetes_namespace": "kube-system"}, {"cluster_role_binding": True}, {"audiences": ["vault"]}, {"ttl": None}],
)
def test_a_grants_token_cannot_ask_for_more(stage, vault, more):
    """A stolen grant token gets no account in another namespace, none for the cluster, none for another audience."""
    child = stage.child(vault)
    body = {"kubernetes_namespace": NAMESPACE, "ttl": 600, **more}
    asked = requests.post(
        f"{stage.bao.addr}/v1/kubernetes/creds/repair",
        headers={"X-Vault-Token": child.token},
        json={key: value for key, value in body.items() if value is not None},
        timeout=30,
    )
    assert asked.status_code == (200 if "ttl" in more else 403)
    vault.revoke_accessor(child.accessor)
    assert until(lambda: vault.leases("kubernetes/creds/repair") == frozenset())


def test_a_token_of_an_account_that_exists_is_refused(stage, vault, cluster):
    """Such a token could not be taken back: a role that hands one out gives nothing, and no secret is in the answer."""
    role = stage.bao.call("GET", "kubernetes/roles/repair")["data"]
    stage.bao.call("DELETE", "kubernetes/roles/repair")
    standing = {"service_account_name": "breakglass-vault", "allowed_kubernetes_namespaces": [NAMESPACE]}
    stage.bao.call("POST", "kubernetes/roles/repair", standing)
    child = stage.child(vault)
    try:
        with pytest.raises(Unavailable, match="not named after the request") as caught:
            ENGINE.issue(vault, child, stage.settings.options, Wish("BG-7KQ2", "U0RITA"))
    finally:
        stage.bao.call("DELETE", "kubernetes/roles/repair")
        stage.bao.call("POST", "kubernetes/roles/repair", role)
    assert "eyJ" not in str(caught.value)
    vault.revoke_accessor(child.accessor)
    assert until(lambda: vault.leases("kubernetes/creds/repair") == frozenset())


# ------------------------------------------------------------------------------------------ what the cluster shows


def test_an_account_that_the_cluster_kept_is_seen(stage, vault, cluster):
    """Vault calls it gone; that the cluster has account and binding still is seen, with the name known or lost."""
    credential, grant, _ = stage.open(vault, name="BG-K8ST")
    cluster.is_stubborn = True
    vault.revoke_accessor(grant.accessor)
    assert until(lambda: ENGINE.is_gone(vault, grant, frozenset()))
    for seen in (grant, replace(grant, identity=None)):
        with pytest.raises(Unavailable, match="1 service accounts and 1 role bindings of it are left") as caught:
            ENGINE.prove(vault, seen)
        assert caught.value.reason == "left"
    assert credential.username in ENGINE.identities(vault, grant.options)
    for kind in ("serviceaccounts", "rolebindings"):
        del cluster.objects[kind][credential.username]
    assert ENGINE.prove(vault, grant) == ("its service account does not exist", "no role binding of it is left")
    assert credential.username not in ENGINE.identities(vault, grant.options)


def test_a_long_list_is_read_to_its_end(stage, vault, cluster):
    """The cluster gives its lists in pieces, and what stands in the last one counts."""
    cluster.page = 1
    credential, grant, _ = stage.open(vault, name="BG-K8PG")
    assert credential.username in ENGINE.identities(vault, grant.options)
    with pytest.raises(Unavailable, match="1 service accounts"):
        ENGINE.prove(vault, grant)
    assert stage.take_back(vault, grant)


def test_the_bots_own_accounts_carry_no_mark(stage, vault, cluster):
    """What the bot looks with, and Vault's own account, are nobody's emergency."""
    assert not ENGINE.identities(vault, stage.settings.options)
    assert {name.split("-")[0] for name in cluster.names("serviceaccounts")} == {"watch", "breakglass"}


def test_the_watching_token_can_do_nothing_but_look(stage, vault, cluster):
    """With the bot's own token no pod is seen, nothing is made and nothing is deleted."""
    ENGINE.identities(vault, stage.settings.options)
    [secret] = [secret for _, secret in vault._watchers.values()]
    token = secret.data["service_account_token"]
    base = f"{cluster.url}/api/v1/namespaces/{NAMESPACE}"
    for method, path in (
        ("GET", "pods"),
        ("POST", "serviceaccounts"),
        ("DELETE", "serviceaccounts/breakglass-vault"),
        ("POST", "serviceaccounts/breakglass-vault/token"),
    ):
        answer = requests.request(
            method, f"{base}/{path}", headers={"Authorization": f"Bearer {token}"}, verify=cluster.ca_file, timeout=30
        )
        assert answer.status_code == 403


def test_a_watching_account_that_the_cluster_lost_is_made_anew(stage, vault, cluster):
    """After the bot's own account was deleted by hand, one look fails and the next has another account."""
    ENGINE.identities(vault, stage.settings.options)
    for name in [name for name in cluster.names("serviceaccounts") if name.startswith("watch-")]:
        del cluster.objects["serviceaccounts"][name]
    with pytest.raises(Unavailable, match="cannot be looked at"):
        ENGINE.identities(vault, stage.settings.options)
    assert ENGINE.identities(vault, stage.settings.options) == frozenset()


def test_the_bot_ends_its_own_account(stage, vault, cluster):
    """A check that looked takes away again what it looked with."""
    before = cluster.names("serviceaccounts")
    ENGINE.identities(vault, stage.settings.options)
    assert len(cluster.names("serviceaccounts")) == len(before) + 1
    vault.end_watchers()
    assert cluster.names("serviceaccounts") == before


def test_a_cluster_of_another_authority_is_not_believed(stage, vault, cluster):
    """What answers with a certificate of somebody else shows nothing to be gone, and gets no token."""
    _, grant, _ = stage.open(vault)
    without = {key: value for key, value in grant.options.items() if key != "ca_file"}
    with pytest.raises(Unavailable, match="cannot be looked at"):
        ENGINE.prove(vault, replace(grant, options=without))
    assert stage.take_back(vault, grant)


def test_a_level_that_cannot_look_shows_nothing(stage, vault):
    """Without a role to look with, nothing is said of the cluster."""
    _, grant, _ = stage.open(vault)
    blind = {key: value for key, value in grant.options.items() if key != "watch_role"}
    assert ENGINE.prove(vault, replace(grant, options=blind)) == ()
    assert ENGINE.identities(vault, blind) == frozenset()
    assert stage.take_back(vault, grant)


# ------------------------------------------------------------------------------------------- when the cluster is down


def test_with_the_cluster_down_a_revoked_grant_is_not_gone(stage, vault, cluster):
    """Vault answers "done" while the account lives on: not gone until the cluster is back and has deleted it."""
    credential, grant, _ = stage.open(vault)
    ENGINE.identities(vault, grant.options)
    cluster.stop()
    try:
        vault.revoke_accessor(grant.accessor)
        assert until(lambda: vault.accessor_is_gone(grant.accessor))
        assert not ENGINE.is_gone(vault, grant, frozenset())
        with pytest.raises(Unavailable):
            ENGINE.hurry(vault, grant)
        with pytest.raises(Unavailable, match="cannot be looked at"):
            ENGINE.prove(vault, grant)
    finally:
        cluster.start()
    assert stage.works(credential)  # "revoked" would have been a lie
    ENGINE.hurry(vault, grant)
    assert stage.is_over(vault, grant)
    assert not stage.works(credential)


def test_with_the_cluster_down_nothing_is_issued(stage, vault, cluster):
    """Issuing fails as Unavailable and leaves no lease."""
    child = stage.child(vault)
    cluster.stop()
    try:
        with pytest.raises(Unavailable):
            ENGINE.issue(vault, child, stage.settings.options, Wish("BG-7KQ2", "U0RITA"))
    finally:
        cluster.start()
    vault.revoke_accessor(child.accessor)
    assert vault.leases("kubernetes/creds/repair") == frozenset()


# -------------------------------------------------------------------------------------------------------- what is shown


def test_the_line_opens_a_shell_with_a_private_file(stage, vault, cluster, tmp_path):
    """The line of a real credential, given to a real shell, opens one whose kubeconfig works and ends with it."""
    credential, grant, _ = stage.open(vault)
    script = tmp_path / "pasted"
    script.write_text("\n".join(credential.lines()))
    done = subprocess.run(
        ["/bin/sh", str(script)],
        check=True,
        capture_output=True,
        text=True,
        input='cat "$KUBECONFIG"; echo; stat -c %a "$KUBECONFIG"; echo "$KUBECONFIG"; ps -eo args\n',
        env={"PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"},
    )
    written, mode, file, *processes = done.stdout.splitlines()
    config = json.loads(written)
    [user], [there] = config["users"], config["clusters"]
    assert _ask(cluster, user["user"]["token"], f"/api/v1/namespaces/{NAMESPACE}/pods") == 200
    assert there["cluster"] == {"server": cluster.url, "certificate-authority": str(cluster.ca_file)}
    assert config["contexts"][0]["context"]["namespace"] == NAMESPACE
    assert mode == "600"
    assert not Path(file).exists()
    assert len(processes) > 1
    assert not [process for process in processes if credential.token in process]
    assert stage.take_back(vault, grant)


# ---------------------------------------------------------------------------------------------------------- the set-up


def test_vault_cannot_be_set_up_without_a_role_to_lend(stage):
    """What only the set-up needs is asked for by name, when it is made."""
    options = {key: value for key, value in stage.settings.options.items() if key != "bound_role"}
    with pytest.raises(Invalid) as caught:
        ENGINE.writes(options, timedelta(minutes=5))
    assert set(caught.value.fields) == {"bound_role"}


def test_vaults_account_may_lend_exactly_the_levels_roles(stage, cluster):
    """With the printed steps Vault may bind the level's role and the watching one, and read nothing."""
    may = {right for name, rights in cluster.roles.items() if name.startswith("breakglass-vault") for right in rights}
    assert may == {
        *((verb, kind) for verb in ("create", "delete") for kind in ("serviceaccounts", "rolebindings")),
        ("create", "serviceaccounts/token"),
        ("bind", "repair"),
        ("bind", "breakglass-watch"),
    }
    assert cluster.roles["breakglass-watch"] == {("list", "serviceaccounts"), ("list", "rolebindings")}
    wide = {**stage.settings.options, "bound_type": "ClusterRole"}
    assert '"clusterroles"' in ENGINE.target_steps(wide)


def test_setting_it_up_twice_is_fine(stage, cluster):
    """What is there stays, and grants can be opened after it as before."""
    secrets = {"service_account_jwt": cluster.manager_token, "kubernetes_ca_cert": cluster.ca_file.read_text()}
    set_up(stage.bao, stage.level, secrets=secrets)
    vault = stage.vault()
    _, grant, _ = stage.open(vault)
    assert stage.take_back(vault, grant)
