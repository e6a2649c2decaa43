"""tus 1.0.0, core and creation: every MUST and SHOULD of the published text for a server.

Quotes are of "tus resumable upload protocol", version 1.0.0. Both places where uploads are created
are held against it: an offer's link, and ``/api/v1/uploads``.
"""

from __future__ import annotations

import re

import pytest

from tests.integration.contract import digest
from tests.integration.daemons import Daemon, answer_on, wait_until
from tests.integration.plain import PlainSender
from tests.integration.tus import OFFSET, Tus, direct, metadata, on_link

DATA = b"hello world, this is a video of fifty bytes at most."
LENGTH = len(DATA)
EXTENSIONS = {
    "creation",
    "creation-defer-length",
    "creation-with-upload",
    "expiration",
    "checksum",
    "checksum-trailer",
    "termination",
    "concatenation",
    "concatenation-unfinished",
}


@pytest.fixture(params=["link", "direct"])
def tus(request: pytest.FixtureRequest, receiver: Daemon, sender: PlainSender, video: int) -> Tus:
    if request.param == "direct":
        return direct(receiver, video, LENGTH)
    return on_link(receiver, sender, video, LENGTH)


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "0x10", "1e3", "+1", "٣", "9" * 30])
def test_offset_and_length_are_non_negative_integers(tus: Tus, value: str) -> None:
    """ "The value MUST be a non-negative integer." """
    sent = value.encode().decode("latin-1")
    assert tus.post(Upload_Length=sent).status == 400
    url = tus.create(LENGTH)
    answer = tus.ask("PATCH", url, DATA, OFFSET | {"Upload-Offset": sent})
    assert answer.status == 400
    assert tus.offset(url) == 0
    assert tus.ask("PATCH", url, DATA, OFFSET).status == 400, "it must be there"


def test_the_version_is_in_every_answer(tus: Tus) -> None:
    """ "The Tus-Resumable header MUST be included in every request and response except for OPTIONS
    requests." Refusals are responses too."""
    url = tus.create(LENGTH)
    answers = [
        tus.post(),
        tus.head(url),
        tus.head(url + "x"),
        tus.patch(url, 5, DATA),
        tus.patch(url, 0, DATA + b"too long"),
        tus.patch(url + "x", 0, DATA),
        tus.ask("PATCH", url, DATA, {"Content-Type": "text/plain", "Upload-Offset": "0"}),
        tus.patch(url, 0, DATA[:7]),
        tus.ask("DELETE", url),
        tus.head(url),
        tus.ask("HEAD", url, Tus_Resumable="0.2.2"),
    ]
    assert [one.status for one in answers] == (
        [400, 200, 404, 409, 413, 404, 415, 204, 204, answers[9].status, 412]
    )
    assert answers[9].status in (404, 410)
    for answer in answers:
        assert answer.headers["Tus-Resumable"] == "1.0.0"


def test_another_version_is_not_processed(tus: Tus) -> None:
    """ "If the version specified by the Client is not supported by the Server, it MUST respond with
    the 412 Precondition Failed status and MUST include the Tus-Version header into the response.
    In addition, the Server MUST NOT process the request." """
    url = tus.create(LENGTH)
    for version in ("0.2.2", "1.0.1", "2", "", "1.0.0, 1.0.0"):
        for answer in (
            tus.patch(url, 0, DATA, Tus_Resumable=version),
            tus.ask("DELETE", url, Tus_Resumable=version),
            tus.ask("HEAD", url, Tus_Resumable=version),
            tus.post(Upload_Length=str(LENGTH), Tus_Resumable=version),
        ):
            assert answer.status == 412, version
            assert "1.0.0" in re.split(r" ?, ?", answer.headers["Tus-Version"])
            assert "Location" not in answer.headers
    assert tus.offset(url) == 0


def test_the_extensions_are_a_list(tus: Tus) -> None:
    """ "a comma-separated list of the extensions supported by the Server" """
    answer = tus.ask("OPTIONS", tus.url)
    assert set(answer.headers["Tus-Extension"].split(",")) == EXTENSIONS


