"""Which programs are compiled for a pod, of which shapes, split how?

Those that the scripts run, with the placements that `devices` gives their
arguments: pruning a layer, which is all that is on a pod at once; and on whole
models the forward pass, a decoding step, transitions and propagation, whose
parameters are split by `devices.params_sharding`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprune import devices
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.models import (
  KERNEL_INPUTS,
  ModelConfig,
  decoder,
  init,
  kernels_of,
)
from jaxprune.models.decoding import Cache, decode_step
from jaxprune.probes.decoder import transitions
from jaxprune.probes.decoder.propagation import path
from jaxprune.probes.decoder.propagation.read_outs import Path
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import layer, programs, streaming
from jaxprune.pruning.methods import hessian_inverse
from jaxprune.pruning.patterns import Levels, NofM, Unstructured

Tree = dict[str, Any]
_INPUTS = tuple(dict.fromkeys(KERNEL_INPUTS.values()))
_STEPS = 16  # positions that transitions and propagation measure
_PATTERNS = {
  "unstructured": Unstructured(sparsity=0.5),
  "2:4": NofM(keep=2, of=4),
  "4 bits": Levels(bits=4, group_size=128),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A model on a pod.

  Attributes:
    config: the model.
    mesh: the chips.
    sequences: of calibration, all of them.
    length: tokens of each.
    batch: texts of a forward pass, a decoding step or a measurement.
    cached: tokens that a decoding step reads.
  """

  config: ModelConfig
  mesh: Mesh
  sequences: int
  length: int
  batch: int
  cached: int

  @property
  def micro_batch(self) -> int:
    """Sequences that pass through a layer at once: one per part of `data`."""
    return streaming.Memory(micro_batch=1, mesh=self.mesh).size(self.sequences)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """What is compiled.

  Attributes:
    lower: makes it, not compiled yet.
    runs: how often it runs when a layer is pruned, or 1.
    resident: bytes on a chip that are no argument and lie there meanwhile.
  """

  lower: Callable[[], Any]
  runs: int = 1
  resident: float = 0.0


def list_programs(case: Case) -> dict[str, Program]:
  """Every program of a case, by name; nothing is traced yet.

  Args:
    case: the model and the pod.
  """
  return {**_of_layers(case), **_of_methods(case), **_of_models(case)}


def _shaped(shape, dtype, mesh, spec=None):
  return jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, spec or P())
  )


def layer_shapes(case: Case) -> Tree:
  """One layer as pruning holds it: float32, placed by `devices.place_leaf`.

  Args:
    case: the model and the pod.
  """
  stacked = jax.eval_shape(lambda: init(case.config, jax.random.key(0)))
  return jax.tree.map(
    lambda leaf: _shaped(
      leaf.shape[1:],
      jnp.float32,
      case.mesh,
      devices.leaf_spec(leaf.shape[1:], case.mesh),
    ),
    stacked["layers"],
  )


def params_shapes(case: Case) -> Tree:
  """A whole model in bfloat16, placed by `devices.params_sharding`.

  Args:
    case: the model and the pod.
  """
  shapes = jax.eval_shape(lambda: init(case.config, jax.random.key(0)))
  sharding = devices.params_sharding(case.mesh)

  def placed(keys, leaf):
    name = "/".join(key.key for key in keys)
    return jax.ShapeDtypeStruct(
      leaf.shape, jnp.bfloat16, sharding=sharding(name, leaf.shape)
    )

  return jax.tree_util.tree_map_with_path(placed, shapes)


def _batch_shape(case):
  shape = case.micro_batch, case.length, case.config.embed_dim
  return _shaped(shape, jnp.float32, case.mesh, P("data"))


def _statistic_shapes(case, statistic, inputs):
  return jax.tree.map(
    lambda leaf: _shaped(
      leaf.shape,
      leaf.dtype,
      case.mesh,
      devices.statistic_spec(leaf.shape, case.mesh),
    ),
    programs.statistic_shapes(statistic, inputs),
  )


def _widths(config):
  heads = config.num_heads * config.head_dim
  return dict(
    zip(_INPUTS, (config.embed_dim, heads, config.embed_dim)),
    down_in=config.mlp_dim,
  )


def activation_bytes(case: Case) -> float:
  """Bytes of all calibration activations on one chip.

  Args:
    case: the model and the pod.
  """
  tokens = case.sequences * case.length // case.mesh.shape["data"]
  return 4.0 * tokens * case.config.embed_dim


def _of_layers(case):
  """Statistics of a layer, and its second pass."""
  config, mesh = case.config, case.mesh
  runs = case.sequences // case.micro_batch
  waiting = activation_bytes(case)

  def statistics(name):
    total = {
      key: _statistic_shapes(case, name, width)
      for key, width in _widths(config).items()
    }
    return programs.add_statistics.lower(
      config,
      mesh,
      name,
      _INPUTS,
      layer_shapes(case),
      (_batch_shape(case), None),
      False,
      total,
    )

  def advance():
    return streaming.advance_batch.lower(
      config, mesh, layer_shapes(case), _batch_shape(case), None, False
    )

  def error():
    old = layer_shapes(case)
    shape = 1, min(layer.ERROR_TOKENS, case.length), config.embed_dim
    x_BTD = _shaped(shape, jnp.float32, mesh)
    return programs.measure_error.lower(config, old, old, x_BTD, None, False)

  found = {
    f"statistics {name}": Program(
      lower=functools.partial(statistics, name), runs=runs, resident=waiting
    )
    for name in OBSERVERS
  }
  found["second pass"] = Program(lower=advance, runs=runs, resident=waiting)
  found["layer error"] = Program(lower=error, resident=waiting)
  return found


