"""Are these ids tokens of the model? A lookup in JAX would clamp the others."""

import numpy as np
from numpy.typing import ArrayLike


def check_ids(ids: ArrayLike, vocab_size: int, what: str) -> None:
  """Refuse ids that a vocabulary does not hold.

  Args:
    ids: int, any shape, at least one.
    vocab_size: V; ids go from 0 to V - 1.
    what: with which the message begins.

  Raises:
    ValueError: an id is outside.
  """
  ids = np.asarray(ids)
  if ids.min() < 0 or ids.max() >= vocab_size:
    raise ValueError(
      f"{what}: ids from {ids.min()} to {ids.max()}, but the vocabulary has"
      f" {vocab_size}; use this model's own tokenizer"
    )
