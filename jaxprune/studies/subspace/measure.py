"""Dense and pruned, compared where the options of a question begin to differ.

At that position the first tokens of the options are compared with the whole
vocabulary and with random token sets of about the same probability; the
options themselves are compared by the log-probability of all their tokens.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune import report
from jaxprune.calibration import batching
from jaxprune.models import final_norm, forward, rope, unembed
from jaxprune.probes import log_ratio, options, position, subspace
from jaxprune.probes.decoder import sequences
from jaxprune.studies.subspace.items import Item, make_arrays

NUM_TOP = 8  # most likely tokens of p that are written down
# Token sets of which a row is written for each question.
SETS = ("vocabulary", "options", "option_tokens", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How options are compared; the flags of `subspace`.

  Attributes:
    answer_as: 'text' reads each option after the context, 'letter' reads A, B,
      ... after `cue`.
    cue: last line of the context of 'letter'.
    analysis_temperature: T of the softmax that is measured.
    num_subsets: random token sets of each question.
    batch: questions compared together.
    seed: of the random sets and of the intervals.
  """

  answer_as: str = "text"
  cue: str = "Answer:"
  analysis_temperature: float = 1.0
  num_subsets: int = 16
  batch: int = 8
  seed: int = 0


Tables = Mapping[str, Mapping[str, np.ndarray]]