def _of_methods(case):
  """Every method, on the kernel with the most inputs."""
  found = {}
  held = activation_bytes(case) + _layer_bytes(case)
  for name, method in registry.METHODS.items():
    if method.unit == registry.ENTRIES:
      for label, pattern in _PATTERNS.items():
        if type(pattern).__name__ in method.patterns:
          found[f"{name} {label}"] = Program(
            lower=functools.partial(
              _lower_method, case, method, _in_group(pattern, method)
            ),
            resident=held,
          )
    elif method.unit == registry.HIDDEN_UNITS:
      found[name] = Program(
        lower=functools.partial(_lower_units, case, method), resident=held
      )
  found["sparsegpt factor"] = Program(
    lower=functools.partial(_lower_factor, case), resident=held
  )
  return found


def _in_group(pattern, method):
  if isinstance(pattern, Unstructured):
    return dataclasses.replace(pattern, group=method.groups[0])
  return pattern


def _layer_bytes(case):
  """Bytes on one chip of a layer as it was, without the kernel in work."""
  return sum(
    leaf.dtype.itemsize
    * np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=float)
    for leaf in jax.tree.leaves(layer_shapes(case))
  )


def _lower_method(case, method, pattern):
  w_IO = layer_shapes(case)["mlp"]["down"]["kernel"]
  prepared = None
  if method.statistic:
    prepared = _statistic_shapes(case, method.statistic, w_IO.shape[0])
  if method.preparation:
    prepared = _factor_shapes(case, w_IO.shape[0])
  return programs.apply_method.lower(method.apply, pattern, w_IO, prepared)


def _factor_shapes(case, inputs):
  square = (inputs, inputs)
  return hessian_inverse.InverseFactor(
    upper=_shaped(
      square, jnp.float32, case.mesh, devices.statistic_spec(square, case.mesh)
    ),
    dead=_shaped((inputs,), bool, case.mesh),
    ok=_shaped((), bool, case.mesh),
  )


def _lower_factor(case):
  statistics = _statistic_shapes(case, "gram", case.config.mlp_dim)
  return hessian_inverse.compiled_inverse_factor.lower(
    statistics, 0.01, statistics.sum_outer.sharding
  )


def _lower_units(case, method):
  mlp = layer_shapes(case)["mlp"]
  statistics = _statistic_shapes(case, method.statistic, case.config.mlp_dim)
  return programs.apply_units.lower(method.apply, 0.5, mlp, statistics)


def _of_models(case):
  """What runs a whole model."""
  return {
    "forward": Program(lower=functools.partial(_lower_forward, case)),
    "decode step": Program(lower=functools.partial(_lower_step, case)),
    "transitions": Program(lower=functools.partial(_lower_transitions, case)),
    "propagation": Program(lower=functools.partial(_lower_propagation, case)),
  }


def _tokens(case, length, dtype=jnp.int32):
  return _shaped((case.batch, length), dtype, case.mesh, P("data"))


def _lower_forward(case):
  @jax.jit
  def forward(params, tokens_BT):
    x_BTD, _ = decoder.forward(case.config, params, tokens_BT)
    return decoder.unembed(case.config, params, x_BTD[:, -1])

  return forward.lower(params_shapes(case), _tokens(case, case.length))


def _lower_step(case):
  config, mesh = case.config, case.mesh

  @functools.partial(jax.jit, donate_argnums=1)
  def step(params, cache, tokens_BT):
    x_BTD, _, cache = decode_step(config, params, cache, tokens_BT)
    return decoder.unembed(config, params, x_BTD[:, 0]), cache

  heads = "model" if config.num_kv_heads % mesh.shape["model"] == 0 else None
  slots = None if heads else "model"
  shape = (
    config.num_layers,
    case.batch,
    case.cached,
    config.num_kv_heads,
    config.head_dim,
  )
  kept = _shaped(shape, jnp.bfloat16, mesh, P(None, "data", slots, heads, None))
  cache = Cache(
    key=kept,
    value=kept,
    positions=_tokens(case, case.cached),
    valid=_tokens(case, case.cached, bool),
    length=_shaped((), jnp.int32, mesh),
  )
  return step.lower(params_shapes(case), cache, _tokens(case, 1))


def _lower_transitions(case):
  params = params_shapes(case)
  return transitions.compare_transitions.lower(
    case.config,
    params,
    params,
    _tokens(case, case.length),
    None,
    num_steps=_STEPS,
  )


def _lower_propagation(case):
  """One direction at one node: where the cost of attribution lies."""
  config, mesh = case.config, case.mesh
  params = params_shapes(case)
  # As `path.add_delta` makes them, which would lose the placement.
  for group, kernel in kernels_of(params["layers"]):
    leaf = params["layers"][group][kernel]
    leaf["delta"] = leaf["kernel"]
  read = _shaped(
    (case.batch, _STEPS, config.embed_dim), jnp.bfloat16, mesh, P("data")
  )
  line = Path(
    params=params,
    tokens=_tokens(case, case.length),
    valid=_tokens(case, case.length, bool),
    alive=_shaped((case.batch, _STEPS), bool, mesh, P("data")),
    start=read,
    end=read,
    temperature=_shaped((), jnp.float32, mesh),
    options=_shaped((0,), jnp.int32, mesh),
  )
  return path.move_at.lower(config, line, _shaped((), jnp.float32, mesh))
