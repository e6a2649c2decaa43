"""Random values: never the same bytes twice, and few system calls."""

from __future__ import annotations

import base64
import random
import uuid

from hypothesis import given
from hypothesis import strategies as st

from backupd.entropy import FETCHED, Entropy


class Counter:
    """A source whose bytes tell their own place."""

    def __init__(self) -> None:
        self.calls = 0
        self.given = 0

    def __call__(self, count: int) -> bytes:
        self.calls += 1
        begin, self.given = self.given, self.given + count
        return b"".join(n.to_bytes(4, "big") for n in range(begin, self.given))[:count]


@given(st.lists(st.integers(1, 9000), max_size=40))
def test_no_byte_is_given_twice(counts: list[int]) -> None:
    """What is taken is as long as was asked, and overlaps with nothing taken before."""
    fetched = b""
    rng = random.Random(len(counts))

    def source(count: int) -> bytes:
        nonlocal fetched
        fetched += (new := rng.randbytes(count))
        return new

    entropy, at = Entropy(source), 0
    for count in counts:
        taken = entropy.take(count)
        assert len(taken) == count
        # One byte may be like another by chance; what was used is never searched again.
        at = fetched.index(taken, at) + count


def test_values_differ() -> None:
    """A run of ids and tokens out of one fetch: none is like another."""
    source = Counter()
    entropy = Entropy(source)
    values = [entropy.id() for _ in range(50)] + [entropy.token(24) for _ in range(50)]
    assert len(set(values)) == 100
    assert source.calls == 1


def test_forms() -> None:
    """A token holds all its bytes; an id is a version 4 UUID."""
    entropy = Entropy(lambda count: bytes(range(256)) * (count // 256))
    token = entropy.token(24)
    assert base64.urlsafe_b64decode(token) == bytes(range(24))
    assert uuid.UUID(entropy.id()).version == 4
    assert len(token) == 32


def test_fetches_are_large() -> None:
    """The source is asked once for many values, and for the rest of none."""
    source = Counter()
    entropy = Entropy(source)
    for _ in range(FETCHED // 24):
        entropy.take(24)
    assert source.calls == 1
    entropy.take(24)
    assert source.calls == 2
