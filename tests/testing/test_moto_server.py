"""moto behind a gate and a panel: it works as ever, and fails on cue as AWS does."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from attrs import frozen
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from kms_core.testing.servers import AwsServer, Failure
from kms_core.testing.servers.panel import OF_THE_LINE

PATIENCE = 20
SECRET = bytes(range(32))


def client_of(server: AwsServer, region: str = "us-east-1", read_timeout: float = PATIENCE) -> Any:
    """A client of the SDK without retries; moto takes any credentials."""
    config = Config(retries={"total_max_attempts": 1}, read_timeout=read_timeout, proxies={})
    return boto3.session.Session().client(
        "kms",
        region_name=region,
        endpoint_url=server.endpoint_url,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=config,
    )


Connect = Callable[..., Any]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients, and closes them."""
    made: list[Any] = []

    def make(server: AwsServer, region: str = "us-east-1", **options: Any) -> Any:
        made.append(client_of(server, region, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope="module")
def running() -> Iterator[AwsServer]:
    """One server for all tests."""
    with AwsServer() as server:
        yield server


@pytest.fixture
def server(running: AwsServer) -> Iterator[AwsServer]:
    """The server, well again after each test."""
    yield running
    running.panel.heal()


@pytest.fixture
def kms(server: AwsServer, connect: Connect) -> Any:
    """A client of us-east-1."""
    return connect(server)


@frozen
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


def ask(server: AwsServer, operation: str, members: Mapping[str, Any]) -> Answer:
    """One request without the SDK, on a connection of its own."""
    url = urlsplit(server.endpoint_url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=PATIENCE)
    scope = "AKIDEXAMPLE/20250101/us-east-1/kms/aws4_request"
    headers = {
        "Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": f"TrentService.{operation}",
    }
    try:
        connection.request("POST", "/", json.dumps(members), headers)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), json.loads(answer.read()))
    finally:
        connection.close()


def test_keys_work_and_requests_are_counted(server: AwsServer, connect: Connect) -> None:
    """By their names, in every region, and by the gate as turns."""
    arn = server.create_key("eu-west-1")
    assert arn.startswith("arn:aws:kms:eu-west-1:")
    kms = connect(server, "eu-west-1")
    encrypted, calls = server.panel.count("Encrypt"), server.calls
    sealed = kms.encrypt(KeyId=arn, Plaintext=SECRET)
    assert kms.decrypt(KeyId=arn, CiphertextBlob=sealed["CiphertextBlob"])["Plaintext"] == SECRET
    assert server.panel.count("Encrypt") == encrypted + 1
    assert server.calls == calls + 2


@pytest.mark.parametrize("failure", sorted(frozenset(Failure) - {Failure.CORRUPT_CRC}))
def test_keys_are_made_whatever_fails(server: AwsServer, failure: Failure) -> None:
    """Tests and demonstrations make them during outages; nobody is asked over the line."""
    before = server.panel.count(), server.calls
    server.panel.fail(failure)
    arn = server.create_key("us-east-1")
    assert (server.panel.count(), server.calls) == before
    server.panel.heal()
    assert ask(server, "DescribeKey", {"KeyId": arn}).body["KeyMetadata"]["Arn"] == arn


def test_the_panel_has_every_failure_of_this_service(server: AwsServer) -> None:
    """AWS has no checksums to be wrong; everything else it has, the line's too."""
    assert server.panel.failures == frozenset(Failure) - {Failure.CORRUPT_CRC} > OF_THE_LINE
    assert urlsplit(server.endpoint_url).port == server.gate.address[1]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure.THROTTLE, "ThrottlingException"),
        (Failure.ACCESS_DENIED, "AccessDeniedException"),
        (Failure.KEY_DISABLED, "DisabledException"),
        (Failure.KEY_NOT_FOUND, "NotFoundException"),
    ],
)
def test_a_refusal_on_cue_is_the_services_own(
    server: AwsServer, kms: Any, failure: Failure, code: str
) -> None:
    """It comes as often as ordered, in the operation it was ordered for."""
    arn = server.create_key("us-east-1")
    before = server.panel.count("Encrypt")
    server.panel.fail(failure, operation="Encrypt", times=1)
    kms.describe_key(KeyId=arn)
    with pytest.raises(ClientError) as caught:
        kms.encrypt(KeyId=arn, Plaintext=SECRET)
    response: Any = caught.value.response
    assert response["Error"]["Code"] == code
    assert response["Error"]["Message"]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400
    assert "retry-after" not in response["ResponseMetadata"]["HTTPHeaders"]
    kms.encrypt(KeyId=arn, Plaintext=SECRET)
    assert server.panel.count("Encrypt") == before + 2


