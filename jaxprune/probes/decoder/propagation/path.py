"""Which sublayer, and which decoding step, changed the output of a decoder?

The path between two models of one shape: W(t) = W + t dW, with a coefficient t
per layer, sublayer and position, so that one function of the coefficients
[L, 2, T] gives the dense model at 0, the pruned one at 1, and everything
between. A dropped sublayer has a zero output projection, so its coefficient is
one less its gate.

Contributions of sublayers apply a sublayer's dW at all positions. Those of
steps apply the dW of a group of layers at one position: what a later output
gets from it arrived through keys and values. The step of an output is the
position that is read for it.

The network is differentiated at the nodes of a quadrature, the head, which is
sharper, at many more places (`propagation.node_gradients`). How many nodes it
takes is found with one direction, the whole change, and then used for all.

Reference: that of `probes.propagation`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.probes import propagation
from jaxprune.probes.decoder import sequences
from jaxprune.probes.decoder.propagation import memory as decoder_memory
from jaxprune.probes.decoder.propagation.read_outs import (
  Path,
  gradients,
  read_out,
)
from jaxprune.probes.decoder.transitions import check_replaceable

Params = Any
SUBLAYERS = ("attention", "mlp")  # in this order along coefficients
_READS = 16  # places of the head for each node of the network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadrature:
  """The places where the network is differentiated, and their weights.

  Attributes:
    places: t of the nodes, [Z].
    weights: by metric, [Z, B, R, D]; see `propagation.node_gradients`.
    slopes: of the whole change by t, what the LM head reads, [Z, B, R, D].
    change: by metric, [B, R]: pruned less dense.
    begin: gradients of the read-outs at the dense model, [B, R, D].
    completeness_error: by metric, relative, of the whole change as one.
  """

  places: jax.Array
  weights: dict[str, jax.Array]
  slopes: jax.Array
  change: dict[str, jax.Array]
  begin: dict[str, jax.Array]
  completeness_error: dict[str, jax.Array]


def add_delta(
  config: ModelConfig,
  params: Params,
  pruned_config: ModelConfig,
  pruned_params: Params,
) -> Params:
  """The dense parameters with the change of each kernel and bias beside it.

  Args:
    config: of the dense model.
    params: of the dense model.
    pruned_config: of the pruned model.
    pruned_params: of the pruned model.

  Returns:
    `params` with `delta` beside each kernel of a sublayer, [L, I, O], and
    `delta_bias` [L, O] where one of the models has a bias.

  Raises:
    ValueError: the models have experts, or differ in shape, or in anything
      that is no kernel
      or bias of a sublayer, so that no coefficient of a sublayer would reach
      it.
  """
  check_outside_layers(config, params, pruned_config, pruned_params)
  if config.num_experts:
    raise ValueError(
      f"family {config.family!r} sends tokens to experts: where the choice"
      " changes, the output jumps on the path between two models, so that no"
      " sum of contributions is complete; use interventions or transitions"
    )
  old, new = params["layers"], pruned_params["layers"]
  for name in (old.keys() | new.keys()) - set(SUBLAYERS):
    _check_equal(f"layers/{name}", old.get(name), new.get(name))
  for name in ("query_norm", "key_norm"):
    _check_equal(
      f"layers/attention/{name}",
      old["attention"].get(name),
      new["attention"].get(name),
    )
  changed = {name: dict(old[name]) for name in SUBLAYERS}
  for sublayer, name in decoder.kernels_of(old):
    before, after = old[sublayer][name], new[sublayer][name]
    leaf = before | {"delta": after["kernel"] - before["kernel"]}
    if "bias" in before or "bias" in after:
      leaf["delta_bias"] = after.get("bias", 0) - before.get("bias", 0)
    changed[sublayer][name] = leaf
  return {**params, "layers": {**old, **changed}}


def check_outside_layers(
  config: ModelConfig,
  params: Params,
  pruned_config: ModelConfig,
  pruned_params: Params,
) -> None:
  """Refuse two models that do not differ in their layers alone.

  Args:
    config: of the dense model.
    params: of the dense model.
    pruned_config: of the pruned model.
    pruned_params: of the pruned model.

  Raises:
    ValueError: the models differ in shape, or outside of their layers.
  """
  check_replaceable(config, pruned_config)
  sequences.check_equal_fields(
    config,
    pruned_config,
    ("mlp_dim",),
    "prune without --slim, so that the removed units are zero",
  )
  for name in ("embed", "final_norm", "head"):
    _check_equal(name, params.get(name), pruned_params.get(name))


@functools.partial(jax.jit, static_argnames=("config", "num_steps"))
def hidden(
  config: ModelConfig,
  params: Params,
  tokens: jax.Array,
  valid: jax.Array,
  coefficients: jax.Array,
  *,
  num_steps: int,
) -> jax.Array:
  """What the LM head reads at the last positions, [B, R, D].

  Args:
    config: of the dense model.
    params: from `add_delta`.
    tokens: int [B, T].
    valid: bool [B, T].
    coefficients: [L, 2, T], attention at index 0 and MLP at 1.
    num_steps: R.
  """
  tree = dict(params["layers"])
  for index, sublayer in enumerate(SUBLAYERS):
    tree[sublayer] = {
      name: leaf | {"coefficient": coefficients[:, index]}
      if "delta" in leaf
      else leaf
      for name, leaf in tree[sublayer].items()
    }
  x_BTD, _ = decoder.forward(
    config, {**params, "layers": tree}, tokens, valid_BT=valid
  )
  return decoder.final_norm(config, params, x_BTD[:, -num_steps:])


def make_path(
  config: ModelConfig,
  params: Params,
  tokens: jax.Array,
  valid: jax.Array,
  alive: jax.Array,
  *,
  temperature: float = 1.0,
  options: tuple[int, ...] = (),
) -> Path:
  """Run both ends of the path.

  Args:
    config: of the dense model.
    params: from `add_delta`.
    tokens: int [B, T], left-padded.
    valid: bool [B, T], False for padding.
    alive: bool [B, R], outputs that count.
    temperature: T of the softmax.
    options: token ids of the options, none or at least two.

  Raises:
    ValueError: one option alone, or an id outside of the vocabulary.
  """
  if len(options) == 1 or not all(
    0 <= token < config.vocab_size for token in options
  ):
    raise ValueError(
      f"options={list(options)}: give two token ids or more, each from 0 to"
      f" {config.vocab_size - 1}"
    )
  ends = [
    hidden(
      config,
      params,
      tokens,
      valid,
      jnp.full((config.num_layers, 2, tokens.shape[1]), coefficient),
      num_steps=alive.shape[1],
    )
    for coefficient in (0.0, 1.0)
  ]
  return Path(
    params=params,
    tokens=tokens,
    valid=valid,
    alive=alive,
    start=ends[0],
    end=ends[1],
    temperature=jnp.asarray(temperature, jnp.float32),
    options=jnp.asarray(options, jnp.int32),
  )


@functools.partial(jax.jit, static_argnames="config")
def slopes(
  config: ModelConfig,
  path: Path,
  directions: jax.Array,
  t: jax.Array,
  gradient: dict[str, jax.Array],
) -> dict[str, jax.Array]:
  """Derivatives [P, B, R] at t, of read-outs with these gradients.

  Args:
    config: of the dense model.
    path: from `make_path`.
    directions: [P, L, 2, T], differentiated together.
    t: scalar in [0, 1], of the path to the whole change.
    gradient: by what the LM head reads, [B, R, D] each.
  """
  coefficients = t * whole_change(config, path)

  def slope(direction):
    dh_BRD = jax.jvp(
      lambda coefficients: hidden_at(config, path, coefficients),
      (coefficients,),
      (direction,),
    )[1]
    return jax.tree.map(
      lambda g_BRD: jnp.einsum("BRD,BRD->BR", g_BRD, dh_BRD), gradient
    )

  return jax.vmap(slope)(directions)


@functools.partial(jax.jit, static_argnames="config")
def move_at(
  config: ModelConfig, path: Path, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What the LM head reads at t, and its derivative by t, [B, R, D] each.

  Args:
    config: of the dense model.
    path: from `make_path`.
    t: place on the path, a scalar in [0, 1].
  """
  whole = whole_change(config, path)
  return jax.jvp(
    lambda coefficients: hidden_at(config, path, coefficients),
    (t * whole,),
    (whole,),
  )


