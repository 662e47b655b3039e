"""What do Kubernetes' audit log and AWS CloudTrail say?

The records were written after the documentation: no server was at hand.
"""

from __future__ import annotations

import json

import pytest

from workflows.captures.classify import classify
from workflows.captures.cloudtrail import CloudTrail
from workflows.captures.kubernetes_audit import KubernetesAudit
from workflows.captures.seam import Kind, Unreadable

OWN = "bg-7kq2-1-abc"
EVENT = {
    "kind": "Event",
    "apiVersion": "audit.k8s.io/v1",
    "level": "Metadata",
    "auditID": "c0ffee00-1111-4222-8333-444455556666",
    "stage": "ResponseComplete",
    "requestURI": "/api/v1/namespaces/shop/pods?limit=500",
    "verb": "list",
    "user": {"username": f"system:serviceaccount:shop:{OWN}", "groups": ["system:serviceaccounts"]},
    "sourceIPs": ["192.0.2.7"],
    "objectRef": {"resource": "pods", "namespace": "shop", "apiVersion": "v1"},
    "responseStatus": {"metadata": {}, "code": 200},
    "requestReceivedTimestamp": "2026-11-24T14:25:27.123456Z",
    "stageTimestamp": "2026-11-24T14:25:27.223456Z",
}
EXEC = EVENT | {
    "verb": "create",
    "requestURI": "/api/v1/namespaces/shop/pods/api/exec?command=sh&command=-c&command=rm+-rf+%2Fsrv&container=api",
    "objectRef": {"resource": "pods", "namespace": "shop", "name": "api", "subresource": "exec"},
    "responseStatus": {"code": 101},
}
ROLE = {
    "type": "AssumedRole",
    "arn": f"arn:aws:sts::123456789012:assumed-role/Emergency/{OWN}",
    "accessKeyId": "EXAMPLEKEY",
    "sessionContext": {"sessionIssuer": {"userName": "Emergency"}, "attributes": {}},
}
RECORD = {
    "eventVersion": "1.09",
    "userIdentity": ROLE,
    "eventTime": "2026-11-24T14:25:27Z",
    "eventSource": "s3.amazonaws.com",
    "eventName": "DeleteBucket",
    "awsRegion": "eu-central-1",
    "requestParameters": {"bucketName": "orders", "x": {"y": 1}},
    "eventID": "c0ffee00-1111-4222-8333-444455556666",
}


def kubernetes(**changes):
    """Read an event with changes."""
    return KubernetesAudit().read(json.dumps(EVENT | changes).encode())


def cloudtrail(**changes):
    """Read a record with changes."""
    return CloudTrail().read(json.dumps(RECORD | changes).encode())


def test_a_call_of_kubernetes_is_its_service_accounts():
    """A call is told with the account's own name, what it was about, and how it went."""
    (line,) = kubernetes()
    assert (line.kind, line.identity, line.text, line.result) == (Kind.CALL, OWN, "list pods in shop", "ok")
    (line,) = kubernetes(responseStatus={"code": 403})
    assert line.result == "403"
    assert kubernetes(stage="RequestReceived") == ()


def test_an_exec_is_told_as_it_begins_and_once():
    """The first program stands in the address; that nothing from inside is recorded is said."""
    call, program, hole = KubernetesAudit().read(json.dumps(EXEC | {"stage": "ResponseStarted"}).encode())
    assert call.text == "create pods/api/exec in shop"
    assert classify(call.kind, call.text).danger == "container entered"
    assert program.argv == ("sh", "-c", "rm -rf /srv")
    assert classify(program.kind, program.text, program.argv).danger == "files removed with all below"
    assert hole.kind is Kind.HOLE
    assert KubernetesAudit().read(json.dumps(EXEC).encode()) == ()
    (refused,) = KubernetesAudit().read(json.dumps(EXEC | {"responseStatus": {"code": 403}}).encode())
    assert refused.result == "403"


def test_who_impersonates_is_who_calls():
    """Attack: a call as somebody else is the caller's, and says as whom."""
    (line,) = kubernetes(impersonatedUser={"username": "system:serviceaccount:shop:bg-0ther-1-x"})
    assert line.identity == OWN
    assert line.text.endswith("as system:serviceaccount:shop:bg-0ther-1-x")


def test_a_call_of_aws_is_its_sessions():
    """A call is told with the session's name, the plain parameters and the error's code."""
    (line,) = cloudtrail()
    assert (line.identity, line.text) == (OWN, 's3.amazonaws.com DeleteBucket bucketName="orders"')
    assert (line.result, line.database) == ("ok", "eu-central-1")
    (line,) = cloudtrail(errorCode="AccessDenied")
    assert line.result == "AccessDenied"
    assert "EXAMPLEKEY" not in repr(line)


def test_a_session_that_names_itself_after_another_is_its_source_identitys():
    """Attack: from one role into another under a name of another request's. The source identity stays."""
    chained = ROLE | {
        "arn": "arn:aws:sts::123456789012:assumed-role/Other/bg-0ther-1-x",
        "sessionContext": {"sourceIdentity": OWN},
    }
    assert {line.identity for line in cloudtrail(userIdentity=chained)} == {OWN}


def test_what_is_made_or_stopped_is_said():
    """Another credential is a hole; switching the trail off is a finding, also where it is refused."""
    assert [line.kind for line in cloudtrail(eventName="AssumeRole")] == [Kind.CALL, Kind.HOLE]
    assert [line.kind for line in cloudtrail(eventName="StopLogging", errorCode="x")] == [Kind.CALL, Kind.STOPPED]


def test_a_whole_file_is_read_in_its_order():
    """A file as CloudTrail writes it is one line: all its records are told; those of AWS's services are nobody's."""
    other = RECORD | {"eventName": "ListBuckets"}
    service = RECORD | {"userIdentity": {"type": "AWSService", "invokedBy": "ec2.amazonaws.com"}}
    lines = CloudTrail().read(json.dumps({"Records": [RECORD, service, other]}).encode())
    assert [line.text.split()[1] for line in lines] == ["DeleteBucket", "ListBuckets"]


@pytest.mark.parametrize("changes", [{"userIdentity": {}}, {"eventTime": "now"}, {"eventName": None}])
def test_a_record_without_its_parts_is_unreadable(changes):
    """Who, what and when must be there."""
    with pytest.raises(Unreadable):
        cloudtrail(**changes)
