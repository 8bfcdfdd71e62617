"""Calibration text that a model writes by itself: what it will write, too.

Each text begins where a user would write the first words to a model with a
chat template, and with the token that begins a text otherwise; all that follows
is drawn from the model at temperature 1.

Reference: Williams, Chrysostomou and Aletras, Self-calibration for Language
Model Quantization and Pruning (arXiv 2410.17170).
Differs from the reference in: texts begin as conversations do, the temperature
is 1 throughout, and a text goes on behind the token that would end it, so that
all have one length.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer
from jaxprune.calibration import tokens as tokens_lib
from jaxprune.calibration.tokenizer import encode
from jaxprune.evaluation import generation
from jaxprune.evaluation.journal import Bookkeeping
from jaxprune.models.generation import Sampling
from jaxprune.probes.decoder import sequences
from jaxprune.studies.comparison import asked

SELF = "self"
_BATCH = 16  # texts that are written together
_MARK = "jaxprune"  # stands for what a user says


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
  """Which texts a model is to write.

  Attributes:
    start: ids that every text begins with.
    num_samples: texts.
    seq_len: tokens of each, the start among them.
    seed: of the draws.
  """

  start: tuple[int, ...]
  num_samples: int
  seq_len: int
  seed: int

  def describe(self) -> dict[str, Any]:
    """The texts before they are written, for run.json."""
    return {
      "source": SELF,
      "sampling": SELF,
      "seed": self.seed,
      "sequences": self.num_samples,
      "length": self.seq_len,
    }


def plan(
  source: checkpoints.Source,
  *,
  num_samples: int,
  seq_len: int,
  seed: int,
  chat_mode: str = "auto",
) -> Texts:
  """Say what will be written, and refuse what cannot be.

  Args:
    source: the model that will write.
    num_samples: texts.
    seq_len: tokens of each.
    seed: of the draws.
    chat_mode: of `evaluation.chat.CHAT`: whether texts are conversations.

  Raises:
    ValueError: the texts are longer than the context, or no longer than what
      they begin with; the chat template cannot be used; or the model has no
      token that begins a text.
  """
  start = _start(source, chat_mode)
  if seq_len > source.config.max_positions:
    raise ValueError(
      f"--seq_len={seq_len} is longer than the context of {source.folder},"
      f" {source.config.max_positions}: use less"
    )
  if seq_len <= len(start):
    raise ValueError(
      f"--seq_len={seq_len}: every text begins with {len(start)} tokens, so"
      " nothing would be written; use more"
    )
  return Texts(start=start, num_samples=num_samples, seq_len=seq_len, seed=seed)


def write(
  source: checkpoints.Source,
  model: sequences.Model,
  texts: Texts,
  tell: Callable[[float, float], None] | None = None,
) -> np.ndarray:
  """Let a model write.

  Args:
    source: its checkpoint.
    model: the same, in memory.
    texts: from `plan`.
    tell: is told how many texts are done, of how many.

  Returns:
    Ids of the texts, int32 [X, T]; the same again on the same machine.
  """
  written = generation.continue_prompts(
    model.config,
    model.params,
    load_tokenizer(source.folder),
    [texts.start] * texts.num_samples,
    generation.Writing(
      max_new_tokens=texts.seq_len - len(texts.start),
      sampling=Sampling(temperature=1.0, eos_ids=()),
      seed=texts.seed,
      batch_size=_BATCH,
    ),
    bookkeeping=Bookkeeping(progress=tell),
  )
  return np.asarray(
    [(*texts.start, *text.written) for text in written], np.int32
  )


def as_calibration(texts: Texts, ids: ArrayLike) -> tokens_lib.Calibration:
  """Written texts, as methods look at them.

  Args:
    texts: what was written.
    ids: from `write`.
  """
  return tokens_lib.Calibration(
    tokens=np.asarray(ids, np.int32),
    source=SELF,
    sampling=SELF,
    seed=texts.seed,
  )


def _start(source, chat_mode) -> tuple[int, ...]:
  """The ids that every text begins with."""
  render = asked.template(source, chat_mode)
  if render is not None:
    before, found, _ = render(_MARK).partition(_MARK)
    if not found:
      raise ValueError(
        f"{source.folder}: its chat template changes what a user says, so no"
        " text can begin with it; use --chat=no"
      )
    if ids := encode(load_tokenizer(source.folder), before, False):
      return tuple(ids)
  config = source.config
  ids = [config.bos_id] if config.bos_id is not None else config.eos_ids[:1]
  if not ids:
    raise ValueError(
      f"{source.folder}: config.json names no bos_token_id and no eos_token_id"
      " to begin a text with; give --calibration"
    )
  return tuple(ids)
