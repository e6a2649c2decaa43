"""Pairing: what each side gets, what holds once, and what is lost on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import BackupdError, Busy, Invalid, NoSuchPeer, PeerFailed, PeerRefused
from backupd.peer.client import PeerClient
from backupd.peer.connector import Routes
from backupd.peer.origins import place_of
from backupd.peer.pairing import Grant
from backupd.trust.invitations import Invite, fingerprint, read_invite, write_invite
from backupd.trust.peers import Limits, Peer, Right
from tests.receiver.world import now
from tests.web.closed import START, Served

PIN = "sha256//" + "A" * 43 + "="


class Wire(PeerClient):
    """The network between the two: what is said to an origin is said to the daemon that is there.

    ``lose`` is called with each answer, and may raise.
    """

    def __init__(self, there: Mapping[str, Served], routes: Routes) -> None:
        self._there = there
        self._routes = routes
        self.lose: Callable[[str], object] = lambda path: None

    async def tell(self, method: str, url: str, message: Mapping[str, object]) -> dict[str, object]:
        return self._exchange(method, url, dict(message))

    async def status(self, url: str) -> dict[str, object]:
        return self._exchange("GET", url)

    def _exchange(
        self, method: str, url: str, message: dict[str, object] | None = None
    ) -> dict[str, object]:
        place = place_of(url)
        token = self._routes(place).token
        said = self._there[place.origin].ask(method, place.target, message, token)
        self.lose(place.target)
        if said.status >= 300:
            raise PeerRefused(said.json["detail"], said.status, said.json)
        answer: dict[str, object] = said.json
        return answer


class PairCase(SynchronousTestCase):
    """``a`` invites, ``b`` and ``c`` may join."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(START)
        self.there: dict[str, Served] = {}
        self.pins: dict[str, list[str | None]] = {}
        for name in "abc":
            url = f"https://{name}.example"
            served = Served(self, self.reactor, name, access="peers", public_url=url)
            self.there[url] = served
            setattr(self, name, served)
            pairing = served.service.pairing
            own: Any = pairing._client
            pairing._client = Wire(self.there, own._routes)
            pairing._dial = self.dial(name)
        self.lose: Callable[[str], object] = lambda path: None

    a: Served
    b: Served
    c: Served

    def dial(self, name: str) -> Callable[[Routes], PeerClient]:
        def dial(routes: Routes) -> PeerClient:
            wire = Wire(self.there, routes)
            wire.lose = lambda path: self.lose(path)
            pins = self.pins.setdefault(name, [])
            pins.append(routes(place_of("https://a.example")).pin)
            return wire

        return dial

    def invite(self, name: str = "b", **more: Any) -> str:
        grant = more.pop("grant", Grant(rights=frozenset({Right.SEND})))
        _, text = now(self.a.service.pairing.invite(name, grant, **more))
        return str(text)

    def join(self, text: str, joiner: Served | None = None, name: str | None = "a") -> Peer:
        pairing = (joiner or self.b).service.pairing
        peer: Peer = now(pairing.join(text, name, Grant()))
        return peer

    def peer(self, at: Served, name: str) -> Peer:
        return at.service.peers.get(name)

    def raises(self, kind: type[BackupdError], words: str, work: Callable[[], Any]) -> None:
        with pytest.raises(kind, match=words):
            work()


