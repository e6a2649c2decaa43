"""Origins of URLs, and which URLs may be called."""

from __future__ import annotations

import pytest
from hyperlink import EncodedURL
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import Forbidden, Invalid
from backupd.peer.origins import (
    check_link,
    check_loopback,
    is_loopback,
    origin_of,
    place_of,
    same_origin,
)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://localhost:3000/api?x=1", "http://localhost:3000"),
        ("HTTP://LocalHost:80", "http://localhost"),
        ("https://a.example:443/", "https://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[::1]:3000/x", "http://[::1]:3000"),
        ("http://[0:0:0:0:0:0:0:1]/", "http://[::1]"),
        ("http://a.example:03000/", "http://a.example:3000"),
        ("http://a.example?x", "http://a.example"),
    ],
)
def test_an_origin_has_one_spelling(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://a:80/x", "http://A/y", True),
        ("http://a/", "https://a/", False),
        ("http://a:3000", "http://a:3001", False),
        ("http://localhost:1", "http://127.0.0.1:1", False),
    ],
)
def test_same_origin_compares_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert same_origin(one, other) is same


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:3000",
        "/api",
        "//localhost/x",
        "ftp://localhost/x",
        "javascript:alert(1)",
        "http://",
        "http:///x",
        "http://?x",
        "http:/localhost",
        "http:localhost",
        "http://user@localhost/",
        "http://user:pw@localhost/",
        "http://localhost:3000@evil.example/",
        "http://@localhost/",
        "http://localhost/#f",
        "http://localhost/#",
        "http://local host/",
        " http://localhost/",
        "http://localhost/\n",
        "http://localhost/\r\nHost: evil",
        "http://localhost/\t",
        "http://localhost/\x00",
        "http://localhost/\x7f",
        "http://localhost\\@evil.example/",
        "http://localhost/a\\b",
        "http://localhost/ü",
        "http://löcalhost/",
        "http://localhost/\U0001f600",
        "http://localhost:0/",
        "http://localhost:65536/",
        "http://localhost:123456/",
        "http://localhost:/",
        "http://localhost:-1/",
        "http://localhost:+80/",
        "http://localhost:80:80/",
        "http://local%68ost/",
        "http://[::1/",
        "http://[::1]evil/",
        "http://[::1%25lo]/",
        "http://[fe80::1%eth0]/",
        "http://[v1.x]/",
        "http://[]/",
        "http://::1/",
        "http://a,b/",
        "http://a;b/",
        "http://localhost/" + "a" * 2048,
    ],
)
def test_a_link_that_surprises_is_invalid(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_link("member", url)
    assert caught.value.member == "member"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://localhost:3000/api/v1/backup/serverAisReadyForBackup/AbC-_~",
        "https://b.example/x?y=/z@w",
        "http://10.0.0.1:8080/a/../b;c=d",
        "http://[2001:db8::1]/x",
        "http://under_score.example/",
        "http://localhost/" + "a" * (2048 - 17),
    ],
)
def test_a_plain_link_is_valid(url: str) -> None:
    check_link("member", url)


LOOPBACK = ["localhost", "LOCALHOST", "127.0.0.1", "127.255.255.254", "[::1]", "[0::0:1]"]
ELSEWHERE = [
    "localhost.",
    "localhost.example",
    "127.1",
    "127.0.1",
    "0x7f.0.0.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.1.",
    "0.0.0.0",  # noqa: S104
    "128.0.0.1",
    "10.0.0.1",
    "example.com",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[fe80::1]",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_is_localhost_or_a_plain_literal(host: str) -> None:
    check_link("member", f"http://{host}:3000/x")
    check_loopback("member", f"http://{host}:3000/x")
    assert is_loopback(host)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_what_could_be_read_in_two_ways_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(Forbidden, match="localhost or a loopback address"):
        check_loopback("member", f"http://{host}:3000/x")


@pytest.mark.parametrize("host", ["", "::1%lo", "[127.0.0.1]", "[localhost]", "::1]"])
def test_a_host_that_is_none_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@given(
    st.text(alphabet="htps:/[]@.\\#?%0123456789abc- \n", max_size=60).map(lambda s: "http://" + s)
)
def test_what_passes_is_read_alike_by_the_library_that_calls(url: str) -> None:
    """No URL has one host for our checks and another for the client."""
    try:
        check_link("member", url)
    except Invalid:
        return
    place = place_of(url)
    read = EncodedURL.from_text(url)
    assert (read.scheme, read.host.lower(), read.userinfo) == (place.scheme, read.host.lower(), "")
    assert place_of(
        f"http://[{read.host}]" if ":" in read.host else f"http://{read.host}"
    ).host == (place.host)
    assert read.port == place.port
    assert origin_of(place.origin) == place.origin
