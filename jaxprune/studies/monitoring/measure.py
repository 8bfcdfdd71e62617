"""Texts of a pruned model that defers steps to the dense one, and their cost.

Thresholds are quantiles of the risk on validation prompts; the test prompts are
continued under every signal and threshold. A row of the records is one prompt
under one policy, or (`metric` stop) one prompt and the largest risk of its
text.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from jaxprune import checkpoints, report
from jaxprune.calibration import batching, left_pad
from jaxprune.evaluation.generation import first_divergence
from jaxprune.models import ModelConfig
from jaxprune.pocket import shipped
from jaxprune.probes import monitoring
from jaxprune.probes.decoder import monitoring as decoder_monitoring
from jaxprune.probes.decoder import sequences
from jaxprune.studies import inputs
from jaxprune.studies.pruned_models import PrunedModel

FIELDS = {
  "configuration": report.Field("text", "", "METHOD:AMOUNT, or pruned"),
  "signal": report.Field(
    "text", "", "what decides; none, flip and dense are ends"
  ),
  "fraction": report.Field(
    "float", "", "of steps, asked for on the validation prompts"
  ),
  "threshold": report.Field("float", "", "risk above which is deferred"),
  "steps": report.Field("int", "tokens", "written, the end included"),
  "deferred": report.Field("int", "tokens", "decided by the dense model"),
  "dense_forwards": report.Field(
    "int", "tokens", "read by the dense model, the prompt included"
  ),
  "dense_alone": report.Field(
    "int", "tokens", "read by the dense model when it writes alone"
  ),
  "same": report.Field("bool", "", "the dense model's text, to the end"),
  "agreement": report.Field(
    "float", "", "fraction of the dense text before the first difference"
  ),
}
_ROWS = 120  # texts written together
_VALIDATION = 120  # prompts that thresholds are taken from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How texts are written.

  Attributes:
    signals: names of `monitoring.SIGNALS` that decide.
    fractions: of steps to be deferred, about.
    cache: which cache the dense model reads, one of `monitoring.CACHES`.
    max_new_tokens: most tokens of a text.
    temperature: T of the softmax in the signals.
  """

  signals: tuple[str, ...]
  fractions: tuple[float, ...]
  cache: str = "own"
  max_new_tokens: int = 48
  temperature: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """What is continued.

  Attributes:
    prompts: ids of the test prompts.
    answers: ids of the only right continuation, its end included, or None.
    validation: ids of other prompts.
    source: where from.
  """

  prompts: list[list[int]]
  answers: list[list[int]] | None
  validation: list[list[int]]
  source: str

  def describe(self) -> dict[str, Any]:
    """For run.json."""
    text = repr((self.prompts, self.validation)).encode()
    return {
      "source": self.source,
      "count": len(self.prompts),
      "validation": len(self.validation),
      "hash": hashlib.sha256(text).hexdigest(),
    }


def check(settings: Settings) -> None:
  """Refuse, before any work, signals and fractions that cannot be.

  Raises:
    ValueError: names the flag.
  """
  # The signal `flip` has one threshold, and is always measured.
  known = monitoring.SIGNALS[:-1]
  for signal in settings.signals:
    if signal not in known:
      raise ValueError(f"--signals={signal}: use some of {', '.join(known)}")
  if "random" not in settings.signals:
    raise ValueError("--signals: keep random, the control")
  if not settings.fractions or not all(
    0 < fraction < 1 for fraction in settings.fractions
  ):
    raise ValueError(
      f"--fractions={settings.fractions}: use numbers between 0 and 1"
    )


