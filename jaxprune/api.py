"""Three functions for a notebook: load, prune and compare, all in memory.

  import jaxprune

  dense = jaxprune.load("FOLDER")
  pruned, masks = jaxprune.prune(dense, tokens, "wanda", "2:4")
  print(jaxprune.compare(dense, pruned, ["Once upon a time"]))

`prune` takes the kernels of any other Flax model too, see there.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer
from jaxprune.calibration.prompts import Prompts
from jaxprune.calibration.tokenizer import encode
from jaxprune.models import ModelConfig
from jaxprune.probes.decoder import sequences
from jaxprune.pruning import patterns, pytrees
from jaxprune.pruning.checkpoint import in_memory
from jaxprune.report import RunFolder
from jaxprune.studies import inputs
from jaxprune.studies.comparison import asked, measure, overview, written
from jaxprune.studies.comparison import summary as summary_lib
from jaxprune.studies.prune import Silent

if TYPE_CHECKING:
  import tokenizers

# What yields the inputs of kernels, batch by batch.
Inputs = (
  Callable[[], Iterable[Mapping[str, jax.Array]]]
  | Iterable[Mapping[str, jax.Array]]
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Model:
  """A language model in memory.

  Attributes:
    config: of the model.
    params: its parameters, layers stacked.
    folder: where its tokenizer is; None where texts cannot be read.
  """

  config: ModelConfig
  params: Any
  folder: pathlib.Path | None = None

  @functools.cached_property
  def tokenizer(self) -> "tokenizers.Tokenizer":
    """The tokenizer of the folder."""
    if self.folder is None:
      raise ValueError("this model has no folder: give token ids, not texts")
    return load_tokenizer(self.folder)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
  """What was measured of two models; print it for the main numbers.

  Attributes:
    summary: see `comparison.summary.summarise` and
      `comparison.written.summarise`.
    output: a row per position of the dense text, by field of `report.FIELDS`.
    layers: a row per position, layer and sublayer, by field of
      `comparison.rows.BY_LAYER`.
    alone: a row per token that the pruned model wrote alone.
  """

  summary: dict[str, Any]
  output: Mapping[str, np.ndarray]
  layers: Mapping[str, np.ndarray]
  alone: Mapping[str, np.ndarray]

  def __str__(self) -> str:
    return overview.numbers(self.summary)


def load(folder: str | os.PathLike, dtype: Any = jnp.float32) -> Model:
  """Load a decoder.

  Args:
    folder: a Hugging Face folder, a GGUF file, a hub id, or 'pocket'.
    dtype: of the parameters; None is that of the file.

  Raises:
    ValueError: there is no such model, or it cannot be read.
  """
  source = inputs.open_model(os.fspath(folder), logits=False)
  if not isinstance(source.config, ModelConfig):
    raise ValueError(f"folder={os.fspath(folder)!r}: is an encoder")
  config, params = checkpoints.load_params(source, dtype)
  return Model(config=config, params=params, folder=source.folder)


def prune(
  params: Any,
  statistics: Any = None,
  method: str = "wanda",
  pattern: patterns.AnyPattern | str | float = 0.5,
) -> tuple[Any, Any]:
  """Prune a model, or the kernels of any pytree.

  Args:
    params: a `Model`, pruned layer by layer; or a pytree with kernels [I, O] of
      any other model, such as the params of Linen or a state of NNX, all pruned
      from the model as it is.
    statistics: what the method may look at. Of a `Model` calibration tokens,
      int [sequences, length]. Of a pytree a function that yields, batch by
      batch, a dict from the path of a kernel, such as 'layers/0/up', to what
      enters it, float [..., I]; such an iterable; or what `pytrees.observe`
      made of it. None for a method that looks at no data, such as magnitude.
    method: a name in `pruning.registry.METHODS`.
    pattern: '2:4' (2 kept out of 4 inputs), 0.5 (fraction removed of each
      output), bits such as 4 for a method that rounds, or an object of
      `pruning.patterns`.

  Returns:
    The pruned model or pytree; and the masks, bool, True = keep: of a `Model`
    {group: {kernel: [L, I, O]}}, of a pytree by path.

  Raises:
    ValueError: names the argument that is wrong.
  """
  pattern = patterns.as_pattern(pattern, method)
  if not isinstance(params, Model):
    if callable(statistics):
      statistics = statistics()
    if statistics is not None and not isinstance(statistics, Mapping):
      statistics = pytrees.observe(method, statistics)
    return pytrees.prune_kernels(params, statistics, method, pattern)
  if statistics is not None:
    statistics = np.asarray(statistics)
    if not np.issubdtype(statistics.dtype, np.integer):
      raise ValueError(
        f"statistics: {statistics.dtype} {list(statistics.shape)}; of a Model"
        " give calibration tokens, int [sequences, length]"
      )
  config, new, masks = in_memory.prune_params(
    params.config, params.params, statistics, method, pattern
  )
  return dataclasses.replace(params, config=config, params=new), masks


def compare(
  dense: Model | str | os.PathLike,
  pruned: Model | str | os.PathLike,
  prompts: Sequence[str] | Sequence[Sequence[int]] | None = None,
  *,
  max_new_tokens: int = 32,
  seed: int = 0,
) -> Comparison:
  """Compare two models on what the dense one writes, and each alone.

  Args:
    dense: the original, or its folder.
    pruned: of the same shape, or its folder.
    prompts: texts, or ids of each; None is the built-in prompts.
    max_new_tokens: tokens to write after each.
    seed: of the intervals.

  Raises:
    ValueError: the models differ in shape, or a prompt is empty, blank or too
      long.
  """
  dense, pruned = (
    model if isinstance(model, Model) else load(model)
    for model in (dense, pruned)
  )
  sequences.check_same_shape(dense.config, pruned.config)
  given = _read_prompts(dense, prompts, max_new_tokens)
  settings = measure.Settings(
    max_new_tokens=max_new_tokens, batch=min(16, len(given.kinds)), seed=seed
  )
  with RunFolder("", {}, main_process=False) as run:  # nothing is written
    tables = measure.compare(
      *(
        sequences.Model(config=model.config, params=model.params)
        for model in (dense, pruned)
      ),
      given.prompts,
      settings,
      run,
      Silent("batch", 1),
    )
  read = str if dense.folder is None else dense.tokenizer.decode
  return Comparison(
    summary=summary_lib.summarise(tables) | written.summarise(tables, read),
    output=tables.output,
    layers=tables.inner,
    alone=tables.alone,
  )


def _read_prompts(dense, prompts, max_new_tokens) -> asked.Asked:
  if prompts is None:
    source = checkpoints.open_checkpoint(dense.folder)
    return asked.read(source, None, limit=None, max_new_tokens=max_new_tokens)
  if isinstance(prompts, str) or not len(prompts):
    raise ValueError("prompts: give a list of texts, or of token ids each")
  rows = []
  for index, prompt in enumerate(prompts):
    if isinstance(prompt, str):
      prompt = encode(dense.tokenizer, prompt, None, dense.config.bos_id)
    ids = tuple(int(token) for token in prompt)
    if not ids or min(ids) < 0 or max(ids) >= dense.config.vocab_size:
      raise ValueError(
        f"prompts[{index}]: no token, or one outside the vocabulary of"
        f" {dense.config.vocab_size}"
      )
    if len(ids) + max_new_tokens > dense.config.max_positions:
      raise ValueError(
        f"prompts[{index}]: {len(ids)} tokens and max_new_tokens="
        f"{max_new_tokens} exceed the context, {dense.config.max_positions}"
      )
    rows.append(ids)
  return asked.Asked(
    prompts=Prompts(tokens=tuple(rows), source=asked.GIVEN),
    kinds=(asked.GIVEN,) * len(rows),
  )
