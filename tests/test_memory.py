"""Memory for direct reads and writes: in huge pages, for then a disk is asked once, not often."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from backupd.memory import HUGE, buffer_of
from backupd.receiver.pool import BLOCK, BlockPool
from backupd.storage.page_cache import PAGE, Rooms

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def address(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def flags(buffer: memoryview) -> list[str]:
    """What the kernel notes of the memory in which a buffer begins (proc(5), ``VmFlags``)."""
    for text in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        begin, end = (int(one, 16) for one in text.split(maxsplit=1)[0].split("-"))
        if begin <= address(buffer) < end:
            (noted,) = re.findall(r"^VmFlags: (.*)$", text, re.MULTILINE)
            return str(noted).split()
    raise AssertionError("the memory is nowhere")


@pytest.mark.parametrize(
    "buffer",
    [
        pytest.param(lambda: Rooms().take(HUGE), id="a window of a restore"),
        pytest.param(lambda: BlockPool().take(), id="a block of an upload"),
    ],
)
def test_it_is_private_and_meant_for_huge_pages(buffer: object) -> None:
    """Shared memory, what `mmap` gives unless it is told, gets none from most systems."""
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        pytest.skip("this system has no huge pages, or they are turned off")
    assert callable(buffer)
    memory = buffer()
    assert address(memory) % HUGE == 0
    assert "hg" in flags(memory)
    assert "sh" not in flags(memory)


def test_what_does_not_fill_a_huge_page_does_not_become_one() -> None:
    """A window of many answers at once is small, also where the system gives them to everybody."""
    if not SETTING.exists():
        pytest.skip("this system has no huge pages")
    assert "nh" in flags(Rooms().take(HUGE // 8))
    assert "nh" in flags(buffer_of(HUGE + PAGE)[HUGE:])


@pytest.mark.parametrize("length", [1, PAGE, HUGE - PAGE, HUGE, BLOCK + PAGE, 2 * HUGE])
def test_it_has_the_length_that_was_asked_for(length: int) -> None:
    memory = buffer_of(length)
    assert len(memory) == length
    memory[0] = memory[-1] = 7
    assert bytes(memory[-1:]) == b"\7"
