"""How is a list cut into batches that all have one shape?

A program is compiled for one shape, so the last batch is filled up. What fills
it is a copy of the last item: it is valid input, and its results are dropped.
"""

from collections.abc import Iterator

import numpy as np


def batches(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Cut `count` items into batches of exactly `size`.

  Args:
    count: number of items, at least 0.
    size: items in a batch, at least 1.

  Yields:
    The indices of a batch, int64 [size], ascending, where the last item is
    repeated to fill the last batch; and how many of them count. The first
    index is that of the batch's first item.

  Raises:
    ValueError: `size` is below 1.
  """
  if size < 1:
    raise ValueError(f"batch size {size}: must be at least 1")
  for start in range(0, count, size):
    indices = np.minimum(start + np.arange(size), count - 1)
    yield indices, min(size, count - start)


def number_of_batches(count: int, size: int) -> int:
  """How many batches `batches` yields.

  Args:
    count: number of items.
    size: items in a batch, at least 1.
  """
  return -(-count // size)
