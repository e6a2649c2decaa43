"""tus 1.0.0, expiration, checksum, termination and concatenation: every MUST and SHOULD of the
published text for a server. Quotes are of version 1.0.0."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import pytest

from tests.integration.contract import digest
from tests.integration.daemons import Answer, Daemon, answer_on, wait_until
from tests.integration.plain import PlainSender
from tests.integration.tus import OFFSET, Tus, checksum, direct, metadata, on_link

DATA = b"hello world, this is a video of fifty bytes at most."
LENGTH = len(DATA)
KIND = f"Content-Type: {OFFSET['Content-Type']}"
DATE = (
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d "
    r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
"""RFC 9110, 5.6.7, the preferred form."""


@pytest.fixture(params=["link", "direct"])
def tus(request: pytest.FixtureRequest, receiver: Daemon, sender: PlainSender, video: int) -> Tus:
    if request.param == "direct":
        return direct(receiver, video, LENGTH)
    return on_link(receiver, sender, video, LENGTH)


# -- expiration ------------------------------------------------------------------------------------


def test_when_an_upload_expires_is_told(tus: Tus) -> None:
    """ "This header MUST be included in every PATCH response if the upload is going to expire. If
    the expiration is known at the creation, the Upload-Expires header MUST be included in the
    response to the initial POST request." "MUST be in RFC 7231 datetime format"

    On a link it is known from the first byte on, if not before: until its offer is taken there
    is only that to lapse."""
    created = tus.post(Upload_Length=str(LENGTH))
    url = tus.whole(created.headers["Location"])
    answers = [tus.patch(url, 0, DATA[:5]), tus.patch(url, 5, b""), tus.head(url)]
    if not tus.described:
        created = tus.post(DATA[:5], Upload_Length="5")
    for answer in (created, *answers):
        expires = answer.headers["Upload-Expires"]
        assert re.fullmatch(DATE, expires)
        assert parsedate_to_datetime(expires).timestamp() > time.time() + 3600


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that keeps unfinished uploads for two seconds."""
    with Daemon(
        tmp_path_factory.mktemp("forgetful"), upload_expiry="2", loop_interval="0.2"
    ) as one:
        yield one


@pytest.mark.parametrize("where", ["link", "direct"])
def test_an_upload_that_has_expired_is_gone(
    forgetful: Daemon, sender: PlainSender, video: int, where: str
) -> None:
    """ "If a Client does attempt to resume an upload which has since been removed by the Server,
    the Server SHOULD respond with the 404 Not Found or 410 Gone status. The latter one SHOULD be
    used if the Server is keeping track of expired uploads." And its room is free again."""
    before = forgetful.incoming
    if where == "link":
        tus = on_link(forgetful, sender, video, LENGTH)
    else:
        tus = direct(forgetful, video, LENGTH)
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, DATA[:9]).status == 204
    wait_until(lambda: tus.head(url).status != 200, "it has expired")
    for answer in (tus.head(url), tus.patch(url, 9, DATA[9:])):
        assert answer.status == 410
        assert "Upload-Offset" not in answer.headers
    wait_until(lambda: forgetful.incoming == before, "its bytes are removed")
    assert forgetful.requests() == []


# -- checksum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "md5"])
def test_a_checksum_is_verified(tus: Tus, algorithm: str) -> None:
    """ "Once the entire request has been received, the Server MUST verify the uploaded chunk
    against the provided checksum ... 460 Checksum Mismatch if the checksums mismatch ... the
    uploaded chunk MUST be discarded, and the upload and its offset MUST NOT be updated." """
    url = tus.create(LENGTH)
    at = 0
    for piece in (DATA[:10], DATA[10:30], DATA[30:]):
        wrong = checksum(algorithm, piece + b"x")
        answer = tus.patch(url, at, piece, Upload_Checksum=wrong)
        assert answer.status == 460
        assert tus.offset(url) == at
        answer = tus.patch(url, at, piece, Upload_Checksum=checksum(algorithm, piece))
        assert answer.status == 204
        at += len(piece)
        assert answer.headers["Upload-Offset"] == str(at)
    assert tus.kept() == DATA


def test_what_was_discarded_is_not_in_the_digest(tus: Tus) -> None:
    """Bytes that were refused count nowhere: the whole has the SHA-256 of what was kept."""
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, b"?" * 30, Upload_Checksum=checksum("sha1", b"")).status == 460
    assert tus.patch(url, 0, DATA[:20], Upload_Checksum=checksum("sha1", DATA[:20])).status == 204
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    last = tus.patch(url, 20, DATA[20:], Repr_Digest=f"sha-256=:{digest}:")
    assert last.status == 204
    assert tus.kept() == DATA


