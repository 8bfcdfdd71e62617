"""Dense and pruned on the same tokens: the records of a comparison.

The dense model continues every prompt, and both models are compared on that
text, after every sublayer and at the output. Other protocols decode step by
step, see `probes.trajectories`, and add rows under the names of their
decodings. What the pruned model writes on its own is kept token by token.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxprune import checkpoints, report, statistics
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.probes import jacobian, position, theorems, trajectories
from jaxprune.probes.decoder import sequences
from jaxprune.studies import inputs, texts
from jaxprune.studies.comparison import rows
from jaxprune.studies.comparison.rows import ALONE as ALONE
from jaxprune.studies.comparison.rows import SUBLAYERS as SUBLAYERS
from jaxprune.studies.comparison.rows import TEACHER_FORCED as TEACHER_FORCED

# Protocols that decode step by step, and the decodings of each.
PROTOCOLS = {
  "free_running": (trajectories.FREE_RUNNING, trajectories.CONTROL),
  "handoff": (*trajectories.HISTORY_SPLIT, *trajectories.HANDOFF),
  "resynchronised": (
    trajectories.TEACHER_FORCED,
    *(trajectories.resynchronised(every) for every in (2, 4, 8, 16)),
  ),
}
# The worst direction of softmax is searched for at every position of the
# output. Where p is flat its largest singular values are nearly equal, and the
# iteration stops before it has told them apart.
_MAX_ITERATIONS = 32
_TOLERANCE = 1e-2
# Score of a guess: choose has four options, retrieve some hundred passages.
_POCKET_TASKS = {"choose": 0.25, "retrieve": 0.0, "generate": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(texts.Comparison):
  """How two models are compared; the flags of `trajectories`.

  `seed` is that of the draws and of the intervals.

  Attributes:
    num_seeds: texts of each prompt, from `seed` on.
    protocols: of `PROTOCOLS`, which decode step by step; the teacher-forced
      comparison is always made.
    layer_rows: whether the records get a row for each position, layer and
      sublayer too, with every field of `position.Position`; otherwise only
      `rows.BY_LAYER` is measured there.
    inside: texts of a batch that are measured after every sublayer, evenly
      among them; None is all of them.
  """

  num_seeds: int = 1
  protocols: tuple[str, ...] = ()
  layer_rows: bool = False
  inside: int | None = None

  def decodings(self) -> tuple[trajectories.Decoding, ...]:
    """One decoding of each name, in the order of the protocols.

    Greedy, the control is the dense text, and is left out.
    """
    named = {
      decoding.name: decoding
      for protocol in self.protocols
      for decoding in PROTOCOLS[protocol]
      if self.temperature or decoding is not trajectories.CONTROL
    }
    return tuple(named.values())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
  """What was measured, column by column.

  Attributes:
    settings: how it was measured.
    prompts: token ids of each prompt.
    output: a row for each position of the teacher-forced text, at the output.
    inner: a row for each of these positions, layer and sublayer.
    alone: a row for each token that the pruned model writes on its own.
    decodings: by name of the decoding, a row for each step of its texts.
  """

  settings: Settings
  prompts: Sequence[Sequence[int]]
  output: Mapping[str, np.ndarray]
  inner: Mapping[str, np.ndarray]
  alone: Mapping[str, np.ndarray]
  decodings: Mapping[str, Mapping[str, np.ndarray]]


def load_models(
  dense: checkpoints.Source, pruned: checkpoints.Source
) -> tuple[sequences.Model, sequences.Model]:
  """Load two models of one shape in float32.

  Args:
    dense: the original model.
    pruned: the pruned model; its MLPs may be narrower.

  Raises:
    ValueError: their layers, widths or vocabularies differ.
  """
  sequences.check_same_shape(dense.config, pruned.config)
  return load_model(dense), load_model(pruned)


def load_model(source: checkpoints.Source) -> sequences.Model:
  """Load one model in float32.

  Args:
    source: its checkpoint.
  """
  config, params = checkpoints.load_params(source, jnp.float32)
  return sequences.Model(config=config, params=params)


def compare(
  dense: sequences.Model,
  pruned: sequences.Model,
  prompts: prompts_lib.Prompts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
  say: Callable[[str], None] = lambda words: None,
) -> Tables:
  """Continue every prompt with the dense model and write what both say.

  Args:
    dense: from `load_models`.
    pruned: from `load_models`.
    prompts: to continue.
    settings: how.
    run: the rows are written to its records.
    progress: told of every batch.
    say: hears what is done of a batch, which may take minutes.

  Returns:
    What was measured, by columns.
  """
  decodings, index = settings.decodings(), 0
  inside = _inside(settings)
  layers: list[dict[str, np.ndarray]] = []
  sampling = sequences.Sampling(
    num_steps=settings.max_new_tokens,
    temperature=settings.temperature,
    eos_ids=dense.config.eos_ids,
  )
  for seed in range(settings.seed, settings.seed + settings.num_seeds):
    writing = dataclasses.replace(settings, seed=seed)
    for text in texts.dense_texts(
      dense.config, dense.params, prompts.tokens, writing
    ):
      common = [
        {
          "prompt": int(prompt),
          "seed": seed,
          "position": len(prompts.tokens[prompt]) - 1,
          "analysis_temperature": settings.analysis_temperature,
        }
        for prompt in text.prompts[: text.count]
      ]
      say("the original has written; both models read it")
      if decodings:
        records = sequences.compare_decodings(
          dense,
          pruned,
          jnp.asarray(text.prompt_tokens),
          jnp.asarray(text.prompt_valid),
          decodings,
          sampling,
          key=text.key,
          temperature=settings.analysis_temperature,
        )
        run.write_all(rows.decoding_rows(records, common))
      inner, output = _compare(dense, pruned, text, settings)
      run.write_all(rows.output_rows(output, text, common))
      layers.append(
        rows.layer_columns(
          inner,
          text.alive[inside],
          [common[i] for i in inside if i < text.count],
          settings.lens,
        )
      )
      if settings.layer_rows:
        run.write_all(rows.rows_of(layers[-1]))
      say("both have read; the pruned model writes alone")
      own = texts.own_text(pruned.config, pruned.params, text, settings)
      run.write_all(rows.alone_rows(text, *own, common))
      progress.step(index)
      index += 1
  names = {decoding.name for decoding in decodings} - {TEACHER_FORCED}
  return Tables(
    settings=settings,
    prompts=prompts.tokens,
    output=run.columns(protocol=TEACHER_FORCED, absent=["layer"]),
    inner={
      name: np.concatenate([batch[name] for batch in layers])
      for name in layers[0]
    },
    alone=run.columns(protocol=ALONE),
    decodings={
      decoding.name: run.columns(protocol=decoding.name)
      for decoding in decodings
      if decoding.name in names
    },
  )


def measure_output(
  h: ArrayLike,
  h_pruned: ArrayLike,
  z: ArrayLike,
  z_pruned: ArrayLike,
  temperature: ArrayLike,
) -> dict[str, Any]:
  """What is measured of one position at the output.

  Args:
    h, h_pruned: what the LM head reads, [D].
    z, z_pruned: logits [V].
    temperature: T of the softmax.

  Returns:
    Scalars by field: of `Position`, of `theorems.Checks`, the gain of the
    softmax, and the probabilities of what both models would choose.
  """
  gain = jacobian.softmax_gain(
    z,
    z_pruned,
    temperature,
    max_iterations=_MAX_ITERATIONS,
    tolerance=_TOLERANCE,
  )
  return {
    **position.fields_of(
      position.compare_position(h, h_pruned, z, z_pruned, temperature)
    ),
    **position.fields_of(
      theorems.check_position(h, h_pruned, z, z_pruned, temperature)
    ),
    "relative_p": gain.relative_p,
    "amplification": gain.amplification,
    "amplification_centred": gain.amplification_centred,
    "random_amplification": gain.random_amplification,
    "worst_amplification": gain.worst_amplification,
    "worst_share": gain.worst_share,
    "linear_ratio": gain.linear_ratio,
    "participation": gain.participation,
    "top_singular": gain.worst.value,
    "top_singular_converged": gain.worst.converged,
    **_choices(z, z_pruned, temperature),
  }


def _choices(z, z_pruned, temperature):
  """How likely each model's choice is under both models."""
  p, q = (jax.nn.softmax(each / temperature) for each in (z, z_pruned))
  token, token_pruned = jnp.argmax(z), jnp.argmax(z_pruned)
  return {
    "top_p": p[token],
    "top_q": q[token_pruned],
    "p_of_pruned": p[token_pruned],
    "q_of_dense": q[token],
  }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DenseReading:
  """What the dense model wrote, and how it reads that.

  Attributes:
    text: what it wrote after one batch of prompts.
    reading: the same for a model that reads it.
    h: what the LM head of the dense model reads, [B, R, D].
  """

  text: texts.DenseTexts
  reading: sequences.Reading
  h: Any


