"""So many restores at once, in all and of one peer."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from backupd.errors import Busy
from backupd.web.at_once import AtOnce


def test_nobody_has_more_than_its_share_and_all_have_no_more_than_there_is() -> None:
    places = AtOnce(most=3, each=2)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.place("a"))
        with pytest.raises(Busy) as refused, places.place("a"):
            pass
        assert refused.value.retry_after > 0
        with places.place("b"), pytest.raises(Busy), places.place("c"):
            pass
        with places.place("c"):
            pass
    with places.place("a"), places.place("a"):
        pass
