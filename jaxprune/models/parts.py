"""What do decoder and encoder have in common? Gates, projections, the scan.

Every module here takes its parameters under the names that checkpoints have,
kernels [I, O]. The parameters that are given decide how wide a projection is
and whether it has a bias: pruning leaves narrower MLPs behind, and adds a bias
where it moves the mean of removed features into one.

Reference: Flax Linen, `nn.Dense` and `nn.scan`; LoRA, arXiv:2106.09685, for a
change that stands beside a kernel.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Mapping[str, Any]
Intermediates = dict[str, jax.Array]

# The initialiser of new kernels and tables; biases start at 0, scales at 1.
initial_kernel = nn.initializers.normal(0.02)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
  """Which sublayers stay: 1 keeps one, 0 drops it, a fraction scales it.

  Attributes:
    attention: float32 [L].
    mlp: float32 [L].
  """

  attention: jax.Array
  mlp: jax.Array


class Part(nn.Module):
  """A module that its model's config decides.

  Attributes:
    config: the model, a `ModelConfig` or an `EncoderConfig`.
    dtype: of new parameters.
  """

  config: Any
  dtype: Any = jnp.float32


def random_params(
  model: type[Part], config: Any, key: jax.Array, dtype: Any = jnp.float32
) -> Params:
  """Random parameters: normal of deviation 0.02, no bias, unit scales.

  `jax.eval_shape` of this gives the tree without the memory.

  Args:
    model: the module of a whole model.
    config: the model.
    key: randomness, `jax.random.key(seed)`.
    dtype: of the parameters.
  """
  tokens_11 = jnp.zeros((1, 1), jnp.int32)
  return model(config, dtype).init(key, tokens_11)["params"]


class Projection(nn.Module):
  """`nn.Dense` of the width and with the bias that its parameters have.

  Beside `kernel` [I, O] and `bias` [O] there may be a change of both, `delta`
  [I, O] and `delta_bias` [O], and `coefficient` [T] or [1]: how much of the
  change each position applies. These three are given, never initialised.

  Attributes:
    features: O of new parameters.
    use_bias: whether new parameters have a bias.
    dtype: of new parameters.
  """

  features: int
  use_bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTI: jax.Array) -> jax.Array:
    """Multiply and add: [B, T, I] to [B, T, O]."""
    given = self.variables.get("params", {})
    dense = nn.Dense(
      given["kernel"].shape[-1] if given else self.features,
      use_bias="bias" in given if given else self.use_bias,
      param_dtype=self.dtype,
      kernel_init=initial_kernel,
    )
    nn.share_scope(self, dense)
    y_BTO = dense(x_BTI)
    if "delta" not in given:
      return y_BTO
    change_BTO = jnp.einsum("BTI,IO->BTO", x_BTI, given["delta"])
    if "delta_bias" in given:
      change_BTO = change_BTO + given["delta_bias"][None, None]
    coefficient_1T1 = given["coefficient"].astype(y_BTO.dtype)[None, :, None]
    return y_BTO + coefficient_1T1 * change_BTO


def gated(x_BTD: jax.Array, gate: jax.Array | None) -> jax.Array:
  """What a sublayer adds, times its gate; None is 1.

  Args:
    x_BTD: [B, T, D].
    gate: scalar.
  """
  return x_BTD if gate is None else x_BTD * gate.astype(x_BTD.dtype)


def gate_options(gate: Gates | None) -> dict[str, jax.Array]:
  """The gates of one layer, scalars, as keyword arguments of its block."""
  if gate is None:
    return {}
  return dict(attention_gate=gate.attention, mlp_gate=gate.mlp)


def scan_layers(
  block: nn.Module,
  carry: Any,
  body: Callable[[nn.Module, Any, Any], tuple[Any, Any]],
  inputs: Any,
  length: int,
) -> tuple[Any, Any]:
  """`nn.scan` of one block whose parameters are stacked on L.

  Args:
    block: the module of one layer; new parameters differ by layer.
    carry: what `body` takes and returns.
    body: (block, carry, part of `inputs`) -> (carry, output).
    inputs: pytree of arrays stacked on L; None where there is none.
    length: L.

  Returns:
    The last carry, and the outputs stacked on L.
  """
  scan = nn.scan(
    body,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=length,
    # The scan broadcasts nothing, so it need not be traced twice to find
    # constants.
    check_constancy_invariants=False,
  )
  return scan(block, carry, inputs)