def read_dense(
  dense: sequences.Model, prompts: prompts_lib.Prompts, settings: texts.Writing
) -> list[DenseReading]:
  """Let the dense model write and read once, for any number of comparisons.

  Args:
    dense: the dense model.
    prompts: to continue.
    settings: how; one text of each prompt.
  """
  readings = []
  for text in texts.dense_texts(
    dense.config, dense.params, prompts.tokens, settings
  ):
    reading = _reading(text)
    readings.append(
      DenseReading(
        text=text, reading=reading, h=sequences.read_outputs(dense, reading)
      )
    )
  return readings


def compare_outputs(
  dense: sequences.Model,
  pruned: sequences.Model,
  readings: Sequence[DenseReading],
) -> dict[str, np.ndarray]:
  """Compare the output on the dense text at T = 1, and write no records.

  Args:
    dense: the dense model.
    pruned: the pruned model.
    readings: from `read_dense`.

  Returns:
    Columns over positions: prompt, step, and the fields of
    `probes.position.Position`.
  """
  parts: dict[str, list[np.ndarray]] = {}
  for read in readings:
    output = sequences.compare_outputs(
      dense, pruned, read.h, read.reading, measure=position.compare_position
    )
    row, step = np.nonzero(read.text.alive)
    columns = {"prompt": read.text.prompts[row], "step": step} | {
      name: np.asarray(leaf_BR)[row, step]
      for name, leaf_BR in position.fields_of(output).items()
    }
    for name, values in columns.items():
      parts.setdefault(name, []).append(values)
  return {name: np.concatenate(each) for name, each in parts.items()}


