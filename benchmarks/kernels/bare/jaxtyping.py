"""Stands in for jaxtyping on a machine without it (``benchmarks/gpu.sh``): shapes are read by people only."""

from typing import Any


class _Shaped:
    def __class_getitem__(cls, words: Any) -> Any:
        """The array's type; without jaxtyping nobody checks its shape."""
        return words[0]


Bool = Float = Int = Int64 = Shaped = UInt8 = _Shaped
