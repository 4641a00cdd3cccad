"""The index of a V2 checkpoint, checked before TensorFlow's C++ reads it: that reader ends the process at an impossible shape.

Source: TensorFlow's `tensor_bundle.cc` and `table/format.cc`: a sorted table of blocks, whose values are `BundleEntryProto`.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

#: Last bytes of a table: a checkpoint's index, or a V1 checkpoint.
TABLE_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER, _BLOCK_TRAILER = 48, 5
#: Bytes of an index; the largest official one has 33 kB.
MAX_INDEX = 64 * 2**20
#: Numbers in one variable; the largest official one has 2.5 million.
MAX_ELEMENTS = 2**29


def check_index(index: Path) -> None:
    """Check that each entry's type, shape, offset and size fit together and into the data files.

    Args:
        index: the `.index` file; its data files are next to it.

    Raises:
        ValueError: names the file, the variable and what is impossible.
    """
    from tensorflow import dtypes
    from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

    content = index.read_bytes() if index.stat().st_size <= MAX_INDEX else b""
    try:
        entries = dict(_entries(content))
        header = BundleHeaderProto.FromString(entries.pop(b"", b""))
        if not 1 <= header.num_shards <= 99_999:
            raise ValueError(f"{header.num_shards} data files")
        prefix = str(index).removesuffix(".index")
        parts = (Path(f"{prefix}.data-{i:05d}-of-{header.num_shards:05d}") for i in range(header.num_shards))
        sizes = [part.stat().st_size if part.is_file() else None for part in parts]
        for key, value in entries.items():
            name, entry = key.decode("utf-8", "replace"), BundleEntryProto.FromString(value)
            sides = [side.size for side in entry.shape.dim]
            if entry.shape.unknown_rank or min(sides, default=0) < 0 or len(sides) > 8 or math.prod(sides) > MAX_ELEMENTS:
                raise ValueError(f"variable {name!r} of shape {sides[:8]}")
            if not 0 <= entry.shard_id < header.num_shards or min(entry.offset, entry.size) < 0:
                raise ValueError(f"variable {name!r} in data file {entry.shard_id} at {entry.offset}")
            held = sizes[entry.shard_id]
            if held is not None and entry.offset + entry.size > held:
                raise ValueError(f"variable {name!r} up to byte {entry.offset + entry.size:,} of a file of {held:,} bytes")
            dtype = dtypes.as_dtype(entry.dtype)
            if not entry.slices and dtype not in (dtypes.string, dtypes.variant) and entry.size != math.prod(sides) * dtype.size:
                raise ValueError(f"variable {name!r} of shape {sides} and {dtype.name} in {entry.size:,} bytes")
    except Exception as error:  # besides ValueError: the errors of protobuf, of dtypes and of an index out of range
        raise ValueError(f"{index.name} states {str(error)[:200] or 'an impossible table'}") from error


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each entry of a table, from its index of blocks."""
    if len(content) < _FOOTER or not content.endswith(TABLE_MAGIC):
        raise ValueError("no table of variables")
    _, place = _handle(content, len(content) - _FOOTER)
    handle, _ = _handle(content, place)
    for _, value in _block(content, handle):
        yield from _block(content, _handle(value, 0)[0])


def _handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """((offset, size) of a block, the place after it)."""
    offset, place = _varint(content, place)
    size, place = _varint(content, place)
    return (offset, size), place


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in itertools.count(0, 7):
        byte, place = content[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 56:
            return value, place
    raise AssertionError("unreachable")


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each entry of a block; a key shares its beginning with the one before."""
    start, size = handle
    if start + size + _BLOCK_TRAILER > len(content) or content[start + size] != 0:
        raise ValueError(f"a block at {start:,} that is compressed or beyond the end of the file")
    block = content[start : start + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    place, key = 0, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + own + length > end:
            raise ValueError(f"an entry at {start + place:,} beyond its block")
        key, value = key[:shared] + block[place : place + own], block[place + own : place + own + length]
        place += own + length
        yield key, value
