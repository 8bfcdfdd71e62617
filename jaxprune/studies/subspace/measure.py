"""Dense against pruned where the options of a question part: the measurement.

At that position the first tokens of the options are compared with the whole
vocabulary and with random token sets of about the same probability; the
options themselves are compared by the log-probability of all their tokens.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration import batching
from jaxprune.models import ModelConfig, final_norm, forward, unembed
from jaxprune.probes import log_ratio, options, position, subspace
from jaxprune.probes.decoder import sequences
from jaxprune.studies.subspace.items import Arrays, Item

Params = Any
NUM_TOP = 8  # most likely tokens of p that are written down


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How options are compared; the flags of `subspace`."""

  answer_as: str = "text"
  cue: str = "Answer:"
  analysis_temperature: float = 1.0
  num_subsets: int = 16
  batch: int = 8
  seed: int = 0


def compare_items(
  config: ModelConfig,
  params: Params,
  pruned_config: ModelConfig,
  pruned_params: Params,
  items: list[Item],
  arrays: Arrays,
  settings: Settings,
  progress: Any,
) -> Iterator[list[dict[str, Any]]]:
  """Yields the rows of one batch of questions after the other."""
  sequences.check_same_shape(config, pruned_config)
  keys = jax.random.split(jax.random.key(settings.seed), len(items))
  for pick, count in batching.batches(len(items), settings.batch):
    start = int(pick[0])
    part = {
      field.name: jnp.asarray(getattr(arrays, field.name)[pick])
      for field in dataclasses.fields(arrays)
    }
    found = jax.device_get(
      _compare(
        config,
        params,
        pruned_config,
        pruned_params,
        part,
        keys[pick],
        settings.analysis_temperature,
        num_subsets=settings.num_subsets,
      )
    )
    rows = []
    for b in range(count):
      one = jax.tree.map(lambda leaf: leaf[b], found)
      rows += _rows(start + b, items[start + b], one, settings)
    progress.step(start // settings.batch)
    yield rows


@functools.partial(
  jax.jit, static_argnames=("config", "pruned_config", "num_subsets")
)
def _compare(
  config,
  params,
  pruned_config,
  pruned_params,
  batch,
  keys,
  temperature,
  *,
  num_subsets,
):
  """One batch; leaves [B, ...]."""
  models = ((config, params), (pruned_config, pruned_params))
  states = [_states(*model, batch) for model in models]
  scores = [
    _scores(*model, h_BKMD, batch, temperature)
    for model, h_BKMD in zip(models, states)
  ]
  h_BD, g_BD = (h_BKMD[:, 0, 0] for h_BKMD in states)
  z_BV, y_BV = (
    unembed(*model, h, "raw") for model, h in zip(models, (h_BD, g_BD))
  )
  measure = functools.partial(
    _measure, temperature=temperature, num_subsets=num_subsets
  )
  return jax.vmap(measure)(
    keys,
    h_BD,
    g_BD,
    z_BV,
    y_BV,
    *scores,
    batch["live"],
    batch["first"][..., None],
    batch["first_live"][..., None],
  )


def _states(config, params, batch):
  """What the LM head reads, from the end of the head on, [B, K, M, D]."""
  b, k, t = batch["tokens"].shape
  x, _ = forward(config, params, batch["tokens"].reshape(b * k, t))
  x_BKTD = x.reshape(b, k, t, -1)
  steps_M = jnp.arange(batch["ids"].shape[-1])
  place_BM = jnp.minimum(batch["start"][:, None] + steps_M[None], t - 1)
  x_BKMD = jnp.take_along_axis(x_BKTD, place_BM[:, None, :, None], axis=2)
  return jax.lax.optimization_barrier(final_norm(config, params, x_BKMD))


def _scores(config, params, h_BKMD, batch, temperature):
  """Log-probability of each spelling [B, C, S], summed over its tokens."""

  def step(inputs):
    h_BKD, ids_BCS = inputs
    log_p_BKV = jax.nn.log_softmax(
      unembed(config, params, h_BKD, "raw") / temperature
    )
    return jax.vmap(lambda log_p_KV, row_CS, ids_CS: log_p_KV[row_CS, ids_CS])(
      log_p_BKV, batch["row"], ids_BCS
    )

  # One token at a time: only [B, K, V] exists.
  picked_MBCS = jax.lax.map(
    step, (jnp.moveaxis(h_BKMD, 2, 0), jnp.moveaxis(batch["ids"], 3, 0))
  )
  live_MBCS = jnp.moveaxis(batch["live"], 3, 0)
  return jnp.where(live_MBCS, picked_MBCS, 0).sum(0)


def _measure(
  key,
  h_D,
  g_D,
  z_V,
  y_V,
  s_CS,
  t_CS,
  live_CSM,
  first_F1,
  live_F1,
  *,
  temperature,
  num_subsets,
):
  """One question: every token set and the options."""
  mask_CS = live_CSM.any(-1)
  pair = log_ratio.from_logits(z_V, y_V, temperature)
  log_p_top, top = jax.lax.top_k(pair.log_p, min(NUM_TOP, z_V.size))
  rank_V = jnp.argsort(jnp.argsort(-y_V, stable=True))
  return {
    "position": position.compare_position(h_D, g_D, z_V, y_V, temperature),
    "options": options.compare_options(
      options.option_scores(s_CS, mask_CS), options.option_scores(t_CS, mask_CS)
    ),
    "tokens": subspace.compare_tokens(z_V, y_V, first_F1, temperature, live_F1),
    "random": subspace.compare_matched(
      key, z_V, y_V, first_F1, num_subsets, temperature, live_F1
    ),
    "top": {
      "token": top,
      "score": log_p_top,
      "score_pruned": pair.log_q[top],
      "rank_pruned": rank_V[top],
    },
  }


def _rows(question, item, found, settings) -> Iterator[dict[str, Any]]:
  """Flat rows of one question."""
  common = {
    "protocol": "subspace",
    "question": question,
    "analysis_temperature": settings.analysis_temperature,
  }
  at = found["position"]
  yield (
    common
    | {
      "token_set": "vocabulary",
      "one_minus_cos_p": found["tokens"].whole.one_minus_cos_p,
    }
    | {field.name: getattr(at, field.name) for field in dataclasses.fields(at)}
  )
  change = found["options"]
  count = len(item.spellings)
  yield (
    common
    | {
      "token_set": "options",
      "count": count,
      "choice": change.choice,
      "choice_pruned": change.choice_pruned,
      "correct": bool(change.choice == item.answer),
      "correct_pruned": bool(change.choice_pruned == item.answer),
    }
    | _choice_fields(change)
  )
  for c in range(count):
    yield common | {
      "token_set": "options",
      "option": c,
      "score": change.scores[c],
      "score_pruned": change.scores_pruned[c],
      "rank": change.rank[c],
      "rank_pruned": change.rank_pruned[c],
    }
  size = len({ids[0] for option in item.spellings for ids in option})
  yield (
    common
    | {"token_set": "option_tokens", "count": size}
    | _set_fields(found["tokens"])
  )
  for draw in range(settings.num_subsets):
    yield (
      common
      | {"token_set": "random", "draw": draw, "count": size}
      | _set_fields(jax.tree.map(lambda leaf: leaf[draw], found["random"]))
    )
  for rank, token in enumerate(found["top"]["token"]):
    yield (
      common
      | {"token_set": "top", "rank": rank, "token": token}
      | {
        name: found["top"][name][rank]
        for name in ("score", "score_pruned", "rank_pruned")
      }
    )


def _choice_fields(change):
  """What renormalised options, or tokens as options, have in common."""
  inside = change.inside
  return {
    "mass": change.mass,
    "mass_pruned": change.mass_pruned,
    "cos_p": inside.cos_p,
    "one_minus_cos_p": inside.one_minus_cos_p,
    "kl": inside.kl,
    "kl_reverse": inside.kl_reverse,
    "js": inside.js,
    "tv": inside.tv,
    "flip": change.flip,
    "certified": change.certified,
    "score_margin": change.margin,
    "score_change": change.max_pair_change,
    "discordant": change.discordant,
  }


def _set_fields(found):
  """A token set: renormalised, and as a part of the whole vocabulary."""
  chain = found.chain
  p, q = (float(m) for m in (chain.mass, chain.mass_pruned))
  # p log(p / q) - p + q of the set as one event, and what happens within it.
  event = q - p + p * np.log(p / q) if p > 0 and q > 0 else q
  share = max(event, 0) + p * float(chain.kl_inside)
  return _choice_fields(found.options) | {
    "kl_mass": chain.kl_mass,
    "kl_outside": chain.kl_outside,
    "kl_share": share if q > 0 or p == 0 else np.inf,
  }
