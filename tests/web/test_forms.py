"""``multipart/form-data``: the first file part is the video, whatever lies around it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed

from backupd.errors import BackupdError, Invalid, TooLarge, UploadCut
from backupd.requests import VideoId
from backupd.web.forms import FRAMING, FormSource
from tests.outcomes import pending, result_of

VIDEO = b"\x00\x01\r\n--video\r\n\r\n--\xff" * 40


class Body:
    """A request's body that comes in these pieces (`interfaces.Source`)."""

    def __init__(self, pieces: Sequence[bytes], cut: bool = False) -> None:
        self.pieces = [piece for piece in pieces if piece]
        self.cut = cut
        self.aborted = False
        self.reads = 0

    def read(self) -> Deferred[bytes]:
        self.reads += 1
        if self.pieces:
            return succeed(self.pieces.pop(0))
        return fail(UploadCut("The connection is gone.")) if self.cut else succeed(b"")

    def abort(self) -> None:
        self.aborted = True

    def silent_for(self) -> float:
        return 7.0


def field(name: str, value: bytes) -> bytes:
    """A part that is a plain field."""
    return b'Content-Disposition: form-data; name="%s"\r\n\r\n%s' % (name.encode(), value)


def file(content: bytes, name: str = "video", headers: bytes = b"") -> bytes:
    """A part that is a file."""
    head = b'Content-Disposition: form-data; name="%s"; filename="a.mp4"\r\n' % name.encode()
    return head + headers + b"\r\n" + content


def form(*parts: bytes, boundary: bytes = b"XX") -> bytes:
    """A whole form."""
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
    return body + b"--" + boundary + b"--\r\n"


def source(
    body: bytes | Sequence[bytes],
    video: VideoId | None = None,
    kind: str = "multipart/form-data; boundary=XX",
    cut: bool = False,
) -> FormSource:
    return FormSource(Body([body] if isinstance(body, bytes) else body, cut), kind, video)


def content_of(form: FormSource) -> bytes:
    """All bytes of the file; the end, once reached, stays the end."""
    content = b""
    while piece := result_of(form.read()):
        content += piece
    assert result_of(form.read()) == b""
    return content


def refused(form: FormSource, error: type[BackupdError] = Invalid) -> BackupdError:
    """Reading fails, and goes on failing: a broken form never ends as if it were whole."""
    with pytest.raises(error) as caught:
        content_of(form)
    for _ in range(2):
        with pytest.raises(error):
            result_of(form.read())
    return caught.value


def test_the_first_file_is_the_video() -> None:
    """Its bytes are the video, its name and type are told; another file is passed over."""
    body = form(
        field("title", b"Holiday"),
        file(VIDEO, headers=b"Content-Type: video/mp4\r\n"),
        file(b"other"),
    )
    found = source(body)
    assert not found.file_seen
    assert content_of(found) == VIDEO
    assert found.file_seen
    assert (found.file_name, found.content_type) == ("a.mp4", "video/mp4")
    assert found.video_field is None


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(
    st.binary(max_size=300).filter(lambda content: b"XX" not in content)
    | st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"X", b"\r\n--X"]), max_size=20).map(
        lambda pieces: b"".join(pieces).replace(b"XX", b"X-")
    ),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_any_splitting(content: bytes, cuts: list[int], before: bool, after: bool) -> None:
    """However the network cuts it, the video has the same bytes."""
    parts = [field("videoId", b"2")] * before + [file(content)] + [field("videoId", b"2")] * after
    found = source(split(form(*parts), cuts), video=2)
    assert content_of(found) == content
    assert found.video_field == ("2" if before or after else None)


def test_every_byte_alone() -> None:
    """Also when every byte comes alone."""
    body = form(field("videoId", b"2"), file(VIDEO), field("x", b"y"))
    assert content_of(source([bytes([byte]) for byte in body], video="2")) == VIDEO


def test_find_video_reads_no_further_than_needed() -> None:
    """The field before the file is found before the video's bytes are taken from the network."""
    head, tail = form(field("videoId", b"2"), file(VIDEO)).split(VIDEO)
    body = Body([head, VIDEO, tail])
    found = FormSource(body, "multipart/form-data; boundary=XX", None)
    assert result_of(Deferred.fromCoroutine(found.find_video())) == "2"
    assert body.reads == 1
    found.expect(2)
    assert content_of(found) == VIDEO


