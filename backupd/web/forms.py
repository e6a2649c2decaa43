"""``multipart/form-data`` as a stream: the first file part is the video."""

from __future__ import annotations

from collections import deque

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from twisted.internet.defer import Deferred

from backupd.errors import BackupdError, Invalid, TooLarge
from backupd.interfaces import Source
from backupd.requests import VideoId, same_video

__all__ = ["FRAMING", "FormSource"]

FRAMING = 64 * 1024
"""Bytes that the form around a video may take."""

MAX_FIELD = 1024
MAX_BOUNDARY = 70  # RFC 2046, 5.1.1


class FormSource:
    """The bytes of the first file part of the form in ``source`` (`interfaces.Source`).

    `video_field` is what the ``videoId`` field said, once it has been read; it must agree with
    ``video`` when that is known. A form without a file, or one that is cut in the middle, makes
    `read` fail with `Invalid`, one with more than `FRAMING` bytes around the file with
    `TooLarge`; it goes on failing then.
    """

    def __init__(self, source: Source, content_type: str, video: VideoId | None) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if kind != "multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY:
            raise Invalid("Content-Type", "names no boundary of 1 to 70 characters")
        self._source = source
        self._video = video
        try:
            self._parser = PushMultipartParser(boundary, max_segment_count=64)
        except MultipartError as error:
            raise Invalid("Content-Type", "names a boundary that cannot be used") from error
        self._pieces: deque[bytes] = deque()
        self._field: bytes | None = None
        self._in_file = False
        self._ended = False
        self._failed: BackupdError | None = None
        self._around = 0
        self.file_seen = False
        self.file_name: str | None = None
        self.content_type: str | None = None
        self.video_field: str | None = None

    async def find_video(self) -> str | None:
        """Read on until the file begins; the ``videoId`` field if it came before."""
        while not self.file_seen and not self._ended:
            await self._feed()
        return self.video_field

    def expect(self, video: VideoId) -> None:
        """From now on the ``videoId`` field must name this video."""
        self._video = video
        self._check_video()

    def read(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self._read())

    async def _read(self) -> bytes:
        while self._failed is not None or not (self._pieces or self._ended):
            await self._feed()
        if self._pieces:
            return self._pieces.popleft()
        if not self.file_seen:
            raise Invalid("body", "is a form without a file")
        return b""

    def abort(self) -> None:
        self._source.abort()

    def silent_for(self) -> float:
        return self._source.silent_for()

    async def _feed(self) -> None:
        if self._failed is not None:
            raise self._failed
        data = await self._source.read()
        try:
            self._take(data)
        except MultipartError as error:
            self._failed = Invalid("body", f"is no whole form: {error}")
            raise self._failed from error
        except BackupdError as error:
            self._failed = error
            raise

    def _take(self, data: bytes) -> None:
        if not data:
            self._parser.close()
            self._ended = True
            return
        self._around += len(data)
        for event in self._parser.parse(data):
            self._handle(event)
        if self._around > FRAMING:
            raise TooLarge(f"The form around the file has more than {FRAMING} bytes.", FRAMING)

    def _handle(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            is_file = event.filename is not None
            self._field = b"" if event.name == "videoId" and not is_file else None
            self._in_file = is_file and not self.file_seen
            if self._in_file:
                self.file_seen = True
                self.file_name = event.filename or None
                self.content_type = event.content_type
        elif event is None:
            if self._field is not None:
                self._take_video(self._field)
            self._field, self._in_file = None, False
        elif self._in_file:
            self._around -= len(event)
            self._pieces.append(bytes(event))
        elif self._field is not None:
            self._field += event
            if len(self._field) > MAX_FIELD:
                raise Invalid("videoId", "is too long")

    def _take_video(self, field: bytes) -> None:
        try:
            said = field.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Invalid("videoId", "is not UTF-8") from error
        if self.video_field is not None and said != self.video_field:
            raise Invalid("videoId", "is there twice, and says different things")
        self.video_field = said
        self._check_video()

    def _check_video(self) -> None:
        if self._video is None or self.video_field is None:
            return
        if not same_video(self.video_field, self._video):
            raise Invalid("videoId", f"is {self.video_field[:128]!r}, this link is for another")