def test_the_largest_upload_is_told_and_meant(tus: Tus) -> None:
    """ "The Tus-Max-Size response header MUST be a non-negative integer" and "If the length of the
    upload exceeds the maximum ... the Server MUST respond with the 413 Request Entity Too Large
    status." """
    most = tus.ask("OPTIONS", tus.url).headers["Tus-Max-Size"]
    assert re.fullmatch(r"[0-9]+", most)
    assert tus.post(Upload_Length=str(int(most) + 1)).status == 413


@pytest.mark.parametrize("actual", ["POST", "PUT", "GET", "PATCH"])
def test_a_method_can_be_overridden(tus: Tus, actual: str) -> None:
    """ "The X-HTTP-Method-Override request header ... MUST be interpreted as the request's method
    by the Server, if the header is presented. The actual method ... MUST be ignored." """
    url = tus.create(LENGTH)
    headers = OFFSET | {"Upload-Offset": "0"}
    answer = tus.ask(actual, url, DATA[:9], headers, X_HTTP_Method_Override="PATCH")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "9")
    assert tus.ask(actual, url, X_HTTP_Method_Override="HEAD").headers["Upload-Offset"] == "9"
    assert tus.ask(actual, url, X_HTTP_Method_Override="DELETE").status == 204
    assert tus.head(url).status in (404, 410)


# -- HEAD ------------------------------------------------------------------------------------------


def test_head_always_tells_the_offset(tus: Tus) -> None:
    """ "The Server MUST always include the Upload-Offset header in the response for a HEAD request,
    even if the offset is 0, or the upload is already considered completed. If the size of the
    upload is known, the Server MUST include the Upload-Length header" """
    url = tus.create(LENGTH)
    for offset, stop in ((0, 10), (10, LENGTH), (LENGTH, LENGTH)):
        answer = tus.head(url)
        assert answer.status in (200, 204)
        assert answer.headers["Upload-Offset"] == str(offset)
        assert answer.headers["Upload-Length"] == str(LENGTH)
        if stop > offset:
            assert tus.patch(url, offset, DATA[offset:stop]).status == 204
    assert tus.kept() == DATA


def test_head_of_nothing(tus: Tus) -> None:
    """ "If the resource is not found, the Server SHOULD return either the 404 Not Found, 410 Gone
    or 403 Forbidden status without the Upload-Offset header." """
    for url in (tus.create(LENGTH) + "x", f"{tus.url}/nothing", f"{tus.url}/%00", f"{tus.url}/a/b"):
        answer = tus.head(url)
        assert answer.status == 404
        assert "Upload-Offset" not in answer.headers


def test_head_is_not_cached(tus: Tus) -> None:
    """ "The Server MUST prevent the client and/or proxies from caching the response by adding the
    Cache-Control: no-store header to the response." """
    url = tus.create(LENGTH)
    for answer in (tus.head(url), tus.head(url + "x")):
        assert answer.headers["Cache-Control"] == "no-store"


# -- PATCH -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", None])
def test_patch_takes_one_media_type(tus: Tus, kind: str | None) -> None:
    """ "All PATCH requests MUST use Content-Type: application/offset+octet-stream, otherwise the
    server SHOULD return a 415 Unsupported Media Type status." """
    url = tus.create(LENGTH)
    headers = {"Upload-Offset": "0"} | ({"Content-Type": kind} if kind else {})
    assert tus.ask("PATCH", url, DATA, headers).status == 415
    assert tus.offset(url) == 0


def test_patch_at_another_offset_changes_nothing(tus: Tus) -> None:
    """ "If the offsets do not match, the Server MUST respond with the 409 Conflict status without
    modifying the upload resource." """
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, DATA[:10]).status == 204
    for offset in (0, 9, 11, LENGTH, 10**15):
        answer = tus.patch(url, offset, b"something else")
        assert answer.status == 409
        assert answer.headers["Upload-Offset"] == "10", "where it stands"
    assert tus.patch(url, 10, DATA[10:]).status == 204
    assert tus.kept() == DATA


