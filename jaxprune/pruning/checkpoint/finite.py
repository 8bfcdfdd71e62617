"""Is every number finite that a mask or a weight is made from?

Sums of squares and of outer products keep an inf or a nan for good, so the
total over all sequences tells. Only where it is bad are the sequences looked
at one by one, to say which of them spoils it, and why.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune import devices
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.calibration.statistics import valid_inputs
from jaxprune.models import KERNEL_INPUTS, kernels_of
from jaxprune.pruning.checkpoint import streaming
from jaxprune.pruning.checkpoint.streaming import Config, States

Tree = dict[str, Any]
_WAY_OUT = "leave it out of the calibration, or verify the checkpoint"


def all_finite(tree: Any) -> jax.Array:
  """Whether every float of a pytree is finite, bool []; for use under jit."""
  leaves = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  return functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))


def readers(layer: Tree, key: str) -> str:
  """Name the kernels of a layer that read one input.

  Args:
    layer: its parameters.
    key: name of the input on the tape.
  """
  return _listed(
    "/".join(kernel)
    for kernel in kernels_of(layer)
    if KERNEL_INPUTS[kernel] == key
  )


def check_statistics(
  config: Config,
  statistic: str,
  layer: Tree,
  index: int,
  states: States,
  finite: Sequence[Mapping[str, Any]],
) -> None:
  """Refuse statistics of kernel inputs that hold an inf or a nan.

  Args:
    config, layer, index: the model, and the layer in float32 with its number.
    statistic: a name in `observers.OBSERVERS`.
    states: the calibration activations that enter it.
    finite: by input, bool []: whether the total up to each micro-batch is
      finite.

  Raises:
    ValueError: it is not; names the layer, the kernels, the first calibration
      sequence that makes it so, and the likely cause.
  """
  if all(devices.to_host(finite[-1]).values()):
    return
  flags = devices.to_host(list(finite))
  batch = next(i for i, flag in enumerate(flags) if not all(flag.values()))
  key = next(key for key, flag in flags[batch].items() if not flag)
  x_BTD, valid_BT = devices.to_host(states.batches[batch]), states.valid[batch]
  largest, whole = [], []
  for i in range(len(x_BTD)):
    peak, alone = _look(
      config,
      statistic,
      key,
      layer,
      x_BTD[i : i + 1],
      None if valid_BT is None else valid_BT[i : i + 1],
      streaming.is_sliding(config, index),
    )
    largest.append(float(peak))
    whole.append(bool(alone))
  # Where each sequence is finite by itself, the loudest one is named.
  worst = whole.index(False) if False in whole else int(np.argmax(largest))
  if not _is_finite(x_BTD[worst], valid_BT, worst):
    cause = (
      "what enters the layer is inf or nan, so a layer before it overflows"
    )
  elif not np.isfinite(largest[worst]):
    cause = "their inputs are inf or nan, so this layer overflows"
  else:
    cause = (
      f"their inputs reach {largest[worst]:.3g}, whose squares overflow float32"
    )
  raise ValueError(
    f"layer {index}, {readers(layer, key)}: calibration sequence"
    f" {batch * len(states.batches[0]) + worst} makes the statistics inf or"
    f" nan: {cause}; {_WAY_OUT}"
  )


def check_weights(
  index: int, finite: Mapping[tuple[str, str], Any], cause: str
) -> None:
  """Refuse new weights of a layer that are inf or nan.

  Args:
    index: of the layer.
    finite: by group and kernel, bool []: whether its new weights are finite.
    cause: why they may not be, for the message.

  Raises:
    ValueError: they are not; names the layer and the kernels.
  """
  flags = devices.to_host(dict(finite))
  bad = ["/".join(kernel) for kernel, flag in flags.items() if not flag]
  if bad:
    raise ValueError(
      f"layer {index}, {_listed(bad)}: the new weights are inf or nan:"
      f" {cause}; verify the checkpoint, or use another method"
    )


def check_similarities(
  index: int, means: Mapping[str, float], states: States
) -> None:
  """Refuse similarities of sublayers that are not finite.

  Args:
    index: of the layer.
    means: mean cosine by sublayer.
    states: the activations that leave the layer.

  Raises:
    ValueError: one is not; names the layer, the sublayer, the first calibration
      sequence that leaves the layer as inf or nan, or else the loudest.
  """
  bad = [name for name, mean in means.items() if not np.isfinite(mean)]
  if not bad:
    return
  peaks = []
  for x_BTD, valid_BT in states:
    x_BTD = devices.to_host(x_BTD)
    for i, x_TD in enumerate(x_BTD):
      valid_T = slice(None) if valid_BT is None else np.asarray(valid_BT[i])
      peaks.append(float(np.max(np.abs(x_TD[valid_T]))))
  # np.argmax takes a nan for the largest.
  worst = int(np.argmax(peaks))
  raise ValueError(
    f"layer {index}, {_listed(bad)}: the similarity of input and output is not"
    f" finite: calibration sequence {worst} leaves the layer with values up to"
    f" {peaks[worst]:.3g}, which overflows float32; {_WAY_OUT}"
  )


def check_losses(loss_LS: np.ndarray, change: str) -> None:
  """Refuse losses of the output that are not finite.

  Args:
    loss_LS: one per layer that is changed and calibration sequence.
    change: what is done to the layer, for the message.

  Raises:
    ValueError: one is not; names the layer, the sequence and the cause.
  """
  bad = np.argwhere(~np.isfinite(loss_LS))
  if len(bad):
    layer, sequence = (int(i) for i in bad[0])
    raise ValueError(
      f"layer {layer} {change}: its KL on calibration sequence {sequence} is"
      " inf or nan: activations or logits overflow float32, or those of the"
      f" dense model do; {_WAY_OUT}"
    )


def _is_finite(x_TD, valid_BT, row) -> bool:
  kept = slice(None) if valid_BT is None else np.asarray(valid_BT[row])
  return bool(np.isfinite(x_TD[kept]).all())


def _listed(words: Iterable[str]) -> str:
  *first, last = words
  return f"{', '.join(first)} and {last}" if first else last


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _look(config, statistic, key, layer, x_BTD, valid_BT, sliding):
  """The largest input of a kernel, nan for nan, and its finite statistic."""
  _, tape = streaming.run_layer(
    config, layer, x_BTD, sliding, valid_BT=valid_BT
  )
  x_BTI = tape[key]
  if x_BTI.ndim == 4:  # of the experts that each token passes through
    x_BTI = rearrange(x_BTI, "B T C I -> B (T C) I")
  observed = OBSERVERS[statistic].observe(x_BTI, valid_BT)
  x_BTI = valid_inputs(x_BTI, valid_BT)
  return jnp.max(jnp.abs(x_BTI)), all_finite(observed)
