"""The list of small faults fits the code: each has its one place."""

from __future__ import annotations

import pytest

from tests.simulation.mutate import ROOT, Mutation, mutations


@pytest.mark.parametrize("mutation", mutations(), ids=lambda one: one.why)
def test_it_has_its_place(mutation: Mutation) -> None:
    """Where the code has changed, the fault has to be written anew, or is not possible any more."""
    source = (ROOT / mutation.file).read_text("utf-8")
    faulty = mutation.applied(source)
    assert faulty != source
    compile(faulty, mutation.file, "exec")