def test_patch_is_acknowledged_with_the_new_offset(tus: Tus) -> None:
    """ "The Server MUST acknowledge successful PATCH requests with the 204 No Content status. It
    MUST include the Upload-Offset header containing the new offset. The new offset MUST be the sum
    of the offset before the PATCH request and the number of bytes received" """
    url = tus.create(LENGTH)
    at = 0
    for step in (1, 2, 3, 5, 8, 13, LENGTH):
        piece = DATA[at : at + step]
        answer = tus.patch(url, at, piece)
        assert answer.status == 204
        assert answer.body == b""
        at += len(piece)
        assert answer.headers["Upload-Offset"] == str(at)
        assert tus.offset(url) == at
    assert tus.kept() == DATA


def test_a_patch_of_nothing_tells_where_it_stands(tus: Tus) -> None:
    """Zero bytes are a number of bytes received."""
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, b"").headers["Upload-Offset"] == "0"
    assert tus.patch(url, 0, DATA[:5]).status == 204
    answer = tus.patch(url, 5, b"")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")


def test_patch_of_nothing_that_exists(tus: Tus) -> None:
    """ "If the server receives a PATCH request against a non-existent resource it SHOULD return a
    404 Not Found status." """
    assert tus.patch(tus.create(LENGTH) + "x", 0, DATA).status == 404


def test_patch_beyond_the_length(tus: Tus) -> None:
    """An upload has the length that it was created with; what is too long is refused whole, before
    it is read if that was announced, and cut off if not."""
    url = tus.create(LENGTH)
    assert tus.patch(url, 0, DATA[:10]).status == 204
    assert tus.patch(url, 10, DATA[10:] + b"x").status == 413
    assert tus.offset(url) == 10
    with tus.connect() as connection:
        lines = ("Upload-Offset: 10", "Transfer-Encoding: chunked")
        kind = f"Content-Type: {OFFSET['Content-Type']}"
        connection.sendall(tus.raw("PATCH", url, kind, *lines))
        connection.sendall(b"40\r\n" + bytes(64) + b"\r\n0\r\n\r\n")
        assert answer_on(connection, "PATCH").status == 413
    assert tus.offset(url) == 10
    assert tus.patch(url, 10, DATA[10:]).status == 204
    assert tus.kept() == DATA


def test_a_chunked_patch(tus: Tus) -> None:
    """The length of one body need not be known when it begins."""
    url = tus.create(LENGTH)
    with tus.connect() as connection:
        kind = f"Content-Type: {OFFSET['Content-Type']}"
        lines = (kind, "Upload-Offset: 0", "Transfer-Encoding: chunked")
        connection.sendall(tus.raw("PATCH", url, *lines))
        for at in range(0, LENGTH, 10):
            piece = DATA[at : at + 10]
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        answer = answer_on(connection, "PATCH")
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(LENGTH))
    assert tus.kept() == DATA


def test_as_much_as_possible_is_stored(tus: Tus) -> None:
    """ "The Server SHOULD always attempt to store as much of the received data as possible." """
    url = tus.create(LENGTH)
    with tus.connect() as connection:
        lines = ("Upload-Offset: 0", f"Content-Length: {LENGTH}")
        kind = f"Content-Type: {OFFSET['Content-Type']}"
        connection.sendall(tus.raw("PATCH", url, kind, *lines) + DATA[:17])
    wait_until(lambda: tus.offset(url) == 17, "what came before the cut is there")
    assert tus.patch(url, 17, DATA[17:]).status == 204
    assert tus.kept() == DATA


# -- OPTIONS ---------------------------------------------------------------------------------------