def read_prompts(
  dense: checkpoints.Source, name: str, limit: int, max_new_tokens: int
) -> Texts:
  """Test and validation prompts, evenly spaced over what there is.

  Args:
    dense: the model that continues them.
    name: pocket, or a file of prompts, of which every fourth is a validation
      prompt.
    limit: test prompts at most.
    max_new_tokens: tokens that are written after each.

  Raises:
    ValueError: fewer than 4 prompts, or too long ones.
  """
  if name == "pocket":
    # Refuses another model, or too many tokens.
    inputs.read_prompts(dense, name, limit=1, max_new_tokens=max_new_tokens)
    test, other = (
      _spread(shipped.generate_requests(split), count)
      for split, count in (("test", limit), ("validation", _VALIDATION))
    )
    return Texts(
      prompts=[head for head, _ in test],
      answers=[tail for _, tail in test],
      validation=[head for head, _ in other],
      source=name,
    )
  read = inputs.read_prompts(
    dense, name, limit=None, max_new_tokens=max_new_tokens
  ).tokens
  if len(read) < 4:
    raise ValueError(
      f"--prompts={name}: has {len(read)}; every fourth sets thresholds, so"
      " give at least 4"
    )
  rest = [list(ids) for index, ids in enumerate(read) if index % 4]
  return Texts(
    prompts=_spread(rest, limit),
    answers=None,
    validation=_spread([list(ids) for ids in read[::4]], _VALIDATION),
    source=name,
  )