def test_find_video_without_a_field() -> None:
    """A field that only comes later, or never, is not waited for beyond the file's beginning."""
    for parts in ([file(VIDEO), field("videoId", b"2")], [file(VIDEO)]):
        head, tail = form(*parts).split(VIDEO)
        found = source([head, VIDEO, tail])
        assert result_of(Deferred.fromCoroutine(found.find_video())) is None
        found.expect(2)
        assert content_of(found) == VIDEO
    empty = source(form(field("x", b"y")))
    assert result_of(Deferred.fromCoroutine(empty.find_video())) is None


def test_find_video_when_all_came_at_once() -> None:
    """Nothing of what came with the field is lost."""
    found = source(form(field("videoId", b"2"), file(VIDEO)))
    assert result_of(Deferred.fromCoroutine(found.find_video())) == "2"
    assert content_of(found) == VIDEO


@pytest.mark.parametrize("value", [b"3", b"", b"02", b" 2", b"2 ", b"2\n", b"\xff"])
@pytest.mark.parametrize("first", [True, False])
def test_another_video(value: bytes, first: bool) -> None:
    """A ``videoId`` field that names another video is refused, before or after the file."""
    parts = [field("videoId", value), file(VIDEO)]
    error = refused(source(form(*(parts if first else parts[::-1])), video=2))
    assert isinstance(error, Invalid)
    assert error.member == "videoId"


def test_expected_later() -> None:
    """What the field said counts also when the video is known only later."""
    found = source(form(field("videoId", b"3"), file(VIDEO)))
    result_of(Deferred.fromCoroutine(found.find_video()))
    with pytest.raises(Invalid, match="another"):
        found.expect(2)


def test_field_twice() -> None:
    """Two fields that disagree are refused; nobody guesses which counts."""
    assert "twice" in str(refused(source(form(*[field("videoId", v) for v in (b"2", b"3")]))))
    body = form(field("videoId", b"2"), field("videoId", b"2"), file(VIDEO))
    assert content_of(source(body, video=2)) == VIDEO


@pytest.mark.parametrize("video", [" a ", "é", "x" * 128, "a\u202eb", '"'])
def test_strange_video_ids(video: str) -> None:
    """The field is compared as it stands, spaces and all."""
    assert content_of(source(form(field("videoId", video.encode()), file(b"x")), video)) == b"x"


def test_a_file_called_video_id() -> None:
    """A file is a file, whatever it is called."""
    body = form(file(b"x" * 5000, "videoId"), file(b"y" * 5000, "videoId"))
    assert content_of(source(body, video=2)) == b"x" * 5000


def test_no_file() -> None:
    """A form without a file is refused."""
    for body in (form(), form(field("videoId", b"2"))):
        assert "without a file" in str(refused(source(body, video=2)))


def test_empty_file() -> None:
    """A file without bytes is a file; whether that is a video is for others to say."""
    found = source(form(file(b"")))
    assert content_of(found) == b""
    assert found.file_seen


@given(st.integers(0, 10_000))
def test_truncated(cut: int) -> None:
    """A form that ends anywhere before its last boundary is never taken as a whole."""
    body = form(field("videoId", b"2"), file(VIDEO))
    end = len(body) - len(b"\r\n") - 1
    refused(source(body[: cut % end], video=2))


def test_cut_connection() -> None:
    """That the client is gone is told as it is, not as a malformed form."""
    found = source(form(file(VIDEO))[:200], cut=True)
    result_of(found.read())
    with pytest.raises(UploadCut):
        content_of(found)


def test_huge_field() -> None:
    """A video's id has not a thousand characters; the rest is not even waited for."""
    body = Body([b"--XX\r\n" + field("videoId", b"2" * 500), b"2" * 600, b"2" * 600])
    error = refused(FormSource(body, "multipart/form-data; boundary=XX", 2))
    assert isinstance(error, Invalid)
    assert error.member == "videoId"
    assert body.pieces


@pytest.mark.parametrize(
    ("head", "junk"),
    [
        (b"", b"no boundary at all"),
        (b"--XX\r\n" + field("x", b""), b"junk"),
        (form(file(VIDEO)), b"what follows the end"),
        (b"--XX\r\n" + file(VIDEO) + b"\r\n--XX\r\n" + file(b""), b"a second file"),
    ],
)
def test_endless_form(head: bytes, junk: bytes) -> None:
    """What lies around the video is bounded: nobody keeps a turn by sending something else."""
    body = Body([head, *[junk * 100] * 10_000])
    error = refused(FormSource(body, "multipart/form-data; boundary=XX", 2), TooLarge)
    assert isinstance(error, TooLarge)
    assert error.limit == FRAMING
    assert len(body.pieces) > 9_000


