"""Damage to files: what disks, networks and strangers do to bytes. Every draw follows from a seed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

Damage = tuple[str, bytes]  # what was done, and the bytes that are left
OTHERS = (
    b"",
    b"\0",
    b"<html><body>404 Not Found</body></html>\n" * 40,
    b"\0" * 4096,
    b"\xff" * 777,
    b"PK\x03\x04" + b"\0" * 60,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    b"\x1f\x8b\x08\x00" + b"\0" * 40,
)


def damages(content: bytes, special: list[Damage], count: int, seed: tuple[int, ...]) -> Iterator[Damage]:
    """`count` ways to break a file: those of its format first, then bytes lost, flipped, added and replaced."""
    yield from special[:count]
    ways: tuple[Callable[[bytes, np.random.Generator], Damage], ...] = (
        truncated,
        flipped,
        flipped,
        flipped_head,
        zeroed,
        hole,
        wrong_magic,
        longer,
        doubled,
        replaced,
        crossed,
        garbled_head,
    )
    for number in range(count - len(special)):
        generator = np.random.default_rng([*seed, number])
        yield ways[number % len(ways)](content, generator)


def truncated(content: bytes, generator: np.random.Generator) -> Damage:
    cut = int(generator.integers(1, len(content)))
    return f"cut after {cut} of {len(content)} bytes", content[:cut]


def flipped(content: bytes, generator: np.random.Generator) -> Damage:
    """One to three bits anywhere."""
    return _flip(content, generator, len(content))


def flipped_head(content: bytes, generator: np.random.Generator) -> Damage:
    """One to three bits within the first bytes, where headers are."""
    return _flip(content, generator, min(len(content), 400))


def _flip(content: bytes, generator: np.random.Generator, end: int) -> Damage:
    bits = sorted({int(bit) for bit in generator.integers(0, 8 * end, generator.integers(1, 4))})
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return f"bits {bits} flipped", bytes(changed)


def zeroed(content: bytes, generator: np.random.Generator) -> Damage:
    """A block that was never written."""
    start = int(generator.integers(0, len(content)))
    length = min(int(generator.integers(1, 512)), len(content) - start)
    return f"{length} zeros from {start}", content[:start] + bytes(length) + content[start + length :]


def hole(content: bytes, generator: np.random.Generator) -> Damage:
    start = int(generator.integers(0, len(content)))
    length = int(generator.integers(1, max(2, len(content) // 4)))
    return f"{length} bytes lost from {start}", content[:start] + content[start + length :]


def wrong_magic(content: bytes, generator: np.random.Generator) -> Damage:
    length = int(generator.integers(1, 9))
    return f"first {length} bytes random", generator.bytes(length) + content[length:]


def longer(content: bytes, generator: np.random.Generator) -> Damage:
    more = generator.bytes(int(generator.integers(1, 300)))
    return f"{len(more)} bytes added", content + more


def doubled(content: bytes, generator: np.random.Generator) -> Damage:
    start = int(generator.integers(0, len(content)))
    length = int(generator.integers(1, max(2, len(content) // 8)))
    return f"bytes {start} to {start + length} twice", content[: start + length] + content[start:]


def replaced(content: bytes, generator: np.random.Generator) -> Damage:
    number = int(generator.integers(0, len(OTHERS)))
    return f"another file ({number}) in its place", OTHERS[number]


def crossed(content: bytes, generator: np.random.Generator) -> Damage:
    """Two blocks in the wrong order, as a broken copy leaves them."""
    a, b, c = sorted(int(one) for one in generator.integers(0, len(content) + 1, 3))
    return f"{a}:{b} and {b}:{c} exchanged", content[:a] + content[b:c] + content[a:b] + content[c:]


def garbled_head(content: bytes, generator: np.random.Generator) -> Damage:
    """A number in the header that is as large as it can be."""
    end = max(5, min(len(content) - 4, 352))
    start = int(generator.integers(0, end))
    return f"ff at {start} to {start + 4}", content[:start] + b"\xff\xff\xff\x7f" + content[start + 4 :]


# What is special to a format


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its right checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, packed: bytes) -> bytes:
    """A PNG whose header says what it likes; `packed` is the deflated stream."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """`count` zeros as a bare deflate stream (in whole MiB), some 1,000 times smaller and made in no time."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)  # after a full flush all blocks are alike
    whole, rest = divmod(count, 2**24)
    if not whole:
        pack = zlib.compressobj(9, zlib.DEFLATED, -15)
        return pack.compress(bytes(count)) + pack.flush()
    return block + again * (whole - 1) + pack.compress(bytes(rest)) + pack.flush()


def zlib_zeros(count: int) -> bytes:
    """The same as a zlib stream: of zeros, Adler-32 is their number."""
    return b"\x78\xda" + zeros(count) + struct.pack(">HH", count % 65521, 1)


def gzip_bomb(head: bytes, count: int) -> bytes:
    """A gzip file of a head and `count` zeros; its checksum is left wrong, since nobody should come that far."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + first + zeros(count) + struct.pack("<II", 0, (len(head) + count) % 2**32)


def zip_bomb(name: str, head: bytes, count: int) -> bytes:
    """A zip archive of one member: a head and `count` zeros."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH) + zeros(count)
    size, there = len(head) + count, name.encode()
    crc = zlib.crc32(head)  # of zeros it would take seconds; it is looked at last
    extra = struct.pack("<HHQQ", 1, 16, size, len(packed))
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 45, 0, 8, 0, 33, crc, 2**32 - 1, 2**32 - 1, len(there), len(extra))
    entry = struct.pack(
        "<4s6H3I5H2I",
        b"PK\x01\x02",
        45,
        45,
        0,
        8,
        0,
        33,
        crc,
        2**32 - 1,
        2**32 - 1,
        len(there),
        len(extra),
        0,
        0,
        0,
        0,
        0,
    )
    body = local + there + extra + packed
    central = entry + there + extra
    return body + central + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(body), 0)


def patched(content: bytes, *changes: tuple[int, bytes]) -> bytes:
    """Bytes with others at some places."""
    changed = bytearray(content)
    for start, new in changes:
        changed[start : start + len(new)] = new
    return bytes(changed)
