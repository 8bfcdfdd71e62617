"""What every intervention on every pruned model gives, and on its control.

A row of the records is one prompt, or one right answer, under one intervention
on one model; `source` is `pruned`, or `random` for as much removed at random.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.models.config import ModelConfig
from jaxprune.probes import interventions
from jaxprune.probes.decoder import interventions as decoder_interventions
from jaxprune.probes.decoder import logit_interventions
from jaxprune.probes.decoder.interventions import Pair, Text
from jaxprune.probes.decoder.logit_interventions import Changes
from jaxprune.pruning import controls
from jaxprune.studies import texts as texts_lib
from jaxprune.studies.interventions import answers as answers_lib
from jaxprune.studies.pruned_models import PrunedModel

READ, CONTINUED, ANSWERS = "teacher_forced", "continued", "answers"
TEMPERATURES, TOP_K, TOP_P = (0.5, 0.7, 0.85, 1.2), (5,), (0.9,)
# Interventions that texts are also written with.
WRITTEN = (
  "dense",
  "pruned",
  "keep_parallel",
  "keep_orthogonal",
  "keep_offset",
  "keep_centred",
  "keep_top",
  "keep_tail",
  "add_random_all",
  "half",
)
WRITTEN_BY_CONTROL = WRITTEN[:2]
SCORES = ("log_prob", "hits")
_BATCH = 32  # texts read together
FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or pruned"),
  "source": report.Field(
    "text", "", "pruned, or random: as much removed at random"
  ),
  "removed": report.Field("float", "", "fraction of zeros in the kernels"),
  "depth": report.Field(
    "int", "layers", "layers that h has passed, from 0 to L"
  ),
  "one_minus_cos_z_centred": report.Field(
    "float", "", "1 - cosine of the logits less their means"
  ),
  "flips": report.Field(
    "float", "", "fraction of positions with another likeliest token"
  ),
  "kl_at_flips": report.Field(
    "float", "nats", "KL(p||q) where the likeliest token changed, else 0"
  ),
  "margin_lost": report.Field(
    "float", "logits", "loss of the lead of the dense likeliest token"
  ),
  "common_steps": report.Field(
    "float", "steps", "steps before the text leaves the dense one"
  ),
  "same_text": report.Field("float", "", "1 where it never does"),
  "exact": report.Field("float", "", "1 where greedy decoding is right"),
  "exact_sampled": report.Field(
    "float", "", "probability that sampling writes the right answer"
  ),
  "hits": report.Field(
    "float", "", "fraction of answer tokens that are the likeliest"
  ),
}
# Averaged over the positions of a prompt.
POSITION_METRICS = tuple(
  name for name in decoder_interventions.METRICS if name not in SCORES
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How an intervention is measured.

  Attributes:
    max_new_tokens: steps of each text.
    analysis_temperature: T of the softmax that is measured.
    top_tokens: tokens of the part `top`.
  """

  max_new_tokens: int
  analysis_temperature: float = 1.0
  top_tokens: int = 10

  @property
  def changes(self) -> Changes:
    """The changes of the logits that texts are written with."""
    return Changes(temperature=self.analysis_temperature, top=self.top_tokens)

  @property
  def read_changes(self) -> Changes:
    """The changes that are measured on a text: also other T, and truncation."""
    return dataclasses.replace(
      self.changes, temperatures=TEMPERATURES, top_k=TOP_K, top_p=TOP_P
    )


