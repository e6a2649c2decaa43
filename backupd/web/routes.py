"""The short way to a path that is written exactly as it was registered; any other is Klein's.

Klein's router binds itself to every request and walks its tree, which takes as long as all the
rest of a small answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from backupd.web.endpoint import Serve
from backupd.web.site import StreamingRequest

__all__ = ["Routes"]

_log = Logger()


class Routes(Resource):
    """Serves what is in ``fixed``, by method and path, and leaves all else to ``others``.

    A HEAD, a slash at the end, an escape in the path, what is not there at all: none of these is
    in ``fixed``.
    """

    isLeaf = True  # noqa: N815

    def __init__(self, fixed: Mapping[tuple[bytes, bytes], Serve], others: IResource) -> None:
        Resource.__init__(self)
        self._fixed = fixed
        self._others = others

    def render(self, request: StreamingRequest) -> Any:
        """Begin to answer; who leaves meanwhile cancels that."""
        serve = self._fixed.get((request.method, request.path))
        if serve is None:
            return self._others.render(request)
        work = serve(request)
        if not work.called:
            request.notifyFinish().addErrback(lambda _: work.cancel())
        work.addCallbacks(_finish, _left, (request,))
        return NOT_DONE_YET


def _finish(body: bytes, request: StreamingRequest) -> None:
    """The answer is there; the client may be there no more."""
    if not request.over:
        request.write(body)
        request.finish()


def _left(failure: Failure) -> None:
    """Whoever asked has gone; everything else has become an answer before it comes here."""
    if failure.check(CancelledError) is None:
        _log.failure("an answer failed by a defect", failure)
