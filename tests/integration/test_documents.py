"""What tells of the daemon: the OpenAPI document and the metrics."""

from __future__ import annotations

import re

from openapi_spec_validator import validate

from tests.integration.daemons import Daemon, call
from tests.integration.plain import PlainSender


def test_the_openapi_document_is_valid_and_names_every_message(receiver: Daemon) -> None:
    document = call("GET", f"{receiver.url}/openapi.json").json
    validate(document)
    assert document["openapi"].startswith("3.1")
    ask = document["paths"]["/api/v1/backup/can-accept-backup"]["post"]
    schema = ask["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    members = document["components"]["schemas"][schema.rpartition("/")[2]]["properties"]
    assert "linkForServerAtoNoticeServerBWhenServerAIsReady" in members


def test_every_operation_of_the_document_is_served(receiver: Daemon) -> None:
    document = call("GET", f"{receiver.url}/openapi.json").json
    for path, operations in document["paths"].items():
        url = receiver.url + re.sub(r"\{\w+\}", "nothing-has-this-id", path)
        for method in operations:
            answer = call(method.upper(), url)
            assert answer.status not in (405, 500, 501), (method, path, answer.body)
            if answer.status == 404:
                assert b"There is nothing here." not in answer.body, (method, path)


def test_what_only_the_operator_may_do_is_marked_and_refused_without_the_token(
    receiver: Daemon,
) -> None:
    document = call("GET", f"{receiver.url}/openapi.json").json
    marked = 0
    for path, operations in document["paths"].items():
        url = receiver.url + re.sub(r"\{\w+\}", "nothing-has-this-id", path)
        for method, operation in operations.items():
            if {} not in operation.get("security", [{}]):  # {}: without a token too
                marked += 1
                assert call(method.upper(), url).status == 401, (method, path)
    assert marked >= 8


def _metric(receiver: Daemon, name: str) -> float:
    text = call("GET", f"{receiver.url}/metrics").body.decode()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def test_the_metrics_follow_what_is_promised_and_waits(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    before = _metric(receiver, "backupd_promised_bytes")
    assert sender.ask(receiver.url, video, "64 MB").json["success"]
    promised = _metric(receiver, "backupd_promised_bytes") - before
    assert 64 * 1024**2 <= promised <= 65 * 1024**2  # and a little for folders and sidecar
    assert _metric(receiver, "backupd_available_bytes") > 0
