"""How is an encoder pruned, one layer in memory at a time?

As `driver.py` does a decoder: collect the inputs of a layer's kernels, prune
every kernel from them, push the calibration sequences through the pruned layer,
write it, go on. The methods and patterns, what a finished layer leaves on disk
and the choice of sublayers to drop are those of the decoder; the block and the
padding are the encoder's. Padding counts in no statistic.

Dropping a sublayer of a post-norm layer leaves its norm: x = norm(x). A zero
output projection and bias in the file is exactly that, so
`drop_driver.prune_drops` writes encoders as they are.

Reference: as `driver.py` and `drop_driver.py`.
Differs from the reference in: those prune decoders, on sequences of one length.
"""

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import statistics
from jaxprune.models import EncoderConfig, encoder
from jaxprune.models.encoder import KERNEL_INPUTS, KERNELS
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import resume, streaming, weights
from jaxprune.pruning.checkpoint.layer import as_written
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import similarities
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.pruning.registry import KernelMethod

Tree = dict[str, Any]
# Statistics that leave padding out.
_OBSERVERS = {
  "squares": statistics.observe_squares,
  "gram": statistics.observe_gram,
}
METHODS = tuple(
  name
  for name, method in registry.METHODS.items()
  if isinstance(method, KernelMethod)
  and Unstructured in method.patterns
  and method.statistic in (None, *_OBSERVERS)
)
_INPUTS = tuple(dict.fromkeys(KERNEL_INPUTS.values()))


def prune_encoder(
  source: checkpoints.Source,
  out: str | os.PathLike,
  *,
  method: str,
  pattern: Unstructured | NofM,
  tokens: np.ndarray | None = None,
  valid: np.ndarray | None = None,
  memory: Memory | None = None,
  provenance: Mapping[str, Any] | None = None,
  overwrite: bool = False,
  on_layer: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
  """Prune every kernel of the layers and write the pruned folder.

  Args:
    source: an opened encoder.
    out: folder to write: a Hugging Face checkpoint with zeros in place, and
      `masks.safetensors` where weights were removed.
    method: a name in `METHODS`.
    pattern: what is removed in each kernel.
    tokens: calibration tokens, int [sequences, length]; None only for a method
      that needs no data.
    valid: bool [sequences, length], False for padding; None: no padding.
    memory: how activations are held, on one device.
    provenance: JSON values that identify the run. A resumed run must have the
      same.
    overwrite: replace an older model folder.
    on_layer: called with the log of each layer when it is finished.

  Returns:
    The log, a row per layer: layer, seconds, sparsity, layer_error (mean over
    kernels of |X(W-W')|^2 / |XW|^2 on the first micro-batch; absent without
    tokens) and the method's notes.

  Raises:
    ValueError: a method or pattern that is not for encoders, tokens that the
      model cannot read, bad weights, or unfinished work of another run.
  """
  memory = memory or Memory()
  config = source.config
  _check(source, method, pattern, tokens, memory)
  chosen = registry.METHODS[method]
  batches = None if tokens is None else _batches(tokens, valid, memory)
  job = dict(provenance or {}) | {
    "method": method,
    "pattern": dataclasses.asdict(pattern),
  }
  export = checkpoints.start_export(
    out, source, provenance=job, overwrite=overwrite
  )
  log = resume.read_log(export)
  start, states = len(log), None
  if batches is not None and start < config.num_layers:
    states = (
      resume.read_states(export, start, memory)
      if start
      else _embedded(source, batches, memory)
    )
  for index in range(start, config.num_layers):
    began = time.monotonic()
    read = checkpoints.read_layer(source, index)
    old = streaming.place_layer(read, memory)
    new, keep, notes = _prune_layer(
      config, chosen, pattern, old, states, batches
    )
    new = as_written(new, read)
    row = {"layer": index, "sparsity": sparsity(new)} | notes
    if states is not None:
      row["layer_error"] = float(
        _layer_error(config, old, new, states[0], batches[0][1])
      )
      for i, (_, valid_BT) in enumerate(batches):
        states[i] = streaming.place_states(
          _run(config, new, states[i], valid_BT)[0], memory
        )
    row["seconds"] = time.monotonic() - began
    log.append(row)
    resume.commit(export, index, new, keep, states, log)
    on_layer(row)
  resume.finish(export, job)
  return log


def score_encoder(
  source: checkpoints.Source,
  tokens: np.ndarray,
  valid: np.ndarray | None = None,
  *,
  memory: Memory | None = None,
) -> dict[str, np.ndarray]:
  """Score every sublayer in one pass, for `drops.select`.

  Args:
    source: an opened encoder.
    tokens: calibration tokens, int [sequences, length].
    valid: bool [sequences, length], False for padding; None: no padding.
    memory: how activations are held, on one device.

  Returns:
    'attention', 'mlp' and 'block': float32 [L], the mean cosine of what enters
    and what leaves, after the norms.

  Raises:
    ValueError: tokens that the model cannot read, or bad weights.
  """
  memory = memory or Memory()
  _check(source, "magnitude", None, tokens, memory)
  batches = _batches(tokens, valid, memory)
  states = _embedded(source, batches, memory)
  scores = {name: [] for name in ("attention", "mlp", "block")}
  for index in range(source.config.num_layers):
    layer = streaming.place_layer(checkpoints.read_layer(source, index), memory)
    sums = None
    for i, (_, valid_BT) in enumerate(batches):
      y_BTD, new = _run(source.config, layer, states[i], valid_BT)
      states[i] = streaming.place_states(y_BTD, memory)
      sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
    for name, similarity in sums.items():
      scores[name].append(float(similarity.mean))
  return {k: np.asarray(v, np.float32) for k, v in scores.items()}


def sparsity(layer: Tree) -> float:
  """Fraction of zeros over the kernels of a layer."""
  kernels = [layer[group][name]["kernel"] for group, name in KERNELS]
  zeros = sum(int((kernel == 0).sum()) for kernel in kernels)
  return zeros / sum(kernel.size for kernel in kernels)


def _check(source, method, pattern, tokens, memory) -> None:
  """Refuse, before any work, what cannot be done."""
  config = source.config
  if not isinstance(config, EncoderConfig):
    raise ValueError(
      f"{source.folder}: is no encoder; prune a decoder with experiments.prune"
    )
  if method not in METHODS:
    raise ValueError(
      f"method {method!r} is not for encoders: use one of {', '.join(METHODS)}"
    )
  if memory.mesh is not None:
    raise ValueError("an encoder is pruned on one device: give no mesh")
  if pattern is not None:
    weights.check_job(config, method, pattern, tokens=tokens is not None)
  if getattr(pattern, "group", "") == "global":
    raise ValueError(
      "group global is not there for encoders: use group output or matrix"
    )
  if tokens is not None:
    streaming.check_tokens(config, tokens)


def _batches(tokens, valid, memory):
  """Micro-batches of tokens and of what counts in them."""
  if valid is None:
    valid = np.ones(tokens.shape, bool)
  if valid.shape != tokens.shape or not valid.any(axis=1).all():
    raise ValueError(
      f"valid has shape {valid.shape} for tokens {tokens.shape}: give the"
      " same, with a token that counts in every sequence"
    )
  size = memory.size(len(tokens))
  return [
    (tokens[i : i + size], jnp.asarray(valid[i : i + size]))
    for i in range(0, len(tokens), size)
  ]


def _embedded(source, batches, memory):
  """The activations before the first layer, float32."""
  outer = jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.float32), checkpoints.read_outer(source)
  )
  return [
    streaming.place_states(
      _embed(source.config, outer, jnp.asarray(tokens_BT)), memory
    )
    for tokens_BT, _ in batches
  ]