def check(config: ModelConfig, settings: Settings) -> None:
  """Refuse, before any work, a part `top` that is the whole vocabulary.

  Args:
    config: of the dense model.
    settings: of the run.

  Raises:
    ValueError: names the flag.
  """
  if settings.top_tokens >= config.vocab_size:
    raise ValueError(
      f"--top_tokens={settings.top_tokens}: must be below the vocabulary,"
      f" {config.vocab_size}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Dense:
  """The dense model, and what is read beside it.

  Attributes:
    config: of the dense model.
    params: float32.
    prompts: tokens and validity of each batch of prompts, [B, T].
    texts: what the dense model writes after them.
    answers: right answers, in batches; none if there are no answers.
    settings: see Settings.
  """

  config: Any
  params: Any
  prompts: list[tuple[jax.Array, jax.Array]]
  texts: list[Text]
  answers: list[Text]
  settings: Settings


def measure(
  source: checkpoints.Source,
  models: Sequence[PrunedModel],
  prompts: prompts_lib.Prompts,
  answers: answers_lib.Answers | None,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> dict[str, np.ndarray]:
  """Write the rows of every pruned model and of its random control.

  Args:
    source: the dense checkpoint.
    models: opened one after the other.
    prompts: continued by the dense model.
    answers: from `answers.read_answers`.
    settings: how.
    run: where rows go.
    progress: stepped for each model.

  Returns:
    The columns of the rows: of a prompt, or of an answer, by intervention.

  Raises:
    ValueError: a pruned model has another shape.
  """
  dense = _open(source, prompts, answers, settings)
  for index, model in enumerate(models):
    opened = model.open()
    pair = decoder_interventions.make_pair(
      dense.config, dense.params, opened.config, opened.params
    )
    control = dataclasses.replace(
      pair,
      pruned=controls.random_control(
        jax.random.key(model.seed), pair.params["layers"], pair.pruned
      ),
    )
    common = {
      "configuration": model.name,
      "seed": model.seed,
      "removed": opened.removed,
    }
    for rows in (
      _read(dense, pair, model.seed),
      _continue(dense, pair, model.seed, WRITTEN),
      _answer(dense, pair, model.seed),
    ):
      run.write_all(common | {"source": "pruned"} | row for row in rows)
    for rows in (
      _read(dense, control, model.seed),
      _continue(dense, control, model.seed, WRITTEN_BY_CONTROL),
      _answer_ends(dense, control),
    ):
      run.write_all(common | {"source": "random"} | row for row in rows)
    progress.step(index)
  return run.columns()


def _open(source, prompts, answers, settings) -> _Dense:
  config, params = checkpoints.load_params(source, jnp.float32)
  written = list(
    texts_lib.dense_texts(
      config,
      params,
      prompts.tokens,
      texts_lib.Writing(
        max_new_tokens=settings.max_new_tokens,
        batch=min(_BATCH, len(prompts.tokens)),
      ),
    )
  )
  return _Dense(
    config=config,
    params=params,
    prompts=[
      (jnp.asarray(each.prompt_tokens), jnp.asarray(each.prompt_valid))
      for each in written
    ],
    texts=[
      Text(
        tokens=jnp.asarray(each.tokens),
        valid=jnp.asarray(each.valid),
        target=jnp.asarray(each.chosen),
        alive=jnp.asarray(each.alive),
      )
      for each in written
    ],
    answers=[]
    if answers is None
    else answers_lib.answer_texts(answers, config.pad_id or 0, _BATCH),
    settings=settings,
  )


def _read(dense, pair, seed) -> Iterator[dict[str, Any]]:
  """On the dense model's text."""
  for start, text in _numbered(dense.texts):
    for name, depth, values in _intervene(
      dense, pair, text, jax.random.key(seed), POSITION_METRICS
    ):
      yield from _rows(READ, name, depth, values, text, start, dense.settings)


def _answer(dense, pair, seed) -> Iterator[dict[str, Any]]:
  """On right answers; only scores."""
  for start, text in _numbered(dense.answers):
    for name, depth, values in _intervene(
      dense, pair, text, jax.random.key(seed + 1), SCORES, patches=False
    ):
      yield from _score_rows(name, depth, values, text, start)


def _answer_ends(dense, pair) -> Iterator[dict[str, Any]]:
  """On right answers, with all layers dense and with none."""
  layers = dense.config.num_layers
  depths = (0, layers)
  masks_PL = interventions.first_layers(layers)[jnp.array(depths)]
  for start, text in _numbered(dense.answers):
    h_PBRD = decoder_interventions.frozen(dense.config, pair, text, masks_PL)
    values = decoder_interventions.measure_states(
      dense.config,
      pair,
      text,
      h_PBRD[1],
      h_PBRD,
      metrics=SCORES,
      temperature=dense.settings.analysis_temperature,
    )
    for k, depth in enumerate(depths):
      at_depth = {name: np.asarray(leaf[k]) for name, leaf in values.items()}
      yield from _score_rows("freeze_first", depth, at_depth, text, start)


def _intervene(
  dense: _Dense,
  pair: Pair,
  text: Text,
  key: jax.Array,
  metrics: tuple[str, ...],
  patches: bool = True,
) -> Iterator[tuple[str, int | None, dict[str, np.ndarray]]]:
  """(intervention, depth, metric to [B, R]) of everything."""
  config = dense.config
  count = config.num_layers + 1
  measure_states = functools.partial(
    decoder_interventions.measure_states,
    config,
    pair,
    text,
    temperature=dense.settings.analysis_temperature,
    metrics=metrics,
  )
  first_PL = interventions.first_layers(config.num_layers)
  h_PBRD = decoder_interventions.frozen(
    config, pair, text, jnp.concatenate([first_PL, ~first_PL])
  )
  # k = L frozen is the dense model, k = 0 the pruned one.
  dense_BRD, pruned_BRD = h_PBRD[count - 1], h_PBRD[0]
  by_name = {
    "freeze_first": measure_states(dense_BRD, h_PBRD[:count]),
    "freeze_last": measure_states(dense_BRD, h_PBRD[count:]),
  }
  if patches:
    states = decoder_interventions.patched(
      config, pair, text, jax.random.fold_in(key, 1)
    )
    # The dense model, run by the same operations as the patched models.
    patch_dense_BRD = states.pop("dense")[0]
    del states["pruned"]
    by_name |= {
      name: measure_states(patch_dense_BRD, h_PBRD)
      for name, h_PBRD in states.items()
    }
  for name, values in by_name.items():
    for depth in range(count):
      yield (
        name,
        depth,
        {metric: np.asarray(leaf[depth]) for metric, leaf in values.items()},
      )
  changed = logit_interventions.measure_changes(
    config,
    pair,
    text,
    dense_BRD,
    pruned_BRD,
    jax.random.fold_in(key, 2),
    dense.settings.read_changes,
    metrics=tuple(name for name in metrics if name != "one_minus_cos_h"),
  )
  for name, values in changed.items():
    yield name, None, jax.tree.map(np.asarray, values)


def _continue(dense, pair, seed, names) -> Iterator[dict[str, Any]]:
  """Texts that are written with a part of the change."""
  texts = zip(_numbered(dense.texts), dense.prompts)
  for (start, text), (tokens_BT, valid_BT) in texts:
    tokens_PBR, values = logit_interventions.continue_changed(
      dense.config,
      pair,
      tokens_BT,
      valid_BT,
      jax.random.fold_in(jax.random.key(seed), 3),
      dense.settings.changes,
      names=names,
      num_steps=dense.settings.max_new_tokens,
    )
    values = jax.tree.map(np.asarray, values)
    for n, name in enumerate(names):
      leaves = {metric: leaf[n] for metric, leaf in values.items()}
      parted = np.asarray(tokens_PBR[n] != text.target)
      yield from _rows(
        CONTINUED, name, None, leaves, text, start, dense.settings, parted
      )


def _rows(protocol, name, depth, values, text, start, settings, parted=None):
  """A row per prompt: means over its positions, and when the text parts."""
  alive_BR = np.asarray(text.alive)
  if parted is None:
    parted = values["flips"] > 0
  for b in np.flatnonzero(alive_BR.any(axis=1)):
    alive_R = alive_BR[b]
    parted_R = parted[b] & alive_R
    row = {
      "protocol": protocol,
      "prompt": int(start + b),
      "intervention": name,
      "depth": depth,
      "count": int(alive_R.sum()),
      "analysis_temperature": settings.analysis_temperature,
      "common_steps": float(
        np.argmax(parted_R) if parted_R.any() else alive_R.sum()
      ),
      "same_text": float(not parted_R.any()),
    }
    for metric, leaf in values.items():
      # Truncation of the logits makes some of these infinite by definition.
      finite = np.isfinite(leaf[b, alive_R]).all()
      row[metric] = float(leaf[b, alive_R].mean()) if finite else None
    yield row


def _score_rows(name, depth, values, text, start):
  """A row per answer."""
  alive_BR = np.asarray(text.alive)
  for b in np.flatnonzero(alive_BR.any(axis=1)):
    alive_R = alive_BR[b]
    nats = float(values["log_prob"][b, alive_R].sum())
    yield {
      "protocol": ANSWERS,
      "question": int(start + b),
      "intervention": name,
      "depth": depth,
      "count": int(alive_R.sum()),
      "exact": float(values["hits"][b, alive_R].all()),
      "exact_sampled": float(np.exp(nats)),
      "hits": float(values["hits"][b, alive_R].mean()),
      "nll": -nats if np.isfinite(nats) else None,
    }


def _numbered(texts):
  """Each batch with the index of its first text."""
  return [
    (index * len(texts[0].tokens), text) for index, text in enumerate(texts)
  ]
