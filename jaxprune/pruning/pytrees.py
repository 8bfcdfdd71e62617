"""How are the kernels of any pytree pruned, whatever model they are from?

Kernels are matrices [I, O] that are multiplied from the left, x_BTI w_IO, as in
`flax.linen.Dense` and `flax.nnx.Linear`. They are named by their path, such as
`layers/0/up/kernel`; the last word may be left out. What enters them is told
kernel by kernel; all are pruned from the model as it is, at once.

  def inputs():
    for batch in batches:
      yield {"up": x_BTD, "down": hidden_BTF}

  statistics = observe("wanda", inputs())
  params, masks = prune_kernels(params, statistics, "wanda", NofM(keep=2, of=4))
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.observers import OBSERVERS
from jaxprune.pruning import registry
from jaxprune.pruning.patterns import AnyPattern

KERNEL = "kernel"
_VALUE = "value"  # how the variables of NNX hold their array


def observe(
  method: str, inputs: Iterable[Mapping[str, jax.Array]]
) -> dict[str, Any]:
  """Sum what a method has to know of the inputs of each kernel.

  Args:
    method: a name in `registry.METHODS`.
    inputs: batch by batch, from the name of a kernel to what enters it, float
      [..., I].

  Returns:
    By name the statistic, see `calibration.observers`; {} for a method that
    looks at none.

  Raises:
    ValueError: an unknown method, no batch, or an input that is no array
      [..., I].
  """
  statistic = _find(method).statistic
  if statistic is None:
    return {}
  observer, total = OBSERVERS[statistic], {}
  for batch in inputs:
    for name, x in batch.items():
      if jnp.ndim(x) < 2:
        raise ValueError(
          f"inputs[{name!r}]: shape {list(jnp.shape(x))}; give [..., I], the"
          " inputs of a kernel [I, O]"
        )
      x = jnp.asarray(x)
      x_BTI = x.reshape(-1, *x.shape[-2:])
      seen = observer.observe(x_BTI, None)
      total[name] = observer.merge(total[name], seen) if name in total else seen
  if not total:
    raise ValueError("inputs: gave no batch; yield a dict of arrays each")
  return total


def prune_kernels(
  params: Any,
  statistics: Mapping[str, Any] | None,
  method: str,
  pattern: AnyPattern,
) -> tuple[Any, dict[str, jax.Array]]:
  """Prune kernels of a pytree.

  Args:
    params: pytree of arrays: nested dicts of Linen, a state of NNX, or any.
    statistics: by kernel what the method has to know, from `observe`; those
      kernels are pruned. None or {} for a method that looks at no data, which
      prunes every matrix [I, O] whose path ends in `kernel`.
    method: a name in `registry.METHODS` that removes or rounds entries.
    pattern: what is removed.

  Returns:
    The pytree with zeros, in its dtypes; and the masks by path, bool [I, O],
    True = keep, {} for a method that rounds.

  Raises:
    ValueError: an unknown method, or one that removes more than entries;
      statistics that are missing, or of no kernel; a kernel that is no matrix;
      a pattern that the method does not take, or that does not fit a kernel.
  """
  row = _find(method)
  if type(pattern).__name__ not in row.patterns:
    raise ValueError(
      f"pattern={pattern}: {method} takes {' or '.join(row.patterns)}"
    )
  # Compiled as one program, rounded weights differ in their last bit.
  apply = _apply if row.rounds else _compiled_apply
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  names = [path_name(path) for path, _ in leaves]
  chosen = _chosen(names, [leaf for _, leaf in leaves], statistics, row, method)
  new, masks = [], {}
  for name, (_, leaf) in zip(names, leaves):
    if name in chosen:
      if jnp.ndim(leaf) != 2:
        raise ValueError(
          f"params: {name} has shape {list(leaf.shape)}; give kernels [I, O]"
        )
      try:
        prepared, _ = row.prepare(chosen[name])
        leaf, mask_IO = apply(row.apply, pattern, leaf, prepared)
      except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from error
      if mask_IO is not None:
        masks[name] = mask_IO
    new.append(leaf)
  return jax.tree_util.tree_unflatten(structure, new), masks


def path_name(path: tuple[Any, ...]) -> str:
  """The path of a leaf as words with slashes, such as `layers/0/up/kernel`."""
  words = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
  words = [word.lstrip(".") for word in words]
  return "/".join(words[:-1] if words[-1] == _VALUE else words)


def _apply(apply, pattern, w_IO, prepared):
  """The new kernel in its dtype, and its mask."""
  new_IO, mask_IO = apply(w_IO, prepared, pattern)
  return new_IO.astype(w_IO.dtype), mask_IO


# One program for all kernels of a shape.
_compiled_apply = jax.jit(_apply, static_argnums=(0, 1))


def _find(method: str) -> registry.KernelMethod:
  row = registry.find(method)
  if row.unit != registry.ENTRIES:
    raise ValueError(
      f"method={method!r}: removes more than entries of a kernel; use one of"
      f" {', '.join(registry.names(registry.ENTRIES))}"
    )
  return row


def _chosen(names, leaves, statistics, row, method) -> dict[str, Any]:
  """Statistics by path, of the kernels that are pruned."""
  if row.statistic is None:
    return {
      name: None
      for name, leaf in zip(names, leaves)
      if name.split("/")[-1] == KERNEL and jnp.ndim(leaf) == 2
    }
  if not statistics:
    raise ValueError(
      f"statistics: method {method} looks at the inputs of kernels; give them"
    )
  found = {}
  for key, value in statistics.items():
    name = key if key in names else f"{key}/{KERNEL}"
    if name not in names:
      raise ValueError(
        f"statistics[{key!r}]: params has no such kernel; its leaves are"
        f" {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
      )
    found[name] = value
  return found
