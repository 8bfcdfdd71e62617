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

import jax
import numpy as np

from jaxprune import checkpoints
from jaxprune.calibration import load_tokenizer
from jaxprune.calibration import tokens as tokens_lib
from jaxprune.calibration.tokenizer import encode
from jaxprune.evaluation import generation
from jaxprune.evaluation.journal import Bookkeeping
from jaxprune.models import ModelConfig
from jaxprune.models.generation import Sampling
from jaxprune.probes.decoder import sequences
from jaxprune.studies import inputs
from jaxprune.studies.comparison import asked, measure
from jaxprune.studies.kept import Kept

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


def describe(text: tokens_lib.Calibration | Texts) -> dict[str, Any]:
  """A text for run.json, which may not be written yet and has no hash then."""
  if not isinstance(text, Texts):
    return tokens_lib.describe(text)
  return {
    "source": SELF,
    "sampling": SELF,
    "seed": text.seed,
    "sequences": text.num_samples,
    "length": text.seq_len,
  }


def plan(
  source: checkpoints.Source,
  *,
  num_samples: int,
  seq_len: int,
  seed: int,
  chat_mode: str = "auto",
  activations: bool = True,
) -> Texts:
  """Say what will be written, and refuse what cannot be.

  Args:
    source: the model that will write.
    num_samples: texts.
    seq_len: tokens of each.
    seed: of the draws.
    chat_mode: of `evaluation.chat.CHAT`: whether texts are conversations.
    activations: whether those of all texts will be in memory together.

  Raises:
    ValueError: see `inputs.check_calibration`; the texts are no longer than
      what they begin with; the chat template cannot be used; or the model has
      no token that begins a text, or writes none.
  """
  if not isinstance(source.config, ModelConfig):
    raise ValueError(
      f"{source.folder}: an encoder writes no text; give --calibration a text"
    )
  checkpoints.check_head(source)
  draw = tokens_lib.Draw(num_samples=num_samples, seq_len=seq_len, seed=seed)
  inputs.check_calibration(source, SELF, draw, activations)
  start = _start(source, chat_mode)
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
  continued = generation.continue_prompts(
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
    [(*texts.start, *text.written) for text in continued], np.int32
  )


def written(
  source: checkpoints.Source,
  text: tokens_lib.Calibration | Texts,
  kept: Kept,
  tell: Callable[[float, float], None] | None = None,
  model: sequences.Model | None = None,
) -> tokens_lib.Calibration:
  """A text as it was read, or written by the model where it was not before.

  Args:
    source: the model.
    text: what was read, or what is to be written.
    kept: keeps what the model wrote.
    tell: is told how many texts are done, of how many.
    model: of `source`, where it is in memory already.

  Raises:
    ValueError: several processes would write.
  """
  if not isinstance(text, Texts):
    return text
  if jax.process_count() > 1:
    raise ValueError(
      f"--calibration={SELF}: one process writes, and there are"
      f" {jax.process_count()}; give a text"
    )

  def compute():
    writer = model or measure.load_model(source)
    return write(source, writer, text, tell).tolist()

  return tokens_lib.Calibration(
    tokens=np.asarray(kept.get(f"{SELF}/{text.seed}", compute), np.int32),
    source=SELF,
    sampling=SELF,
    seed=text.seed,
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