@pytest.mark.parametrize(
    "said", ["crc32 AAAAAA==", "sha1", "sha1 not-base64!", "SHA1 AAAA", "", "sha1  "]
)
def test_a_checksum_that_cannot_be_verified(tus: Tus, said: str) -> None:
    """ "400 Bad Request if the checksum algorithm is not supported by the server" """
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, DATA[:10], Upload_Checksum=said).status == 400
    assert tus.offset(url) == 0


def test_the_algorithms_are_told(tus: Tus) -> None:
    """ "The Tus-Checksum-Algorithm header MUST be included in the response to an OPTIONS request."
    "The Server MUST support at least the SHA1 checksum algorithm identified by sha1. The names ...
    MUST only consist of ASCII characters with the modification that uppercase characters are
    excluded." """
    said = tus.ask("OPTIONS", tus.url).headers["Tus-Checksum-Algorithm"]
    assert re.fullmatch(r"[!-+\-->-@\[-~]+(,[!-+\--@\[-~]+)*", said)
    assert "sha1" in said.split(",")


def test_a_chunk_with_a_checksum_that_was_cut_is_discarded(tus: Tus) -> None:
    """It was never verified."""
    url = tus.create(LENGTH)
    with tus.connect() as connection:
        sums = f"Upload-Checksum: {checksum('sha1', DATA)}"
        lines = (KIND, sums, "Upload-Offset: 0", f"Content-Length: {LENGTH}")
        connection.sendall(tus.raw("PATCH", url, *lines) + DATA[:20])
    assert tus.offset(url) == 0
    assert tus.patch(url, 0, DATA, Upload_Checksum=checksum("sha1", DATA)).status == 204
    assert tus.kept() == DATA


def test_a_checksum_and_a_digest_are_both_checked(tus: Tus) -> None:
    """Whoever sends two has what it sends looked at twice; a mismatch of either moves nothing."""
    url = tus.create(LENGTH)
    right = {"Upload_Checksum": checksum("sha1", DATA), "Content_Digest": digest(DATA)}
    for wrong, status in (
        ({"Upload_Checksum": checksum("sha1", b"x")}, 460),
        ({"Content_Digest": digest(b"x")}, 422),
    ):
        assert tus.patch(url, 0, DATA, **(right | wrong)).status == status
        assert tus.offset(url) == 0
    assert tus.patch(url, 0, DATA, **right).status == 204
    assert tus.kept() == DATA


def chunked(tus: Tus, url: str, data: bytes, *trailer: str) -> Answer:
    """PATCH at 0 with a trailer announced, and ``trailer`` sent."""
    with tus.connect() as connection:
        lines = (KIND, "Upload-Offset: 0", "Transfer-Encoding: chunked", "Trailer: Upload-Checksum")
        last = "".join(f"{line}\r\n" for line in ("0", *trailer, "")).encode()
        body = b"%x\r\n%b\r\n" % (len(data), data)
        connection.sendall(tus.raw("PATCH", url, *lines) + body + last)
        return answer_on(connection, "PATCH")


def test_a_checksum_in_a_trailer(tus: Tus) -> None:
    """ "If the hash cannot be calculated at the beginning of the upload, it MAY be included as a
    trailer. ... They MUST be announced using the Trailer header and are only allowed in chunked
    transfers." """
    url = tus.create(LENGTH)
    wrong = f"Upload-Checksum: {checksum('sha1', b'x')}"
    assert chunked(tus, url, DATA, wrong).status == 460
    assert tus.offset(url) == 0
    assert chunked(tus, url, DATA).status == 400, "announced, and not there"
    assert tus.offset(url) == 0
    right = f"upload-checksum: {checksum('sha256', DATA)}"
    answer = chunked(tus, url, DATA, right)
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(LENGTH))
    assert tus.kept() == DATA


def test_a_checksum_of_a_creation_with_bytes(tus: Tus) -> None:
    """The rules of PATCH apply to it."""
    answer = tus.post(
        DATA[:10], Upload_Length=str(LENGTH), Upload_Checksum=checksum("sha1", DATA[:10])
    )
    assert (answer.status, answer.headers["Upload-Offset"]) == (201, "10")


