"""How each place is reached, by what is known of the peers, and what offers carry."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import CallForbidden, PeerFailed
from backupd.peer.addresses import ANYWHERE, LOOPBACK, Reach
from backupd.peer.answers import Answer
from backupd.peer.origins import place_of
from backupd.peer.routes import CallbackRoutes, Offers, OwnRoutes
from backupd.requests import Ask
from backupd.trust.peers import Peer
from backupd.trust.registry import InMemory, Peers
from tests.conformance.samples import an_ask
from tests.receiver.fakes import sync
from tests.receiver.world import now

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
NEWER = "whsec_" + base64.b64encode(b"n" * 32).decode()
PIN = "sha256//" + "A" * 43 + "="
HOME = "https://b.example"


class Client:
    """Notes the offers that go out."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, dict[str, str]]] = []

    async def offer(self, link: str, body: bytes, headers: dict[str, str]) -> Answer:
        self.sent.append((link, body, headers))
        return Answer(202, None, {}, {})


class RouteCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.peers = Peers(InMemory(), sync)
        self.put(token="t", pin=PIN, networks=("10.0.0.0/8",), signs=(SECRET,))
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.client = Client()
        client: Any = self.client
        self.offers = Offers(client, self.peers, self.clock)

    def put(self, **more: Any) -> None:
        told = {"shows": ("h",), "origins": (HOME,), "url": HOME} | more
        peer = Peer(name="b", created_at=0.0, **told)
        now(self.peers.change("b", lambda _: peer))

    def ask(self, callback: str = f"{HOME}/ready", peer: str = "b") -> Ask:
        return an_ask("1", peer=peer, callback=callback, origin=HOME)

    def offer(self, ask: Ask) -> dict[str, str]:
        now(self.offers(ask, b'{"videoId": 2}'))
        return self.client.sent[-1][2]


class RouteTests(RouteCase):
    def test_a_peer_is_reached_as_is_known_of_it(self) -> None:
        """On every path of its origin, whoever names it."""
        for routes in (OwnRoutes(self.peers), CallbackRoutes(self.peers)):
            for url in (HOME, f"{HOME}:443/x?y=1", "HTTPS://B.example/"):
                route = routes(place_of(url))
                assert (route.token, route.pin) == ("t", PIN)
                assert route.reach == Reach.naming(["10.0.0.0/8"])

    def test_nobody_else_is_shown_its_token(self) -> None:
        """Another scheme or port is another place."""
        elsewhere = (
            "http://b.example",
            f"{HOME}:444",
            "https://b.example.evil",
            "https://10.0.0.1",
        )
        for routes in (OwnRoutes(self.peers), CallbackRoutes(self.peers)):
            for url in elsewhere:
                assert routes(place_of(url)).token is None

    def test_who_is_out_is_not_called_at_all(self) -> None:
        """Not as anybody either: without its key it could be anybody. Who comes after it is."""
        self.put(token="t", revoked_at=1.0)
        for routes in (OwnRoutes(self.peers), CallbackRoutes(self.peers)):
            with pytest.raises(CallForbidden, match="Peer b was revoked"):
                routes(place_of(f"{HOME}/api"))
        after = Peer(name="c", created_at=0.0, shows=("i",), origins=(HOME,), url=HOME, token="u")
        now(self.peers.change("c", lambda _: after))
        assert OwnRoutes(self.peers)(place_of(HOME)).token == "u"

    def test_another_origin_of_it_is_called_without_its_token(self) -> None:
        """The operator may name one that is plain HTTP; the token was made for the other."""
        other = "http://inside.example"
        self.put(token="t", pin=PIN, origins=(HOME, other), networks=("10.0.0.0/8",))
        for routes in (OwnRoutes(self.peers), CallbackRoutes(self.peers)):
            route = routes(place_of(other))
            assert (route.token, route.pin) == (None, None)
            assert route.reach == Reach.naming(["10.0.0.0/8"])
            assert routes(place_of(HOME)).token == "t"

    def test_who_is_no_peer_is_called_where_the_operator_says_and_nowhere_else(self) -> None:
        place = place_of("http://receiver.example")
        assert OwnRoutes(self.peers)(place).reach == ANYWHERE
        assert CallbackRoutes(self.peers)(place).reach == LOOPBACK
        assert CallbackRoutes(Peers(InMemory(), sync))(place).reach == LOOPBACK

    def test_a_token_does_not_show_by_accident(self) -> None:
        self.put(token="SECRET")
        assert "SECRET" not in repr(OwnRoutes(self.peers)(place_of(HOME)))


class OfferTests(RouteCase):
    def test_an_offer_is_signed_and_its_id_stays_over_all_tries(self) -> None:
        first = self.offer(self.ask())
        self.clock.advance(5)
        second = self.offer(self.ask())
        assert first["webhook-id"] == second["webhook-id"] == "msg_request-1"
        assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 5
        webhook = Webhook(SECRET)
        signature = webhook.sign(
            "msg_request-1", timestamp(int(first["webhook-timestamp"])), '{"videoId": 2}'
        )
        assert first["webhook-signature"] == signature

    def test_two_in_one_second_are_no_replay(self) -> None:
        """A sender that has restarted asks again at once, and is told again at once."""
        stamps = [self.offer(self.ask())["webhook-timestamp"] for _ in range(3)]
        assert len(set(stamps)) == 3
        self.clock.advance(60)
        for number in range(100):
            self.offer(an_ask(str(number), peer="b", callback=f"{HOME}/x", origin=HOME))
            self.clock.advance(1)
        assert len(self.offers._lately) <= 2

    def test_a_clock_that_was_set_back_is_right_again(self) -> None:
        """The other server takes no timestamp that is hours ahead."""
        self.clock.advance(5 * 3600)
        self.offer(self.ask())
        self.clock.rightNow -= 5 * 3600
        assert self.offer(self.ask())["webhook-timestamp"] == "1800000000"

    def test_while_secrets_change_it_is_signed_with_each(self) -> None:
        self.put(signs=(SECRET, NEWER))
        assert len(self.offer(self.ask())["webhook-signature"].split(" ")) == 2

    def test_without_a_peer_it_is_not_signed(self) -> None:
        """Open mode, as it always was."""
        assert self.offer(self.ask("http://localhost:1/x", peer="http://localhost:1")) == {}

    def test_a_link_that_is_no_origin_of_its_peer_any_more_is_not_called(self) -> None:
        """Nor is that of a peer that is out."""
        for change in (
            {"origins": ("https://moved.example",)},
            {"revoked_at": 1.0},
            {"shows": ()},
        ):
            self.put(signs=(SECRET,), **change)
            with pytest.raises(PeerFailed, match="no origin of peer b any more"):
                self.offer(self.ask())
        assert self.client.sent == []


def timestamp(seconds: int) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)
