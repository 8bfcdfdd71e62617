"""The suite `cpu`: loading, passes, pruning, drop scores and decoding.

Beside stock transformers, and beside the papers' methods in PyTorch. Each side
lives in a process of its own and works in its turn, A B A B; a first call of
each is apart, as it compiles. Peak memory is that of a fresh process that does
one piece of work once.
"""

import copy
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, models, report
from jaxprune.models import generation
from jaxprune.pruning import registry
from jaxprune.pruning.checkpoint import streaming, sublayers, weights
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies import inputs
from jaxprune.studies.benchmark import (
  floors,
  processes,
  rates,
  references,
  stages,
  timing,
)

# Calibration sequences and their length, by size; of a folder, those of M.
CALIBRATION = {"S": (32, 512), "M": (8, 512)}
_PROMPT = 32
_DECODE, _PRUNE = ("decode_1", "decode_8"), ("wanda", "sparsegpt")
WORK = (
  *("load", "forward", "wanda", "wanda_2of4", "sparsegpt", "sparsegpt_2of4"),
  *("drop_scores", *_DECODE),
)
# What a fresh process does once for its peak of memory.
_REMEMBERED = ("wanda", "sparsegpt", "decode_8")
STAGES = ("load", *stages.STAGES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    size: of `references.SIZES`, for random weights.
    model: a folder, in place of random weights.
    work: of `WORK`.
    repeats: timed runs of each side.
    threads: of PyTorch; JAX takes the cores that it is given.
    max_new_tokens: decoded per prompt.
    memory: whether fresh processes measure the peak of memory.
  """

  size: str
  model: str | None
  work: tuple[str, ...]
  repeats: int
  threads: int
  max_new_tokens: int
  memory: bool = True


def name_of(size: str, model: str | None) -> str:
  """What the tables call the model.

  Args:
    size: of random weights.
    model: a folder, in place of them.
  """
  return pathlib.Path(model).name if model else size


def read_work(names: Sequence[str] | None) -> tuple[str, ...]:
  """Pieces of work by name; None is all.

  Raises:
    ValueError: one is not in `WORK`.
  """
  unknown = set(names or ()) - set(WORK)
  if unknown:
    raise ValueError(
      f"work={','.join(sorted(unknown))}: use some of {', '.join(WORK)}"
    )
  return WORK if names is None else tuple(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Given:
  """What both sides work on.

  Attributes:
    folder: the dense checkpoint.
    scratch: a folder for what pruning writes.
    ids: calibration tokens, int32 [sequences, length].
    threads: of PyTorch.
    max_new_tokens: decoded per prompt.
  """

  folder: str
  scratch: str
  ids: np.ndarray
  threads: int
  max_new_tokens: int


def measure(
  settings: Settings,
  run: report.RunFolder,
  say: Callable[[str], None],
  open_side: Callable[..., Any] = processes.Side,
) -> dict[str, Any]:
  """Time every piece of work on both sides.

  Args:
    settings: which work, of which model, how often.
    run: takes a row per piece of work and timed run.
    say: takes a line per piece of work.
    open_side: `processes.Side`, or what answers as it does.

  Returns:
    By piece of work medians in seconds, their ratio, the floor, stages and
    peaks of memory; and the rates that the floors are made of.
  """
  import torch

  references.start(settings.threads)
  summary: dict[str, Any] = {
    "model": name_of(settings.size, settings.model),
    "torch": torch.__version__,
  }
  with tempfile.TemporaryDirectory() as scratch:
    given, config = _prepare(settings, scratch)
    speed = (
      rates.matmul_rate(config.embed_dim, config.mlp_dim),
      rates.memory_rate(),
    )
    summary |= dict(zip(("flops_per_second", "bytes_per_second"), speed))
    least = floors.seconds(
      config, settings.work, given.ids, settings.max_new_tokens, speed
    )
    with (
      open_side("reference", open_reference, given) as theirs,
      open_side("jaxprune", open_jaxprune, given) as us,
    ):
      for name in settings.work:
        entry = summary[name] = _time(
          settings, run, name, {side.name: side for side in (theirs, us)}
        )
        entry["floor_seconds"] = least[name]
        say(_line(name, entry))
    if settings.memory:
      for name in settings.work:
        if name in _REMEMBERED:
          summary[name] |= _peaks(given, name, open_side)
          say(_memory_line(name, summary[name]))
  return summary


def _prepare(settings, scratch):
  """The checkpoint and tokens."""
  folder = settings.model
  if folder is None:
    folder = f"{scratch}/dense"
    references.random_model(settings.size).save_pretrained(folder)
  source = inputs.open_model(folder)
  ids = references.random_ids(
    source.config.vocab_size, CALIBRATION.get(settings.size, (8, 512)), 0
  )
  given = Given(
    folder=str(source.folder),
    scratch=scratch,
    ids=ids,
    threads=settings.threads,
    max_new_tokens=settings.max_new_tokens,
  )
  return given, source.config


def _time(settings, run, name, sides):
  """Seconds of one piece of work on both sides, and of its stages."""
  parts_of = {side: [] for side in sides}

  def turn(side):
    seconds, parts = sides[side].ask(name)
    parts_of[side].append(parts)
    return np.array(seconds)

  seconds = timing.take_turns(
    {side: functools.partial(turn, side) for side in sides}, settings.repeats
  )
  slow, fast = (seconds[side] for side in ("reference", "jaxprune"))
  run.write_all(
    {
      "task": name,
      "seed": index,
      "metric": metric,
      "value": fast[index + 1, column],
      "reference": slow[index + 1, column],
    }
    for index in range(settings.repeats)
    for column, metric in enumerate(("seconds", "processor_seconds"))
  )
  entry = _summarise(name, slow, fast, settings.max_new_tokens)
  for prefix, side in (("", "jaxprune"), ("reference_", "reference")):
    for stage in parts_of[side][-1]:
      entry[f"{prefix}{stage}_seconds"] = float(
        np.median([parts[stage] for parts in parts_of[side][1:]])
      )
  return entry


def _summarise(name, slow, fast, max_new_tokens):
  """Medians of one piece of work; the first call of each side is left out."""
  reference, theirs_cpu = np.median(slow[1:], axis=0).tolist()
  seconds, ours_cpu = np.median(fast[1:], axis=0).tolist()
  entry = {
    "seconds": seconds,
    "reference_seconds": reference,
    "ratio": reference / seconds,
    "processor_seconds": ours_cpu,
    "reference_processor_seconds": theirs_cpu,
    "processor_ratio": theirs_cpu / max(ours_cpu, 1e-9),
    "first_call_seconds": float(fast[0, timing.WALL]),
    "reference_first_call_seconds": float(slow[0, timing.WALL]),
  }
  if name in _DECODE:
    written = int(name.rpartition("_")[2]) * max_new_tokens
    entry["tokens_per_second"] = written / seconds
    entry["reference_tokens_per_second"] = written / reference
  return entry


def _peaks(given, name, open_side):
  """Peak memory of each side, in a fresh process that does one thing."""
  peaks = {}
  for key, side in (
    ("reference_peak_bytes", open_reference),
    ("peak_bytes", open_jaxprune),
  ):
    with open_side(key, side, given) as process:
      process.ask(name)
      peaks[key] = process.peak_bytes()
  return peaks


def open_reference(given: Given) -> Callable[[str], Any]:
  """The side of PyTorch: from the name of a piece of work to its seconds.

  Args:
    given: what is worked on.
  """
  import torch

  from jaxprune.studies.benchmark import pruning_references

  references.start(given.threads)
  model = references.read_model(given.folder)
  tensor = torch.tensor(given.ids, dtype=torch.long)

  def load():
    references.read_model(given.folder)

  def forward():
    with torch.no_grad():
      for row in tensor:
        model.model(row[None], use_cache=False)

  def decode(batch):
    with torch.no_grad():
      model.generate(
        tensor[:batch, :_PROMPT],
        attention_mask=torch.ones(batch, _PROMPT),
        max_new_tokens=given.max_new_tokens,
        min_new_tokens=given.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
      )

  def prune(method, pattern):
    # The copy takes little time: it moves the weights once in memory.
    return getattr(pruning_references, method)(
      copy.deepcopy(model), tensor, pattern
    )

  def drop():
    for target in ("attention", "mlp", "block"):
      pruning_references.drop_scores(model, tensor, target)

  return _worker(
    {
      "load": load,
      "forward": forward,
      "drop_scores": drop,
      **{f"decode_{n}": functools.partial(decode, n) for n in (1, 8)},
      **{m: functools.partial(prune, m, None) for m in _PRUNE},
      **{f"{m}_2of4": functools.partial(prune, m, (2, 4)) for m in _PRUNE},
    }
  )


def open_jaxprune(given: Given) -> Callable[[str], Any]:
  """The side of jaxprune: from the name of a piece of work to its seconds.

  The model is in memory only for work that needs all of it at once.

  Args:
    given: what is worked on.
  """
  jax.config.update("jax_default_matmul_precision", "default")
  source = checkpoints.open_checkpoint(given.folder)
  config = source.config
  forward_one = jax.jit(functools.partial(models.forward, config))

  @functools.cache
  def params():
    return checkpoints.load_params(source, jnp.float32)[1]

  def load():
    jax.block_until_ready(checkpoints.load_params(source, jnp.float32)[1])

  def forward():
    for row in given.ids:
      jax.block_until_ready(forward_one(params(), row[None])[0])

  def decode(batch):
    written = generation.generate(
      config,
      params(),
      jnp.asarray(given.ids[:batch, :_PROMPT]),
      max_new_tokens=given.max_new_tokens,
      sampling=generation.Sampling(eos_ids=()),
    )
    jax.block_until_ready(written.tokens)

  def prune(method, pattern):
    weights.prune_weights(
      source,
      f"{given.scratch}/pruned",
      method=method,
      pattern=pattern,
      tokens=given.ids,
      output=weights.Output(overwrite=True),
    )

  def drop():
    sublayers.score_sublayers(source, given.ids)

  def pruning(method):
    group = registry.default_group(method)
    return {
      method: functools.partial(
        prune, method, Unstructured(sparsity=0.5, group=group)
      ),
      f"{method}_2of4": functools.partial(prune, method, NofM(keep=2, of=4)),
    }

  return _worker(
    {
      "load": load,
      "forward": forward,
      "drop_scores": drop,
      **{f"decode_{n}": functools.partial(decode, n) for n in (1, 8)},
      **pruning("wanda"),
      **pruning("sparsegpt"),
    },
    lambda name: _stages(source, given.ids, name),
  )


def _worker(work, time_stages=None):
  """Answers a name with (wall and processor seconds), seconds of stages."""

  def answer(name):
    parts = {}

    def run():
      parts.update(work[name]() or {})

    seconds = timing.timed(run)
    if time_stages is not None and name.partition("_")[0] in _PRUNE:
      parts |= time_stages(name)
    return seconds.tolist(), parts

  return answer


def _stages(source, tokens, name):
  """Seconds of the stages of pruning, each waited for, without writing.

  Beside the whole run, where the stages overlap.
  """
  config, method = source.config, registry.METHODS[name.partition("_")[0]]
  pattern = (
    NofM(keep=2, of=4)
    if name.endswith("2of4")
    else Unstructured(sparsity=0.5, group=method.groups[0])
  )
  memory = streaming.Memory()
  states = streaming.embedded(source, tokens, memory)
  seconds = dict.fromkeys(STAGES, 0.0)
  for index in range(config.num_layers):
    began = time.perf_counter()
    read = checkpoints.read_layer(source, index)
    old = jax.block_until_ready(streaming.place_layer(read, memory))
    seconds["load"] += time.perf_counter() - began
    parts = stages.prune_layer(
      config, method, pattern, old, index, states, memory
    )
    for stage, spent in parts.items():
      seconds[stage] += spent
  return seconds


def _line(name, entry):
  parts = "   ".join(
    f"{stage} {entry[f'reference_{stage}_seconds']:.2f} ->"
    f" {entry[f'{stage}_seconds']:.2f}"
    for stage in STAGES
    if f"reference_{stage}_seconds" in entry
  )
  return (
    f"{name:15s} reference {entry['reference_seconds']:8.3f} s   jaxprune"
    f" {entry['seconds']:8.3f} s   ratio {entry['ratio']:5.2f} (processor"
    f" {entry['processor_ratio']:.2f})   floor {entry['floor_seconds']:.2f} s "
    f"  first call {entry['first_call_seconds']:.2f} s"
    + (f"   {parts}" if parts else "")
  )


def _memory_line(name, entry):
  return (
    f"{name:15s} peak memory  reference"
    f" {entry['reference_peak_bytes'] / 1e9:.2f} GB   jaxprune"
    f" {entry['peak_bytes'] / 1e9:.2f} GB"
  )
