"""Which sublayers, or layers, of a checkpoint may go, by what the output loses?

`ablation` on this project's decoder. Sublayers are closed by gates, so that
all of them and every round of the iterative choice share one compilation;
`pruning.layerwise.drops` ranks the scores. For an allocation every layer is
pruned alone, as the method would prune it in the dense model, and the KL is
measured.

The whole model is on the device, beside one micro-batch: unlike similarities,
the KL needs all layers for every candidate. One pass over the calibration
tokens per candidate and round.

Reference: that of `probes.ablation`. `pruning.layerwise.drops` and
`pruning.layerwise.allocation` use the scores.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat
from jax.sharding import PartitionSpec as P

from jaxprune import checkpoints, devices
from jaxprune.models import ModelConfig, decoder
from jaxprune.models.decoder import Gates
from jaxprune.probes import ablation
from jaxprune.probes.decoder.propagation import path
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import finite, layer, streaming
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.patterns import AnyPattern

Params = Any
KINDS = ("attention", "mlp", "block")


def drop_candidates(gates: Gates, kinds: Sequence[str]) -> Gates:
  """The dense model, then `gates` with one more sublayer or block closed.

  Args:
    gates: what is dropped already, [L] each.
    kinds: of 'attention', 'mlp' and 'block', in this order per kind.

  Returns:
    Gates with leaves [1 + len(kinds) * L, L].
  """
  stay_LL = 1.0 - np.eye(len(gates.attention), dtype=np.float32)
  rows: dict[str, list[np.ndarray]] = {}
  for name in ("attention", "mlp"):
    gate_L = np.asarray(getattr(gates, name), np.float32)
    rows[name] = [np.ones((1, len(gate_L)), np.float32)] + [
      gate_L * (stay_LL if kind in (name, "block") else np.ones_like(stay_LL))
      for kind in kinds
    ]
  return Gates(**{name: np.concatenate(parts) for name, parts in rows.items()})


def ablate_sublayers(
  config: ModelConfig,
  params: Params,
  tokens: np.ndarray,
  *,
  kinds: Sequence[str] = KINDS,
  gates: Gates | None = None,
  temperature: float = 1.0,
  memory: Memory | None = None,
) -> dict[str, dict[str, np.ndarray]]:
  """KL of dropping one more sublayer or block, against the dense model.

  Args:
    config: the model.
    params: its parameters, whole.
    tokens: calibration tokens, int [sequences, T].
    kinds: what is dropped: 'attention', 'mlp', 'block'.
    gates: what is dropped already; None is nothing.
    temperature: T of the softmax.
    memory: sequences processed at a time, and the devices that share them.

  Returns:
    By kind, by measure of `ablation.logit_divergence`: [L, sequences] float32,
    means over positions.

  Raises:
    ValueError: an unknown kind, or tokens that the model cannot read.
  """
  unknown = set(kinds) - set(KINDS)
  if unknown:
    raise ValueError(f"kinds {sorted(unknown)}: use some of {KINDS}")
  size = config.num_layers
  by_measure = ablate_gates(
    config,
    params,
    tokens,
    drop_candidates(gates or decoder.make_gates(config), kinds),
    temperature=temperature,
    memory=memory,
  )
  return {
    kind: {
      name: leaf[1 + i * size : 1 + (i + 1) * size]
      for name, leaf in by_measure.items()
    }
    for i, kind in enumerate(kinds)
  }


def ablate_gates(
  config: ModelConfig,
  params: Params,
  tokens: np.ndarray,
  candidates: Gates,
  *,
  temperature: float = 1.0,
  memory: Memory | None = None,
) -> dict[str, np.ndarray]:
  """KL of any sets of dropped sublayers.

  Args:
    config, params: the model, whole.
    tokens: int [sequences, T].
    candidates: leaves [1 + P, L]; what is measured against is at index 0.
    temperature: T of the softmax.
    memory: sequences processed at a time, and the devices that share them.

  Returns:
    By measure of `ablation.logit_divergence`: [1 + P, sequences] float32.

  Raises:
    ValueError: tokens that the model cannot read.
  """
  return _in_batches(
    _ablate_gates, config, params, tokens, candidates, temperature, memory
  )


def predict_sublayers(
  config: ModelConfig,
  params: Params,
  tokens: np.ndarray,
  *,
  kinds: Sequence[str] = KINDS,
  temperature: float = 1.0,
  memory: Memory | None = None,
) -> dict[str, np.ndarray]:
  """What the derivative by each gate, at the dense model, predicts.

  Args:
    config: the model.
    params: its parameters, whole.
    tokens: calibration tokens, int [sequences, T].
    kinds: what is dropped: 'attention', 'mlp', 'block'.
    temperature: T of the softmax.
    memory: sequences processed at a time, and the devices that share them.

  Returns:
    By kind: kl_first_order [L, sequences] float32, nats.
  """
  closed = drop_candidates(decoder.make_gates(config), kinds)
  directions = jax.tree.map(lambda leaf: leaf[1:] - 1.0, closed)
  by_measure = _in_batches(
    _predict_gates, config, params, tokens, directions, temperature, memory
  )
  parts = np.split(by_measure["kl_first_order"], len(kinds))
  return dict(zip(kinds, parts))


def kl_score(
  source: checkpoints.Source,
  tokens: np.ndarray | None,
  target: str,
  *,
  temperature: float = 1.0,
  memory: Memory | None = None,
  loaded: tuple[ModelConfig, Params] | None = None,
  on_round: Callable[[int], None] = lambda round_: None,
) -> Callable[[dict[str, jax.Array] | None], dict[str, np.ndarray]]:
  """A score for `drops.choose_drops`: the KL that each sublayer's drop costs.

  Args:
    source: an opened checkpoint; its parameters are read at the first call.
    tokens: calibration tokens, int [sequences, T].
    target: 'attention', 'mlp', 'joint' or 'block': what is scored.
    temperature: T of the softmax.
    memory: sequences processed at a time, and the devices that share them.
    loaded: config and float32 parameters, where they are in memory already.
    on_round: called with the index of each call of the score when it is done.

  Returns:
    The function from gates, None for the dense model, to KL in nats against
    the dense model, [L] float64 under 'attention' and 'mlp', or 'block', as
    the target needs. The lowest leaves first. It raises a ValueError where a KL
    is inf or nan.

  Raises:
    ValueError: no tokens, or tokens that the model cannot read.
  """
  if tokens is None:
    raise ValueError("selection by kl needs calibration tokens")
  streaming.check_tokens(source.config, tokens)
  kinds = KINDS[:2] if target == "joint" else (target,)

  @functools.cache
  def load():
    return loaded or checkpoints.load_params(source, jnp.float32)

  rounds = itertools.count()

  def score(gates):
    by_kind = ablate_sublayers(
      *load(),
      tokens,
      kinds=kinds,
      gates=None if gates is None else Gates(**gates),
      temperature=temperature,
      memory=memory,
    )
    on_round(next(rounds))
    for kind, measures in by_kind.items():
      finite.check_losses(measures["kl"], f"without its {kind}")
    return {
      kind: measures["kl"].mean(axis=1, dtype=np.float64)
      for kind, measures in by_kind.items()
    }

  return score


def prune_layers_alone(
  source: checkpoints.Source,
  method: str,
  pattern: AnyPattern,
  tokens: np.ndarray,
  *,
  temperature: float = 1.0,
  memory: Memory | None = None,
  on_layer: Callable[[int], None] = lambda layer: None,
) -> np.ndarray:
  """KL of pruning one layer alone, everything else dense.

  Twice the model is on the device, and each kernel is multiplied twice.

  Args:
    source: an opened checkpoint.
    method: a name in `registry.METHODS`.
    pattern: what is removed in that layer.
    tokens: calibration tokens, int [sequences, T], for both.
    temperature: T of the softmax.
    memory: sequences processed at a time, and the devices that share them.
    on_layer: called with the index of each layer when it is pruned.

  Returns:
    KL in nats, [L, sequences] float32.

  Raises:
    ValueError: tokens that the model cannot read, or a statistic, a weight or a
      KL that is inf or nan.
  """
  memory = memory or Memory()
  streaming.check_tokens(source.config, tokens)
  config, params = checkpoints.load_params(source, jnp.float32)
  pruned = _each_alone(source, method, pattern, tokens, memory, on_layer)
  both = path.add_delta(config, params, config, {**params, "layers": pruned})
  size = config.num_layers
  alone_PL = np.concatenate([np.zeros((1, size)), np.eye(size)])
  coefficients_PL2 = repeat(alone_PL, "P L -> P L two", two=2).astype(
    np.float32
  )
  by_measure = _in_batches(
    _ablate_coefficients,
    config,
    both,
    tokens,
    coefficients_PL2,
    temperature,
    memory,
  )
  finite.check_losses(by_measure["kl"][1:], "pruned alone")
  return by_measure["kl"][1:]


def _each_alone(source, method, pattern, tokens, memory, on_layer):
  """Layers pruned with the inputs of the dense model, stacked on L."""
  config = source.config
  chosen = registry.METHODS[method]
  states = streaming.embedded(source, tokens, memory)
  pruned = []
  for index in range(config.num_layers):
    read = checkpoints.read_layer(source, index)
    old = streaming.place_layer(read, memory)
    new, _, _ = layer.prune_layer(
      config, chosen, pattern, old, index, states, memory
    )
    pruned.append(devices.to_host(layer.as_written(index, new, read)))
    if index + 1 < config.num_layers:
      sliding = streaming.is_sliding(config, index)
      streaming.advance(config, old, states, sliding, memory)
    on_layer(index)
  return jax.tree.map(lambda *leaves: np.stack(leaves), *pruned)


def _in_batches(run, config, params, tokens, candidates, temperature, memory):
  """`run` on one micro-batch after the other; leaves [P, sequences]."""
  memory = memory or Memory()
  mesh = memory.mesh
  streaming.check_tokens(config, tokens)
  size = memory.size(len(tokens))
  params, candidates = jax.tree.map(
    lambda leaf: devices.place_leaf(leaf, mesh), (params, candidates)
  )
  temperature = devices.place(np.float32(temperature), mesh)
  parts = []
  for start in range(0, len(tokens), size):
    tokens_BT = devices.place_batch(
      np.asarray(tokens[start : start + size], np.int32), mesh
    )
    parts.append(
      devices.to_host(
        run(config, mesh, params, tokens_BT, candidates, temperature)
      )
    )
  return jax.tree.map(lambda *each: np.concatenate(each, axis=1), *parts)


def _on_mesh(run, mesh):
  """Each part of `data` measures its own sequences; see `run_layer`."""
  if mesh is None:
    return run
  return jax.shard_map(
    run,
    mesh=mesh,
    in_specs=(P(), P("data"), P(), P()),
    out_specs=P(None, "data"),
    axis_names={"data"},
    check_vma=False,
  )


def _read(config, params, h_D):
  return decoder.unembed(config, params, h_D, "raw")


def _hidden(config, params, tokens_BT, gates):
  x_BTD, _ = decoder.forward(config, params, tokens_BT, gates=gates)
  return decoder.final_norm(config, params, x_BTD)


def _logit_divergence(config, params, temperature, h_D, g_D):
  return ablation.logit_divergence(
    *(_read(config, params, each_D) for each_D in (h_D, g_D)), temperature
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ablate_gates(config, mesh, params, tokens_BT, candidates, temperature):

  def run(params, tokens_BT, candidates, temperature):
    return ablation.ablate(
      functools.partial(_hidden, config, params, tokens_BT),
      functools.partial(_logit_divergence, config, params, temperature),
      candidates,
    )

  values = _on_mesh(run, mesh)(params, tokens_BT, candidates, temperature)
  return devices.on_every_device(values, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict_gates(config, mesh, params, tokens_BT, directions, temperature):

  def run(params, tokens_BT, directions, temperature):
    base = jax.tree.map(lambda leaf: jnp.ones_like(leaf[0]), directions)
    return ablation.predict(
      functools.partial(_hidden, config, params, tokens_BT),
      lambda h_D, dh_D: ablation.predicted_divergence(
        *decoder.unembed_change(config, params, h_D, dh_D), temperature
      ),
      base,
      directions,
    )

  values = _on_mesh(run, mesh)(params, tokens_BT, directions, temperature)
  return devices.on_every_device(values, mesh)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _ablate_coefficients(
  config, mesh, params, tokens_BT, coefficients, temperature
):

  def run(params, tokens_BT, coefficients, temperature):
    batch, length = tokens_BT.shape

    def hidden(coefficients_L2):
      return path.hidden(
        config,
        params,
        tokens_BT,
        jnp.ones((batch, length), bool),
        repeat(coefficients_L2, "L two -> L two T", T=length),
        num_steps=length,
      )

    return ablation.ablate(
      hidden,
      functools.partial(_logit_divergence, config, params, temperature),
      coefficients,
    )

  values = _on_mesh(run, mesh)(params, tokens_BT, coefficients, temperature)
  return devices.on_every_device(values, mesh)
