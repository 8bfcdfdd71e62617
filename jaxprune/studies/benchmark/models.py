"""The suite `models`: forward passes, decoding and Wanda, beside PyTorch."""

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

from jaxprune import checkpoints, models, report
from jaxprune.models import generation
from jaxprune.pruning.checkpoint import weights
from jaxprune.pruning.patterns import NofM, Unstructured
from jaxprune.studies.benchmark import references, timing

# Calibration sequences and their length, by size.
CALIBRATION = {"S": (32, 512), "M": (8, 512)}
_PROMPT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is timed.

  Attributes:
    size: of `references.SIZES`.
    work: names: forward, decode_1, decode_8, wanda, wanda_2of4.
    repeats: timed runs of each side.
    threads: of PyTorch.
    new_tokens: decoded per prompt.
  """

  size: str
  work: tuple[str, ...]
  repeats: int
  threads: int
  new_tokens: int


def measure(
  settings: Settings, run: report.RunFolder, say: Callable[[str], None]
) -> dict[str, Any]:
  """Time every piece of work on both sides.

  Args:
    settings: which work, of which model, how often.
    run: takes a row per piece of work and timed run.
    say: takes a line per piece of work.

  Returns:
    Medians by piece of work, in seconds, and their ratio.
  """
  import torch

  references.start(settings.threads)
  reference = references.random_model(settings.size)
  summary: dict[str, Any] = {"size": settings.size, "torch": torch.__version__}
  with (
    tempfile.TemporaryDirectory() as scratch,
    jax.default_matmul_precision("default"),
  ):
    folder = pathlib.Path(scratch)
    reference.save_pretrained(folder / "dense")
    source = checkpoints.open_checkpoint(folder / "dense")
    ids = references.random_ids(
      source.config.vocab_size, CALIBRATION[settings.size], 0
    )
    torch_work = _torch_work(reference, ids, settings.new_tokens)
    jax_work = _jax_work(source, ids, settings.new_tokens, folder / "pruned")
    for name in settings.work:
      seconds = timing.take_turns(
        {
          "reference": functools.partial(timing.timed, torch_work[name]),
          "jaxprune": functools.partial(timing.timed, jax_work[name]),
        },
        settings.repeats,
      )
      slow, fast = (seconds[side][:, timing.WALL] for side in seconds)
      run.write_all(
        {
          "task": name,
          "seed": index,
          "metric": "seconds",
          "value": ours_seconds,
          "reference": their_seconds,
        }
        for index, (their_seconds, ours_seconds) in enumerate(
          zip(slow[1:], fast[1:])
        )
      )
      summary[name] = _summarise(name, slow, fast, settings.new_tokens)
      say(_line(name, summary[name]))
  return summary


def _torch_work(reference, ids, new_tokens):
  """Each piece of work by the reference, by name."""
  import torch

  tensor = torch.tensor(ids, dtype=torch.long)

  def forward():
    with torch.no_grad():
      for row in tensor:
        reference.model(row[None], use_cache=False)

  def decode(batch):
    with torch.no_grad():
      reference.generate(
        tensor[:batch, :_PROMPT],
        attention_mask=torch.ones(batch, _PROMPT),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
      )

  def prune(pattern):
    # The copy takes little time: it moves the weights once in memory.
    references.wanda(copy.deepcopy(reference), tensor, pattern)

  return {
    "forward": forward,
    "decode_1": lambda: decode(1),
    "decode_8": lambda: decode(8),
    "wanda": lambda: prune(None),
    "wanda_2of4": lambda: prune((2, 4)),
  }


def _jax_work(source, ids, new_tokens, out):
  """Each piece of work by jaxprune, by name."""
  config, params = checkpoints.load_params(source)
  forward_one = jax.jit(functools.partial(models.forward, config))

  def forward():
    for row in ids:
      jax.block_until_ready(forward_one(params, row[None])[0])

  def decode(batch):
    written = generation.generate(
      config,
      params,
      jnp.asarray(ids[:batch, :_PROMPT]),
      max_new_tokens=new_tokens,
      sampling=generation.Sampling(eos_ids=()),
    )
    jax.block_until_ready(written.tokens)

  def prune(pattern):
    weights.prune_weights(
      source,
      out,
      method="wanda",
      pattern=pattern,
      tokens=ids,
      output=weights.Output(overwrite=True),
    )

  return {
    "forward": forward,
    "decode_1": lambda: decode(1),
    "decode_8": lambda: decode(8),
    "wanda": lambda: prune(Unstructured(sparsity=0.5)),
    "wanda_2of4": lambda: prune(NofM(keep=2, of=4)),
  }


def _summarise(name, slow, fast, new_tokens):
  """Medians of one piece of work; the first call of each side is left out."""
  reference, seconds = float(np.median(slow[1:])), float(np.median(fast[1:]))
  entry = {
    "seconds": seconds,
    "reference_seconds": reference,
    "ratio": reference / seconds,
    "first_call_seconds": float(fast[0]),
  }
  if name.startswith("decode"):
    written = int(name.rpartition("_")[2]) * new_tokens
    entry["tokens_per_second"] = written / seconds
    entry["reference_tokens_per_second"] = written / reference
  return entry


def _line(name, entry):
  return (
    f"{name:12s} reference {entry['reference_seconds']:8.3f} s   jaxprune"
    f" {entry['seconds']:8.3f} s   ratio {entry['ratio']:5.2f}   first call"
    f" {entry['first_call_seconds']:.2f} s"
  )
