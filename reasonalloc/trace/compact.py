"""Arrays as few bytes: the narrowest integer type, bytes of equal weight side by side, deflated."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32")


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


def unpack(packed: npt.NDArray[np.uint8], dtype: str, shape: Sequence[int]) -> npt.NDArray:
    """What `pack` was given. Raises ValueError for bytes that are no such array; never makes more than it should."""
    if dtype not in DTYPES or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"packed are arrays of {', '.join(DTYPES)}, not of {dtype!r} with shape {list(shape)}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(packed.tobytes(), size + 1)  # a bomb stops here; 0 would mean no limit
    except zlib.error as error:
        raise ValueError(f"packed bytes are damaged: {error}") from error
    if len(raw) != size or not stream.eof:
        raise ValueError(f"packed bytes do not hold an array {list(shape)} of {dtype}")
    planes = np.frombuffer(raw, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    little = np.ascontiguousarray(planes.T).reshape(-1).view(np.dtype(dtype).newbyteorder("<"))
    return little.astype(dtype).reshape(tuple(shape))
