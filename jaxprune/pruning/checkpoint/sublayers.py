"""How are whole sublayers of a checkpoint scored and dropped?

One dense pass, layer by layer, scores attention, MLP and block together
(`similarities.py`); `drops.py` chooses; the folder is written with the output
projections of the dropped sublayers at zero, which is an exact identity in any
loader, and with their lists in config.json.

Reference: He et al., LLM-Drop, arXiv 2406.15786; Men et al., ShortGPT, arXiv
2403.03853. See `drops.py` for what differs.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, devices, files
from jaxprune.pruning.checkpoint import resume, streaming
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import drops, similarities
from jaxprune.pruning.layerwise.drops import Drops

# How the choice is made; what is dropped is the target (`drops.TARGETS`).
SELECTIONS = ("similarity", "reverse", "random", "iterative", "consecutive")


def score_sublayers(
  source: checkpoints.Source,
  tokens: np.ndarray,
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
    tokens: calibration tokens, int [sequences, length].
    memory: how activations are held.
    gates: sublayers already dropped, as `Drops.gates`; None is none. The live
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
    ValueError: tokens that the model cannot read, or bad weights.
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
      earlier = [*earlier, list(states)][-window:]
    sums = None
    for i, x_BTD in enumerate(states):
      y_BTD, new = _score(
        config,
        residual,
        memory.mesh,
        layer,
        devices.place_batch(x_BTD, memory.mesh),
        config.sliding_layers[index],
        gate,
      )
      sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
      states[i] = streaming.place_states(y_BTD, memory)
    for name, similarity in sums.items():
      scores[name].append(float(similarity.mean))
    if window and len(earlier) == window:
      windows.append(_mean_similarity(earlier[0], states, memory.mesh))
    on_layer(index)
  result = {k: np.asarray(v, np.float32) for k, v in scores.items()}
  if window:
    result["window"] = np.asarray(windows, np.float32)
  return result


def choose_drops(
  source: checkpoints.Source,
  count: int,
  *,
  target: str,
  selection: str = "similarity",
  tokens: np.ndarray | None = None,
  memory: Memory | None = None,
  residual: bool = True,
  seed: int = 0,
  on_layer: Callable[[int], None] = lambda layer: None,
) -> tuple[Drops, dict[str, np.ndarray]]:
  """Score a checkpoint and choose what to drop.

  Args:
    source: an opened checkpoint.
    count: sublayers, or blocks for target 'block', to drop.
    target: 'attention', 'mlp', 'joint' or 'block'.
    selection: 'similarity' drops the most similar at once; 'iterative' one at
      a time, scoring again; 'consecutive' the window of blocks that changes
      the stream least; 'reverse' (least similar first) and 'random' are
      controls.
    tokens: calibration tokens; not needed for 'random'.
    memory: how activations are held.
    residual: as in `score_sublayers`.
    seed: of the random selection.
    on_layer: as in `score_sublayers`.

  Returns:
    The drops, and the scores of the dense model ({} for 'random').

  Raises:
    ValueError: an unknown target or selection, a count out of range, no tokens.
  """
  num_layers = source.config.num_layers
  if selection not in SELECTIONS:
    raise ValueError(
      f"selection {selection!r}: use one of {', '.join(SELECTIONS)}"
    )
  if selection == "random":
    key = jax.random.key(seed)
    return drops.select_random(key, num_layers, count, target), {}
  # An empty choice checks target and count before the long pass.
  drops.select_random(jax.random.key(0), num_layers, count, target)
  if tokens is None:
    raise ValueError(f"selection {selection} needs calibration tokens")
  score = functools.partial(
    score_sublayers,
    source,
    tokens,
    memory=memory,
    residual=residual,
    on_layer=on_layer,
  )
  if selection == "iterative":
    seen = []

    def again(gates):
      seen.append(score(gates=gates))
      return seen[-1]

    chosen = drops.select_iterative(again, num_layers, count, target)
    return chosen, seen[0] if seen else score()
  if selection == "consecutive":
    if target != "block":
      raise ValueError(f"consecutive drops are of blocks, not {target}")
    scores = score(window=count)
    windows = scores.pop("window", np.zeros(0))  # none of length 0
    return drops.select_window(windows, num_layers, count), scores
  scores = score()
  chosen = drops.select(scores, count, target, reverse=selection == "reverse")
  return chosen, scores


def prune_drops(
  source: checkpoints.Source,
  out: str | os.PathLike,
  chosen: Drops,
  scores: Mapping[str, Sequence[float]],
  *,
  score_name: str = "similarity",
  provenance: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> list[dict[str, Any]]:
  """Write a checkpoint with the chosen sublayers dropped.

  Args:
    source: an opened checkpoint.
    out: folder to write.
    chosen: from `choose_drops`.
    scores: from `choose_drops`; kept in the log.
    score_name: what they are, the beginning of their names in the log.
    provenance: JSON values that identify the run.
    overwrite: replace an older model folder.

  Returns:
    The log, a row per layer: layer, attention_kept, mlp_kept and, where they
    were scored, {score_name}_attention, _mlp and _block.

  Raises:
    ValueError: the folder is in use, or bad weights.
  """
  dropped = {k: sorted(chosen.layers(k)) for k in ("attention", "mlp")}
  job = dict(provenance or {}) | {
    "drop_order": [list(pair) for pair in chosen.order]
  }
  log = []
  for index in range(source.config.num_layers):
    row = {"layer": index}
    row |= {f"{k}_kept": index not in dropped[k] for k in dropped}
    row |= {
      f"{score_name}_{k}": float(scores[k][index])
      for k in ("attention", "mlp", "block")
      if k in scores
    }
    log.append(row)
  if devices.is_writer():
    export = checkpoints.start_export(
      out,
      source,
      provenance=job,
      overwrite=overwrite,
      drop_attention=dropped["attention"],
      drop_mlp=dropped["mlp"],
    )
    done = set(checkpoints.finished_layers(export))
    for index in set(range(source.config.num_layers)) - done:
      checkpoints.write_layer(
        export, index, checkpoints.read_layer(source, index)
      )
    files.atomic_write_json(export.work / resume.PROGRESS, {"layers": log})
    checkpoints.finish_export(export)
  devices.wait_for_all("finished")
  return log


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score(config, residual, mesh, layer, x_BTD, sliding, gates):
  y_BTD, tape = streaming.run_layer(
    config, layer, x_BTD, sliding, gates, mesh=mesh
  )
  scores = similarities.observe_sublayers(tape, residual=residual)
  return y_BTD, devices.on_every_device(scores, mesh)


@functools.partial(jax.jit, static_argnums=0)
def _similarity(mesh, x_BTD, y_BTD):
  return devices.on_every_device(
    similarities.observe_similarity(x_BTD, y_BTD), mesh
  )


def _mean_similarity(xs, ys, mesh) -> float:
  parts = [
    _similarity(mesh, *(devices.place_batch(a, mesh) for a in pair))
    for pair in zip(xs, ys)
  ]
  return float(jax.tree.map(lambda *s: sum(s), *parts).mean)
