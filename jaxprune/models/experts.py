"""What does a mixture of experts add to the residual?

Each token passes through the few experts that a router chooses for it; what
they give is added with the weights of the router. The experts of a layer are
stacked on E. Two forms of one function:
  gathered   for few rows, such as a decoding step: the kernels of the chosen
             experts are picked, and no others are read;
  scanned    for many rows: one expert after the other runs on all rows, and
             counts where it was chosen. The work is E / C times that of the
             chosen experts alone, the memory that of one expert.

Reference: Shazeer et al., arXiv:1701.06538; Qwen3, arXiv:2505.09388;
`Qwen3MoeSparseMoeBlock` of transformers 5.
Differs from the reference in: the router's softmax and the weighted sum are
float32 whatever the dtype of the parameters; among equal probabilities the
first experts are chosen.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from jaxprune.models import activations, parts
from jaxprune.models.parts import Intermediates


class Experts(parts.Part):
  """The MLPs of one layer and the router that chooses among them.

  Parameters: router/kernel [D, E]; gate/kernel and up/kernel [E, D, F];
  down/kernel [E, F, D].
  """

  def setup(self) -> None:
    config = self.config
    experts, inner = config.num_experts, config.mlp_dim
    self.router = parts.Projection(experts, False, self.dtype)
    self.gate, self.up, self.down = (
      _Kernels((experts, *shape), self.dtype)
      for shape in (
        *((config.embed_dim, inner),) * 2,
        (inner, config.embed_dim),
      )
    )

  def __call__(self, y_BTD: jax.Array) -> tuple[jax.Array, Intermediates]:
    """Run the chosen experts.

    Args:
      y_BTD: normed residual [B, T, D].

    Returns:
      What the MLP adds, [B, T, D], and `out`: routes, the experts of each
      token, int32 [B, T, C], and down_in [B, T, C, F], the input of `down` in
      each of them.
    """
    kernels = self.gate(), self.up(), self.down()
    routes_BTC, weights_BTC = self.route(y_BTD)
    batch, length = y_BTD.shape[:2]
    y_RD = rearrange(y_BTD, "B T D -> (B T) D")
    routes_RC, weights_RC = (
      rearrange(x, "B T C -> (B T) C") for x in (routes_BTC, weights_BTC)
    )
    form = _gathered if routes_RC.size <= len(kernels[0]) else _scanned
    activation = activations.FUNCTIONS[self.config.activation]
    added_RD, inner_RCF = form(
      functools.partial(_expert, activation),
      kernels,
      y_RD,
      routes_RC,
      weights_RC,
    )
    return (
      added_RD.astype(y_BTD.dtype).reshape(y_BTD.shape),
      {
        "routes": routes_BTC,
        "down_in": inner_RCF.reshape(batch, length, *inner_RCF.shape[1:]),
      },
    )

  def route(self, y_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The experts of each token, int32 [B, T, C], and their float32 weights."""
    config = self.config
    p_BTE = jax.nn.softmax(self.router(y_BTD).astype(jnp.float32), axis=-1)
    weights_BTC, routes_BTC = jax.lax.top_k(p_BTE, config.experts_per_token)
    if config.norm_expert_weights:
      weights_BTC = weights_BTC / jnp.sum(weights_BTC, axis=-1, keepdims=True)
    return routes_BTC, weights_BTC.astype(y_BTD.dtype).astype(jnp.float32)


class _Kernels(nn.Module):
  """The kernels of all experts, [E, I, O]."""

  shape: tuple[int, ...]
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self) -> jax.Array:
    given = self.variables.get("params", {})
    shape = given["kernel"].shape if given else self.shape
    return self.param("kernel", parts.initial_kernel, shape, self.dtype)


def _expert(activation, y_RD, gate_DF, up_DF, down_FD):
  """One expert: its output, and the input of down."""
  gate_RF, up_RF = (
    jnp.einsum("RD,DF->RF", y_RD, kernel_DF) for kernel_DF in (gate_DF, up_DF)
  )
  inner_RF = activation(gate_RF) * up_RF
  return jnp.einsum("RF,FD->RD", inner_RF, down_FD), inner_RF


def _gathered(expert, kernels, y_RD, routes_RC, weights_RC):
  """Only the kernels of the chosen experts are read."""
  run = jax.vmap(jax.vmap(expert, (None, 0, 0, 0)))
  out_RC1D, inner_RC1F = run(
    y_RD[:, None], *(kernel[routes_RC] for kernel in kernels)
  )
  out_RCD, inner_RCF = out_RC1D[:, :, 0], inner_RC1F[:, :, 0]
  added_RD = jnp.einsum(
    "RC,RCD->RD", weights_RC, out_RCD, preferred_element_type=jnp.float32
  )
  return added_RD, inner_RCF


def _scanned(expert, kernels, y_RD, routes_RC, weights_RC):
  """One expert after the other, on all rows."""

  def body(carry, inputs):
    added_RD, inner_RCF = carry
    index, *own = inputs
    out_RD, inner_RF = expert(y_RD, *own)
    chosen_RC = routes_RC == index
    weight_R = jnp.sum(jnp.where(chosen_RC, weights_RC, 0), axis=1)
    added_RD += weight_R[:, None] * out_RD.astype(jnp.float32)
    inner_RCF = jnp.where(chosen_RC[..., None], inner_RF[:, None], inner_RCF)
    return (added_RD, inner_RCF), None

  count, _, width = kernels[0].shape
  start = (
    jnp.zeros(y_RD.shape, jnp.float32),
    jnp.zeros((*routes_RC.shape, width), y_RD.dtype),
  )
  carry, _ = jax.lax.scan(body, start, (jnp.arange(count), *kernels))
  return carry
