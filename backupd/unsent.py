"""How much of what was written has not reached the other side yet."""

from __future__ import annotations

import sys
import termios
from fcntl import ioctl

from twisted.internet.abstract import FileDescriptor
from twisted.protocols.policies import ProtocolWrapper

__all__ = ["unsent"]


def unsent(transport: object) -> int:
    """Bytes in the transport's buffer and in the kernel's; 0 where that cannot be known.

    Where the one passes bytes on to the other, nothing has been taken by the network: only their
    sum tells. Below TLS these are the bytes of TLS.
    """
    waiting = 0
    while isinstance(transport, ProtocolWrapper):
        waiting += _held(transport)
        transport = transport.transport
    if not isinstance(transport, FileDescriptor):
        return 0
    waiting += len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return waiting + _unacknowledged(transport.fileno())


def _held(wrapper: ProtocolWrapper) -> int:
    """Bytes that TLS keeps to itself: small ones for a turn, all until its handshake is over."""
    inner = vars(wrapper)
    small = getattr(inner.get("_aggregator"), "_buffer", ())
    return sum(len(data) for data in (*small, *inner.get("_appSendBuffer", ())))


def _unacknowledged(descriptor: int) -> int:
    """Bytes in a socket's send queue."""
    try:
        answer = ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(answer, sys.byteorder)
