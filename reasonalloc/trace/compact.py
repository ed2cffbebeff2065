"""Arrays as few bytes: the narrowest integer type, bytes of equal weight side by side, deflated."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")
_MOST_RATIO = 1032  # of deflate: a longer array cannot come of so few bytes
_PART = 1 << 20


def narrowest(values: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """The same integers in the smallest type of `DTYPES` that holds them; OverflowError if none does."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for name in DTYPES:
        dtype = np.dtype(name)
        if dtype.kind in "iu" and np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return values.astype(dtype)
    raise OverflowError(f"no integer type of 32 bits holds {low} to {high}")


def pack(array: npt.NDArray) -> npt.NDArray[np.uint8]:
    """A zlib stream, as [bytes], of the array: the lowest byte of every number, then the next of every number, ..."""
    if array.dtype.name not in DTYPES:
        raise TypeError(f"packed are {', '.join(DTYPES)}, not {array.dtype}")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    planes = little.view(np.uint8).reshape(-1, array.dtype.itemsize).T
    return np.frombuffer(zlib.compress(planes.tobytes(), 9), np.uint8)


def unpacked_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of an array that is to be unpacked; ValueError for a type or shape that `pack` does not make."""
    if dtype not in DTYPES or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"packed are arrays of {', '.join(DTYPES)}, not of {dtype!r} with shape {list(shape)}")
    return math.prod(shape) * np.dtype(dtype).itemsize


def unpack(packed: npt.NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> npt.NDArray:
    """What `pack` was given. Raises ValueError for bytes that are no such array.

    Needs no memory beside the array itself, and none at all where the bytes are too few for one of that shape.
    """
    size, wrong = unpacked_bytes(dtype, shape), f"packed bytes do not hold an array {list(shape)} of {dtype}"
    if size > packed.size * _MOST_RATIO:
        raise ValueError(wrong)
    width = np.dtype(dtype).itemsize
    planes = np.empty((size // width, width), np.uint8)
    done = 0
    try:
        for part in _inflated(packed, size + 1):
            if done + len(part) > size:
                raise ValueError(wrong)
            _into_planes(planes, done, part)
            done += len(part)
    except zlib.error as error:
        raise ValueError(f"packed bytes are damaged: {error}") from error
    except EOFError:
        raise ValueError(wrong) from None
    if done != size:
        raise ValueError(wrong)
    array: npt.NDArray = planes.reshape(-1).view(np.dtype(dtype).newbyteorder("<"))
    return array.astype(dtype, copy=False).reshape(tuple(shape))


def _inflated(packed: npt.NDArray[np.uint8], most: int) -> Iterator[bytes]:
    """The stream in parts, of at most `most` bytes in all; EOFError where it ends too early."""
    stream, rest = zlib.decompressobj(), packed.tobytes()
    while most and not stream.eof:
        part = stream.decompress(rest, min(_PART, most))
        rest = stream.unconsumed_tail
        if not part and not rest and not stream.eof:
            raise EOFError
        most -= len(part)
        yield part


def _into_planes(planes: npt.NDArray[np.uint8], begin: int, part: bytes) -> None:
    """part: bytes of the planes from place `begin` on, plane after plane; planes: [numbers, bytes of a number]."""
    data, (count, _) = np.frombuffer(part, np.uint8), planes.shape
    while data.size:
        plane, row = divmod(begin, count)
        taken = min(count - row, data.size)
        planes[row : row + taken, plane] = data[:taken]
        data, begin = data[taken:], begin + taken
