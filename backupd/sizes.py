"""Sizes as people write them, ``"50 MB"``, and bytes. Units are powers of 1024."""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

from backupd.errors import Invalid

__all__ = ["MAX_SIZE", "format_size", "parse_size"]

MAX_SIZE = 2**60
"""The largest size that can be asked for, in bytes."""

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
_FACTORS = {unit.lower(): 1024**power for power, unit in enumerate(_UNITS)} | {
    unit.lower().replace("b", "ib"): 1024**power for power, unit in enumerate(_UNITS) if power
}
_SIZE = re.compile(r"([0-9]{1,30}(?:\.[0-9]{1,30})?)[ ]?([kmgtp]i?b|b)", re.IGNORECASE | re.ASCII)
_BYTES = re.compile(r"[0-9]{1,30}", re.ASCII)


def parse_size(text: str, member: str = "size") -> int:
    """The bytes that ``text`` names, rounded up to a whole byte.

    Raises `Invalid`, naming ``member``, for anything but a decimal number, at most one space and
    a unit, or a plain integer of bytes; and for 0 or more than `MAX_SIZE`.
    """
    if _BYTES.fullmatch(text):
        size = int(text)
    else:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise Invalid(member, 'must be a number and a unit, such as "50 MB" or "1.5 GiB"')
        number, factor = match[1], _FACTORS[match[2].lower()]
        # A Fraction loses no digit; Decimal would round to 28 of them. It takes its time.
        size = ceil(Fraction(number) * factor) if "." in number else int(number) * factor
    if not 0 < size <= MAX_SIZE:
        raise Invalid(member, "must be more than 0 and at most 2^60 bytes (1024 PB)")
    return size


def format_size(size: int) -> str:
    """``size`` bytes with one decimal at most and no ``.0``: ``1.5 GB``, ``50 MB``, ``999 B``."""
    power = 0
    while power + 1 < len(_UNITS) and size >= 1024 ** (power + 1):
        power += 1
    tenths = (size * 10 + 1024**power // 2) // 1024**power
    if tenths >= 10240 and power + 1 < len(_UNITS):
        power += 1
        tenths = (size * 10 + 1024**power // 2) // 1024**power
    whole, tenth = divmod(tenths, 10)
    return f"{whole}.{tenth} {_UNITS[power]}" if tenth else f"{whole} {_UNITS[power]}"
