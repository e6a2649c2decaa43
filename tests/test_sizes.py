"""Sizes as people write them, and as the answers print them (PROTOCOL.md, section 1)."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupd.errors import Invalid
from backupd.sizes import MAX_SIZE, format_size, parse_size

UNITS = ["B", "KB", "MB", "GB", "TB", "PB"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50MB", 50 * 1024**2),
        ("50 mb", 50 * 1024**2),
        ("1.5 GB", 3 * 1024**3 // 2),
        ("1KiB", 1024),
        ("1kib", 1024),
        ("1 PiB", 1024**5),
        ("1 TB", 1024**4),
        ("999 B", 999),
        ("7b", 7),
        ("1", 1),
        ("0005", 5),
        ("0.5 KB", 512),
        ("1.1 B", 2),
        ("0.0001 B", 1),
        (str(2**60), 2**60),
        ("1024 PB", 2**60),
    ],
)
def test_sizes_that_are_taken(text: str, size: int) -> None:
    """A decimal number, at most one space, and a unit in any case; or plain bytes. Units are
    powers of 1024, and part of a byte is a whole one.
    """
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "MB",
        "0",
        "0 MB",
        "0.0 KB",
        "-1",
        "-1 MB",
        "+1 MB",
        "1e3",
        "1e3 MB",
        "1.5",
        "1. MB",
        ".5 MB",
        "1,5 MB",
        "1_000",
        "0x10",
        " 5MB",
        "5MB ",
        "5MB\n",
        "5\n",
        "5  MB",
        "5\tMB",
        "5\u00a0MB",
        "٣MB",
        "٣",
        "5 \u212aB",
        "5 MiBs",
        "5 iB",
        "5 BiB",
        "5 EB",
        "5 MB MB",
        "NaN",
        "inf",
        "Infinity MB",
        str(2**60 + 1),
        "1024.1 PB",
        "1025 PB",
        "9" * 5000,
        "1." + "0" * 5000 + " B",
        "1152921504606846976.000000000000000000000000000001 B",
    ],
)
def test_sizes_that_are_refused(text: str) -> None:
    """Anything else, 0 and more than 2^60 are refused, naming the member."""
    with pytest.raises(Invalid) as caught:
        parse_size(text, "diskEmptySpaceRequire")
    assert caught.value.member == "diskEmptySpaceRequire"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1024, "1 KB"),
        (1536, "1.5 KB"),
        (50 * 1024**2, "50 MB"),
        (1024**2 - 1, "1 MB"),
        (int(1.5 * 2**30), "1.5 GB"),
        (10 * 1024**3 + 1, "10 GB"),
        (2**60, "1024 PB"),
        (2**70, "1048576 PB"),
    ],
)
def test_sizes_that_are_printed(size: int, text: str) -> None:
    """One decimal at most, and no ``.0``."""
    assert format_size(size) == text


@given(st.integers(1, MAX_SIZE))
@example(1024**2 - 1)
@example(1024**5 - 1)
def test_print_and_parse(size: int) -> None:
    """What is printed can be parsed, and is at most half a decimal away."""
    text = format_size(size)
    number, unit = text.split(" ")
    assert not text.endswith(".0")
    assert abs(parse_size(text) - size) <= 1024 ** UNITS.index(unit) // 20 + 1
    assert len(number.partition(".")[2]) <= 1
    assert float(number) < 1024 or unit == "PB"


@given(
    st.integers(0, 2**40),
    st.integers(0, 10**20 - 1),
    st.sampled_from(UNITS),
    st.sampled_from(["", " "]),
    st.booleans(),
)
def test_decimals_are_exact(whole: int, decimals: int, unit: str, space: str, lower: bool) -> None:
    """No digit is lost to floating point: the size is the exact number, rounded up."""
    said = unit.lower() if lower else unit
    factor = 1024 ** UNITS.index(unit)
    exact = whole * factor + ceil_part(decimals, factor)
    text = f"{whole}.{decimals:020d}{space}{said}"
    if 0 < exact <= MAX_SIZE:
        assert parse_size(text) == exact
    else:
        with pytest.raises(Invalid):
            parse_size(text)


def ceil_part(decimals: int, factor: int) -> int:
    """0.``decimals`` (20 digits) times ``factor``, rounded up."""
    return -(-decimals * factor // 10**20)


@given(st.text(max_size=40))
def test_nothing_else_is_raised(text: str) -> None:
    """Whatever comes, the answer is a size or `Invalid`."""
    with suppress(Invalid):
        assert 0 < parse_size(text) <= MAX_SIZE
