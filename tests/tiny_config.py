"""A Llama of a few thousand parameters, for tests that need any decoder."""

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