def _prune_layer(config, method, pattern, layer, states, batches):
  """Prune a layer; return it, its masks and numbers for the log."""
  seen = dict.fromkeys(_INPUTS)
  if method.statistic:
    for x_BTD, (_, valid_BT) in zip(states, batches):
      new = _observe(config, method.statistic, layer, x_BTD, valid_BT)
      seen = {
        key: new[key]
        if seen[key] is None
        else statistics.merge(seen[key], new[key])
        for key in _INPUTS
      }
  prepared, notes = {}, {}
  for key in _INPUTS:
    prepared[key], said = method.prepare(seen[key])
    # One number for the layer: the worst of its inputs.
    notes |= {
      name: max(value, notes.get(name, value)) for name, value in said.items()
    }
  new, keep = {name: dict(leaf) for name, leaf in layer.items()}, {}
  for group, kernel in KERNELS:
    w_IO, mask_IO = _apply(
      method.apply,
      pattern,
      layer[group][kernel]["kernel"],
      prepared[KERNEL_INPUTS[group, kernel]],
    )
    new[group][kernel] = {**layer[group][kernel], "kernel": w_IO}
    if mask_IO is not None:
      keep.setdefault(group, {})[kernel] = mask_IO
  return new, keep, notes


@functools.partial(jax.jit, static_argnums=0)
def _embed(config, outer, tokens_BT):
  return encoder.embed(config, outer, tokens_BT)


@functools.partial(jax.jit, static_argnums=0)
def _run(config, layer, x_BTD, valid_BT):
  """A layer's output, and how similar the ends of its sublayers are."""
  y_BTD, tape = encoder.block(config, layer, x_BTD, valid_BT)
  return y_BTD, similarities.observe_sublayers(tape, valid_BT)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(config, statistic, layer, x_BTD, valid_BT):
  _, tape = encoder.block(config, layer, x_BTD, valid_BT)
  return {key: _OBSERVERS[statistic](tape[key], valid_BT) for key in _INPUTS}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(apply, pattern, w_IO, prepared):
  return apply(w_IO, prepared, pattern)


@functools.partial(jax.jit, static_argnums=0)
def _layer_error(config, old, new, x_BTD, valid_BT):
  """Mean over kernels of |X(W' - W)|^2 / |XW|^2, X from the layer as it was."""
  _, tape = encoder.block(config, old, x_BTD, valid_BT)

  def energy(x_BTI, w_IO):
    y_BTO = jnp.einsum("BTI,IO->BTO", x_BTI, w_IO)
    return jnp.sum(jnp.where(valid_BT[..., None], jnp.square(y_BTO), 0.0))

  errors = []
  for group, kernel in KERNELS:
    x_BTI = tape[KERNEL_INPUTS[group, kernel]]
    w_IO, new_IO = (tree[group][kernel]["kernel"] for tree in (old, new))
    errors.append(energy(x_BTI, new_IO - w_IO) / energy(x_BTI, w_IO))
  return jnp.mean(jnp.stack(errors))
