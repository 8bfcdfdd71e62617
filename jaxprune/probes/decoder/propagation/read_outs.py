"""What is read out of a position between two models, and how steep is it?

A few numbers for each output of a path (`path`), and their gradients with
respect to what the LM head reads. The gradients have closed forms, because they
are needed at many places of the path.

Reference: the read-outs are those of He et al., arXiv:2603.24652, section 3.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.probes import log_ratio, scan
from jaxprune.probes.decoder.propagation import memory
from jaxprune.probes.divergences import compare_distributions

Params = Any
METRICS = ("kl", "one_minus_cos_p", "log_prob", "margin", "dz", "dz_centred")
OPTION_METRIC = "option_margin"
ROWS = memory.ROWS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Path:
  """Two models, the text that both read, and the ends of the path.

  Attributes:
    params: the dense model's, with `delta` beside every kernel that changes.
    tokens: int [B, T], left-padded.
    valid: bool [B, T], False for padding.
    alive: bool [B, R], outputs that count; the others read 0.
    start: what the dense LM head reads at the last R positions, [B, R, D].
    end: the same of the pruned model.
    temperature: T of the softmax.
    options: int [C], token ids of the options; without any, [0], there is no
      option margin.
  """

  params: Params
  tokens: jax.Array
  valid: jax.Array
  alive: jax.Array
  start: jax.Array
  end: jax.Array
  temperature: jax.Array
  options: jax.Array


def read_out(
  config: ModelConfig, path: Path, h_BRD: jax.Array, *, smooth: bool = False
) -> dict[str, jax.Array]:
  """Reduce what the LM head reads to a few numbers per position.

  Args:
    config: of the dense model.
    path: the models and the text.
    h_BRD: read by the LM head, [B, R, D].
    smooth: give up accuracy where q is nearly p for derivatives of every order
      there. `compare_distributions` takes the change of equal logits as a
      constant 0, so that a model compared with itself gives 0, and so loses
      its own second derivative.

  Returns:
    [B, R] each, with z the logits of `h_BRD` and q its distribution: kl,
    KL(p||q) in nats; one_minus_cos_p; log_prob, of the dense model's top
    token, nats; margin, of that token over the dense runner-up, logits; dz,
    the projection of z - z_dense on the whole change, in units of it, so 1 at
    the end of the path; dz_centred, the same less the means over the
    vocabulary; with options option_margin, of the dense model's best option
    over its second, logits.
  """
  return scan.measure_rows(
    functools.partial(_measure, config, path, smooth),
    h_BRD,
    path.start,
    path.end,
    path.alive,
    chunk=ROWS,
  )


def gradients(
  config: ModelConfig, path: Path, h_BRD: jax.Array
) -> dict[str, jax.Array]:
  """Gradients of the read-outs, each by its own position.

  Args:
    config: of the dense model.
    path: the models and the text.
    h_BRD: read by the LM head, [B, R, D].

  Returns:
    [B, R, D] by metric.
  """
  return scan.measure_rows(
    functools.partial(_gradient, config, path),
    h_BRD,
    path.start,
    path.end,
    path.alive,
    chunk=ROWS,
  )


def _measure(config, path, smooth, h_D, start_D, end_D, alive):
  """The read-outs of one position."""
  y_V, z_V, end_V = (
    decoder.unembed(config, path.params, each_D, "raw")
    for each_D in (h_D, start_D, end_D)
  )
  log_q_V, _ = log_ratio.log_softmax(y_V, path.temperature)
  if smooth:
    log_p_V, _ = log_ratio.log_softmax(z_V, path.temperature)
    p_V, q_V = jnp.exp(log_p_V), jnp.exp(log_q_V)
    kl = jnp.sum(p_V * (log_p_V - log_q_V))
    cos = jnp.sum(p_V * q_V) / jnp.sqrt(jnp.sum(p_V * p_V) * jnp.sum(q_V * q_V))
    one_minus_cos_p = 1 - cos
  else:
    divergences = compare_distributions(z_V, y_V, path.temperature)
    kl, one_minus_cos_p = divergences.kl, divergences.one_minus_cos_p
  first, second = jax.lax.top_k(z_V, 2)[1]
  now_V, whole_V = y_V - z_V, end_V - z_V
  values = {
    "kl": kl,
    "one_minus_cos_p": one_minus_cos_p,
    "log_prob": log_q_V[first],
    "margin": y_V[first] - y_V[second],
    "dz": jnp.sum(now_V * _unit_of(whole_V)),
    "dz_centred": jnp.sum(now_V * _unit_of(whole_V - jnp.mean(whole_V))),
  }
  if path.options.size:
    best = path.options[jax.lax.top_k(z_V[path.options], 2)[1]]
    values[OPTION_METRIC] = y_V[best[0]] - y_V[best[1]]
  return {name: jnp.where(alive, value, 0) for name, value in values.items()}


def _gradient(config, path, h_D, start_D, end_D, alive):
  """Gradients [D] of the read-outs of one position, in closed form.

  By the logits, with q the distribution there: of KL(p||q) (q - p) / T; of
  log q_i (e_i - q) / T; of 1 - cos(p, q) cos (q^2 / |q|^2 - p q / <p, q>) / T.
  Each sums to 0 over the vocabulary.
  """
  head = functools.partial(decoder.unembed, config, path.params, lens="raw")
  y_V, pull = jax.vjp(head, h_D)
  z_V, end_V = head(start_D), head(end_D)
  p_V, q_V = (
    jax.nn.softmax(each_V / path.temperature) for each_V in (z_V, y_V)
  )
  both, square = jnp.sum(p_V * q_V), jnp.sum(q_V * q_V)
  cos = both / jnp.sqrt(jnp.sum(p_V * p_V) * square)
  # <p, q> is 0 where the two have no token in common; so is the cosine.
  shared_V = p_V * q_V / jnp.where(both == 0, 1, both)
  whole_V = end_V - z_V
  is_token = lambda token: jnp.arange(len(z_V)) == token
  first, second = jax.lax.top_k(z_V, 2)[1]

  def balance(g_V):
    # Where p is confident, the gradient of the likeliest token has lost its
    # digits. It follows from the others, since all entries of the gradient sum
    # to 0.
    others_V = jnp.where(is_token(first), 0, g_V)
    return jnp.where(is_token(first), -jnp.sum(others_V), others_V) / (
      path.temperature
    )

  by_logits = {
    "kl": balance(q_V - p_V),
    "one_minus_cos_p": balance(cos * (q_V * q_V / square - shared_V)),
    "log_prob": balance(-q_V),
    "margin": 1.0 * is_token(first) - is_token(second),
    "dz": _unit_of(whole_V),
    "dz_centred": _unit_of(whole_V - jnp.mean(whole_V)),
  }
  if path.options.size:
    best = path.options[jax.lax.top_k(z_V[path.options], 2)[1]]
    by_logits[OPTION_METRIC] = 1.0 * is_token(best[0]) - is_token(best[1])
  gradients_PD = jax.vmap(lambda g_V: pull(g_V)[0])(
    jnp.stack(list(by_logits.values()))
  )
  return dict(zip(by_logits, jnp.where(alive, gradients_PD, 0)))


def _unit_of(whole_V):
  """whole / |whole|^2, so that whole is 1 along it; 0 where it is 0."""
  square = jnp.sum(whole_V * whole_V)
  still = square == 0
  return jnp.where(still, 0, whole_V / jnp.where(still, 1, square))
