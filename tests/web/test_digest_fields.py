"""What a client wants of digests: the syntax of RFC 9651 as RFC 9530 uses it."""

from __future__ import annotations

import pytest

from backupd.web.digest_fields import preferences


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("sha-256=1", {"sha-256": 1}),
        ("sha-512=3, sha-256=10, unixsum=0", {"sha-512": 3, "sha-256": 10, "unixsum": 0}),
        (" sha-512=3 \t,\t sha-256=7 ", {"sha-512": 3, "sha-256": 7}),
        ("sha-256=3, sha-256=0", {"sha-256": 0}),
        ("sha-256=3, sha-256", {}),
        ("sha-256=1;q=0.5;x;y=:aGk=:", {"sha-256": 1}),
        ("*a.b_c-d=4", {"*a.b_c-d": 4}),
        ("", {}),
        # Members that are no Integer from 0 to 10 say nothing; their neighbours do.
        ("sha-512, sha-256=2", {"sha-256": 2}),
        ("sha-512;a=1, sha-256=2", {"sha-256": 2}),
        ("sha-512=11, sha-256=2", {"sha-256": 2}),
        ("sha-512=-1, sha-256=2", {"sha-256": 2}),
        ("sha-512=1.0, sha-256=2", {"sha-256": 2}),
        ("sha-512=?1, sha-256=2", {"sha-256": 2}),
        ('sha-512="a,\\"b", sha-256=2', {"sha-256": 2}),
        ("sha-512=token/*:x, sha-256=2", {"sha-256": 2}),
        ("sha-512=:AAAA:, sha-256=2", {"sha-256": 2}),
        ("sha-512=@123, sha-256=2", {"sha-256": 2}),
        ('sha-512=%"f%c3%bc", sha-256=2', {"sha-256": 2}),
        ('sha-512=( 1;a "b"  c );d=1, sha-256=2', {"sha-256": 2}),
        ("sha-512=(), sha-256=2", {"sha-256": 2}),
        # What is no Dictionary is ignored whole.
        ("SHA-256=1", {}),
        ("sha-256=1,", {}),
        ("sha-256=1,,sha-512=1", {}),
        ("sha-256 =1", {}),
        ("sha-256= 1", {}),
        ("sha-256=", {}),
        ("sha-256=1 sha-512=1", {}),
        ("sha-256=1; Q=1", {}),
        ("sha-256=1234567890123456", {}),
        ("sha-256=1.", {}),
        ('sha-256=1, x="a', {}),
        ("sha-256=1, x=(1", {}),
        ("1sha=1", {}),
        ("é=1, sha-256=1", {}),
        ("sha-256=1\t", {}),
    ],
)
def test_weights_of_algorithms(field: str, told: dict[str, int]) -> None:
    assert preferences(field) == told


def test_a_hostile_field_costs_little() -> None:
    assert preferences("a=(" + "1 " * 8000) == {}
    assert preferences("a=" + '"' + "\\" * 16000) == {}
    assert preferences("a;" * 8000) == {}
