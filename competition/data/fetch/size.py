"""Bytes, as a person reads them."""

from __future__ import annotations


def readable(size: int) -> str:
    """Decimal units, as disks and hosts count.

    Example:
        >>> readable(950), readable(28_000_000), readable(1_600_000_000)
        ('950 bytes', '28 MB', '1.6 GB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            number = size / unit
            return f"{number:.0f} {name}" if number >= 10 or number == int(number) else f"{number:.1f} {name}"
    return f"{size} bytes"
