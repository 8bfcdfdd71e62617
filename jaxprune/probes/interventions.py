"""Which part of a change of the logits changes p, and what undoes it?

The change dz = z_pruned - z is taken apart in three ways, and each pair adds up
to dz:

  parallel + orthogonal   along z, and across it
  offset + centred        the mean over the vocabulary, and the rest
  top + tail              on the likeliest tokens of p, and on all others

An intervention keeps one part and removes the other: z + part is the dense run
given this part, and it is also the pruned run without the other one, so one
number answers both questions. What must come out: the offset is invisible to
softmax, so keeping it alone does nothing and removing it does nothing; what is
parallel to z is a change of temperature, which no greedy choice sees (unless it
turns z around).

The controls have the size of what they stand for and a random direction. Size
and direction are also crossed: `direction_kept` has the direction of dz and the
p-weighted variance of a random change, `variance_kept` the reverse.

`RESTORATIONS` says of each remedy whether it needs the dense logits (an oracle,
which explains) or only the pruned ones (which one may use).

Reference: He et al., arXiv:2603.24652, section 3 (the parts, Theorems 1-3) and
section 6 (the variance under p); its reviewers asked for the interventions.
Differs from the reference in: there nothing is intervened on.

Logits must be finite.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxprune.probes import log_ratio, logit_moments, spaces

Array = jax.Array
# What adds up to dz.
PAIRS = (("parallel", "orthogonal"), ("offset", "centred"), ("top", "tail"))
PARTS = tuple(name for pair in PAIRS for name in pair)
# What is left of dz when a part is removed.
OTHER = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
# Whether a restoration needs the dense logits.
RESTORATIONS = {
  "half": "oracle",
  "variance_of_z": "oracle",
  "centred_by_p": "oracle",
  "centred_logits": "usable",
  "temperature": "usable",
  "top_k": "usable",
  "top_p": "usable",
}
# Interventions that leave p as it is, and those that besides leave every greedy
# choice as it is.
NULL_IN_P = ("centred_by_p", "centred_logits")
NULL_IN_GREEDY = (*NULL_IN_P, "variance_of_z", "temperature", "top_k", "top_p")


def split_change(
  z: ArrayLike, z_pruned: ArrayLike, *, top: int
) -> dict[str, Array]:
  """Takes dz apart.

  Args:
    z, z_pruned: finite logits [V] of one position.
    top: how many of the likeliest dense tokens make the part `top`; the lowest
      id first among equals.

  Returns:
    [V] under each name of `PARTS`. The two of a pair add up to dz; parallel is
    0 where z is 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional; top not in [1, V].
  """
  z_V, _ = spaces.checked_pair(z, z_pruned)
  dz_V = spaces.logit_change(z, z_pruned)
  top_V = top_tokens(z_V, top)
  square = jnp.sum(z_V * z_V)
  scale = jnp.sum(z_V * dz_V) / jnp.where(square == 0, 1, square)
  parallel_V = scale * z_V
  offset_V = jnp.broadcast_to(jnp.mean(dz_V), dz_V.shape)
  return {
    "parallel": parallel_V,
    "orthogonal": dz_V - parallel_V,
    "offset": offset_V,
    "centred": dz_V - offset_V,
    "top": jnp.where(top_V, dz_V, 0),
    "tail": jnp.where(top_V, 0, dz_V),
  }


def top_tokens(z: ArrayLike, top: int) -> Array:
  """Returns which tokens have the largest logits, bool [V].

  Args:
    z: logits [V].
    top: number of tokens; the lowest id first among equals.

  Raises:
    ValueError: top is not in [1, V].
  """
  z_V = jnp.asarray(z)
  if not 1 <= top <= z_V.size:
    raise ValueError(f"top={top}: must be between 1 and V={z_V.size}")
  return jnp.zeros(z_V.shape, bool).at[jax.lax.top_k(z_V, top)[1]].set(True)


def random_like(
  key: jax.Array, part: ArrayLike, support: ArrayLike = True
) -> Array:
  """Returns a random direction with the norm of `part`.

  Args:
    key: `jax.random.key`.
    part: one-dimensional, a change of logits [V] or of embeddings [D].
    support: bool of the same shape, entries that may be other than 0.

  Returns:
    Of the shape of `part`, isotropic on its support; 0 where the part is 0.
  """
  (part,) = spaces.widen(part)
  noise = jnp.where(support, jax.random.normal(key, part.shape, part.dtype), 0)
  size = spaces.norm_of(noise)
  return noise * (spaces.norm_of(part) / jnp.where(size == 0, 1, size))


def with_variance(
  direction: ArrayLike,
  like: ArrayLike,
  z: ArrayLike,
  temperature: ArrayLike = 1.0,
) -> Array:
  """Scales a change to the variance that another one has under p.

  Args:
    direction: [V], what is scaled; 0 where it has no variance itself.
    like: [V], whose variance under p = softmax(z / T) is taken.
    z: dense logits [V].
    temperature: T > 0.

  Returns:
    [V], a multiple of `direction`.
  """
  direction_V, like_V, z_V = spaces.widen(direction, like, z)
  weight_V = log_ratio.softmax(z_V, temperature)
  variance, wanted = (
    logit_moments.variance(weight_V, x_V) for x_V in (direction_V, like_V)
  )
  scale = jnp.sqrt(wanted / jnp.where(variance == 0, 1, variance))
  return jnp.where(variance == 0, 0, scale * direction_V)


def replace_change(
  z: ArrayLike,
  z_pruned: ArrayLike,
  key: jax.Array,
  *,
  top: int,
  temperature: ArrayLike = 1.0,
) -> dict[str, Array]:
  """Returns logits of every intervention on dz of one position.

  Args:
    z, z_pruned: finite logits [V].
    key: of the random directions.
    top: how many of the likeliest dense tokens make the part `top`.
    temperature: T of the softmax whose p weighs a variance.

  Returns:
    Logits [V] by name: `dense` and `pruned` as they are; `keep_PART`, which is
    z + PART; `add_random_PART`, z + a random direction as long as PART, and
    `remove_random_PART`, z_pruned less such a one, with PART also `all`; the
    random direction of top or tail has no entries outside of it; `shuffled`,
    the entries of dz given to random tokens; `direction_kept` and
    `variance_kept`, see the module.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  dz_V = spaces.logit_change(z_V, zq_V)
  parts = split_change(z_V, zq_V, top=top)
  top_V = top_tokens(z_V, top)
  sizes = {"all": dz_V, **parts}
  support = {"top": top_V, "tail": ~top_V}
  every_V = jnp.ones_like(top_V)
  keys = jax.random.split(key, len(sizes) + 1)
  # All directions are drawn at once: the compiler makes a program of its own of
  # every single draw.
  random = dict(
    zip(
      sizes,
      jax.vmap(random_like)(
        keys[:-1],
        jnp.stack(list(sizes.values())),
        jnp.stack([support.get(name, every_V) for name in sizes]),
      ),
    )
  )
  logits = {"dense": z_V, "pruned": zq_V}
  logits |= {f"keep_{name}": z_V + part_V for name, part_V in parts.items()}
  logits |= {f"add_random_{name}": z_V + r_V for name, r_V in random.items()}
  logits |= {
    f"remove_random_{name}": zq_V - r_V for name, r_V in random.items()
  }
  logits["shuffled"] = z_V + jax.random.permutation(keys[-1], dz_V)
  logits["direction_kept"] = z_V + with_variance(
    dz_V, random["all"], z_V, temperature
  )
  logits["variance_kept"] = z_V + with_variance(
    random["all"], dz_V, z_V, temperature
  )
  return logits


