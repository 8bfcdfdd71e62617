"""The suite `scaling`: how does cost grow with each size of the work?

One size at a time is doubled, the others stay. The exponent is the slope of
log seconds between the two largest values, where what costs the same at every
size weighs least. `EXPECTED` says what the arithmetic gives for large sizes; a
measured exponent well above it would be a defect.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import report
from jaxprune.models import ModelConfig, generation, init
from jaxprune.probes.decoder import transitions
from jaxprune.pruning.checkpoint import in_memory
from jaxprune.pruning.patterns import Unstructured
from jaxprune.studies.benchmark import shapes, timing

AXES = ("layers", "width", "tokens", "vocabulary", "prompts", "steps")
WORK = ("wanda", "sparsegpt", "transitions", "decode")
# What timing may add to an exponent.
TOLERANCE = 0.2
_BASE = dict(layers=2, width=64, tokens=64, vocabulary=512, prompts=2, steps=8)
# By work and size: the exponent of the arithmetic, and why.
EXPECTED: dict[str, dict[str, tuple[float, str]]] = {
  "wanda": {
    "layers": (1, "each layer costs the same"),
    "width": (2, "kernels have width^2 weights"),
    "tokens": (2, "kernels cost tokens, attention scores tokens^2"),
  },
  "sparsegpt": {
    "layers": (1, "each layer costs the same"),
    "width": (3, "the factor and the update cost width^3"),
    "tokens": (2, "as for Wanda, and the Gram costs tokens"),
  },
  "transitions": {
    "layers": (1, "each layer is replaced once"),
    "vocabulary": (1, "each change is read out over the vocabulary"),
    "prompts": (1, "each prompt costs the same"),
    "steps": (1, "each step is measured once"),
  },
  "decode": {
    "layers": (1, "each step reads all weights"),
    "vocabulary": (1, "each step reads the head"),
    "prompts": (1, "prompts share the reading of the weights"),
    "steps": (2, "each step reads the weights, and the keys before it"),
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    work: of `WORK`.
    doublings: how often each size is doubled.
    repeats: timed runs of each size; the median counts.
    scale: factor on the smallest size of every axis.
  """

  work: tuple[str, ...] = WORK
  doublings: int = 3
  repeats: int = 3
  scale: int = 1


def measure(
  settings: Settings, run: report.RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
  """Time every piece of work along every size that it has.

  Args:
    settings: what is timed.
    run: takes a row per timed size.
    say: takes a line per piece of work and size.

  Returns:
    By work and size: the values, median processor and wall seconds, the
    measured exponent and the expected one with its reason.
  """
  summary: dict[str, Any] = {}
  for name in settings.work:
    summary[name] = {}
    for axis, (expected, reason) in EXPECTED[name].items():
      values, seconds = [], []
      for doubling in range(settings.doublings + 1):
        sizes = {k: v * settings.scale for k, v in _BASE.items()}
        sizes[axis] *= 2**doubling
        values.append(sizes[axis])
        seconds.append(_seconds(name, sizes, settings.repeats))
        run.write_all(
          {
            "task": f"{name} by {axis}",
            "step": sizes[axis],
            "metric": metric,
            "value": value,
          }
          for metric, value in zip(
            ("seconds", "processor_seconds"), seconds[-1]
          )
        )
      entry = summary[name][axis] = {
        "values": values,
        "seconds": [wall for wall, _ in seconds],
        "processor_seconds": [processor for _, processor in seconds],
        "exponent": exponent(values, [processor for _, processor in seconds]),
        "expected": expected,
        "reason": reason,
      }
      say(
        f"{name:12s} {axis:11s} {values[0]} to {values[-1]}   exponent"
        f" {entry['exponent']:5.2f}, at most {expected} expected: {reason}"
      )
  return summary


def exponent(values: list[int], seconds: list[float]) -> float:
  """Slope of log seconds over log values, between the two largest values.

  Args:
    values: sizes, ascending, at least two.
    seconds: at each.
  """
  rise = np.log(seconds[-1] / seconds[-2])
  return float(rise / np.log(values[-1] / values[-2]))


def make_config(sizes: dict[str, int]) -> ModelConfig:
  """A Llama of these sizes.

  Args:
    sizes: by name in `AXES`.
  """
  width = sizes["width"]
  fields = dict(
    num_hidden_layers=sizes["layers"],
    hidden_size=width,
    intermediate_size=3 * width,
    num_attention_heads=max(width // 32, 1),
    num_key_value_heads=max(width // 64, 1),
    vocab_size=sizes["vocabulary"],
  )
  return shapes.llama(fields, positions=1 << 16, rope_theta=10000.0)


_init = jax.jit(init, static_argnums=0)


def _seconds(name, sizes, repeats):
  """Median wall and processor seconds after one call that is not counted."""
  config = make_config(sizes)
  params = _init(config, jax.random.key(0))
  shape = sizes["prompts"] * 4, sizes["tokens"]
  ids = np.random.default_rng(0).integers(3, sizes["vocabulary"], shape)
  work = functools.partial(
    _WORK[name], config, params, ids.astype(np.int32), sizes
  )
  work()
  runs = [timing.timed(work) for _ in range(repeats)]
  return np.median(runs, axis=0).tolist()


def _prune(method, group, config, params, ids, sizes):
  pattern = Unstructured(sparsity=0.5, group=group)
  jax.block_until_ready(
    in_memory.prune_params(config, params, ids, method, pattern)[1]
  )


def _decode(config, params, ids, sizes):
  written = generation.generate(
    config,
    params,
    ids[: sizes["prompts"], :16],
    max_new_tokens=sizes["steps"] * 4,
    sampling=generation.Sampling(eos_ids=()),
  )
  jax.block_until_ready(written.tokens)


def _transitions(config, params, ids, sizes):
  jax.block_until_ready(
    transitions.compare_transitions(
      config,
      params,
      params,
      jnp.asarray(ids[: sizes["prompts"], : 16 + sizes["steps"]]),
      num_steps=sizes["steps"],
    )
  )


_WORK = {
  "wanda": functools.partial(_prune, "wanda", "output"),
  "sparsegpt": functools.partial(_prune, "sparsegpt", "matrix"),
  "transitions": _transitions,
  "decode": _decode,
}