class JoinTests(PairCase):
    def test_each_knows_the_other_then(self) -> None:
        peer = self.join(self.invite())
        other = self.peer(self.a, "b")
        assert (peer.url, peer.origins) == ("https://a.example", ("https://a.example",))
        assert (other.url, other.origins) == ("https://b.example", ("https://b.example",))
        assert (peer.state, other.state) == ("active", "active")
        assert (peer.rights, other.rights) == (frozenset(), frozenset({Right.SEND}))
        assert peer.fingerprint == other.fingerprint
        assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}", peer.fingerprint or "")
        assert self.a.ask("GET", "/api/v1/peers/self", token=peer.token).json["name"] == "b"
        assert self.b.ask("GET", "/api/v1/peers/self", token=other.token).json["name"] == "a"
        assert (peer.signs, peer.verifies) == (other.verifies, other.signs)
        assert peer.signs != peer.verifies

    def test_it_holds_once(self) -> None:
        """Not for another server, and not for the same one that joins anew."""
        text = self.invite()
        self.join(text)
        token = self.peer(self.a, "b").token
        for joiner in (self.c, self.b):
            self.raises(PeerRefused, "used already", partial(self.join, text, joiner))
        assert self.peer(self.a, "b").token == token
        self.raises(NoSuchPeer, "no peer", lambda: self.peer(self.c, "a"))

    def test_a_newer_invitation_replaces_an_older(self) -> None:
        old, new = self.invite(), self.invite()
        self.raises(PeerRefused, "not known", lambda: self.join(old))
        self.join(new)

    def test_it_expires(self) -> None:
        """By the clock of whoever joins, and, should that be wrong, of whoever invited."""
        text = self.invite(seconds=60)
        self.reactor.advance(61)
        self.raises(Invalid, "has expired", lambda: self.join(text))
        invite = read_invite(text)
        later = write_invite(
            Invite(invite.url, invite.pin, invite.secret, invite.expires_at + 3600)
        )
        self.raises(PeerRefused, "has expired", lambda: self.join(later))

    def test_an_answer_that_was_lost_is_asked_for_again(self) -> None:
        """Then the server that invited knows who is asking, and answers once more."""
        lost = 2

        def lose(path: str) -> None:
            nonlocal lost
            lost -= 1
            if lost >= 0:
                raise PeerFailed("a.example closed the connection without an answer.")

        self.lose = lose
        peer = self.join(self.invite())
        assert self.a.ask("GET", "/api/v1/peers/self", token=peer.token).status == 200
        assert peer.fingerprint == self.peer(self.a, "b").fingerprint
        lost = 99
        self.raises(PeerFailed, "closed the connection", lambda: self.join(self.invite()))

    def test_a_refusal_is_not_repeated(self) -> None:
        tries: list[str] = []
        self.lose = tries.append
        text = self.invite()
        self.join(text)
        tries.clear()
        self.raises(PeerRefused, "used already", lambda: self.join(text, self.c))
        assert len(tries) == 1

    def test_the_key_of_the_invitation_is_pinned(self) -> None:
        plain = read_invite(self.invite())
        pinned = write_invite(Invite(plain.url, PIN, plain.secret, plain.expires_at))
        assert self.join(pinned).pin == PIN
        assert self.pins["b"] == [PIN]

    def test_no_server_takes_the_place_or_the_name_of_another(self) -> None:
        """Its calls, and the token that is shown there, would be another's."""
        self.join(self.invite())
        self.c.service.links.base = "https://b.example"
        text = self.invite("c")
        self.raises(PeerRefused, "is where peer 'b' is", lambda: self.join(text, self.c))
        assert self.peer(self.a, "c").state == "invited"
        own = Grant(origins=("https://b.example/x",))
        self.raises(
            Invalid, "is where peer 'b' is", lambda: now(self.a.service.pairing.add("d", own))
        )
        other = write_invite(Invite("https://c.example", None, "s" * 32, START + 60))
        self.raises(Invalid, "another peer already", lambda: self.join(other, self.b, "a"))

    def test_nothing_secret_goes_over_plain_http(self) -> None:
        """Neither to there nor to here; on this machine it may."""
        text = write_invite(Invite("http://a.example", None, "s" * 32, START + 60))
        self.raises(Invalid, "not https", lambda: self.join(text))
        self.b.service.links.base = "http://b.example"
        good = self.invite()
        self.raises(Invalid, "not https", lambda: self.join(good))
        self.a.service.links.base = "http://a.example"
        self.raises(Invalid, "not https", self.invite)
        self.a.service.links.base = "http://localhost:3000"
        self.invite()

    def test_nobody_is_invited_to_a_name_that_is_another_machine_there(self) -> None:
        """Listening for others while calling oneself localhost: the invitation would lead home."""
        listening: Any = self.a.service._listening
        self.a.service.links.base = "https://localhost:3000"
        self.invite()
        port: Any = SimpleNamespace(getHost=lambda: IPv4Address("TCP", "0.0.0.0", 3000))  # noqa: S104
        listening.ports.append(port)
        self.addCleanup(listening.ports.clear)
        self.raises(Invalid, "public_url: is not set", self.invite)
        self.a.service.links.base = "https://a.example"
        self.invite()

    def test_what_is_no_invitation(self) -> None:
        text = self.invite()
        for wrong in (
            "",
            "backupd-invite-",
            "backupd-invite-AAAA",
            text[:-1],
            text[:40] + ("A" if text[40] != "A" else "B") + text[41:],
            text.replace("invite", "invitation"),
            "backupd-invite-ü",
            text + "A" * 5000,
        ):
            self.raises(Invalid, "invitation", partial(self.join, wrong))
        self.join(f"  {text[:50]}\n{text[50:]}\n")

    def test_what_a_server_that_joins_may_not_say(self) -> None:
        secret = read_invite(self.invite()).secret
        good: dict[str, Any] = {
            "secret": secret,
            "url": "https://b.example",
            "pin": None,
            "token": "t" * 40,
            "signingSecret": "whsec_" + "A" * 43 + "=",
        }
        for wrong in (
            {"secret": "guessed"},
            {"secret": ""},
            {"url": "https://user@b.example"},
            {"url": "http://b.example"},
            {"url": "https://b.example/?x"},
            {"url": "ftp://b.example"},
            {"pin": "sha256//short"},
            {"token": "short"},
            {"token": "t" * 39 + "\n"},
            {"signingSecret": "whsec_AAAA"},
            {"signingSecret": "A" * 44},
            {"url": 5},
        ):
            said = self.a.ask("POST", "/api/v1/peers/enrol", good | wrong)
            assert said.status == (401 if "secret" in wrong else 400), (wrong, said.body)
            assert self.peer(self.a, "b").state == "invited"
        assert self.a.ask("POST", "/api/v1/peers/enrol", good).status == 200

    def test_who_was_revoked_can_be_invited_again_and_finds_its_own(self) -> None:
        self.join(self.invite())
        now(self.a.service.revoke("b"))
        assert self.peer(self.a, "b").state == "revoked"
        self.join(self.invite())
        assert self.peer(self.a, "b").state == "active"

    def test_who_was_revoked_may_nothing_that_is_not_said_again(self) -> None:
        """On either side; what was said of its backups, which stay, holds on."""
        pairing = self.b.service.pairing
        self.join(self.invite(grant=Grant(rights=frozenset({Right.ADMIN}))))
        now(pairing.change("a", Grant(rights=frozenset({Right.ADMIN}))))
        grant = Grant(limits={"quota": 9}, retention={"minimum_keep": 99.0})
        now(self.a.service.pairing.change("b", grant))
        now(self.a.service.revoke("b"))
        now(self.b.service.revoke("a"))
        self.join(self.invite(grant=Grant()))
        for peer in (self.peer(self.a, "b"), self.peer(self.b, "a")):
            assert (peer.state, peer.rights) == ("active", frozenset())
        now(self.a.service.revoke("b"))
        peer, _ = now(self.a.service.pairing.add("b", Grant()))
        assert (peer.rights, peer.origins) == (frozenset(), ())
        assert (peer.limits.quota, peer.retention.minimum_keep) == (9, 99.0)

    def test_names(self) -> None:
        """Without one it is called by its host."""
        assert self.join(self.invite(), name=None).name == "a.example"
        self.raises(Invalid, "name", lambda: self.invite("B!"))