def test_options_tell_the_configuration(tus: Tus) -> None:
    """ "A successful response indicated by the 204 No Content or 200 OK status MUST contain the
    Tus-Version header. ... the Server MUST ignore the [Tus-Resumable] header." """
    url = tus.create(LENGTH)
    for where in (tus.url, url):
        for version in ("1.0.0", "0.2.2", "nonsense"):
            answer = tus.ask("OPTIONS", where, Tus_Resumable=version)
            assert answer.status in (200, 204)
            assert answer.headers["Tus-Version"].split(",")[0] == "1.0.0"


# -- creation --------------------------------------------------------------------------------------


def test_a_creation_has_a_location(tus: Tus) -> None:
    """ "The Server MUST acknowledge a successful upload creation with the 201 Created status. The
    Server MUST set the Location header to the URL of the created resource." "The new resource has
    an implicit offset of 0" """
    answer = tus.post(Upload_Length=str(LENGTH))
    assert answer.status == 201
    url = tus.whole(answer.headers["Location"])
    assert tus.offset(url) == 0
    assert "Upload-Defer-Length" not in tus.head(url).headers
    assert tus.patch(url, 0, DATA).status == 204
    assert tus.kept() == DATA


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
def test_the_media_type_of_an_empty_creation_does_not_matter(tus: Tus, kind: str) -> None:
    """ "An empty POST request is used to create a new upload resource." """
    assert tus.post(Upload_Length=str(LENGTH), Content_Type=kind).status == 201


def test_a_creation_tells_its_length_or_defers_it(tus: Tus) -> None:
    """ "The request MUST include one of the following headers: Upload-Length ... or
    Upload-Defer-Length: 1" """
    assert tus.post().status == 400
    assert tus.post(Upload_Length=str(LENGTH), Upload_Defer_Length="1").status == 400
    for value in ("0", "2", "true", ""):
        assert tus.post(Upload_Defer_Length=value).status == 400


def test_a_length_that_comes_later(receiver: Daemon, sender: PlainSender, video: int) -> None:
    """ "As long as the length of the upload is not known, the Server MUST set
    Upload-Defer-Length: 1 in all responses to HEAD requests." "Once set the length MUST NOT be
    changed." On links only: a direct upload asks for room by its length."""
    assert direct(receiver, video, LENGTH).post(Upload_Defer_Length="1").status == 400
    tus = on_link(receiver, sender, video, LENGTH)
    created = tus.post(Upload_Defer_Length="1")
    assert created.status == 201
    url = created.headers["Location"]
    for at in (0, 10):
        answer = tus.head(url)
        assert answer.headers["Upload-Defer-Length"] == "1"
        assert "Upload-Length" not in answer.headers
        assert answer.headers["Upload-Offset"] == str(at)
        assert tus.patch(url, at, DATA[at : at + 10]).status == 204
    assert tus.patch(url, 20, DATA[20:30], Upload_Length=str(LENGTH)).status == 204
    answer = tus.head(url)
    assert "Upload-Defer-Length" not in answer.headers
    assert answer.headers["Upload-Length"] == str(LENGTH)
    assert tus.patch(url, 30, DATA[30:31], Upload_Length=str(LENGTH - 1)).status in (400, 409)
    assert tus.head(url).headers["Upload-Length"] == str(LENGTH)
    assert tus.patch(url, 30, DATA[30:], Upload_Length=str(LENGTH)).status == 204
    assert tus.kept() == DATA


def test_a_length_that_comes_after_the_last_byte(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    """The client "MUST set the Upload-Length header in the next PATCH request": with no bytes left
    to send, that one is empty."""
    tus = on_link(receiver, sender, video, LENGTH)
    url = tus.post(Upload_Defer_Length="1").headers["Location"]
    assert tus.patch(url, 0, DATA).status == 204
    answer = tus.patch(url, LENGTH, b"", Upload_Length=str(LENGTH))
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(LENGTH))
    assert tus.kept() == DATA


