"""How is the model trained: loss, schedule, one step, a run that can resume.

The loss is the weighted mean of next-token cross-entropy (nats) plus a light
contrastive term that draws a question to the passage about the same fact:
InfoNCE over the mean-pooled, normed hidden states of a batch of pairs.

Reference: AdamW, arXiv:1711.05101; InfoNCE, arXiv:1807.03748.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig, RopeConfig
from jaxprune.pocket import batches, documents
from jaxprune.pocket import tokenizer as tokenizer_lib
from jaxprune.recovery import optimizer, states


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(optimizer.Optimizer):
  """Everything that decides a run, apart from the world.

  Attributes:
    seed: of the initial parameters and of the order of documents.
    contrastive_weight: factor of the InfoNCE term.
    contrastive_temperature: T that divides its cosines.
    layout: what a step reads.
  """

  seed: int = 0
  contrastive_weight: float = 0.2
  contrastive_temperature: float = 0.05
  layout: batches.Layout = batches.Layout()
  steps: int = 2500
  learning_rate: float = 3e-3
  warmup: float = 0.04
  weight_decay: float = 0.05


def model_config(vocab_size: int) -> ModelConfig:
  """The shape of the pocket model: llama, 12 layers, tied embeddings."""
  return ModelConfig(
    family="llama",
    num_layers=12,
    embed_dim=128,
    mlp_dim=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=vocab_size,
    norm_eps=1e-5,
    rope=RopeConfig(kind="default", theta=10000.0),
    max_positions=256,
    tie_embeddings=True,
    sliding_layers=(False,) * 12,
    bos_id=tokenizer_lib.BOS,
    eos_ids=(tokenizer_lib.EOS,),
    pad_id=tokenizer_lib.PAD,
  )


def initial_params(config: ModelConfig, key: jax.Array) -> decoder.Params:
  """Normal kernels of deviation I**-0.5, smaller where they add up.

  Kernels that write to the residual stream (output, down) are divided by
  sqrt(2 L), so that its variance does not grow with depth.

  Args:
    config: the model.
    key: of the draws.
  """
  shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  leaves, tree = jax.tree.flatten_with_path(shapes)
  values = []
  for leaf_key, (path, leaf) in zip(
    jax.random.split(key, len(leaves)), leaves, strict=True
  ):
    names = [entry.key for entry in path]
    if names[-1] == "scale":
      values.append(jnp.ones(leaf.shape, jnp.float32))
      continue
    width = config.embed_dim if names[-1] == "table" else leaf.shape[-2]
    deviation = width**-0.5
    if names[-2] in ("output", "down"):
      deviation /= np.sqrt(2 * config.num_layers)
    values.append(deviation * jax.random.normal(leaf_key, leaf.shape))
  return jax.tree.unflatten(tree, values)


def hidden_states(
  config: ModelConfig, params: decoder.Params, tokens_BT: jax.Array
) -> jax.Array:
  """Hidden states with little to keep for the backward pass.

  On a CPU, computing again what is no matrix product is faster than moving it.

  Args:
    config: the model.
    params: its parameters.
    tokens_BT: int [B, T].

  Returns:
    The residual after the last layer, before the final norm, [B, T, D].
  """
  return decoder.forward(config, params, tokens_BT, remat=True)[0]


def info_nce(x_QD: jax.Array, y_AD: jax.Array, temperature: float) -> jax.Array:
  """Symmetric InfoNCE: row i of x belongs to row i of y.

  Args:
    x_QD: vectors of queries [Q, D].
    y_AD: vectors of documents [Q, D].
    temperature: what cosines are divided by.

  Returns:
    A scalar in nats.
  """

  def unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)

  logits_QA = jnp.einsum("QD,AD->QA", unit(x_QD), unit(y_AD)) / temperature
  right_Q = jnp.diagonal(logits_QA)
  return 0.5 * jnp.mean(jax.nn.logsumexp(logits_QA, axis=1) - right_Q) + (
    0.5 * jnp.mean(jax.nn.logsumexp(logits_QA, axis=0) - right_Q)
  )


def mean_pool(
  config: ModelConfig,
  params: decoder.Params,
  x_BTD: jax.Array,
  valid_BT: jax.Array,
) -> jax.Array:
  """Mean of the normed hidden states over valid tokens.

  Args:
    config: the model.
    params: its parameters.
    x_BTD: the residual after the last layer, [B, T, D].
    valid_BT: bool [B, T].

  Returns:
    [B, D].
  """
  y_BTD = decoder.final_norm(config, params, x_BTD)
  weight_BT1 = valid_BT[..., None].astype(y_BTD.dtype)
  return jnp.sum(y_BTD * weight_BT1, 1) / jnp.sum(weight_BT1, 1)


def _cross_entropy(config, params, x_BTD, tokens_BT, weights_BT):
  """Weighted sums: nats, and right first guesses at weight 1."""
  z_BTV = decoder.unembed(config, params, x_BTD[:, :-1])
  target_BT, weights_BT = tokens_BT[:, 1:], weights_BT[:, 1:]
  picked_BT = jnp.take_along_axis(z_BTV, target_BT[..., None], -1)[..., 0]
  nats_BT = jax.nn.logsumexp(z_BTV, -1) - picked_BT
  right_BT = (picked_BT >= z_BTV.max(-1)) & (weights_BT == 1)
  return (weights_BT * nats_BT).sum(), right_BT.sum()


def loss(
  config: ModelConfig,
  train: TrainConfig,
  params: decoder.Params,
  batch: batches.Batch,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The training objective, and its parts.

  Args:
    config: the model.
    train: says how the two losses are weighed.
    params: of the model; the loss is differentiable in them.
    batch: what is read.

  Returns:
    A float32 scalar in nats, and {'language' nats per weighted token,
    'contrastive' nats, 'right' fraction of completion tokens}.
  """
  x_BTD = hidden_states(config, params, batch.tokens)
  y_BTD = hidden_states(config, params, batch.pair_tokens)
  packed = _cross_entropy(config, params, x_BTD, batch.tokens, batch.weights)
  paired = _cross_entropy(
    config, params, y_BTD, batch.pair_tokens, batch.pair_weights
  )
  total = batch.weights.sum() + batch.pair_weights.sum()
  language = (packed[0] + paired[0]) / total
  pooled_BD = mean_pool(config, params, y_BTD, batch.pair_valid)
  contrastive = info_nce(
    *jnp.split(pooled_BD, 2), train.contrastive_temperature
  )
  right = packed[1] / jnp.maximum((batch.weights == 1).sum(), 1)
  return language + train.contrastive_weight * contrastive, {
    "language": language,
    "contrastive": contrastive,
    "right": right,
  }