def test_the_fingerprint_is_over_everything() -> None:
    """Any other address, key or secret on one side, and the two sides show different ones."""
    sides: tuple[tuple[str, str | None], tuple[str, str | None]] = (
        ("https://a", PIN),
        ("https://b", None),
    )
    secrets = ["1", "2", "3", "4"]
    shown = {fingerprint(*sides, *secrets)}
    for changed in (
        (("https://x", PIN), sides[1]),
        (("https://a", None), sides[1]),
        (sides[0], ("https://x", None)),
        (sides[0], ("https://b", PIN)),
        (sides[1], sides[0]),
    ):
        shown.add(fingerprint(*changed, *secrets))
    for at in range(4):
        shown.add(fingerprint(*sides, *secrets[:at], "x", *secrets[at + 1 :]))
    assert len(shown) == 10


def test_an_invitation_says_no_secret_by_accident() -> None:
    assert "SECRET" not in repr(Invite("https://a", None, "SECRET", 0.0))


class RotateTests(PairCase):
    def setUp(self) -> None:
        super().setUp()
        self.join(self.invite())

    def tokens(self) -> tuple[str | None, str | None]:
        """What a shows b, and b shows a."""
        return self.peer(self.a, "b").token, self.peer(self.b, "a").token

    def holds(self, at: Served, token: str | None) -> bool:
        return at.ask("GET", "/api/v1/peers/self", token=token).status == 200

    def check(self) -> None:
        """Each lets the other in, and verifies what it signs."""
        mine, theirs = self.peer(self.a, "b"), self.peer(self.b, "a")
        assert self.holds(self.b, mine.token)
        assert self.holds(self.a, theirs.token)
        assert set(mine.signs) & set(theirs.verifies)
        assert set(theirs.signs) & set(mine.verifies)

    def test_all_is_new_on_both_sides_and_nothing_old_holds(self) -> None:
        before, secrets = self.tokens(), self.peer(self.a, "b").signs
        now(self.a.service.pairing.rotate("b"))
        assert not set(before) & set(self.tokens())
        assert not set(secrets) & set(self.peer(self.a, "b").signs)
        self.check()
        assert not self.holds(self.b, before[0])
        assert not self.holds(self.a, before[1])
        for at, name in ((self.a, "b"), (self.b, "a")):
            peer = self.peer(at, name)
            assert (len(peer.shows), len(peer.signs), len(peer.verifies)) == (1, 1, 1)

    def test_whatever_is_lost_nobody_is_locked_out(self) -> None:
        """At each message of it, before and after it is heard, as often as you like."""
        wire: Any = self.a.service.pairing._client
        for path in ("/api/v1/peers/self/credentials", "/api/v1/peers/self/settled"):
            for _ in range(4):

                def lose(target: str, path: str = path) -> None:
                    if target == path:
                        raise PeerFailed("The answer was lost.")

                wire.lose = lose
                self.raises(PeerFailed, "lost", lambda: now(self.a.service.pairing.rotate("b")))
                self.check()
                assert len(self.peer(self.a, "b").shows) <= 3
                assert len(self.peer(self.b, "a").shows) <= 3
            wire.lose = lambda path: None
            now(self.a.service.pairing.rotate("b"))
            self.check()
            assert len(self.peer(self.a, "b").shows) == len(self.peer(self.b, "a").shows) == 1

    def test_both_at_once_lock_out_neither(self) -> None:
        """Whichever is first, and whenever in it the other begins: before or after the answer."""
        one: Any = self.a.service.pairing._client
        for path in ("/api/v1/peers/self/credentials", "/api/v1/peers/self/settled"):

            def meanwhile(target: str, path: str = path) -> None:
                if target == path:
                    one.lose = lambda path: None
                    now(self.b.service.pairing.rotate("a"))

            before = self.tokens()
            one.lose = meanwhile
            now(self.a.service.pairing.rotate("b"))
            self.check()
            assert not set(before) & set(self.tokens())
            now(self.a.service.pairing.rotate("b"))
            self.check()
            assert len(self.peer(self.a, "b").shows) == len(self.peer(self.b, "a").shows) == 1

    def test_twice_at_once_is_once(self) -> None:
        """Which of two was heard last is not known here."""
        wire: Any = self.a.service.pairing._client

        def meanwhile(target: str) -> None:
            self.raises(Busy, "under way", lambda: now(self.a.service.pairing.rotate("b")))

        wire.lose = meanwhile
        now(self.a.service.pairing.rotate("b"))
        self.check()
        wire.lose = lambda path: None
        now(self.a.service.pairing.rotate("b"))
        self.check()

    def test_of_what_was_never_heard_nothing_pushes_out_what_was(self) -> None:
        """One answer is lost, and then the other server does not hear us for a while."""
        wire: Any = self.a.service.pairing._client

        def lose(path: str) -> None:
            if path.endswith("/credentials"):
                raise PeerFailed("The answer was lost.")

        wire.lose = lose
        self.raises(PeerFailed, "lost", lambda: now(self.a.service.pairing.rotate("b")))

        async def unheard(*_: object) -> dict[str, object]:
            raise PeerFailed("Nobody hears.")

        wire.tell = wire.status = unheard
        for _ in range(4):
            self.raises(PeerFailed, "hears", lambda: now(self.a.service.pairing.rotate("b")))
            self.check()
        del wire.tell, wire.status
        wire.lose = lambda path: None
        now(self.a.service.pairing.rotate("b"))
        self.check()

    def test_who_is_out_has_nothing_to_renew(self) -> None:
        now(self.b.service.revoke("a"))
        self.raises(PeerRefused, "token", lambda: now(self.a.service.pairing.rotate("b")))
        now(self.a.service.revoke("b"))
        self.raises(Invalid, "revoked", lambda: now(self.a.service.pairing.rotate("b")))

    def test_one_that_is_no_backupd_is_given_its_new_token_by_hand(self) -> None:
        pairing = self.a.service.pairing
        peer, first = now(pairing.add("d", Grant(rights=frozenset({Right.SEND}))))
        assert self.holds(self.a, first.token)
        self.raises(Invalid, "already", lambda: now(pairing.add("d", Grant())))
        _, second = now(pairing.rotate("d"))
        assert not self.holds(self.a, first.token)
        assert self.holds(self.a, second.token)
        assert self.peer(self.a, "d").signs == (second.secret,)
        assert peer.fingerprint is None