def test_metadata_comes_back_as_it_was(tus: Tus) -> None:
    """ "If an upload contains additional metadata, responses to HEAD requests MUST include the
    Upload-Metadata header and its value as specified by the Client during the creation." "The value
    MAY be empty. In these cases, the space ... MAY be left out." """
    said = metadata(filename="Fête, №1.mp4", filetype="video/mp4")
    whole = ",".join(
        filter(None, [tus.described, said, "is_confidential", "empty ", "x!#$-_.~ eA=="])
    )
    answer = tus.ask("POST", tus.url, Upload_Length=str(LENGTH), Upload_Metadata=whole)
    assert answer.status == 201, answer.body
    url = tus.whole(answer.headers["Location"])
    assert tus.head(url).headers["Upload-Metadata"] == whole
    assert tus.patch(url, 0, DATA).status == 204
    assert tus.kept() == DATA


def test_without_metadata_there_is_none(receiver: Daemon, sender: PlainSender, video: int) -> None:
    tus = on_link(receiver, sender, video, LENGTH)
    assert "Upload-Metadata" not in tus.head(tus.create(LENGTH)).headers


@pytest.mark.parametrize(
    "said",
    ["name e===,", "name not-base64!", "a YQ==,a Yg==", ",", "a YQ== YQ==", "é YQ=="],
)
def test_metadata_is_validated(tus: Tus, said: str) -> None:
    """ "The key MUST NOT contain spaces and commas and MUST NOT be empty ... the value MUST be
    Base64 encoded. All keys MUST be unique." """
    whole = ",".join(filter(None, [tus.described, said]))
    answer = tus.ask("POST", tus.url, Upload_Length=str(LENGTH), Upload_Metadata=whole)
    assert answer.status == 400
    assert "Location" not in answer.headers


# -- creation with upload --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, LENGTH])
def test_a_creation_with_bytes(tus: Tus, size: int) -> None:
    """ "The Server SHOULD accept as many bytes as possible and MUST include the Upload-Offset
    header in the response and MUST set its value to the offset of the upload after applying the
    accepted bytes." """
    answer = tus.post(DATA[:size], Upload_Length=str(LENGTH))
    assert answer.status == 201
    assert answer.headers["Upload-Offset"] == str(size)
    url = tus.whole(answer.headers["Location"])
    assert tus.offset(url) == size
    if size < LENGTH:
        assert tus.patch(url, size, DATA[size:]).status == 204
    assert tus.kept() == DATA


def test_the_digest_of_the_bytes_of_a_creation(tus: Tus) -> None:
    """A Content-Digest (RFC 9530) of what comes with a creation is checked, as a PATCH's is."""
    answer = tus.post(DATA[:5], Upload_Length=str(LENGTH), Content_Digest=digest(b"else"))
    assert answer.status == 422
    url = tus.whole(answer.headers["Location"])
    assert tus.offset(url) == 0
    assert tus.patch(url, 0, DATA, Content_Digest=digest(DATA)).status == 204


def test_a_creation_with_bytes_of_another_kind(tus: Tus) -> None:
    """ "The Client MUST include the Content-Type: application/offset+octet-stream header." """
    answer = tus.post(DATA, Upload_Length=str(LENGTH), Content_Type="video/mp4")
    assert answer.status == 415
    assert "Location" not in answer.headers


def test_a_creation_hears_early_whether_it_will_be_accepted(tus: Tus) -> None:
    """ "the Client SHOULD include the Expect: 100-continue header in the request to receive early
    feedback from the Server" """
    kind = f"Content-Type: {OFFSET['Content-Type']}"
    said = [f"Upload-Metadata: {tus.described}"] if tus.described else []
    most = int(tus.ask("OPTIONS", tus.url).headers["Tus-Max-Size"])
    for length, begins in ((LENGTH, b"HTTP/1.1 100 "), (most + 1, b"HTTP/1.1 413 ")):
        lines = (*said, kind, f"Upload-Length: {length}", "Content-Length: 9")
        with tus.connect() as connection:
            connection.sendall(tus.raw("POST", tus.url, *lines, "Expect: 100-continue"))
            assert connection.recv(1000).startswith(begins)
            if length == LENGTH:
                connection.sendall(DATA[:9])
                assert answer_on(connection).headers["Upload-Offset"] == "9"
