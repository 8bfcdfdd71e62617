"""Can errors be seen while the pruned model writes, and what does that save?

At every step a signal gives a risk, larger is worse. Above a threshold the
dense model decides the token (fallback), or the text is given up (stop).

  margin     second largest logit of the pruned model less the largest
  entropy    of q, nats
  variance   Var_q(z_pruned / T)
  random     a uniform draw in [0, 1): the control of equal size
  var_p      Var_p(dz) / T^2, an oracle: it needs the dense logits
  kl         KL(p||q), an oracle
  flip       1 where the two models choose different tokens, else 0: the oracle
             with the fewest fallbacks that give back the dense text

p is dense, q pruned. The first three need the pruned model alone. They see how
sure it is, not whether it is right.

Whose cache the dense model reads decides what a fallback costs. With its own
(`own`), all that was written since its last use must be read first, so dense
forward passes are saved only after the last fallback of a text. With the
pruned model's (`shared`), one token is read, and what it leaves in the cache is
the dense model's; but its history is the pruned model's.

Reference: He et al., arXiv:2603.24652, section 8 (the guidance that is put to
the test); El-Yaniv and Wiener, JMLR 11 (2010), risk and coverage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune.probes import divergences, log_ratio, logit_moments, spaces

Array = jax.Array
Tree = Any

SIGNALS = ("margin", "entropy", "variance", "random", "var_p", "kl", "flip")
ORACLES = ("var_p", "kl", "flip")
CACHES = ("own", "shared")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Risks:
  """The risk at one step by each signal, scalars; fields as in the module."""

  margin: Array
  entropy: Array
  variance: Array
  random: Array
  var_p: Array
  kl: Array
  flip: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
  """When each row falls back; an input, so that a sweep is one program.

  Attributes:
    signal: int32 [B], index in `SIGNALS`.
    threshold: float32 [B]; a step of a risk above it is deferred to the dense
      model: none for inf, all for -inf.
  """

  signal: Array
  threshold: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitored:
  """A text written under a policy.

  Attributes:
    tokens: int32 [R, B].
    deferred: bool [R, B], the dense model decided.
    alive: bool [R, B], the text had not ended before the step.
    risks: leaves float32 [R, B].
  """

  tokens: Array
  deferred: Array
  alive: Array
  risks: Risks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
  """How a monitored text is written; hashable, so static under jit.

  Attributes:
    num_steps: tokens to write.
    eos_ids: tokens that end a text.
    temperature: T of the risks; decoding is greedy.
    cache: which cache the dense model reads, one of `CACHES`.
  """

  num_steps: int
  eos_ids: tuple[int, ...] = ()
  temperature: float = 1.0
  cache: str = "own"


def pruned_risks(
  z_pruned: ArrayLike, temperature: ArrayLike = 1.0
) -> tuple[Array, Array, Array]:
  """Margin, entropy and variance risk of one step, without a dense model.

  Args:
    z_pruned: logits [V].
    temperature: T > 0.

  Returns:
    Scalars: logits, nats, and no unit.

  Raises:
    ValueError: not one-dimensional, or T <= 0.
  """
  q = divergences.concentration(z_pruned, temperature)
  (zq_V,) = spaces.widen(z_pruned)
  scale = spaces.checked_temperature(temperature, zq_V.dtype)
  variance = logit_moments.variance(
    log_ratio.softmax(zq_V, temperature), zq_V / scale
  )
  return -q.margin, q.entropy, variance


def step_risks(
  z: ArrayLike,
  z_pruned: ArrayLike,
  draw: ArrayLike,
  temperature: ArrayLike = 1.0,
) -> Risks:
  """All risks of one step.

  Args:
    z, z_pruned: logits [V].
    draw: uniform in [0, 1), the risk `random`.
    temperature: T > 0.

  Raises:
    ValueError: shapes differ or are not one-dimensional, or T <= 0.
  """
  z_V, zq_V = spaces.checked_pair(z, z_pruned)
  margin, entropy, variance = pruned_risks(zq_V, temperature)
  x_V, _ = log_ratio.scaled_change(z_V, zq_V, temperature)
  var_p, _ = logit_moments.cumulants(log_ratio.softmax(z_V, temperature), x_V)
  kl, _ = divergences.kl_of(log_ratio.from_logits(z_V, zq_V, temperature))
  flip = jnp.argmax(z_V) != jnp.argmax(zq_V)
  return Risks(
    margin=margin,
    entropy=entropy,
    variance=variance,
    random=jnp.asarray(draw, z_V.dtype),
    var_p=var_p,
    kl=kl,
    flip=flip.astype(z_V.dtype),
  )


def write_monitored(
  decode: Callable[[Tree, Array, Tree], tuple[Array, Tree]],
  weights: dict[str, Tree],
  caches: dict[str, Tree],
  token_B: Array,
  policy: Policy,
  writing: Writing,
  *,
  key: Array,
  merge: Callable[[Tree, Tree, Array], Tree] | None = None,
) -> Monitored:
  """Write greedily with the pruned model, deferring steps to the dense one.

  Both models read every token here, so that all risks are known; what a
  deployment would have computed is counted by `dense_forwards`.

  Args:
    decode: `(weights, token_B, cache) -> (z_BV, cache)`, one step.
    weights: 'dense' and 'pruned', any pytrees.
    caches: 'pruned' and, for the cache 'own', 'dense': of the prompt without
      its last token.
    token_B: last prompt token, int32 [B].
    policy: see Policy.
    writing: see Writing.
    key: `jax.random.key` of the random risk.
    merge: `(pruned cache, dense cache, deferred_B) -> cache` after a step in
      which both read the same cache; None for the cache 'own'.

  Returns:
    Leaves [R, B]. Step 0 is the prediction after the last prompt token.

  Raises:
    ValueError: the cache is 'shared' without `merge`, or 'own' with it.
  """
  if (writing.cache == "shared") != (merge is not None):
    raise ValueError(
      f"cache={writing.cache!r}: give merge with a shared cache, and only then"
    )
  stop_ids = jnp.asarray(writing.eos_ids or (-1,), jnp.int32)
  rows_B = jnp.arange(token_B.shape[0])

  def step(state, t):
    token_B, cache, alive_B = state
    zq_BV, pruned_cache = decode(weights["pruned"], token_B, cache["pruned"])
    z_BV, dense_cache = decode(
      weights["dense"], token_B, cache["dense" if merge is None else "pruned"]
    )
    z_BV, zq_BV = jax.lax.optimization_barrier((z_BV, zq_BV))
    draw_B = jax.random.uniform(jax.random.fold_in(key, t), token_B.shape)
    risks = jax.vmap(
      lambda z_V, zq_V, draw: step_risks(z_V, zq_V, draw, writing.temperature)
    )(z_BV, zq_BV, draw_B)
    risk_PB = jnp.stack([getattr(risks, name) for name in SIGNALS])
    deferred_B = risk_PB[policy.signal, rows_B] > policy.threshold
    new_B = jnp.where(
      deferred_B, jnp.argmax(z_BV, -1), jnp.argmax(zq_BV, -1)
    ).astype(jnp.int32)
    if merge is None:
      cache = {"pruned": pruned_cache, "dense": dense_cache}
    else:
      cache = {"pruned": merge(pruned_cache, dense_cache, deferred_B)}
    ended_B = jnp.any(new_B[:, None] == stop_ids[None], axis=1)
    return (new_B, cache, alive_B & ~ended_B), Monitored(
      tokens=new_B, deferred=deferred_B, alive=alive_B, risks=risks
    )

  state = (token_B, dict(caches), jnp.ones(token_B.shape, bool))
  return jax.lax.scan(step, state, jnp.arange(writing.num_steps))[1]


def dense_forwards(
  deferred: np.ndarray,
  alive: np.ndarray,
  prompt_lengths: np.ndarray,
  cache: str,
) -> np.ndarray:
  """Tokens that the dense model must read for a text under a policy.

  Args:
    deferred: bool [R, X], the dense model decided.
    alive: bool [R, X], the text had not ended before the step.
    prompt_lengths: int [n], tokens of the prompt.
    cache: 'own': the prompt and all that was written before the last
      fallback, read late but read. 'shared': one per fallback.

  Returns:
    int64 [n]. The dense model alone reads `prompt_lengths` and every token
    but the last: the same as 'own' when the last step is deferred.

  Raises:
    ValueError: another cache.
  """
  if cache not in CACHES:
    raise ValueError(f"cache={cache!r}: use one of {', '.join(CACHES)}")
  deferred = np.asarray(deferred) & np.asarray(alive)
  if cache == "shared":
    return deferred.sum(axis=0)
  steps = len(deferred)
  last = steps - 1 - np.argmax(deferred[::-1], axis=0)
  return np.where(deferred.any(axis=0), np.asarray(prompt_lengths) + last, 0)


def risk_coverage(
  risk: np.ndarray, correct: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Accuracy among the k answers of least risk, for k = 1 to n.

  Args:
    risk: [n], larger is worse; equal ones count by their mean, as in an
      average over the orders they could have.
    correct: bool or in [0, 1], [n].

  Returns:
    Coverage k / n [n] and accuracy [n].

  Raises:
    ValueError: shapes differ, or a risk is NaN.
  """
  risk, correct = (np.asarray(values, np.float64) for values in (risk, correct))
  if risk.shape != correct.shape or risk.ndim != 1 or not risk.size:
    raise ValueError(
      f"shapes {risk.shape} and {correct.shape}: give a risk and whether it"
      " was correct for each answer"
    )
  if np.isnan(risk).any():
    raise ValueError("risk: has NaN; leave such answers out and say how many")
  _, group, size = np.unique(risk, return_inverse=True, return_counts=True)
  mean = np.bincount(group, correct) / size
  count = np.arange(1, risk.size + 1)
  return count / risk.size, np.cumsum(np.repeat(mean, size)) / count


def coverage_area(risk: np.ndarray, correct: np.ndarray) -> float:
  """Mean accuracy over all coverages, in [0, 1].

  A risk that knows nothing has the accuracy at full coverage; the most that
  any can have is that of `risk = not correct`.

  Args:
    risk: [n], larger is worse.
    correct: bool or in [0, 1], [n].
  """
  return float(risk_coverage(risk, correct)[1].mean())
