"""The receiver does what the model says, whatever a sender does and whenever it crashes."""

from __future__ import annotations

from tests.simulation.tus_walker import Senders
from tests.simulation.walks import the_same

TestSenders = Senders.TestCase
TestSenders.settings = the_same(50)
