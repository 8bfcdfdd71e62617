"""What do the kernels of each expert read, and how are experts told apart?

A tape of a layer with experts holds `routes` [B, T, C], the experts that each
token passes through, `mlp_in` [B, T, D], which gate and up of those experts
read, and `down_in` [B, T, C, F]. Statistics and kernels of experts are stacked
on E.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune.calibration.observers import OBSERVERS, Observer
from jaxprune.models import KERNEL_INPUTS
from jaxprune.pruning.checkpoint.streaming import Config
from jaxprune.pruning.registry import KernelMethod

Tape = Mapping[str, jax.Array]


def inputs_of(config: Config) -> frozenset[str]:
  """Names on the tape of what the kernels of experts read; of few models any.

  Args:
    config: the model.
  """
  if not getattr(config, "num_experts", 0):
    return frozenset()
  return frozenset(
    key for (group, _), key in KERNEL_INPUTS.items() if group == "mlp"
  )


def rows_of(
  tape: Tape, key: str, expert: jax.Array, valid_BT: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """What the kernels of one expert read.

  Args:
    tape: of a layer.
    key: 'mlp_in' or 'down_in'.
    expert: its index; may be traced.
    valid_BT: bool [B, T], False for padding; None where all tokens count.

  Returns:
    Rows [B, R, I], and which of them the expert reads, bool [B, R].
  """
  chosen_BTC = tape["routes"] == expert
  if valid_BT is not None:
    chosen_BTC = chosen_BTC & valid_BT[..., None]
  if tape[key].ndim == 3:
    return tape[key], jnp.any(chosen_BTC, axis=-1)
  return (
    rearrange(tape[key], "B T C I -> B (T C) I"),
    rearrange(chosen_BTC, "B T C -> B (T C)"),
  )


def add(
  observer: Observer,
  total: Any,
  tape: Tape,
  key: str,
  valid_BT: jax.Array | None = None,
) -> Any:
  """Add the tokens of one pass to the statistics of every expert.

  Args:
    observer: the statistic.
    total: statistics so far, leaves stacked on E.
    tape: of a layer.
    key: 'mlp_in' or 'down_in'.
    valid_BT: bool [B, T], False for padding; None where all tokens count.
  """

  def one(inputs):
    expert, before = inputs
    return observer.merge(
      before, observer.observe(*rows_of(tape, key, expert, valid_BT))
    )

  count = len(jax.tree.leaves(total)[0])
  return jax.lax.map(one, (jnp.arange(count), total))


def fill_unseen(statistic: str, statistics: Any) -> tuple[Any, int]:
  """Give an expert that no token reached the statistics of unit inputs.

  Those are uncorrelated and have mean square 1, so that the magnitudes of its
  weights decide.

  Args:
    statistic: a name in `observers.OBSERVERS`.
    statistics: leaves stacked on E.

  Returns:
    The statistics, and how many experts no token reached.
  """
  leaves = jax.tree.leaves(statistics)
  seen_E = np.any(
    [np.any(np.asarray(x).reshape(len(x), -1), axis=1) for x in leaves], axis=0
  )
  if seen_E.all():
    return statistics, 0
  inputs = max(leaf.shape[-1] for leaf in leaves if leaf.ndim > 1)
  x_1II = np.sqrt(inputs) * np.eye(inputs, dtype=np.float32)[None]
  unit = OBSERVERS[statistic].observe(x_1II, None)

  def fill(leaf, one):
    seen = seen_E.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.where(seen, leaf, one[None])

  return jax.tree.map(fill, statistics, unit), int((~seen_E).sum())


def prepare(
  method: KernelMethod, statistics: Any
) -> tuple[Any, dict[str, Any]]:
  """`method.prepare` for every expert.

  Args:
    method: an entry of `registry.METHODS` that looks at statistics.
    statistics: leaves stacked on E.

  Returns:
    What is prepared, leaves stacked on E, and notes: of each the worst of the
    experts, and `experts_without_tokens`.
  """
  statistics, unseen = fill_unseen(method.statistic, statistics)
  prepared, notes = [], {"experts_without_tokens": unseen}
  for index in range(len(jax.tree.leaves(statistics)[0])):
    one, numbers = method.prepare(
      jax.tree.map(lambda leaf, i=index: leaf[i], statistics)
    )
    prepared.append(one)
    notes |= {k: max(v, notes.get(k, v)) for k, v in numbers.items()}
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *prepared), notes


def energy(tape: Tape, key: str, w_EIO: jax.Array) -> jax.Array:
  """Sum of squares of what kernels of experts give on their own tokens.

  Args:
    tape: of a layer.
    key: 'mlp_in' or 'down_in'.
    w_EIO: kernels.
  """

  def one(inputs):
    expert, w_IO = inputs
    x_BRI, reads_BR = rows_of(tape, key, expert)
    square_BRO = jnp.square(jnp.einsum("BRI,IO->BRO", x_BRI, w_IO))
    return jnp.sum(jnp.where(reads_BR[..., None], square_BRO, 0.0))

  return jnp.sum(jax.lax.map(one, (jnp.arange(len(w_EIO)), w_EIO)))