def find_quadrature(
  config: ModelConfig,
  path: Path,
  *,
  tolerance: float = 1e-3,
  nodes: int = 8,
  max_nodes: int = 64,
) -> Quadrature:
  """Double the nodes until the read-outs of the whole change are complete.

  Args:
    config: of the dense model.
    path: from `make_path`.
    tolerance: largest relative completeness error of any read-out.
    nodes: number of quadrature nodes to begin with.
    max_nodes: the last number that is tried.
  """
  begin, end = (_read(config, path, h) for h in (path.start, path.end))
  latest: dict[str, Any] = {}

  def contribute(count):
    places = jnp.asarray(propagation.gauss_legendre(count)[0], jnp.float32)
    moves = [move_at(config, path, t) for t in places]
    states = jnp.stack([path.start, *(h_BRD for h_BRD, _ in moves), path.end])
    weights = _node_gradients(config, path, states, nodes=count)
    slopes_ZBRD = jnp.stack([dh_BRD for _, dh_BRD in moves])
    latest.update(places=places, weights=weights, slopes=slopes_ZBRD)
    return jax.tree.map(
      lambda g_ZBRD: jnp.einsum("ZBRD,ZBRD->BR", g_ZBRD, slopes_ZBRD)[None],
      weights,
    )

  total = propagation.path_attribution(
    contribute,
    jax.tree.map(jnp.subtract, end, begin),
    tolerance=tolerance,
    nodes=nodes,
    max_nodes=max_nodes,
  )
  return Quadrature(
    **latest,
    change=total.change,
    begin=_gradients(config, path, path.start),
    completeness_error=total.completeness_error,
  )