def restorations(
  z: ArrayLike,
  z_pruned: ArrayLike,
  *,
  temperature: ArrayLike = 1.0,
  temperatures: Sequence[float] = (),
) -> dict[str, Array]:
  """Returns logits of every restoration but truncation, of one position.

  Args:
    z, z_pruned: finite logits [V].
    temperature: T at which the result is read.
    temperatures: T at which the pruned logits are to be read instead, the dense
      ones staying at `temperature`.

  Returns:
    Logits [V] by name: `half`, dz halved; `variance_of_z`, the pruned logits
    stretched about their mean under p until their variance under p is that of
    the dense ones; `centred_by_p`, dz less its mean under p; `centred_logits`,
    the pruned logits less their mean; `temperature_T`.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  dz_V = spaces.logit_change(z_V, zq_V)
  weight_V = log_ratio.softmax(z_V, temperature)
  mean = jnp.sum(weight_V * zq_V)
  stretched_V = mean + with_variance(zq_V - mean, z_V, z_V, temperature)
  has_none = logit_moments.variance(weight_V, zq_V) == 0
  logits = {
    "half": z_V + dz_V / 2,
    "variance_of_z": jnp.where(has_none, zq_V, stretched_V),
    "centred_by_p": zq_V - jnp.sum(weight_V * dz_V),
    "centred_logits": zq_V - jnp.mean(zq_V),
  }
  for other in temperatures:
    logits[f"temperature_{other:g}"] = zq_V * (temperature / other)
  return logits


def mix_layers(use_dense_L: ArrayLike, dense: Any, pruned: Any) -> Any:
  """Takes each layer from one of two models.

  Args:
    use_dense_L: bool [L], may be traced: no new compilation for another mix.
    dense, pruned: trees of one structure, every leaf with a leading L.

  Returns:
    A tree like them.
  """

  def choose(dense_leaf, pruned_leaf):
    return jax.vmap(jnp.where)(use_dense_L, dense_leaf, pruned_leaf)

  return jax.tree.map(choose, dense, pruned)


def first_layers(num_layers: int) -> Array:
  """Returns which layers are among the first k: bool [L + 1, L], k from 0."""
  return jnp.arange(num_layers)[None] < jnp.arange(num_layers + 1)[:, None]
