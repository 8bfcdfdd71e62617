"""A Llama of a few thousand parameters, for tests that need any decoder."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig, RopeConfig


def tiny_llama(num_layers: int = 2, **changes) -> ModelConfig:
  """The configuration of a tied Llama of width 16, other fields on request."""
  return ModelConfig(
    **dict(
      family="llama",
      num_layers=num_layers,
      embed_dim=16,
      mlp_dim=24,
      num_heads=4,
      num_kv_heads=2,
      head_dim=4,
      vocab_size=40,
      norm_eps=1e-5,
      rope=RopeConfig(kind="default", theta=10000.0),
      max_positions=64,
      tie_embeddings=True,
      sliding_layers=(False,) * num_layers,
    )
    | changes
  )


def random_params(config: ModelConfig, rng: np.random.Generator, scale=1.0):
  """Float32 normal weights of a decoder, larger than at initialisation.

  Filled by NumPy: drawn by JAX, every shape would be compiled for.
  """
  shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
  return jax.tree.map(
    lambda w: jnp.asarray(rng.normal(0, scale, w.shape), jnp.float32), shapes
  )
