"""Who is calling: decided once for each request, before any handler runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from backupd.trust.peers import Peer, Right

__all__ = ["LOCAL", "OPERATOR", "STRANGER", "Caller", "Kind"]


class Kind(Enum):
    """What is known of a caller."""

    LOCAL = "anybody on this machine, while no peers are configured"
    STRANGER = "somebody without a token, while peers are configured"
    PEER = "a peer, by its bearer token"
    OPERATOR = "the operator, by the control token"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, and so what it sees and may do.

    A capability in the path is an authority of its own, beside this: whoever holds the link of a
    request may use it, `STRANGER` included.
    """

    kind: Kind
    peer: Peer | None = None
    shown: str = field(default="", repr=False)
    """The hash of the token by which it is known as that peer."""

    @property
    def scope(self) -> str | None:
        """The only peer whose things this caller sees; None when it sees everybody's.

        Sees nothing at all, rather than everything, who is nobody.
        """
        if self.kind in (Kind.LOCAL, Kind.OPERATOR):
            return None
        if self.peer is None:
            return ""
        return None if self.peer.may(Right.ADMIN) else self.peer.name

    def sees(self, peer: str) -> bool:
        """Whether what belongs to ``peer`` exists for this caller."""
        return self.scope in (None, peer)

    def may(self, right: Right) -> bool:
        """Whether it may do this with what it sees. While no peers are configured, everybody
        may send and restore; to delete takes the operator.
        """
        match self.kind:
            case Kind.OPERATOR:
                return True
            case Kind.LOCAL:
                return right in (Right.SEND, Right.RESTORE)
            case _:
                return self.peer is not None and self.peer.may(right)

    @property
    def operates(self) -> bool:
        """Whether it may do what only the operator does."""
        return self.may(Right.ADMIN)

    @property
    def name(self) -> str:
        """For the log."""
        return self.peer.name if self.peer is not None else self.kind.name.lower()


LOCAL = Caller(Kind.LOCAL)
STRANGER = Caller(Kind.STRANGER)
OPERATOR = Caller(Kind.OPERATOR)
