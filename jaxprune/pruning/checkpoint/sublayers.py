"""How are whole sublayers of a checkpoint scored and dropped?

One dense pass, layer by layer, scores attention, MLP and block together
(`similarities.py`); `drops.py` chooses; the folder is written with the output
projections of the dropped sublayers at zero, which is an exact identity in any
loader, and with their lists in config.json. In a post-norm encoder the norm of
a dropped sublayer stays, x = norm(x), which is just what a zero projection and
bias in the file give.

Reference: He et al., LLM-Drop, arXiv 2406.15786; Men et al., ShortGPT, arXiv
2403.03853. What differs from them is said in `layerwise/drops.py`.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, devices, files
from jaxprune.checkpoints import export as exports
from jaxprune.checkpoints import export_job
from jaxprune.pruning.checkpoint import finite, resume, streaming
from jaxprune.pruning.checkpoint.output import Output
from jaxprune.pruning.checkpoint.streaming import Memory, Tokens
from jaxprune.pruning.layerwise import similarities
from jaxprune.pruning.layerwise.drops import Drops


def dropped_before(source: checkpoints.Source) -> Drops:
  """What a checkpoint has lost already, as its config.json lists it.

  Args:
    source: an opened checkpoint.
  """
  return Drops(
    num_layers=source.config.num_layers,
    order=tuple(
      (sublayer, index)
      for sublayer, layers in checkpoints.read_drops(source).items()
      for index in layers
    ),
  )


def score_sublayers(
  source: checkpoints.Source,
  tokens: Tokens,
  *,
  memory: Memory | None = None,
  gates: Mapping[str, jax.Array] | None = None,
  residual: bool = True,
  window: int = 0,
  on_layer: Callable[[int], None] = lambda layer: None,
) -> dict[str, np.ndarray]:
  """Score every sublayer of a checkpoint in one pass over the tokens.

  Args:
    source: an opened checkpoint.
    tokens: calibration tokens, int [sequences, length], or with padding.
    memory: how activations are held.
    gates: {'attention': [L], 'mlp': [L]}, 0 for sublayers already dropped and
      1 for the others; None drops none. The live
      sublayer of a half-dropped layer runs.
    residual: False scores without the residual stream, a bad ranking kept for
      comparison.
    window: when above 0, also scores windows of so many blocks; this keeps
      the activations of `window` layers.
    on_layer: called with the index of each layer when it is done.

  Returns:
    Mean cosines, float32: 'attention', 'mlp' and 'block' [L], and with a
    window 'window' [L - window + 1].

  Raises:
    ValueError: tokens that the model cannot read, bad weights, or a similarity
      that is inf or nan.
  """
  memory = memory or Memory()
  config = source.config
  states = streaming.embedded(source, tokens, memory)
  scores = {name: [] for name in ("attention", "mlp", "block")}
  windows, earlier = [], []
  for index in range(config.num_layers):
    layer = streaming.place_layer(checkpoints.read_layer(source, index), memory)
    gate = (
      None
      if gates is None
      else (gates["attention"][index], gates["mlp"][index])
    )
    if window:
      earlier = [*earlier, list(states.batches)][-window:]
    sums = None
    for i, (x_BTD, valid_BT) in enumerate(states):
      y_BTD, new = _score(
        config,
        residual,
        memory.mesh,
        layer,
        (devices.place_batch(x_BTD, memory.mesh), valid_BT),
        streaming.is_sliding(config, index),
        gate,
      )
      sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
      states.batches[i] = streaming.place_states(y_BTD, memory)
    means = {name: float(similarity.mean) for name, similarity in sums.items()}
    finite.check_similarities(index, means, states)
    for name, mean in means.items():
      scores[name].append(mean)
    if window and len(earlier) == window:
      windows.append(_mean_similarity(earlier[0], states, memory.mesh))
    on_layer(index)
  result = {k: np.asarray(v, np.float32) for k, v in scores.items()}
  if window:
    result["window"] = np.asarray(windows, np.float32)
  return result


def prune_drops(
  source: checkpoints.Source,
  out: str | os.PathLike,
  chosen: Drops,
  scores: Mapping[str, Sequence[float]],
  *,
  score_name: str = "similarity",
  output: Output | None = None,
) -> list[dict[str, Any]]:
  """Write a checkpoint with the chosen sublayers dropped.

  Args:
    source: an opened checkpoint.
    out: folder to write.
    chosen: from `drops.choose_drops`.
    scores: of the whole model, from there too; kept in the log.
    score_name: what they are, the beginning of their names in the log.
    output: how the folder is written; slim leaves out the layers whose
      attention and MLP are both dropped, now or before.

  Returns:
    The log, a row per layer of the source: layer, attention_kept, mlp_kept
    and, where they were scored, {score_name}_attention, _mlp and _block.

  Raises:
    ValueError: the folder is in use, or bad weights.
  """
  output = output or Output()
  dropped = {k: sorted(chosen.layers(k)) for k in ("attention", "mlp")}
  earlier = checkpoints.read_drops(source)
  job = dict(output.provenance) | {
    "drop_order": [list(pair) for pair in chosen.order]
  }
  log = []
  for index in range(source.config.num_layers):
    row = {"layer": index}
    row |= {
      f"{k}_kept": index not in (*dropped[k], *earlier[k]) for k in dropped
    }
    row |= {
      f"{score_name}_{k}": float(scores[k][index])
      for k in ("attention", "mlp", "block")
      if k in scores
    }
    log.append(row)
  if output.slim:
    source, dropped, job["left_out"] = _leave_out(source, dropped)
  try:
    if devices.is_writer():
      _write(source, out, job, dropped, log, output)
  finally:
    devices.wait_for_all("finished")
  return log


def _write(source, out, job, dropped, log, output):
  """Write the folder, or find it finished."""
  try:
    export = checkpoints.start_export(
      out,
      source,
      provenance=job,
      overwrite=output.overwrite,
      drop_attention=dropped["attention"],
      drop_mlp=dropped["mlp"],
      shard_size=output.shard_size,
    )
  except checkpoints.FinishedError as finished:
    export_job.check_whole(finished.folder)
    return
  done = checkpoints.finished_layers(export)
  exports.check_layers(export, done)
  for index in set(range(source.config.num_layers)) - set(done):
    checkpoints.write_layer(
      export, index, checkpoints.read_layer(source, index)
    )
  files.atomic_write_json(export.work / resume.PROGRESS, {"layers": log})
  checkpoints.finish_export(export)


def _leave_out(source, dropped):
  """The source without its dead layers, what is dropped of it, and those."""
  earlier = checkpoints.read_drops(source)
  both = {k: {*dropped[k], *earlier[k]} for k in dropped}
  gone = sorted(both["attention"] & both["mlp"])
  kept = [i for i in range(source.config.num_layers) if i not in gone]
  numbered = {
    k: [kept.index(i) for i in dropped[k] if i in kept] for k in dropped
  }
  return checkpoints.without_layers(source, gone), numbered, gone


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score(config, residual, mesh, layer, batch, sliding, gates):
  x_BTD, valid_BT = batch
  y_BTD, tape = streaming.run_layer(
    config, layer, x_BTD, sliding, valid_BT=valid_BT, gates=gates, mesh=mesh
  )
  scores = similarities.observe_sublayers(
    tape,
    valid_BT,
    residual=residual,
    parallel=getattr(config, "parallel_residual", False),
  )
  return y_BTD, devices.on_every_device(scores, mesh)


@functools.partial(jax.jit, static_argnums=0)
def _similarity(mesh, x_BTD, y_BTD, valid_BT):
  return devices.on_every_device(
    similarities.observe_similarity(x_BTD, y_BTD, valid_BT), mesh
  )


def _mean_similarity(earlier, states, mesh) -> float:
  """Mean cosine of the activations of an earlier layer and of now."""
  parts = [
    _similarity(
      mesh, *(devices.place_batch(a, mesh) for a in (x_BTD, y_BTD)), valid_BT
    )
    for x_BTD, (y_BTD, valid_BT) in zip(earlier, states)
  ]
  return float(jax.tree.map(lambda *s: sum(s), *parts).mean)