def test_endless_header() -> None:
    """Headers are bounded too, in length and in number."""
    line = b"X-Header: " + b"x" * 900
    for junk in (b"x" * 1000, line + b"\r\n"):
        body = Body([b"--XX\r\n", *[junk] * 1000])
        refused(FormSource(body, "multipart/form-data; boundary=XX", 2))
        assert len(body.pieces) > 900


def test_many_parts() -> None:
    """So are parts."""
    refused(source(form(*[field("x", b"y")] * 100, file(VIDEO))))


def test_a_long_video() -> None:
    """The video itself is not: its bytes are none of the framing."""
    pieces = [b"x" * 65536] * 40
    head, tail = form(file(b"|")).split(b"|")
    assert len(content_of(source([head, *pieces, tail]))) == 40 * 65536


@pytest.mark.parametrize(
    ("kind", "boundary"),
    [
        (
            "multipart/form-data; boundary=----WebKitFormBoundaryAbC123",
            b"----WebKitFormBoundaryAbC123",
        ),
        ('multipart/form-data; boundary="a b:c/d=e?f"', b"a b:c/d=e?f"),
        ("multipart/form-data; charset=utf-8; boundary=\"'()+_,-.'\"", b"'()+_,-.'"),
        ("multipart/form-data;boundary=X", b"X"),
        ("Multipart/Form-Data; Boundary=XX", b"XX"),
        ("multipart/form-data; boundary=" + "b" * 70, b"b" * 70),
    ],
)
def test_unusual_boundaries(kind: str, boundary: bytes) -> None:
    """Every boundary that RFC 2046 allows is found, quoted or not."""
    video = VIDEO.replace(b"X", b"x")
    body = form(field("videoId", b"2"), file(video), boundary=boundary)
    assert content_of(source(body, 2, kind)) == video
    assert content_of(source([bytes([b]) for b in body], 2, kind)) == video


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/mixed; boundary=XX",
        "application/json; boundary=XX",
        "multipart/form-data, boundary=XX",
        "multipart/form-data; boundary=" + "b" * 71,
    ],
)
def test_no_boundary(kind: str) -> None:
    """Without a boundary there is no form."""
    with pytest.raises(Invalid) as caught:
        source(form(file(VIDEO)), 2, kind)
    assert caught.value.member == "Content-Type"


@pytest.mark.parametrize(
    "body",
    [
        b"--XX\n" + file(VIDEO) + b"\n--XX--\n",
        b"--XX\r\nContent-Type: video/mp4\r\n\r\nx\r\n--XX--\r\n",
        b"--XX\r\nContent-Disposition: attachment; filename=a\r\n\r\nx\r\n--XX--\r\n",
        b"--XX\r\nno header\r\n\r\nx\r\n--XX--\r\n",
        b'--XX\r\nContent-Disposition: form-data; name="a"; filename="\xff"\r\n\r\nx\r\n--XX--\r\n',
        form(file(b"short", headers=b"Content-Length: 9\r\n")),
        form(file(b"too long", headers=b"Content-Length: 2\r\n")),
        form(file(VIDEO), boundary=b"YY"),
    ],
)
def test_broken_forms(body: bytes) -> None:
    """What is no form is refused as such."""
    refused(source(body))


@given(st.text(max_size=60), st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_anything(kind: str, body: bytes, cuts: list[int]) -> None:
    """Whatever comes, it is a form or it is refused by one of our own errors."""
    for said in (kind, f"multipart/form-data; {kind}", "multipart/form-data; boundary=XX"):
        for data in (body, b"--XX\r\n" + body + b"\r\n--XX--\r\n"):
            with suppress(BackupdError):
                content_of(source(split(data, cuts), 2, said))


def test_what_is_passed_on() -> None:
    """Aborting and silence are the connection's; a read waits while the network does."""
    body = Body([])
    waiting: Deferred[bytes] = Deferred()
    body.read = lambda: waiting  # type: ignore[method-assign]
    found = FormSource(body, "multipart/form-data; boundary=XX", None)
    piece = found.read()
    assert pending(piece)
    waiting.callback(b"--XX\r\n" + file(b"abc"))
    assert result_of(piece) == b"abc"
    assert found.silent_for() == 7.0
    found.abort()
    assert body.aborted
