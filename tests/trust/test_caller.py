"""Who may do what: every kind of caller at every kind of endpoint."""

from __future__ import annotations

import pytest

from backupd.errors import Forbidden, Unauthorized
from backupd.trust.caller import LOCAL, OPERATOR, STRANGER, Caller, Kind
from backupd.trust.peers import Peer, Right
from backupd.web.endpoint import Call, Who, authorise, peer_argument


def peer(*rights: Right, **more: object) -> Caller:
    told: dict[str, object] = {"shows": ("hash",)} | more
    return Caller(
        Kind.PEER,
        Peer(name="b", created_at=0.0, rights=frozenset(rights), **told),  # type: ignore[arg-type]
    )


CALLERS = {
    "local": LOCAL,
    "stranger": STRANGER,
    "operator": OPERATOR,
    "bare": peer(),
    "sender": peer(Right.SEND),
    "restorer": peer(Right.RESTORE),
    "deleter": peer(Right.DELETE),
    "admin": peer(Right.ADMIN),
    "revoked": peer(*Right, revoked_at=1.0),
    "invited": peer(*Right, shows=()),
}
EVERY_PEER = {"bare", "sender", "restorer", "deleter", "admin", "revoked", "invited"}
MAY = {
    Who.EVERYBODY: set(CALLERS),
    Who.ANYONE: {"local", "operator"} | EVERY_PEER,
    Who.SENDER: {"local", "operator", "sender", "admin"},
    Who.RESTORER: {"local", "operator", "restorer", "admin"},
    Who.DELETER: {"operator", "deleter", "admin"},
    Who.HOLDER: {"local", "operator", "sender", "admin"},
    Who.OPERATOR: {"operator", "admin"},
}


@pytest.mark.parametrize("who", Who)
def test_each_endpoint_is_open_to_those_it_is_for(who: Who) -> None:
    """The registry never makes a caller of a revoked or invited peer; if it did, it may nothing."""
    for name, caller in CALLERS.items():
        if name in MAY[who]:
            authorise(caller, who)
        else:
            with pytest.raises((Unauthorized, Forbidden)) as caught:
                authorise(caller, who)
            # A peer is known, and told that it may not; the others can still show a token.
            assert caught.type is (Forbidden if caller.peer else Unauthorized), name


def test_a_capability_is_an_authority_of_its_own() -> None:
    for caller in CALLERS.values():
        authorise(caller, Who.HOLDER, holder=True)
    with pytest.raises(Unauthorized):
        authorise(STRANGER, Who.OPERATOR, holder=True)


def test_a_peer_sees_its_own() -> None:
    assert peer(Right.SEND).sees("b")
    assert not peer(Right.SEND, Right.RESTORE, Right.DELETE).sees("c")
    for caller in (LOCAL, OPERATOR, peer(Right.ADMIN)):
        assert caller.sees("b")
        assert caller.sees("c")
        assert caller.scope is None
    for name in ("", "b"):
        assert STRANGER.sees(name) is (name == "")


def test_a_list_is_of_what_the_caller_sees() -> None:
    """Asking for another's gives what asking for nobody's gives: nothing."""

    def asked(caller: Caller, *named: str) -> str | None:
        return peer_argument(Call({"peer": named[0]} if named else {}, caller))

    assert asked(LOCAL) is None
    assert asked(OPERATOR, "c") == "c"
    mine = peer(Right.SEND)
    assert asked(mine) == asked(mine, "b") == "b"
    assert asked(mine, "c") == asked(STRANGER) == ""


def test_nothing_secret_shows_in_a_peer() -> None:
    """What is logged by accident is its ``repr``."""
    secrets = {
        "shows": ("SECRET",),
        "token": "SECRET",
        "signs": ("SECRET",),
        "verifies": ("SECRET",),
    }
    assert "SECRET" not in repr(Peer(name="b", created_at=0.0, **secrets))  # type: ignore[arg-type]
