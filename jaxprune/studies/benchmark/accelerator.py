"""The suite `gpu`: one accelerator, beside its own limits.

Random weights of a published shape, made on the device, so that no disk is
timed. Pruning walks over all layers as `weights.prune_weights` does, float32
with the default precision of matrix products (TF32 on a GPU); the Gram matrices
are exact float32. Decoding and evaluation hold the whole model in bfloat16.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import devices, report
from jaxprune.models import decoder, generation, init
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import streaming
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies.benchmark import floors, rates, shapes, stages, timing

_PROMPT = 32
WORK = ("wanda", "sparsegpt", "decode", "evaluation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    shape: of `shapes.NAMES`.
    sequences: of calibration.
    length: tokens of each.
    max_new_tokens: decoded per prompt.
    repeats: timed runs of decoding and evaluation.
    micro_batch: sequences in a layer at once.
    work: of `WORK`.
  """

  shape: str
  sequences: int = 128
  length: int = 2048
  max_new_tokens: int = 64
  repeats: int = 3
  micro_batch: int = 8
  work: tuple[str, ...] = WORK


def measure(
  settings: Settings, run: report.RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
  """Time pruning, decoding and evaluation on the default device.

  Args:
    settings: what is timed.
    run: takes a row per number.
    say: takes a line per piece of work.

  Returns:
    Seconds of every stage, fractions of the limits, and the peak of memory.
  """
  config = shapes.config(settings.shape)
  with jax.default_matmul_precision("default"):
    summary = {
      "shape": settings.shape,
      "device": jax.devices()[0].device_kind,
      "sequences": settings.sequences,
      "length": settings.length,
      **_limits(config),
    }
    say(
      f"limits       float32 {summary['float32_flops'] / 1e12:.1f}, bfloat16"
      f" {summary['bfloat16_flops'] / 1e12:.1f} Tflop/s, memory"
      f" {summary['bytes_per_second'] / 1e9:.0f} GB/s"
    )
    for name, work in _list_work(config, settings, summary).items():
      summary[name] = work()
      say(_line(name, summary[name]))
  summary["peak_bytes"] = devices.peak_bytes()
  run.write_all(
    {"task": name, "metric": metric, "value": value}
    for name, entry in summary.items()
    if isinstance(entry, dict)
    for metric, value in entry.items()
  )
  return summary


def _list_work(config, settings, limits):
  """What is timed, by name, in order."""
  found = {}
  for method in ("wanda", "sparsegpt"):
    group = registry.default_group(method)
    for name, pattern in (
      (method, Unstructured(sparsity=0.5, group=group)),
      (f"{method}_2of4", NofM(keep=2, of=4)),
    ):
      found[name] = functools.partial(
        _prune, config, settings, method, pattern, limits
      )

  @functools.cache
  def params():
    make = jax.jit(lambda key: init(config, key, jnp.bfloat16))
    return make(jax.random.key(0))

  for batch in (1, 8):
    found[f"decode_{batch}"] = lambda batch=batch: _decode(
      config, params(), settings, batch, limits
    )
  found["evaluation"] = lambda: _evaluate(config, params(), settings, limits)
  return {k: v for k, v in found.items() if k.startswith(settings.work)}


def _limits(config):
  """What the device does at its best."""
  shape = config.embed_dim, config.mlp_dim, 4096
  return {
    "float32_flops": rates.matmul_rate(*shape),
    "bfloat16_flops": rates.matmul_rate(*shape, jnp.bfloat16),
    "bytes_per_second": rates.memory_rate(),
  }


@functools.partial(jax.jit, static_argnums=0)
def _random_layer(config, key):
  one = dataclasses.replace(
    config, num_layers=1, sliding_layers=config.sliding_layers[:1]
  )
  return jax.tree.map(lambda leaf: leaf[0], init(one, key)["layers"])


def _prune(config, settings, method, pattern, limits):
  """Seconds of every stage, and of the first layer, which compiles."""
  chosen = registry.METHODS[method]
  memory = streaming.Memory(micro_batch=settings.micro_batch)
  size = memory.size(settings.sequences)
  shape = size, settings.length, config.embed_dim
  keys = jax.random.split(jax.random.key(1), settings.sequences // size)
  states = streaming.States(
    batches=[jax.random.normal(key, shape) for key in keys],
    valid=[None] * len(keys),
  )
  seconds = {stage: [] for stage in stages.STAGES}
  for index in range(config.num_layers):
    old = jax.block_until_ready(
      _random_layer(config, jax.random.key(2 + index))
    )
    parts = stages.prune_layer(
      config, chosen, pattern, old, index, states, memory
    )
    for stage, spent in parts.items():
      seconds[stage].append(spent)
  later = {k: float(np.median(v[1:] or v)) for k, v in seconds.items()}
  entry = {f"{k}_seconds": v * config.num_layers for k, v in later.items()}
  whole = sum(map(sum, seconds.values()))
  entry["seconds"] = sum(entry.values())
  entry["seconds_with_compilation"] = whole
  exact = chosen.statistic == "gram"
  return entry | _fractions(config, settings, entry, limits, exact)


def _fractions(config, settings, entry, limits, has_gram):
  """Of the rate of float32 products: the second pass, and the Gram."""
  tokens = settings.sequences * settings.length
  flops = floors.forward_flops(config, tokens)
  second = entry["second_forward_seconds"]
  found = {"forward_fraction": flops / second / limits["float32_flops"]}
  gram = entry["statistics_seconds"] - second
  if has_gram and gram > 0:
    more = floors.sparsegpt_flops(config, tokens)["gram"]
    found["gram_flops_per_second"] = more / gram
  return found


def _decode(config, params, settings, batch, limits):
  ids = np.random.default_rng(0).integers(
    3, config.vocab_size, (batch, _PROMPT)
  )

  def write():
    text = generation.generate(
      config,
      params,
      ids.astype(np.int32),
      max_new_tokens=settings.max_new_tokens,
      sampling=generation.Sampling(eos_ids=()),
    )
    jax.block_until_ready(text.tokens)

  seconds = _median(write, settings.repeats)
  weights = floors.weight_bytes(config) / 2
  floor = settings.max_new_tokens * weights / limits["bytes_per_second"]
  return {
    "seconds": seconds,
    "tokens_per_second": batch * settings.max_new_tokens / seconds,
    "floor_seconds": floor,
    "memory_fraction": floor / seconds,
  }


def _evaluate(config, params, settings, limits):
  """Log-likelihoods of a batch of texts."""
  shape = settings.micro_batch, settings.length
  ids = np.random.default_rng(0).integers(3, config.vocab_size, shape)

  @jax.jit
  def score(params, tokens_BT):
    x_BTD, _ = decoder.forward(config, params, tokens_BT)

    def row(pair):
      x_TD, next_T = pair
      z_TV = decoder.unembed(config, params, x_TD)
      return jnp.take_along_axis(jax.nn.log_softmax(z_TV), next_T[:, None], 1)

    return jax.lax.map(row, (x_BTD[:, :-1], tokens_BT[:, 1:]))

  tokens_BT = jnp.asarray(ids, jnp.int32)
  seconds = _median(
    lambda: jax.block_until_ready(score(params, tokens_BT)), settings.repeats
  )
  head = 2.0 * ids.size * config.vocab_size * config.embed_dim
  flops = floors.forward_flops(config, ids.size) + head
  return {
    "seconds": seconds,
    "tokens_per_second": ids.size / seconds,
    "floor_seconds": flops / limits["bfloat16_flops"],
    "matmul_fraction": flops / seconds / limits["bfloat16_flops"],
  }


def _median(function, repeats):
  """Wall seconds after one call that is not counted."""
  function()
  return float(
    np.median([timing.timed(function)[timing.WALL] for _ in range(repeats)])
  )


def _line(name, entry):
  numbers = "   ".join(f"{key} {value:.4g}" for key, value in entry.items())
  return f"{name:15s} {numbers}"
