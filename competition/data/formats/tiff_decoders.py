"""Limit the output of tifffile's own decoders of Deflate, LZMA and (from Python 3.14 on) Zstandard.

These decoders are used if the package imagecodecs is not installed. tifffile tells a decoder how many bytes a strip or
tile may have, but its own decoders ignore this number. A strip of 1 MB may fill 1 GiB (Deflate) or 7 GiB (LZMA),
whatever the header declares. The decoders of imagecodecs respect the number.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MODULES = {
    **dict.fromkeys((8, 32946, 50013), "zlib"),
    34925: "lzma",
    **dict.fromkeys((50000, 34926), "compression.zstd"),
}  # by the numbers of tag 259
BLOCK = 2**16  # bytes of data behind the declared end that are in memory at once
# Writers may fill up the last strip of a page to its full height. Such rows are decoded, since they are before the
# checksum, and dropped. Their number is bounded, because many strips may share the same bytes of a small file.
EXTRA_BYTES, EXTRA_SHARE = 2**16, 4
LZMA_MEMORY = 2**27  # bytes of a decoder; the highest preset of xz needs 65 MiB, but a stream may ask for 4 GiB


class BoundedDecoders(Mapping[int, Callable[..., Any]]):
    """Map each compression to its decoder, with a size limit for those decoders of tifffile that have none.

    If this version of Python lacks the module of a decoder, the mapping raises a KeyError, as for an unknown
    compression. Then other libraries try to decode the file. tifffile's own decoder would raise an ImportError instead.
    """

    def __init__(self, decoders: Mapping[int, Callable[..., Any]]) -> None:
        self._decoders = decoders

    def __getitem__(self, compression: int) -> Callable[..., Any]:
        decoder = self._decoders[compression]
        if not getattr(decoder, "__module__", "").endswith("_imagecodecs") or compression not in MODULES:
            return decoder
        module = MODULES[compression]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise KeyError(f"compression {compression} requires the 'imagecodecs' package") from error
        return bounded_decoder(module, decoder)

    def __iter__(self) -> Iterator[int]:
        return iter(self._decoders)

    def __len__(self) -> int:
        return len(self._decoders)


def bound_decoders() -> None:
    """Limit the output size of tifffile's own decoders in this process; further calls do nothing."""
    from tifffile import TIFF

    if not isinstance(TIFF.DECOMPRESSORS, BoundedDecoders):
        TIFF.DECOMPRESSORS = BoundedDecoders(TIFF.DECOMPRESSORS)


def bounded_decoder(module: str, unbounded: Callable[..., Any]) -> Callable[..., Any]:
    """Return a decoder of a strip or tile, `decode(data, out=BYTES)`, that returns at most `BYTES` bytes.

    Args:
        module: name of the Python module that decompresses: zlib, lzma or compression.zstd.
        unbounded: tifffile's own decoder, used only for calls without a number of bytes. For strips and tiles,
            tifffile always gives this number.
    """

    def decode(data: bytes, /, *, out: Any = None) -> bytes:
        if not isinstance(out, int):
            return bytes(unbounded(data, out=out))
        return decompress(module, data, out)

    return decode


def decompress(module: str, data: bytes, limit: int) -> bytes:
    """Decompress a stream to its end, so that its checksum is verified, and return its first `limit` bytes.

    Raises:
        ValueError: the stream contains much more than `limit` bytes, or ends early.
        zlib.error, lzma.LZMAError: the stream is damaged.
    """
    names = {"zlib": "decompressobj", "lzma": "LZMADecompressor", "compression.zstd": "ZstdDecompressor"}
    options = {"memlimit": LZMA_MEMORY} if module == "lzma" else {}
    stream = getattr(importlib.import_module(module), names[module])(**options)
    result: bytes = stream.decompress(data, max(limit, 1))
    extra = 0
    while not stream.eof:
        rest = getattr(stream, "unconsumed_tail", b"")  # the other two modules keep the rest themselves
        block = stream.decompress(rest, BLOCK)
        if not block and not stream.eof:
            raise ValueError("the compressed data of a strip or tile are incomplete")
        extra += len(block)
        if extra > EXTRA_BYTES + EXTRA_SHARE * limit:
            raise ValueError(f"a strip or tile unpacks to more than the {limit:,} bytes that the header declares")
    return result
