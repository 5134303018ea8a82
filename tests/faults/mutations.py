"""Functions that damage files like failing disks and networks, or malicious authors; reproducible from a seed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

Damage = tuple[str, bytes]  # description of the damage, and the damaged bytes
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
    """Yield `count` damaged versions of a file: first those of its format, then randomly changed bytes.

    Args:
        content: bytes of the intact file.
        special: damaged versions that are specific to the format.
        count: number of versions.
        seed: seed of the random changes.
    """
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
    """Cut off the end."""
    cut = int(generator.integers(1, len(content)))
    return f"cut after {cut} of {len(content)} bytes", content[:cut]


def flipped(content: bytes, generator: np.random.Generator) -> Damage:
    """Flip one to three bits anywhere."""
    return _flip(content, generator, len(content))


def flipped_head(content: bytes, generator: np.random.Generator) -> Damage:
    """Flip one to three bits in the first 400 bytes, which contain the header."""
    return _flip(content, generator, min(len(content), 400))


def _flip(content: bytes, generator: np.random.Generator, end: int) -> Damage:
    bits = sorted({int(bit) for bit in generator.integers(0, 8 * end, generator.integers(1, 4))})
    changed = bytearray(content)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return f"bits {bits} flipped", bytes(changed)


def zeroed(content: bytes, generator: np.random.Generator) -> Damage:
    """Set a block to zeros, as if it had never been written."""
    start = int(generator.integers(0, len(content)))
    length = min(int(generator.integers(1, 512)), len(content) - start)
    return f"{length} zeros from {start}", content[:start] + bytes(length) + content[start + length :]


def hole(content: bytes, generator: np.random.Generator) -> Damage:
    """Remove a block."""
    start = int(generator.integers(0, len(content)))
    length = int(generator.integers(1, max(2, len(content) // 4)))
    return f"{length} bytes lost from {start}", content[:start] + content[start + length :]


def wrong_magic(content: bytes, generator: np.random.Generator) -> Damage:
    """Replace the first bytes by random ones."""
    length = int(generator.integers(1, 9))
    return f"first {length} bytes random", generator.bytes(length) + content[length:]


def longer(content: bytes, generator: np.random.Generator) -> Damage:
    """Append random bytes."""
    more = generator.bytes(int(generator.integers(1, 300)))
    return f"{len(more)} bytes added", content + more


def doubled(content: bytes, generator: np.random.Generator) -> Damage:
    """Repeat a block."""
    start = int(generator.integers(0, len(content)))
    length = int(generator.integers(1, max(2, len(content) // 8)))
    return f"bytes {start} to {start + length} twice", content[: start + length] + content[start:]


def replaced(content: bytes, generator: np.random.Generator) -> Damage:
    """Replace the file by another one, e.g. a web page."""
    number = int(generator.integers(0, len(OTHERS)))
    return f"another file ({number}) in its place", OTHERS[number]


def crossed(content: bytes, generator: np.random.Generator) -> Damage:
    """Exchange two adjacent blocks, as a broken copy may leave them."""
    a, b, c = sorted(int(one) for one in generator.integers(0, len(content) + 1, 3))
    return f"{a}:{b} and {b}:{c} exchanged", content[:a] + content[b:c] + content[a:b] + content[c:]


def garbled_head(content: bytes, generator: np.random.Generator) -> Damage:
    """Set four bytes of the header to the largest 32-bit integer."""
    end = max(5, min(len(content) - 4, 352))
    start = int(generator.integers(0, end))
    return f"ff at {start} to {start + 4}", content[:start] + b"\xff\xff\xff\x7f" + content[start + 4 :]


# Files of specific formats


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk with correct length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, packed: bytes) -> bytes:
    """Return a PNG with any header.

    Args:
        width: width in the header.
        height: height in the header.
        depth: bits per channel in the header.
        colour: colour type in the header.
        packed: zlib stream of the pixels.
    """
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return `count` zero bytes as a raw deflate stream, which is about 1,000 times smaller and quickly made."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(bytes(2**24)) + pack.flush(zlib.Z_FULL_FLUSH)  # after a full flush all blocks are alike
    whole, rest = divmod(count, 2**24)
    if not whole:
        pack = zlib.compressobj(9, zlib.DEFLATED, -15)
        return pack.compress(bytes(count)) + pack.flush()
    return block + again * (whole - 1) + pack.compress(bytes(rest)) + pack.flush()


def zlib_zeros(count: int) -> bytes:
    """Return `count` zero bytes as a zlib stream with the correct checksum (Adler-32)."""
    return b"\x78\xda" + zeros(count) + struct.pack(">HH", count % 65521, 1)


def gzip_bomb(head: bytes, count: int) -> bytes:
    """Return a gzip file of `head` and `count` zero bytes.

    Its checksum is wrong, because a reader should refuse the file before it reaches the end.
    """
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + first + zeros(count) + struct.pack("<II", 0, (len(head) + count) % 2**32)


def zip_bomb(name: str, head: bytes, count: int) -> bytes:
    """Return a zip archive with one member `name`, which contains `head` and `count` zero bytes.

    Its checksum is wrong, because a reader should refuse the file before it reaches the end.
    """
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = pack.compress(head) + pack.flush(zlib.Z_FULL_FLUSH) + zeros(count)
    size, there = len(head) + count, name.encode()
    crc = zlib.crc32(head)  # not of the zeros, which would take seconds
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
    """Return a copy of `content` in which some bytes are replaced.

    Args:
        content: the bytes.
        *changes: offset, and new bytes from there on.
    """
    changed = bytearray(content)
    for start, new in changes:
        changed[start : start + len(new)] = new
    return bytes(changed)
