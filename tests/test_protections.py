"""The list of protections fits the code and the tests: `make protections` tries each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.protections import protections
from tests.simulation.mutate import ROOT, Mutation


@pytest.mark.parametrize(
    ("protection", "found_by"), protections(), ids=[one.why for one, _ in protections()]
)
def test_it_has_its_place_and_its_tests(protection: Mutation, found_by: Sequence[str]) -> None:
    source = (ROOT / protection.file).read_text("utf-8")
    without = protection.applied(source)
    assert without != source
    compile(without, protection.file, "exec")
    assert found_by
    for test in found_by:
        path, _, name = test.partition("::")
        assert not name or f"{name.rpartition('::')[2]}(" in (ROOT / path).read_text("utf-8")
        assert (ROOT / path).is_file()


def test_none_is_there_twice() -> None:
    whys = [one.why for one, _ in protections()]
    assert len(set(whys)) == len(whys)