# -- termination -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 10])
def test_a_terminated_upload_is_gone(tus: Tus, sent: int) -> None:
    """ "When receiving a DELETE request for an existing upload the Server SHOULD free associated
    resources and MUST respond with the 204 No Content status ... For all future requests to this
    URL, the Server SHOULD respond with the 404 Not Found or 410 Gone status." """
    before = tus.daemon.incoming
    url = tus.create(LENGTH)
    if sent:
        assert tus.patch(url, 0, DATA[:sent]).status == 204
    answer = tus.ask("DELETE", url)
    assert (answer.status, answer.body) == (204, b"")
    for again in (tus.head(url), tus.patch(url, sent, DATA[sent:]), tus.ask("DELETE", url)):
        assert again.status in (404, 410)
        assert "Upload-Offset" not in again.headers
    assert tus.daemon.incoming == before
    whole = tus.create(LENGTH)
    assert tus.patch(whole, 0, DATA).status == 204
    assert tus.kept() == DATA


def test_a_completed_upload_can_be_terminated_until_it_is_stored(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    """ "terminate completed and unfinished uploads" """
    tus = on_link(receiver, sender, video, LENGTH)
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, DATA).status == 204
    assert tus.ask("DELETE", url).status == 204
    assert tus.head(url).status in (404, 410)
    again = tus.create(LENGTH)
    assert tus.patch(again, 0, DATA).status == 204
    assert tus.kept() == DATA


def test_an_upload_under_way_is_terminated(tus: Tus) -> None:
    """Whoever still sends learns it; nothing of it stays."""
    url = tus.create(LENGTH)
    with tus.connect() as connection:
        lines = (KIND, "Upload-Offset: 0", f"Content-Length: {LENGTH}")
        connection.sendall(tus.raw("PATCH", url, *lines) + DATA[:20])
        wait_until(lambda: arrived(tus) == 20, "some of it has arrived")
        assert tus.ask("DELETE", url).status == 204
        with contextlib.suppress(ConnectionResetError):
            assert not connection.recv(100).startswith(b"HTTP/1.1 2")
    assert tus.head(url).status in (404, 410)


def arrived(tus: Tus) -> int:
    """The bytes of the newest request."""
    return int(tus.daemon.requests()[-1]["receivedBytes"])


# -- concatenation ---------------------------------------------------------------------------------


def final(tus: Tus, *urls: str, **headers: str) -> Answer:
    """Join parts."""
    return tus.post(b"", Upload_Concat=f"final;{' '.join(urls)}", **headers)


def test_parts_are_joined_in_the_order_that_is_said(tus: Tus) -> None:
    """ "The partial uploads MUST be concatenated as per the order specified in the list." "The
    length of the final upload MUST be the sum of the length of all partial uploads." """
    urls = {at: tus.part(DATA[at : at + 13]) for at in (26, 0, 39, 13)}
    answer = final(tus, *(urls[at] for at in sorted(urls)))
    assert answer.status == 201, answer.body
    joined = tus.head(tus.whole(answer.headers["Location"]))
    assert joined.headers["Upload-Length"] == joined.headers["Upload-Offset"] == str(LENGTH)
    assert tus.kept() == DATA


def test_parts_may_be_named_by_relative_urls(tus: Tus) -> None:
    """ "The partial uploads URLs MAY be absolute or relative" """
    urls = [tus.part(DATA[:20]), tus.part(DATA[20:])]
    answer = final(tus, *("/" + url.split("/", 3)[3] for url in urls))
    assert answer.status == 201, answer.body
    assert tus.kept() == DATA


