"""The suite `transitions`: every sublayer at every step, beside PyTorch.

Both sides decode greedily from one prompt with the dense model and, at every
step, compare each attention and MLP with its pruned counterpart in three
spaces. The reference works as the official script does: an uncompiled decoder
with hooks; per sublayer two products with the LM head and the metrics one after
the other; its pruned attention does not get the cache, which is less work than
ours. It writes no text log, which the official script does. Several prompts
together are charged per prompt; the reference has no batches. Our side is timed
without the metrics too: what is left is decoding, the sublayers and the
products with the LM head.
"""

import copy
import dataclasses
import functools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.probes import position
from jaxprune.probes.decoder import transitions
from jaxprune.studies import inputs, texts
from jaxprune.studies.benchmark import references, timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    size: of `references.SIZES`, for random weights.
    model: a folder or `pocket`, in place of random weights.
    max_new_tokens: tokens to decode.
    prompt: tokens of a prompt.
    batch: prompts that jaxprune decodes together.
    repeats: timed runs of each side.
    threads: of PyTorch.
  """

  size: str
  model: str | None
  max_new_tokens: int
  prompt: int
  batch: int
  repeats: int
  threads: int


def measure(
  settings: Settings, run: report.RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
  """Time both sides.

  Args:
    settings: what is timed.
    run: takes rows per timed run.
    say: takes a line with the result.

  Returns:
    Medians in seconds per prompt, and the ratios.
  """
  import torch

  references.start(settings.threads)
  with (
    tempfile.TemporaryDirectory() as scratch,
    jax.default_matmul_precision("default"),
  ):
    sides = _sides(settings, pathlib.Path(scratch))
    seconds = timing.take_turns(sides, settings.repeats)
  run.write_all(_rows(seconds))
  (slow, slow_cpu), (fast, fast_cpu), (rest, _) = (
    np.median(seconds[side][1:], axis=0).tolist() for side in sides
  )
  summary = {
    "model": settings.model or settings.size,
    "steps": settings.max_new_tokens,
    "seconds_per_prompt": fast,
    "reference_seconds_per_prompt": slow,
    "without_metrics_seconds_per_prompt": rest,
    "ratio": slow / fast,
    "processor_seconds_per_prompt": fast_cpu,
    "reference_processor_seconds_per_prompt": slow_cpu,
    "processor_ratio": slow_cpu / fast_cpu,
    "first_call_seconds": float(
      seconds["jaxprune"][0, timing.WALL] * settings.batch
    ),
    "torch": torch.__version__,
  }
  say(
    f"transitions  reference {slow:8.3f} s   jaxprune {fast:8.3f} s   "
    f"ratio {slow / fast:6.2f}   without metrics {rest:.3f} s"
    f"   processor {slow_cpu:.3f} s, {fast_cpu:.3f} s, ratio"
    f" {slow_cpu / fast_cpu:.2f}   first call"
    f" {summary['first_call_seconds']:.2f} s"
  )
  return summary


def _sides(settings, scratch):
  """What is timed in turn: the reference, jaxprune, and it without metrics."""
  import torch

  dense = (
    references.read_model(inputs.open_model(settings.model).folder)
    if settings.model
    else references.random_model(settings.size)
  )
  pruned = copy.deepcopy(dense)
  references.halve(pruned)
  trees = []
  for name, model in (("dense", dense), ("pruned", pruned)):
    model.save_pretrained(scratch / name)
    config, params = checkpoints.load_params(scratch / name, jnp.float32)
    trees.append(params)
  ids = references.random_ids(
    config.vocab_size, (settings.batch, settings.prompt), 3
  )
  prompt = torch.tensor(ids[:1], dtype=torch.long)

  def reference():
    references.transitions(dense, pruned, prompt, settings.max_new_tokens)

  writing = texts.Writing(
    max_new_tokens=settings.max_new_tokens, batch=len(ids)
  )

  def jaxprune(metrics):
    (text,) = texts.dense_texts(config, trees[0], ids, writing)
    jax.block_until_ready(
      transitions.compare_transitions(
        config,
        *trees,
        jnp.asarray(text.tokens),
        jnp.asarray(text.valid),
        transitions.Measurement(measure=metrics),
        num_steps=settings.max_new_tokens,
      )
    )

  return {
    "reference": functools.partial(timing.timed, reference),
    "jaxprune": functools.partial(
      timing.timed,
      functools.partial(jaxprune, position.compare_position),
      settings.batch,
    ),
    "without_metrics": functools.partial(
      timing.timed, functools.partial(jaxprune, _one_logit), settings.batch
    ),
  }


def _one_logit(h, g, z, y, temperature):
  """In place of the metrics: both logits are needed, nothing is computed."""
  del h, g, temperature
  return z[0] - y[0]


def _rows(seconds):
  """The records: the metrics of both sides, then jaxprune without them."""
  slow, fast, rest = (seconds[side][1:] for side in seconds)
  for index in range(len(fast)):
    for column, metric in enumerate(("seconds", "processor_seconds")):
      yield {
        "task": "transitions",
        "metric": metric,
        "value": fast[index, column],
        "reference": slow[index, column],
        "seed": index,
      }
  for index in range(len(rest)):
    yield {
      "task": "transitions",
      "metric": "seconds_without_metrics",
      "value": rest[index, timing.WALL],
      "seed": index,
    }
