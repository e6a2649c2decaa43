"""What one peer may have of this server, asked by HTTP in memory."""

from __future__ import annotations

from backupd.trust.peers import Limits, Right
from tests.web.closed import CONTROL, ClosedCase, Served, Talk

SEND, RESTORE = Right.SEND, Right.RESTORE


class RequestsTests(ClosedCase):
    def test_one_request_too_many_is_429_with_the_time_to_wait(self) -> None:
        here = self.server
        here.put("a", SEND, limits=Limits(requests_per_second=2))
        here.put("b", SEND)
        statuses = [here.ask("GET", "/api/v1/backup/requests", token="a").status for _ in range(2)]
        refused = here.ask("GET", "/api/v1/backup/requests", token="a")
        assert 429 not in statuses
        assert refused.status == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["retry-after"] == "1"
        assert refused.json["success"] is False
        assert here.ask("GET", "/api/v1/backup/requests", token="b").status == 200
        assert here.ask("GET", "/api/v1/backup/requests", token=CONTROL).status == 200
        here.reactor.advance(0.5)
        assert here.ask("GET", "/api/v1/backup/requests", token="a").status == 200

    def test_it_counts_before_anything_is_done(self) -> None:
        here = self.server
        here.put("a", SEND, limits=Limits(requests_per_second=1))
        assert here.room("a", 1).json["success"]
        assert here.room("a", 2).status == 429
        assert here.ask("GET", "/no/such/place", token="a").status == 429

    def test_links_count_without_a_token_too(self) -> None:
        """Each request once, whichever way it comes; the operator's own do not count."""
        here = self.server
        here.put("a", SEND, limits=Limits(requests_per_second=3))
        request_id = here.room("a", 1).json["requestId"]
        link = f"/api/v1/backup/receive-backup/{here.capability(request_id)}"
        assert here.ask("POST", link, {"videoId": 1}, CONTROL).status == 200
        here.reactor.advance(1)
        statuses = [
            here.ask("POST", link, {"videoId": 1}, token).status
            for token in (None, "a", None, None, "a", CONTROL)
        ]
        assert statuses == [200, 200, 200, 429, 429, 200]
        here.reactor.advance(1)
        assert here.ask("POST", link, {"videoId": 1}).status == 200


class UploadsTests(ClosedCase):
    def test_one_upload_too_many_is_told_when_to_come(self) -> None:
        here = self.server
        here.put("a", SEND, limits=Limits(max_uploads=1))
        here.put("b", SEND)
        first, second, other = (self.begin(here, token, video) for video, token in enumerate("aab"))
        assert first.transport.value() == b""
        refused = second.heard()
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert other.transport.value() == b""
        first.say(b"x" * 4)
        assert first.heard().status == 200
        assert self.begin(here, "a", 1).transport.value() == b""

    def begin(self, here: Served, token: str, video: int) -> Talk:
        """An upload of which one byte has come."""
        request_id = here.room(token, video).json["requestId"]
        talk = here.talk()
        link = f"/api/v1/backup/receive-backup/{here.capability(request_id)}"
        head = f"PUT {link} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n"
        talk.say(head.encode() + b"x")
        return talk


class BandwidthTests(ClosedCase):
    """What a peer's record says, from the network to the disk and back."""

    def pass_by(self, seconds: float) -> None:
        self.reactor.pump([0.05] * round(seconds * 20))

    def test_an_upload_comes_in_no_faster(self) -> None:
        here = self.server
        here.put("a", SEND, limits=Limits(bandwidth_in="1 kB/s"))
        request_id = here.room("a", 1, diskEmptySpaceRequire=5000).json["requestId"]
        link = f"/api/v1/backup/receive-backup/{here.capability(request_id)}"
        talk = here.talk()
        head = f"PUT {link} HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5000\r\n\r\n"
        talk.say(head.encode() + b"x" * 5000)
        self.pass_by(3)
        assert talk.transport.value() == b""
        self.pass_by(4)
        assert talk.heard().status == 200

    def test_a_restore_goes_out_no_faster(self) -> None:
        here = self.server
        here.put("a", SEND, RESTORE, limits=Limits(bandwidth_out="1 B/s"))
        path = f"/api/v1/backups/{here.kept('a')}/content"
        talk = here.talk()
        head = f"GET {path} HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer a\r\n\r\n"
        talk.say(head.encode())
        self.pass_by(2)
        assert 0 < len(talk.heard().body) < 4
        self.pass_by(5)
        assert talk.heard().body == b"video"


class SaidTests(ClosedCase):
    def test_bandwidth_is_told_as_a_rate_or_a_table(self) -> None:
        here = self.server
        here.put("a", SEND)
        table = {"mon-fri 08:00-18:00": "20 Mbit/s", "*": "unlimited"}
        limits = {"bandwidthIn": table, "bandwidthOut": "1 MB/s"}
        answer = here.ask("PATCH", "/api/v1/peers/a", {"limits": limits}, CONTROL)
        assert answer.status == 200
        kept = "mon-fri 08:00-18:00 = 20 Mbit/s; * = unlimited"
        assert answer.json["limits"]["bandwidthIn"] == kept
        way_in, way_out = here.service.bandwidth_in, here.service.bandwidth_out
        here.reactor.advance(-here.reactor.seconds() % 86400 + 4 * 86400 + 12 * 3600)
        paces = [way_in.of("a"), way_out.of("a"), way_in.of("b")]
        assert [pace is not None and pace.limits for pace in paces] == [True, True, False]
        none = {"limits": {"bandwidthIn": None}}
        assert here.ask("PATCH", "/api/v1/peers/a", none, CONTROL).status == 200
        assert paces[0] is not None
        assert not paces[0].limits, "and it is lifted for what is under way"

    def test_what_makes_no_sense_is_named(self) -> None:
        here = self.server
        here.put("a", SEND)
        for wrong in ("fast", {"mon-fry": "1 MB/s"}, {}, "x" * 2000):
            body = {"limits": {"bandwidthIn": wrong}}
            answer = here.ask("PATCH", "/api/v1/peers/a", body, CONTROL)
            assert (answer.status, "bandwidthIn" in answer.json["member"]) == (400, True), wrong
