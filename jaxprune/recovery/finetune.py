"""How far does a short training bring a pruned model back?

AdamW on calibration text for a few hundred steps. An objective that needs the
dense model lets it read the same rows in the same step. Masks are enforced
twice: a weight that may not change (`trainable_mask`) has no gradient, and
after the step it is set to its old value.

A run is a function of its arguments: batches are drawn from the seed, nothing
is sampled. One that takes minutes can keep its state, and goes on from there.
One batch and the logits of both models [B, T, V] must fit in memory.

Reference: AdamW, arXiv:1711.05101.
Differs from the reference in: a mask is part of the step, not of the
optimiser; no weight decay unless asked for.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.models import decoder
from jaxprune.models.config import ModelConfig
from jaxprune.models.decoder import Gates, Params
from jaxprune.pruning.checkpoint import finite
from jaxprune.recovery import losses
from jaxprune.recovery import trainable_mask as masks_lib
from jaxprune.recovery.optimizer import Optimizer, adamw, committed, schedule

if TYPE_CHECKING:
  from jaxprune.recovery import states

_SECONDS = 5.0  # between two lines of progress
_RECENT = 20  # steps whose mean a line shows
# Between two states that are kept, and at least so many times what one takes.
SAVE_SECONDS = 60.0
_SAVE_SHARE = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery(Optimizer):
  """Everything that decides a run, apart from models, masks and text.

  Attributes:
    objective: 'language' (next token of the text), 'distill' (KL from the
      dense model) or 'distill_variance' (that and `weight` times the variance
      of the logit change).
    batch: rows of a step.
    weight: lambda of 'distill_variance', at least 0.
    temperature: T of the softmax in distillation and variance.
    seed: of the order in which rows are read.
  """

  objective: str = "distill"
  batch: int = 8
  weight: float = 1.0
  temperature: float = 1.0
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logbook:
  """Where a run says how far it is, and what it needs to go on after a kill.

  Attributes:
    report: gets a line of progress every few seconds.
    states: of this run; None keeps nothing.
  """

  report: Callable[[str], None] = lambda line: None
  states: "states.States | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Program:
  """What a compiled step depends on.

  Attributes:
    config: of the pruned model.
    dense_config: of the dense model; None where it is not asked.
    recovery: what the step does; what it takes as data has no meaning here.
  """

  config: ModelConfig
  dense_config: ModelConfig | None
  recovery: Recovery


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recovered:
  """A trained model.

  Attributes:
    params: as given, float32; what was fixed has its old bits.
    losses: float64 by name, [steps]: 'loss', and the parts that the objective
      has, 'language', 'kl', 'variance' (nats, mean over the positions of a
      step, before the step).
  """

  params: Params
  losses: dict[str, np.ndarray]


def check(recovery: Recovery, tokens: np.ndarray, dense: bool) -> None:
  """Refuse, before any work, a run that cannot be.

  Args:
    recovery: the run.
    tokens: rows to read, int [X, T].
    dense: whether a dense model is there.

  Raises:
    ValueError: names the setting and what it may be.
  """
  if recovery.objective not in losses.OBJECTIVES:
    raise ValueError(
      f"objective={recovery.objective!r}: use one of"
      f" {', '.join(losses.OBJECTIVES)}"
    )
  if recovery.objective != "language" and not dense:
    raise ValueError(
      f"objective={recovery.objective!r} needs the dense model: give it, or"
      " use 'language'"
    )
  for name, least in (
    ("steps", 1),
    ("batch", 1),
    ("weight", 0),
    ("weight_decay", 0),
    ("warmup", 0),
  ):
    if not getattr(recovery, name) >= least:
      raise ValueError(
        f"{name}={getattr(recovery, name)}: must be at least {least}"
      )
  for name in ("learning_rate", "clip", "temperature"):
    if not 0 < getattr(recovery, name) < np.inf:
      raise ValueError(
        f"{name}={getattr(recovery, name)}: must be a positive number"
      )
  if recovery.warmup > 1:
    raise ValueError(f"warmup={recovery.warmup}: must be at most 1")
  if tokens.ndim != 2 or tokens.shape[1] < 2 or (len(tokens) < recovery.batch):
    raise ValueError(
      f"tokens of shape {list(tokens.shape)}: need at least"
      f" batch={recovery.batch} rows of two tokens or more"
    )


def recover(
  config: ModelConfig,
  params: Params,
  tokens: np.ndarray,
  recovery: Recovery,
  *,
  masks: masks_lib.Masks,
  drops: Mapping[str, Any] | None = None,
  dense: tuple[ModelConfig, Params] | None = None,
  logbook: Logbook = Logbook(),
) -> Recovered:
  """Train a pruned model, its zeros kept.

  Args:
    config: of the pruned model.
    params: its stacked parameters; trained in float32.
    tokens: rows to read, int [X, T], every token real; each is read once
      before any is read again.
    recovery: the run.
    masks: bool [L, I, O] by group and kernel, True = keep.
    drops: layers of dropped sublayers by kind; None is none.
    dense: config and parameters of the dense model; not needed for 'language'.
    logbook: where it says how far it is, and keeps its state.

  Raises:
    ValueError: a setting out of range, a mask that does not fit the weights,
      a kept state of another run, or a loss or weights that are not finite.
  """
  tokens = np.asarray(tokens, np.int32)
  check(recovery, tokens, dense is not None)
  # The parameters are copied, because the step gives their memory back.
  params = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params)
  trainable = masks_lib.make_trainable_mask(params, masks, drops)
  gates = None
  if drops and any(map(len, drops.values())):
    gates = decoder.make_gates(config, **drops)
  dense_config, dense_params = dense or (None, None)
  if recovery.objective == "language":
    dense_config = dense_params = None
  state = committed((params, adamw(recovery).init(params)))
  del params  # a state that was kept takes their place
  program = _Program(
    config=config,
    dense_config=dense_config,
    # Values that the program takes as data do not compile it again.
    recovery=Recovery(
      objective=recovery.objective,
      weight_decay=recovery.weight_decay,
      clip=recovery.clip,
      temperature=recovery.temperature,
    ),
  )
  fixed = {"trainable": trainable, "dense": dense_params, "gates": gates}
  rate = schedule(recovery)
  first, seen = 0, []
  if logbook.states is not None:
    first, state, seen = logbook.states.newest(state)
  watch = _Watch(recovery, logbook, first)
  for step in range(first, recovery.steps):
    rows = batch_rows(len(tokens), recovery, step)
    state, parts = _update(
      program,
      state,
      fixed,
      jnp.asarray(tokens[rows]),
      jnp.float32(recovery.weight),
      jnp.float32(rate(step)),
    )
    if step > first:  # It is waited for, while the device is at the next one.
      watch.look(seen)
    seen.append(parts)
    watch.keep(seen, state)
  watch.look(seen)
  if not jax.jit(finite.all_finite)(state[0]):  # after the last loss
    raise ValueError(
      "weights are not finite after the last step: lower"
      f" learning_rate={recovery.learning_rate} or"
      f" weight_decay={recovery.weight_decay}"
    )
  return Recovered(
    params=state[0],
    losses={
      name: np.array([float(part[name]) for part in seen]) for name in seen[0]
    },
  )


class _Watch:
  """Lines with the losses and the time left, and states that are kept.

  The first step compiles, so the time left is reckoned without it.
  """

  def __init__(self, recovery: Recovery, logbook: Logbook, first: int):
    self._recovery, self._logbook = recovery, logbook
    self._first = first
    self._began = self._saved = time.monotonic()
    self._compiled = self._told = None
    self._pause = SAVE_SECONDS

  def look(self, seen) -> None:
    """Wait for the losses of the last step, and report them if it is time.

    Args:
      seen: losses of the steps so far, by name.

    Raises:
      ValueError: a loss is not finite.
    """
    last = {name: float(value) for name, value in seen[-1].items()}
    now, done, steps = time.monotonic(), len(seen), self._recovery.steps
    if not all(map(np.isfinite, last.values())):
      raise ValueError(
        f"loss {last} at step {done} is not finite: lower"
        f" learning_rate={self._recovery.learning_rate} or"
        f" weight={self._recovery.weight}"
      )
    self._compiled = self._compiled or now
    if self._told and now - self._told < _SECONDS and done < steps:
      return
    self._told = now
    words = [f"step {done}/{steps}"]
    for name in last:
      recent = [float(part[name]) for part in seen[-_RECENT:]]
      words.append(f"{name} {np.mean(recent):.4g}")
    words.append(f"{now - self._began:.1f} s")
    timed = done - self._first - 1
    if timed > 0 or done == steps:
      pace = (now - self._compiled) / max(timed, 1)
      words[-1] += f", {pace * (steps - done):.0f} s left"
    self._logbook.report(" ".join(words))

  def keep(self, seen, state) -> None:
    """Keep the state, if it is time and steps are to come.

    Args:
      seen: losses of the steps so far, by name.
      state: after the last of them.

    Raises:
      ValueError: a loss is not finite.
    """
    states = self._logbook.states
    if states is None or len(seen) == self._recovery.steps:
      return
    if time.monotonic() - self._saved < self._pause:
      return
    self.look(seen)
    began = time.monotonic()
    losses = [{name: float(part[name]) for name in part} for part in seen]
    states.save(len(seen), state, losses)
    self._saved = time.monotonic()
    self._pause = max(SAVE_SECONDS, _SAVE_SHARE * (self._saved - began))


def batch_rows(count: int, recovery: Recovery, step: int) -> np.ndarray:
  """Which rows a step reads: whole passes over all rows, each in a new order.

  A rest that does not fill a batch is left out of its pass.

  Args:
    count: number of rows.
    recovery: says how many a step reads, and the seed of their order.
    step: from 0.

  Returns:
    int [batch], a function of the arguments alone.
  """
  per_pass = count // recovery.batch
  order = np.random.default_rng([recovery.seed, step // per_pass]).permutation(
    count
  )
  start = step % per_pass * recovery.batch
  return order[start : start + recovery.batch]


def objective(
  config: ModelConfig,
  params: Params,
  recovery: Recovery,
  tokens_BT: jax.Array,
  *,
  weight: float | jax.Array,
  gates: Gates | None = None,
  dense: tuple[ModelConfig, Params] | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of a batch, and its parts; differentiable in `params`.

  Args:
    config: of the pruned model.
    params: its parameters.
    recovery: says which objective, and T.
    tokens_BT: int [B, T].
    weight: lambda, see `Recovery`.
    gates: which sublayers stay; None is all.
    dense: config and parameters of the dense model; not needed for 'language'.

  Returns:
    A float32 scalar in nats, mean over the B (T - 1) positions that have a
    next token, and the parts that are in it.
  """
  zq_BTV = _logits(config, params, tokens_BT, gates)
  if recovery.objective == "language":
    loss = jnp.mean(
      _over_positions(losses.next_token)(zq_BTV, tokens_BT[:, 1:])
    )
    return loss, {"loss": loss, "language": loss}
  z_BTV = jax.lax.stop_gradient(_logits(*dense, tokens_BT, None))
  parts = {
    "kl": jnp.mean(
      _over_positions(
        lambda z_V, zq_V: losses.distillation(z_V, zq_V, recovery.temperature)
      )(z_BTV, zq_BTV)
    )
  }
  loss = parts["kl"]
  if recovery.objective == "distill_variance":
    parts["variance"] = jnp.mean(
      _over_positions(
        lambda z_V, zq_V: losses.logit_variance(z_V, zq_V, recovery.temperature)
      )(z_BTV, zq_BTV)
    )
    loss = loss + weight * parts["variance"]
  return loss, {"loss": loss, **parts}


def _over_positions(function):
  return jax.vmap(jax.vmap(function))


def _logits(config, params, tokens_BT, gates):
  """Logits [B, T - 1, V] of the positions that have a next token."""
  x_BTD, _ = decoder.forward(
    config, params, tokens_BT[:, :-1], gates=gates, remat=True
  )
  return decoder.unembed(config, params, x_BTD)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(program, state, fixed, tokens_BT, weight, rate):
  """One step: the new parameters and moments, and the parts of the loss."""
  params, moments = state
  trainable = fixed["trainable"]
  dense = program.dense_config and (program.dense_config, fixed["dense"])

  def loss(params):
    return objective(
      program.config,
      params,
      program.recovery,
      tokens_BT,
      weight=weight,
      gates=fixed["gates"],
      dense=dense,
    )

  (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(params)
  zeros = jax.tree.map(jnp.zeros_like, grads)
  grads = masks_lib.keep_fixed(trainable, grads, zeros)
  changes, moments = adamw(program.recovery).update(grads, moments, params)
  new = jax.tree.map(lambda old, change: old - rate * change, params, changes)
  return (masks_lib.keep_fixed(trainable, new, params), moments), parts
