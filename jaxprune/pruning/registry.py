"""Which method changes weights, and what does it need to see?

Literal tables. A kernel method is two functions: `prepare` turns the
statistics of one kernel input into what `apply` needs (it runs on the host,
once for all kernels that share the input, and may raise), and `apply` is a
pure function on one matrix, `(w_IO, prepared, pattern) -> (w_IO, mask_IO)`;
the mask is None where nothing is removed. A unit method chooses among the
hidden units of one MLP.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxprune.calibration import moments, statistics
from jaxprune.pruning.methods import (
  awq,
  flap,
  hessian_inverse,
  magnitude,
  neuron,
  quantize,
  ria,
  sparse_swaps,
  sparsegpt,
  wanda,
)
from jaxprune.pruning.methods.quantize import Levels
from jaxprune.pruning.patterns import NofM, Unstructured

Array = jax.Array
Tree = dict[str, Any]
Pattern = Unstructured | NofM | Levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelMethod:
  """A method that works on one matrix at a time.

  Attributes:
    apply: `(w_IO, prepared, pattern) -> (w_IO, mask_IO or None)`, pure.
    statistic: name in `OBSERVERS` of what it needs from calibration; None for
      a data-free method.
    prepare: `statistics -> (prepared, notes)`; notes go to the layer's log.
    patterns: the types of pattern it takes.
  """

  apply: Callable[[Array, Any, Any], tuple[Array, Array | None]]
  statistic: str | None = None
  prepare: Callable[[Any], tuple[Any, dict[str, Any]]] = lambda statistics: (
    statistics,
    {},
  )
  patterns: tuple[type, ...] = (Unstructured, NofM)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitMethod:
  """A method that removes hidden units of the MLP.

  Attributes:
    apply: `(mlp, statistics, sparsity) -> (mlp, masks, bias_D)`, pure, the
      statistics those of the input of `down`; bias_D is what has to be added
      to its output, or None.
    statistic: name in `OBSERVERS`.
    compensates: whether it gives a bias.
    patterns: the types of pattern it takes.
  """

  apply: Callable[[Tree, Any, float], tuple[Tree, Tree, Array | None]]
  statistic: str
  compensates: bool = False
  patterns: tuple[type, ...] = (Unstructured,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observer:
  """A statistic of kernel inputs: a monoid.

  Attributes:
    observe: `x_BTI -> s`.
    merge: `(s, s) -> s`.
  """

  observe: Callable[[Array], Any]
  merge: Callable[[Any, Any], Any] = statistics.merge


def _observe_gram_and_size(x_BTI):
  return statistics.observe_gram(x_BTI), moments.observe_mean_abs(x_BTI)


def _merge_gram_and_size(a, b):
  return statistics.merge(a[0], b[0]), moments.merge_mean_abs(a[1], b[1])


OBSERVERS = {
  "squares": Observer(observe=statistics.observe_squares),
  "gram": Observer(observe=statistics.observe_gram),
  "gram_and_size": Observer(
    observe=_observe_gram_and_size, merge=_merge_gram_and_size
  ),
  "moments": Observer(
    observe=moments.observe_moments, merge=moments.merge_moments
  ),
}


def _factorised(gram: statistics.Gram) -> tuple[Any, dict[str, Any]]:
  """SparseGPT's factor, and the damping that made it exist."""
  found, tried = hessian_inverse.inverse_factor_with_retry(gram)
  return found, {"damping": tried[-1]}


def _round(w_IO, prepared, levels):
  del prepared
  return quantize.round_to_nearest(
    w_IO,
    bits=levels.bits,
    group_size=levels.group_size,
    symmetric=levels.symmetric,
  )[0], None


def _awq(w_IO, seen, levels):
  gram, size = seen
  return awq.awq(
    w_IO,
    gram,
    mean_abs=size,
    bits=levels.bits,
    group_size=levels.group_size,
    symmetric=levels.symmetric,
  )[0], None


def _neuron(mlp, squares, sparsity):
  return *neuron.neuron(mlp, squares, sparsity), None


def _neuron_root(mlp, squares, sparsity):
  return *neuron.neuron(mlp, squares, sparsity, root=True), None


KERNEL_METHODS = {
  "magnitude": KernelMethod(apply=magnitude.magnitude),
  "wanda": KernelMethod(apply=wanda.wanda, statistic="squares"),
  "wanda_variant": KernelMethod(
    apply=wanda.wanda_variant, statistic="squares", patterns=(Unstructured,)
  ),
  "ria": KernelMethod(apply=ria.ria, statistic="squares"),
  "sparse_swaps": KernelMethod(
    apply=sparse_swaps.sparse_swaps, statistic="gram"
  ),
  "sparsegpt": KernelMethod(
    apply=sparsegpt.prune_with_factor, statistic="gram", prepare=_factorised
  ),
  "rtn": KernelMethod(apply=_round, patterns=(Levels,)),
  "awq": KernelMethod(
    apply=_awq, statistic="gram_and_size", patterns=(Levels,)
  ),
}

UNIT_METHODS = {
  "neuron": UnitMethod(apply=_neuron, statistic="squares"),
  "neuron_root": UnitMethod(apply=_neuron_root, statistic="squares"),
  "flap": UnitMethod(apply=flap.flap, statistic="moments", compensates=True),
}

METHODS = {**KERNEL_METHODS, **UNIT_METHODS}