def compare_items(
  dense: sequences.Model,
  pruned: sequences.Model,
  items: Sequence[Item],
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> Tables:
  """Compare both models on every question and write what they say.

  Args:
    dense: the dense model.
    pruned: the pruned model, of the same shape.
    items: the questions.
    settings: how.
    run: the rows are written to its records.
    progress: told of every batch.

  Returns:
    Columns of the rows of each token set, of `top`, the most likely tokens, and
    of `option`, the single options.

  Raises:
    ValueError: the models cannot be compared.
  """
  sequences.check_same_shape(dense.config, pruned.config)
  arrays = make_arrays(items, apart=rope.by_length(dense.config.rope))
  keys = jax.random.split(jax.random.key(settings.seed), len(items))
  for index, (pick_B, count) in enumerate(
    batching.batches(len(items), settings.batch)
  ):
    batch = {
      field.name: jnp.asarray(getattr(arrays, field.name)[pick_B])
      for field in dataclasses.fields(arrays)
    }
    comparisons = jax.device_get(
      _compare(
        dense,
        pruned,
        batch | {"key": keys[pick_B]},
        settings.analysis_temperature,
        num_subsets=settings.num_subsets,
      )
    )
    for b, question in enumerate(pick_B[:count]):
      of_question = jax.tree.map(lambda leaf, b=b: leaf[b], comparisons)
      run.write_all(
        _rows(int(question), items[question], of_question, settings)
      )
    progress.step(index)
  return tables_of(run)


def tables_of(run: report.RunFolder) -> Tables:
  """The columns of the rows that `run` has: by token set, top, and option."""
  return {
    **{
      name: run.columns(token_set=name, absent=["option"])
      for name in (*SETS, "top")
    },
    "option": run.columns(token_set="options", present=["option"]),
  }


@functools.partial(jax.jit, static_argnames="num_subsets")
def _compare(dense, pruned, batch, temperature, *, num_subsets):
  """One batch of questions; leaves [B, ...]."""
  models = (dense, pruned)
  states = [_states(model, batch) for model in models]
  h_BD, g_BD = (h_BJRD[:, 0, 0] for h_BJRD in states)
  questions = {
    "key": batch["key"],
    "states": (h_BD, g_BD),
    "logits": tuple(
      unembed(model.config, model.params, x_BD, "raw")
      for model, x_BD in zip(models, (h_BD, g_BD))
    ),
    "scores": tuple(
      _scores(model, h_BJRD, batch, temperature)
      for model, h_BJRD in zip(models, states)
    ),
    "live": batch["live"],
    "first": batch["first"][..., None],
    "first_live": batch["first_live"][..., None],
  }
  measure = functools.partial(
    _measure, temperature=temperature, num_subsets=num_subsets
  )
  return jax.vmap(measure)(questions)


def _states(model, batch):
  """What the LM head reads, from the end of the head on, [B, J, R, D]."""
  tokens_BJT = batch["tokens"]
  rows, length = tokens_BJT.shape[1:]
  valid_BJT = jnp.arange(length)[None, None] < batch["lengths"][..., None]
  x, _ = forward(
    model.config,
    model.params,
    rearrange(tokens_BJT, "B J T -> (B J) T"),
    valid_BT=rearrange(valid_BJT, "B J T -> (B J) T"),
  )
  x_BJTD = rearrange(x, "(B J) T D -> B J T D", J=rows)
  steps_R = jnp.arange(batch["ids"].shape[-1])
  place_BR = jnp.minimum(batch["start"][:, None] + steps_R[None], length - 1)
  x_BJRD = jnp.take_along_axis(x_BJTD, place_BR[:, None, :, None], axis=2)
  return jax.lax.optimization_barrier(
    final_norm(model.config, model.params, x_BJRD)
  )


def _scores(model, h_BJRD, batch, temperature):
  """Log-probability of each spelling [B, C, U], summed over its tokens."""

  def step(inputs):
    h_BJD, ids_BCU = inputs
    log_p_BJV = jax.nn.log_softmax(
      unembed(model.config, model.params, h_BJD, "raw") / temperature
    )
    return jax.vmap(lambda log_p_JV, row_CU, ids_CU: log_p_JV[row_CU, ids_CU])(
      log_p_BJV, batch["row"], ids_BCU
    )

  # One token at a time: only [B, J, V] exists.
  picked_RBCU = jax.lax.map(
    step,
    (
      rearrange(h_BJRD, "B J R D -> R B J D"),
      rearrange(batch["ids"], "B C U R -> R B C U"),
    ),
  )
  live_RBCU = rearrange(batch["live"], "B C U R -> R B C U")
  return jnp.where(live_RBCU, picked_RBCU, 0).sum(0)


def _measure(question, *, temperature, num_subsets):
  """One question: every token set and the options."""
  z_V, y_V = question["logits"]
  first_C1, live_C1 = question["first"], question["first_live"]
  mask_CU = question["live"].any(-1)
  pair = log_ratio.from_logits(z_V, y_V, temperature)
  log_p_top, top = jax.lax.top_k(pair.log_p, min(NUM_TOP, z_V.size))
  rank_V = jnp.argsort(jnp.argsort(-y_V, stable=True))
  return {
    "position": position.compare_position(
      *question["states"], z_V, y_V, temperature
    ),
    "options": options.compare_options(
      *(
        options.option_scores(scores_CU, mask_CU)
        for scores_CU in question["scores"]
      )
    ),
    "tokens": subspace.compare_tokens(z_V, y_V, first_C1, temperature, live_C1),
    "random": subspace.compare_matched(
      question["key"], z_V, y_V, first_C1, num_subsets, temperature, live_C1
    ),
    "top": {
      "token": top,
      "score": log_p_top,
      "score_pruned": pair.log_q[top],
      "rank_pruned": rank_V[top],
    },
  }


def _rows(question, item, comparison, settings) -> Iterator[dict[str, Any]]:
  """Flat rows of one question."""
  common = {
    "protocol": "subspace",
    "question": question,
    "analysis_temperature": settings.analysis_temperature,
  }
  yield (
    common
    | {"token_set": "vocabulary"}
    | position.fields_of(comparison["position"])
  )
  change = comparison["options"]
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
    | _set_fields(comparison["tokens"])
  )
  for draw in range(settings.num_subsets):
    yield (
      common
      | {"token_set": "random", "draw": draw, "count": size}
      | _set_fields(jax.tree.map(lambda leaf: leaf[draw], comparison["random"]))
    )
  for rank, token in enumerate(comparison["top"]["token"]):
    yield (
      common
      | {"token_set": "top", "rank": rank, "token": token}
      | {
        name: comparison["top"][name][rank]
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


def _set_fields(subset):
  """A token set: renormalised, and as a part of the whole vocabulary."""
  chain = subset.chain
  p, q = (float(m) for m in (chain.mass, chain.mass_pruned))
  # What the set adds to the KL of the vocabulary: p log(p / q) - p + q of its
  # whole probability, and p times the KL between its tokens.
  event = q - p + p * np.log(p / q) if p > 0 and q > 0 else q
  share = max(event, 0) + p * float(chain.kl_inside)
  return _choice_fields(subset.options) | {
    "kl_mass": chain.kl_mass,
    "kl_outside": chain.kl_outside,
    "kl_share": share if q > 0 or p == 0 else np.inf,
  }