def transformation(train: TrainConfig) -> optax.GradientTransformation:
  """AdamW whose rate falls to 2 % of its peak."""
  return optax.chain(
    optimizer.adamw(train),
    optax.scale_by_learning_rate(optimizer.schedule(train, final=0.02)),
  )


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _update(config, train, state, batch):
  params, moments = state
  grads, parts = jax.grad(functools.partial(loss, config, train), has_aux=True)(
    params, batch
  )
  changes, moments = transformation(train).update(grads, moments, params)
  return (optax.apply_updates(params, changes), moments), parts


def run(
  config: ModelConfig,
  train: TrainConfig,
  index: documents.Index,
  tokenizer: tokenizers.Tokenizer,
  folder: pathlib.Path,
  *,
  save_every: int,
  report: Callable[[str], None] = print,
) -> decoder.Params:
  """Train to the end, from the newest checkpoint if there is one.

  Args:
    config: the model.
    train: the run; a checkpoint of another run in `folder` is refused.
    index: the world.
    tokenizer: of `config.vocab_size` tokens.
    folder: where checkpoints go; the newest two are kept.
    save_every: steps between checkpoints.
    report: gets a line of progress from time to time.

  Returns:
    The parameters after the last step, float32.

  Raises:
    ValueError: a checkpoint of other settings, or a loss that is not finite.
  """
  transform = transformation(train)
  params = initial_params(config, jax.random.key(train.seed))
  state = optimizer.committed((params, transform.init(params)))
  kept = states.States(folder, dataclasses.asdict(train))
  first, state, _ = kept.newest(state)
  start, seen = time.monotonic(), []
  for step in range(first, train.steps):
    state, parts = _update(
      config,
      train,
      state,
      batches.make_batch(index, tokenizer, train.seed, step, train.layout),
    )
    seen.append(parts)
    done = step + 1
    if done % 20 == 0 or done == train.steps:
      means = {
        name: float(np.mean([part[name] for part in seen])) for name in seen[0]
      }
      if not np.isfinite(means["language"]):
        raise ValueError(
          f"loss {means} at step {done}: lower the learning rate"
        )
      left = (time.monotonic() - start) / (done - first) * (train.steps - done)
      values = " ".join(f"{name} {value:.3f}" for name, value in means.items())
      report(f"step {done}/{train.steps} {values} {left / 60:.1f} min left")
      seen = []
    if done % save_every == 0 or done == train.steps:
      kept.save(done, state)
  return state[0]