def measure(
  dense: checkpoints.Source,
  models: Sequence[PrunedModel],
  texts: Texts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> dict[str, np.ndarray]:
  """Write the rows of every model.

  Args:
    dense: the dense model.
    models: pruned ones, opened one after the other.
    texts: from `read_prompts`.
    settings: how texts are written.
    run: where rows go.
    progress: stepped for each model.

  Returns:
    The columns of the rows.

  Raises:
    ValueError: a pruned model has another shape.
  """
  config, params = checkpoints.load_params(dense, jnp.float32)
  every_prompt = [*texts.prompts, *texts.validation]
  writer = functools.partial(
    write, config, params, settings=settings, width=max(map(len, every_prompt))
  )
  dense_alone = writer(params, texts.prompts, [("margin", -np.inf)])
  dense_texts = text_ids(dense_alone.tokens[0], dense_alone.alive[0])
  for index, model in enumerate(models):
    opened = model.open()
    sequences.check_same_shape(config, opened.config)
    pruned_alone = writer(opened.params, texts.validation, [("margin", np.inf)])
    policies = sweep(pruned_alone, settings)
    written = writer(
      opened.params, texts.prompts, [policy[:2] for policy in policies]
    )
    tag = {"configuration": model.name, "seed": model.seed}
    for place, (_, threshold, name, fraction) in enumerate(policies):
      policy = tag | {"signal": name, "fraction": fraction}
      if np.isfinite(threshold):
        policy["threshold"] = threshold
      run.write_all(
        policy | row
        for row in _rows(written, place, texts, dense_texts, settings.cache)
      )
    run.write_all(tag | row for row in _stop_rows(written, texts, dense_texts))
    progress.step(index)
  return run.columns()


def sweep(
  pruned_alone: monitoring.Monitored, settings: Settings
) -> list[tuple[str, float, str, float | None]]:
  """List the policies: never, always, flip, and each signal at each fraction.

  Args:
    pruned_alone: texts that the pruned model wrote alone on the validation
      prompts, leaves [1, R, X].
    settings: signals and fractions.

  Returns:
    (signal, threshold, name, fraction) each; the fraction is None for flip.
  """
  policies = [
    ("margin", np.inf, "none", 0.0),
    ("margin", -np.inf, "dense", 1.0),
    ("flip", 0.5, "flip", None),
  ]
  alive = pruned_alone.alive[0]
  for signal in settings.signals:
    risk = getattr(pruned_alone.risks, signal)[0][alive]
    for fraction in settings.fractions:
      threshold = (
        1 - fraction
        if signal == "random"
        else float(np.quantile(risk, 1 - fraction))
      )
      policies.append((signal, threshold, signal, fraction))
  return policies


def write(
  config: ModelConfig,
  params: Any,
  pruned_params: Any,
  prompts: Sequence[Sequence[int]],
  policies: Sequence[tuple[str, float]],
  *,
  settings: Settings,
  width: int,
) -> monitoring.Monitored:
  """Texts for every prompt under every policy, leaves [P, R, X].

  Args:
    config: of both models.
    params: of the dense model.
    pruned_params: of the pruned model.
    prompts: ids of each.
    policies: (signal, threshold) pairs.
    settings: cache, length and T.
    width: prompts are padded to it, so that one program does for all.
  """
  tokens_XT, valid_XT = left_pad(prompts, config.pad_id or 0)
  spare = ((0, 0), (width - tokens_XT.shape[1], 0))
  tokens_XT, valid_XT = np.pad(tokens_XT, spare), np.pad(valid_XT, spare)
  count = len(prompts)
  total = len(policies) * count
  signal_X = np.repeat(
    [monitoring.SIGNALS.index(signal) for signal, _ in policies], count
  )
  threshold_X = np.repeat([threshold for _, threshold in policies], count)
  writing = monitoring.Writing(
    num_steps=settings.max_new_tokens,
    eos_ids=tuple(config.eos_ids),
    temperature=settings.temperature,
    cache=settings.cache,
  )
  parts = []
  for rows, _ in batching.batches(total, _ROWS):
    written = decoder_monitoring.write(
      config,
      params,
      pruned_params,
      jnp.asarray(tokens_XT[rows % count]),
      jnp.asarray(valid_XT[rows % count]),
      monitoring.Policy(
        signal=jnp.asarray(signal_X[rows], jnp.int32),
        threshold=jnp.asarray(threshold_X[rows], jnp.float32),
      ),
      writing,
      key=jax.random.fold_in(jax.random.key(0), int(rows[0])),
    )
    parts.append(jax.tree.map(np.asarray, written))
  return jax.tree.map(
    lambda *leaves: rearrange(
      np.concatenate(leaves, axis=1)[:, :total], "R (P X) -> P R X", X=count
    ),
    *parts,
  )


def text_ids(tokens_RX: np.ndarray, alive_RX: np.ndarray) -> list[list[int]]:
  """Ids of each text, the token that ends it included.

  Args:
    tokens_RX: int, step by step.
    alive_RX: bool, whether the text had not ended before the step.
  """
  return [
    tokens_RX[alive_RX[:, n], n].tolist() for n in range(tokens_RX.shape[1])
  ]


def _rows(written, place, texts, dense_texts, cache):
  """One row per prompt of one policy."""
  deferred, alive = written.deferred[place], written.alive[place]
  ids = text_ids(written.tokens[place], alive)
  forwards = monitoring.dense_forwards(
    deferred, alive, np.array([len(p) for p in texts.prompts]), cache
  )
  for index, (text, dense) in enumerate(zip(ids, dense_texts, strict=True)):
    parted = first_divergence(text, dense)
    row = {
      "question": index,
      "steps": len(text),
      "deferred": int((deferred & alive)[:, index].sum()),
      "dense_forwards": int(forwards[index]),
      "dense_alone": len(texts.prompts[index]) + len(dense) - 1,
      "same": parted is None,
      "agreement": 1.0 if parted is None else parted / len(dense),
    }
    if texts.answers is not None:
      row["correct"] = text == texts.answers[index]
    yield row


def _stop_rows(written, texts, dense_texts):
  """The largest risk of each text that the pruned model wrote alone."""
  alive = written.alive[0]
  ids = text_ids(written.tokens[0], alive)
  goals = dense_texts if texts.answers is None else texts.answers
  largest = {
    name: np.where(alive, getattr(written.risks, name)[0], -np.inf).max(axis=0)
    for name in monitoring.SIGNALS
    if name != "flip"
  }
  largest["length"] = alive.sum(axis=0)
  for name, values in largest.items():
    for index, value in enumerate(values):
      yield {
        "signal": name,
        "metric": "stop",
        "question": index,
        "value": float(value),
        "correct": ids[index] == goals[index],
      }


def _spread(rows, count):
  """At most `count` rows, evenly spaced."""
  return [
    rows[index]
    for index in np.unique(
      np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    )
  ]