class GrantTests(PairCase):
    def test_what_is_not_said_stays(self) -> None:
        pairing = self.a.service.pairing
        grant = Grant(rights=frozenset({Right.SEND}), limits={"quota": 500}, networks=("loopback",))
        now(pairing.add("d", grant))
        peer = now(pairing.change("d", Grant(limits={"max_uploads": 2})))
        assert peer.limits == Limits(quota=500, max_uploads=2)
        assert (peer.rights, peer.networks) == ({Right.SEND}, ("loopback",))
        peer = now(pairing.change("d", Grant(limits={"quota": None}, rights=frozenset())))
        assert (peer.limits.quota, peer.rights) == (None, frozenset())
        peer = now(pairing.change("d", Grant(origins=("https://D.example:443/x",))))
        assert peer.origins == ("https://d.example",)

    def change(self, grant: Grant) -> None:
        now(self.a.service.pairing.change("d", grant))

    def test_nonsense_changes_nothing(self) -> None:
        pairing = self.a.service.pairing
        now(pairing.add("d", Grant()))
        for grant in (
            Grant(networks=("127.1",)),
            Grant(origins=("d.example",)),
            Grant(origins=("https://x@d.example",)),
        ):
            self.raises(Invalid, ".", partial(self.change, grant))
        self.raises(NoSuchPeer, "no peer", lambda: now(pairing.change("e", Grant())))
        self.raises(NoSuchPeer, "no peer", lambda: now(pairing.revoke("e")))