def attribute(
  config: ModelConfig,
  path: Path,
  directions: jax.Array,
  quadrature: Quadrature,
  *,
  memory: int = 1 << 30,
) -> tuple[dict[str, jax.Array], propagation.Attribution]:
  """First-order effects and exact contributions of directions.

  Args:
    config: of the dense model.
    path: from `make_path`.
    directions: [P, L, 2, T], that sum to one everywhere.
    quadrature: from `find_quadrature`.
    memory: bytes that tangents may take.

  Returns:
    (slopes at the dense model, attribution), leaves [P, B, R] by metric.
  """
  size = decoder_memory.directions_at_once(
    config, *path.alive.shape, path.tokens.shape[1], memory
  )
  # All pieces have one size, so that lists of every length share one
  # compilation.
  pieces = [
    jnp.pad(piece, ((0, size - len(piece)), *[(0, 0)] * 3))
    for piece in (
      directions[start : start + size]
      for start in range(0, len(directions), size)
    )
  ]

  def slopes_at(t, gradient):
    parts = [slopes(config, path, piece, t, gradient) for piece in pieces]
    return jax.tree.map(
      lambda *leaves: jnp.concatenate(leaves)[: len(directions)], *parts
    )

  def contribute(_):
    parts = [
      slopes_at(t, jax.tree.map(lambda leaf: leaf[k], quadrature.weights))
      for k, t in enumerate(quadrature.places)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves), *parts)

  count = len(quadrature.places)
  exact = propagation.path_attribution(
    contribute, quadrature.change, nodes=count, max_nodes=count
  )
  return slopes_at(jnp.float32(0), quadrature.begin), exact


def hidden_at(
  config: ModelConfig, path: Path, coefficients: jax.Array
) -> jax.Array:
  """What the LM head reads where a part of the change is applied, [B, R, D].

  Args:
    config: of the dense model.
    path: from `make_path`.
    coefficients: [L, 2, T].
  """
  return hidden(
    config,
    path.params,
    path.tokens,
    path.valid,
    coefficients,
    num_steps=path.alive.shape[1],
  )


_read = jax.jit(read_out, static_argnames="config")


_gradients = jax.jit(gradients, static_argnames="config")


@functools.partial(jax.jit, static_argnames=("config", "nodes"))
def _node_gradients(config, path, states, *, nodes):
  return propagation.node_gradients(
    lambda h_BRD: gradients(config, path, h_BRD), states, nodes, _READS * nodes
  )


def whole_change(config: ModelConfig, path: Path) -> jax.Array:
  """Coefficients [L, 2, T] that apply all of the change.

  Args:
    config: of the dense model.
    path: from `make_path`.
  """
  return jnp.ones((config.num_layers, 2, path.tokens.shape[1]))


def _check_equal(name, dense, pruned):
  """Refuse a change that is in no sublayer's kernels."""
  same = jax.tree.structure(dense) == jax.tree.structure(pruned) and all(
    bool(jnp.array_equal(a, b))
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(pruned))
  )
  if not same:
    raise ValueError(
      f"{name} differs between the two models: only kernels and biases of"
      " sublayers lie on the path; give models that differ in these alone"
    )
