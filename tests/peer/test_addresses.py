"""Which addresses may be called for another."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.peer.addresses import ANYWHERE, LOOPBACK, PUBLIC, Reach, kind_of, literal

PUBLIC_ONES = [
    "8.8.8.8",
    "8.8.9.8",
    "1.1.1.1",
    "100.63.255.254",
    "100.128.0.1",
    "172.15.255.255",
    "172.32.0.1",
    "172.45.0.1",
    "192.167.255.255",
    "192.169.0.1",
    "168.63.129.15",
    "168.63.129.17",
    "198.17.255.255",
    "198.20.0.1",
    "223.255.255.255",
    "2001:4860:4860::8888",
    "2606:4700:4700::1111",
    "2a00:1450:4001:830::200e",
    "2003::1",
    "3ffe::1",
]
"""The last blocks before and after a special one among them. 172.32.0.0/11 is named in the report
of CVE-2026-22874, and is public: machines of a mobile network have these addresses."""

SPECIAL = {
    # stripe/smokescreen, TestClassifyAddr
    "10.0.0.1": "a private",
    "10.0.1.1": "a private",
    "172.16.0.1": "a private",
    "172.16.1.1": "a private",
    "192.168.0.1": "a private",
    "192.168.1.1": "a private",
    "100.64.0.1": "a shared",
    "100.64.0.100": "a shared",
    "100.127.255.254": "a shared",
    "127.0.0.1": "a loopback",
    "127.0.1.1": "a loopback",
    "127.255.255.255": "a loopback",
    "::1": "a loopback",
    "169.254.169.254": "a link-local",
    "255.255.255.255": "a broadcast",
    "ff02:0:0:0:0:0:0:2": "a multicast",
    "64:ff9b::ac1c:5": "a NAT64",
    "64:ff9b::c000:201": "a NAT64",
    "64:ff9b::a00:1": "a NAT64",
    "64:ff9b::808:808": "a NAT64",
    "64:ff9b::ffff:ffff": "a NAT64",
    "2002:c000:201::1": "a 6to4",
    "2002:a00:1::1": "a 6to4",
    "2002:808:808::1": "a 6to4",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2": "a Teredo",
    "2001:0:1234:5678:9abc:def0:1234:5678": "a Teredo",
    "64:ff9c::1": "a reserved",  # theirs lets it pass; nobody has such an address
    # CVE-2026-22874 (Gitea), TestSSRFBypassRanges
    "192.168.1.2": "a private",
    "fe80::1": "a link-local",
    "fd00::1": "a private",
    "168.63.129.16": "a cloud platform's",
    "64:ff9b::1": "a NAT64",
    "64:ff9b::a9fe:a9fe": "a NAT64",
    "2001::1": "a Teredo",
    "2002::1": "a 6to4",
    "2001:db8::1": "a documentation",
    # what ipaddress calls global, or not private
    "::127.0.0.1": "an IPv4-compatible",
    "::ffff:127.0.0.1": "an IPv4-mapped",
    "::ffff:8.8.8.8": "an IPv4-mapped",
    "::ffff:0:7f00:1": "an IPv4-translated",
    "64:ff9b:1::a00:1": "a NAT64",
    "fec0::1": "a site-local",
    "fc00::1": "a private",
    "fd00:ec2::254": "a private",
    "::": "an unspecified",
    "0.0.0.0": "an unspecified",  # noqa: S104
    "0.1.2.3": "an unspecified",
    # the rest of what IANA's registries call special
    "192.0.0.1": "a reserved",
    "192.0.0.192": "a reserved",
    "192.0.2.1": "a documentation",
    "192.31.196.1": "a reserved",
    "192.52.193.1": "a reserved",
    "192.88.99.1": "a 6to4",
    "192.175.48.1": "a reserved",
    "198.18.0.1": "a benchmarking",
    "198.19.255.255": "a benchmarking",
    "198.51.100.1": "a documentation",
    "203.0.113.1": "a documentation",
    "224.0.0.1": "a multicast",
    "239.255.255.255": "a multicast",
    "240.0.0.1": "a reserved",
    "255.255.255.254": "a reserved",
    "100::1": "a reserved",
    "2001:2::1": "a benchmarking",
    "2001:10::1": "a reserved",
    "2001:20::1": "a reserved",
    "2620:4f:8000::1": "a reserved",
    "3fff::1": "a documentation",
    "3fff:fff:ffff::1": "a documentation",
    "4000::1": "a reserved",
    "5f00::1": "a reserved",
    "1000::1": "a reserved",
    "ff0e::1": "a multicast",
    "fe80::1%eth0": "a link-local",
    "2a00::5efe:a00:1": "an ISATAP",
    "2a00::200:5efe:808:808": "an ISATAP",
}


@pytest.mark.parametrize("address", PUBLIC_ONES)
def test_a_public_address_may_be_called(address: str) -> None:
    assert kind_of(ip_address(address)) is None
    assert PUBLIC.refusal(ip_address(address)) is None


@pytest.mark.parametrize(("address", "kind"), SPECIAL.items())
def test_a_special_address_is_called_only_when_it_is_named(address: str, kind: str) -> None:
    place = ip_address(address)
    assert kind_of(place) == kind
    assert PUBLIC.refusal(place) == f"{kind} address"
    plain = address.partition("%")[0]
    assert Reach.naming([plain]).refusal(ip_address(plain)) is None


@given(st.ip_addresses())
def test_where_python_sees_something_special_we_do_too(address: object) -> None:
    """The table is stricter than `ipaddress`, never laxer, but for what that calls reserved."""
    place = ip_address(str(address))
    if not place.is_global or place.is_multicast:
        assert kind_of(place) is not None


@given(st.ip_addresses(v=4))
def test_no_ipv4_address_is_reached_by_way_of_ipv6(address: object) -> None:
    """However it is packed, a public one included: who packs has something to hide."""
    number = int(ip_address(str(address)))
    for packed in (
        number,
        0xFFFF << 32 | number,
        0xFFFF << 48 | number,
        0x64FF9B << 96 | number,
        0x64FF9B0001 << 80 | number,
        0x2002 << 112 | number << 80 | 1,
        0x20010000 << 96 | (number ^ 0xFFFFFFFF),
        0x2A00 << 112 | 0x5EFE << 32 | number,
    ):
        assert kind_of(ip_address(packed.to_bytes(16, "big"))) is not None


def test_networks_name_what_may_be_called_besides() -> None:
    """A network, an address, or one of two words; one named does not open another."""
    reach = Reach.naming(["192.168.7.0/24", "fd00::5", "loopback"])
    for address in ("192.168.7.9", "fd00::5", "127.0.0.1", "::1", "8.8.8.8"):
        assert reach.refusal(ip_address(address)) is None
    for address in ("192.168.8.9", "fd00::6", "10.0.0.1", "::ffff:127.0.0.1"):
        assert reach.refusal(ip_address(address)) is not None
    assert Reach.naming(["private"]).refusal(ip_address("10.9.8.7")) is None
    for nonsense in ("192.168.7.1/24", "home", "", "127.1", "0x7f000001", "10.0.0.0/33"):
        with pytest.raises(ValueError, match=r"."):
            Reach.naming([nonsense])


def test_without_peers_only_this_machine_is_called() -> None:
    assert LOOPBACK.refusal(ip_address("127.0.0.1")) is None
    assert LOOPBACK.refusal(ip_address("::1")) is None
    assert LOOPBACK.refusal(ip_address("8.8.8.8")) is not None
    assert LOOPBACK.refusal(ip_address("10.0.0.1")) is not None


def test_what_the_operator_named_is_not_asked_about() -> None:
    assert ANYWHERE.refusal(ip_address("10.0.0.1")) is None


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "127.0.1",
        "2130706433",
        "017700000001",
        "0177.0.0.1",
        "0x7f000001",
        "0x7f.0.0.1",
        "0x7f.1",
        "0X7F000001",
        "127.0.0.01",
        "127.0.0.1.",
        "127.0.0.256",
        "1.2.3.4.5",
        "1.2.3",
        "0",
        "0x",
        "example.0x7f",
        "example.1",
        "localhost.",
        "a.example.",
        ".",
        "",
        ".example",
        "a..example",
        "-a.example",
        "a-.example",
        "bücher.example",
        "\uff11\uff12\uff17.0.0.1",
        "①②⑦.⓪.⓪.①",
        "loc\u00adalhost",
        "user@localhost",
        "localhost:80",
        "local%68ost",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
        "fe80::1%eth0",
        "::1%25lo",
        ":::1",
        "[::1]",
    ],
)
def test_a_host_that_can_be_read_in_two_ways_is_none(host: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        literal(host)


@pytest.mark.parametrize(
    "host", ["localhost", "a.example", "xn--bcher-kva.example", "A_b.Example", "1.example", "x1"]
)
def test_a_name_is_looked_up(host: str) -> None:
    assert literal(host) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "8.8.8.8", "::1", "2001:db8::1", "::ffff:10.0.0.1"])
def test_an_address_is_not(host: str) -> None:
    assert literal(host) == ip_address(host)


def test_the_table_has_every_network_once() -> None:
    """No entry can hide another with another name."""
    assert kind_of(ip_network("2001:db8::/32").network_address) == "a documentation"