def test_outages_take_turns() -> None:
    """The service is unwell, or what stands before it is."""
    with AwsServer() as server:
        server.panel.fail(Failure.SERVER_ERROR)
        answers = [ask(server, "ListKeys", {}) for _ in range(3)]
        assert [(answer.status, answer.body["__type"]) for answer in answers] == [
            (500, "KMSInternalException"),
            (503, "ServiceUnavailableException"),
            (500, "KMSInternalException"),
        ]
        server.panel.heal()
        assert ask(server, "ListKeys", {}).status == 200


def test_throttling_says_how_long_to_wait_when_told_to(server: AwsServer) -> None:
    """In the headers that clients read."""
    server.panel.fail(Failure.THROTTLE, seconds=1.5)
    answer = ask(server, "ListKeys", {})
    assert (answer.status, answer.body["__type"]) == (400, "ThrottlingException")
    assert (answer.headers["Retry-After"], answer.headers["x-amz-retry-after"]) == ("2", "1500")


def test_a_malformed_answer_is_an_empty_success(server: AwsServer) -> None:
    """A refusal becomes one, too."""
    server.panel.fail(Failure.MALFORMED)
    for key in (server.create_key("us-east-1"), "alias/none"):
        answer = ask(server, "DescribeKey", {"KeyId": key})
        assert (answer.status, answer.body) == (200, {})


def test_a_wrong_key_is_named_in_an_answer_that_is_good_otherwise(
    server: AwsServer, kms: Any
) -> None:
    """In the same form, of the same region, and of a key nobody has."""
    arn = server.create_key("us-east-1")
    server.panel.fail(Failure.WRONG_KEY)
    sealed = kms.encrypt(KeyId=arn, Plaintext=SECRET)
    metadata = kms.describe_key(KeyId=arn)["KeyMetadata"]
    place = arn.rpartition("/")[0] + "/"
    for other in (sealed["KeyId"], metadata["Arn"]):
        assert other.startswith(place)
        assert other != arn
    assert metadata["Arn"] == place + metadata["KeyId"]
    refused = ask(server, "DescribeKey", {"KeyId": "alias/none"})
    assert (refused.status, refused.body["__type"]) == (400, "NotFoundException")
    kms.create_alias(AliasName="alias/after", TargetKeyId=arn)  # which has no answer to alter
    server.panel.heal()
    opened = kms.decrypt(KeyId=arn, CiphertextBlob=sealed["CiphertextBlob"])
    assert (opened["Plaintext"], opened["KeyId"]) == (SECRET, arn)


def test_a_reset_breaks_the_answer(server: AwsServer) -> None:
    """The connection ends in the middle of it, and the next one works."""
    arn = server.create_key("us-east-1")
    server.panel.fail(Failure.RESET, times=1)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "DescribeKey", {"KeyId": arn})
    assert ask(server, "DescribeKey", {"KeyId": arn}).status == 200


def test_a_slow_answer_is_late_and_good(server: AwsServer) -> None:
    """It is held back for its time."""
    server.panel.fail(Failure.SLOW, operation="ListKeys", seconds=0.3)
    start = time.monotonic()
    assert ask(server, "ListKeys", {}).status == 200
    assert time.monotonic() - start >= 0.3


def test_a_refused_line_is_a_connection_error(server: AwsServer, kms: Any) -> None:
    """By the panel as by ``cut``; afterwards the same client works."""
    for refuse in (partial(server.panel.fail, Failure.REFUSE), server.cut):
        refuse()
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            kms.list_keys()
        server.panel.heal()
        kms.list_keys()


def test_a_hanging_line_answers_nothing(server: AwsServer, connect: Connect) -> None:
    """The request is a call that arrived, and moto never hears of it."""
    kms = connect(server, read_timeout=0.2)
    before, calls = server.panel.count(), server.calls
    server.panel.fail(Failure.HANG)
    with pytest.raises(ReadTimeoutError):
        kms.list_keys()
    assert (server.panel.count(), server.calls) == (before, calls + 1)
    server.panel.heal()
    connect(server).list_keys()


def test_servers_of_one_process_share_keys_and_not_failures(connect: Connect) -> None:
    """Two of them stand for two regions of one account."""
    with AwsServer() as one, AwsServer() as other:
        arn = one.create_key("us-east-1")
        one.panel.fail(Failure.ACCESS_DENIED)
        assert connect(other).describe_key(KeyId=arn)["KeyMetadata"]["Arn"] == arn


def test_closing_leaves_no_thread(connect: Connect) -> None:
    """Also while somebody is kept waiting; twice is fine."""
    before = set(threading.enumerate())
    server = AwsServer()
    kms = connect(server)
    server.panel.fail(Failure.SLOW, seconds=60)
    interrupted = threading.Event()

    def wait() -> None:
        with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
            kms.list_keys()
        interrupted.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + PATIENCE
    while server.panel.count() < 1 and time.monotonic() < deadline:
        waiting.join(0.01)
    server.close()
    server.close()
    waiting.join(PATIENCE)
    assert interrupted.is_set()
    assert set(threading.enumerate()) <= before
