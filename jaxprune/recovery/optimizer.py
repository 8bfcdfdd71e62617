"""AdamW with clipping, a linear warm-up and a cosine: how all training goes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """How long a training is, and how far its steps go.

  Attributes:
    steps: optimiser steps.
    learning_rate: peak of the cosine schedule.
    warmup: fraction of the steps in which the rate rises linearly.
    weight_decay: of AdamW, on kernels only.
    clip: largest global norm of a gradient.
  """

  steps: int = 200
  learning_rate: float = 5e-4
  warmup: float = 0.1
  weight_decay: float = 0.0
  clip: float = 1.0


def schedule(settings: Optimizer, final: float = 0.0) -> Callable[[int], Any]:
  """Learning rate at a step from 0: linear warm-up, then a cosine.

  Args:
    settings: of the training.
    final: where the cosine ends, as a fraction of the peak.
  """
  warm = int(settings.warmup * settings.steps)
  return optax.warmup_cosine_decay_schedule(
    0.0 if warm else settings.learning_rate,
    settings.learning_rate,
    warm,
    settings.steps,
    end_value=final * settings.learning_rate,
  )


def adamw(settings: Optimizer) -> optax.GradientTransformation:
  """AdamW with clipping, but for its last step: `- rate * change`."""

  def kernels(params):
    return jax.tree.map_with_path(
      lambda path, _: path[-1].key == "kernel", params
    )

  return optax.chain(
    optax.clip_by_global_norm(settings.clip),
    optax.scale_by_adam(b1=0.9, b2=0.98),
    optax.add_decayed_weights(settings.weight_decay, mask=kernels),
  )


def committed(tree: Any) -> Any:
  """The same arrays, bound to the devices where they are.

  As those of a state that was read are: a step that begins anew and one that
  goes on are then one program.

  Args:
    tree: of arrays.
  """
  return jax.tree.map(lambda leaf: jax.device_put(leaf, leaf.sharding), tree)