def score_pocket(
  source: checkpoints.Source,
  dense: sequences.Model,
  pruned: sequences.Model,
  *,
  seed: int,
) -> dict[str, dict[str, Any]]:
  """Score both models on the tasks of the pocket model's world.

  Args:
    source: the checkpoint of the dense model.
    dense: from `load_models`.
    pruned: from `load_models`.
    seed: of the interval of a mean.

  Returns:
    By task: metric, the `Estimate` of the pruned model, reference, the mean of
    the dense one, and retention, a `statistics.Retention`. Items that are right
    or wrong have Wilson's interval. No task for a model that does not speak the
    pocket model's language.
  """
  if not inputs.is_pocket(source):
    return {}
  from jaxprune.pocket import shipped

  reference, scores = (
    shipped.item_scores(model.config, model.params) for model in (dense, pruned)
  )
  tasks = {}
  # The dense model is at chance on stories, so they could lose nothing.
  for name, chance in _POCKET_TASKS.items():
    if name == "retrieve":
      metric, estimate = "nDCG@10", statistics.mean(scores[name], seed=seed)
    else:
      metric, estimate = "accuracy", statistics.proportion(scores[name])
    tasks[name] = {
      "metric": metric,
      **estimate.to_json(),
      "reference": float(reference[name].mean()),
      "retention": dataclasses.asdict(
        statistics.retention(scores[name], reference[name], chance)
      ),
    }
  return tasks


def task_rows(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
  """Flat rows of what `score_pocket` returns."""
  for name, entry in tasks.items():
    yield {"task": name} | {k: v for k, v in entry.items() if k != "retention"}


def measure_inside(*vectors_and_temperature: Any) -> dict[str, Any]:
  """What the page shows of one position after a sublayer: `rows.BY_LAYER`.

  The rest of `position.Position` is a third of the time of a comparison.

  Args:
    *vectors_and_temperature: of `position.compare_position`.
  """
  fields = position.fields_of(
    position.compare_position(*vectors_and_temperature)
  )
  return {name: fields[name] for name in rows.BY_LAYER}


def measure_all_inside(*vectors_and_temperature: Any) -> dict[str, Any]:
  """Every field of `position.Position`, for the rows of the records.

  Args:
    *vectors_and_temperature: of `position.compare_position`.
  """
  return position.fields_of(position.compare_position(*vectors_and_temperature))


def _compare(dense, pruned, text, settings) -> tuple[Any, Any]:
  """Both models read a text: what is measured inside and at the output."""
  return sequences.compare_sequences(
    dense,
    pruned,
    _reading(text),
    temperature=settings.analysis_temperature,
    lens=settings.lens,
    measure=measure_output,
    inside=measure_all_inside if settings.layer_rows else measure_inside,
    texts=None if settings.inside is None else jnp.asarray(_inside(settings)),
  )


def _inside(settings) -> np.ndarray:
  """Which texts of a batch are measured after every sublayer."""
  count = min(settings.inside or settings.batch, settings.batch)
  return np.linspace(0, settings.batch - 1, count).round().astype(int)


def _reading(text) -> sequences.Reading:
  return sequences.Reading(
    tokens=jnp.asarray(text.tokens),
    valid=jnp.asarray(text.valid),
    rows=jnp.asarray(text.rows),
  )