def test_of_two_wholes_the_one_that_is_asked_for_is_joined(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    """Not another that still waits for its parts."""
    tus = on_link(receiver, sender, video, LENGTH)
    made = tus.ask("POST", tus.url, b"", Upload_Length=str(LENGTH - 20), Upload_Concat="partial")
    assert final(tus, tus.whole(made.headers["Location"])).status == 201
    answer = final(tus, tus.part(DATA[:20]))
    assert answer.status == 201, answer.body
    assert tus.head(tus.whole(answer.headers["Location"])).headers["Upload-Offset"] == "20"


def test_what_was_said_of_parts_comes_back(tus: Tus) -> None:
    """ "Response to HEAD request against partial or final upload MUST include the Upload-Concat
    header and its value as received in the upload creation request." "The response to a HEAD
    request for a partial upload MUST contain the Upload-Offset header." """
    first, second = tus.part(DATA[:20]), tus.part(DATA[20:])
    head = tus.head(first)
    assert head.headers["Upload-Concat"] == "partial"
    assert head.headers["Upload-Offset"] == head.headers["Upload-Length"] == "20"
    joined = tus.whole(final(tus, first, second).headers["Location"])
    assert tus.head(joined).headers["Upload-Concat"] == f"final;{first} {second}"


def test_a_final_upload_takes_no_bytes(tus: Tus) -> None:
    """ "The Server MUST respond with the 403 Forbidden status to PATCH requests against a final
    upload URL and MUST NOT modify the final or its partial uploads." """
    first = tus.part(DATA[:20])
    created = tus.ask("POST", tus.url, b"", Upload_Length=str(LENGTH - 20), Upload_Concat="partial")
    second = tus.whole(created.headers["Location"])
    joined = tus.whole(final(tus, first, second).headers["Location"])
    for offset in (0, 20):
        assert tus.patch(joined, offset, DATA[offset:]).status == 403
    assert tus.offset(second) == 0
    assert tus.patch(second, 0, DATA[20:]).status == 204
    assert tus.kept() == DATA


def test_a_final_upload_has_the_length_of_its_parts(tus: Tus) -> None:
    """ "The Client MUST NOT include the Upload-Length header in the final upload creation." """
    first, second = tus.part(DATA[:20]), tus.part(DATA[20:])
    assert final(tus, first, second, Upload_Length=str(LENGTH)).status == 400
    assert final(tus, first, second).status == 201


def test_metadata_of_parts_is_not_that_of_the_whole(tus: Tus) -> None:
    """ "the partial uploads' metadata SHALL NOT be transferred to the new final upload" """
    said = metadata(filename="part.mp4")
    created = tus.ask(
        "POST",
        tus.url,
        DATA,
        OFFSET,
        Upload_Length=str(LENGTH),
        Upload_Concat="partial",
        Upload_Metadata=said,
    )
    assert created.status == 201, created.body
    part = tus.whole(created.headers["Location"])
    assert tus.head(part).headers["Upload-Metadata"] == said
    joined = tus.whole(final(tus, part).headers["Location"])
    assert (tus.head(joined).headers["Upload-Metadata"] or "") == tus.described
    assert tus.kept() == DATA


def test_parts_that_are_still_being_sent_can_be_joined(tus: Tus) -> None:
    """ "The Client MAY send the concatenation request while the partial uploads are still in
    progress." "The response to a HEAD request for a final upload SHOULD NOT contain the
    Upload-Offset header unless the concatenation has been successfully finished." "The
    Upload-Length header MUST be included if the length of the final resource can be calculated" """
    urls = []
    for size in (20, LENGTH - 20):
        answer = tus.ask("POST", tus.url, b"", Upload_Length=str(size), Upload_Concat="partial")
        urls.append(tus.whole(answer.headers["Location"]))
    assert tus.patch(urls[0], 0, DATA[:5]).status == 204
    joined = tus.whole(final(tus, *urls).headers["Location"])
    for url, at, stop in ((urls[1], 20, LENGTH), (urls[0], 5, 20)):
        head = tus.head(joined)
        assert head.status == 200
        assert "Upload-Offset" not in head.headers
        assert head.headers["Upload-Length"] == str(LENGTH)
        assert tus.patch(url, 0 if at == 20 else at, DATA[at:stop]).status == 204
    head = tus.head(joined)
    assert head.headers["Upload-Offset"] == head.headers["Upload-Length"] == str(LENGTH)
    assert tus.kept() == DATA


@pytest.mark.parametrize("concat", ["", "partial;", "final", "final;", "final; ", "Final;/x", "x"])
def test_a_malformed_concatenation(tus: Tus, concat: str) -> None:
    answer = tus.post(b"", Upload_Concat=concat)
    assert answer.status == 400
    answer = tus.post(b"", Upload_Concat=concat, Upload_Length=str(LENGTH))
    assert answer.status == 400


def test_parts_of_nobody(tus: Tus) -> None:
    """Neither made-up ones nor another link's."""
    known = tus.part(DATA[:20])
    for url in (f"{known}x", "http://evil.example/x", "/", f"{tus.url}/../../x", "%00"):
        answer = final(tus, known, url)
        assert answer.status in (400, 404), url
        assert "Location" not in answer.headers
    whole = final(tus, known)
    assert whole.status == 201
