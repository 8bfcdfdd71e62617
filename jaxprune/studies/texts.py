"""What does the dense model write after each prompt?

Most studies let the dense model continue the prompts once and then measure
both models on that text. The text is read back in one pass, so that what was
chosen at a step, and the position that predicts it, must be known together.

With R steps and prompts of T tokens (padding included), both models read
T + R - 1 tokens: the last token is a prediction of the last step and is
never read.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration import batching
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.models import generation
from jaxprune.models.config import ModelConfig

Params = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
  """How texts are written.

  Attributes:
    max_new_tokens: R, steps of each text.
    temperature: of sampling; 0 is greedy.
    batch: B, prompts written together.
    seed: of the draws.
  """

  max_new_tokens: int
  temperature: float = 0.0
  batch: int = 8
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Writing):
  """How texts are written, and how models that read them are compared.

  Attributes:
    analysis_temperature: T of the softmax that is measured.
    lens: how an inner layer is read out, 'final_norm' or 'raw'.
  """

  analysis_temperature: float = 1.0
  lens: str = "final_norm"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DenseTexts:
  """The texts of one batch of prompts.

  Attributes:
    prompts: index of the prompt of each row, int [B]; the last batch is filled
      with copies of the last prompt.
    count: how many rows are no copies.
    chosen: what the model chose at each step, int32 [B, R].
    lengths: steps of each text up to and with the token that ends it, int [B].
    tokens: what is read back, int32 [B, T], padded on the left.
    valid: False for padding, bool [B, T].
    rows: index in `tokens` of the position that predicts each step, int
      [B, R].
    alive: bool [B, R], False behind the end of a text and in copies.
    key: `jax.random.key` of the draws of this batch.
  """

  prompts: np.ndarray
  count: int
  chosen: np.ndarray
  lengths: np.ndarray
  tokens: np.ndarray
  valid: np.ndarray
  rows: np.ndarray
  alive: np.ndarray
  key: jax.Array

  @property
  def prompt_tokens(self) -> np.ndarray:
    """The prompts alone, int32 [B, T]."""
    return self.tokens[:, : self.rows[0, 0] + 1]

  @property
  def prompt_valid(self) -> np.ndarray:
    """False for padding of the prompts, bool [B, T]."""
    return self.valid[:, : self.rows[0, 0] + 1]


def dense_texts(
  config: ModelConfig,
  params: Params,
  prompts: Sequence[Sequence[int]],
  writing: Writing,
) -> Iterator[DenseTexts]:
  """Continue every prompt, one batch after the other.

  All batches have one shape, so that whatever reads them compiles once.

  Args:
    config: of the dense model.
    params: of the dense model.
    prompts: token ids of each prompt.
    writing: how many steps, sampled or greedy, and how many together.

  Yields:
    The texts of `writing.batch` prompts.

  Raises:
    ValueError: a prompt and its new tokens exceed the context, as
      `models.generate` says.
  """
  tokens_XT, valid_XT = prompts_lib.left_pad(prompts, config.pad_id or 0)
  steps, length = writing.max_new_tokens, tokens_XT.shape[1]
  for pick_B, count in batching.batches(len(tokens_XT), writing.batch):
    key = jax.random.fold_in(jax.random.key(writing.seed), int(pick_B[0]))
    text = generation.generate(
      config,
      params,
      jnp.asarray(tokens_XT[pick_B]),
      valid_BT=jnp.asarray(valid_XT[pick_B]),
      max_new_tokens=steps,
      sampling=generation.Sampling(temperature=writing.temperature),
      key=key,
    )
    chosen_BR, lengths_B = np.asarray(text.tokens), np.asarray(text.lengths)
    alive_BR = np.arange(steps)[None] < lengths_B[:, None]
    yield DenseTexts(
      prompts=pick_B,
      count=count,
      chosen=chosen_BR,
      lengths=lengths_B,
      tokens=np.concatenate([tokens_XT[pick_B], chosen_BR[:, :-1]], axis=1),
      valid=np.pad(
        valid_XT[pick_B], ((0, 0), (0, steps - 1)), constant_values=True
      ),
      rows=np.broadcast_to(
        length - 1 + np.arange(steps), (writing.batch, steps)
      ),
      alive=alive_BR & (np.arange(writing.batch) < count)[:, None],
      key=key,
    )


def own_text(
  config: ModelConfig, params: Params, text: DenseTexts, writing: Writing
) -> tuple[np.ndarray, np.ndarray]:
  """What another model writes after the prompts of one batch.

  Sampled, it draws with the same random numbers as the dense model did.

  Args:
    config: of that model.
    params: of that model.
    text: of the dense model, for its prompts and its key.
    writing: as the dense text was written.

  Returns:
    Chosen tokens, int32 [B, R], and lengths of the texts, int [B].
  """
  own = generation.generate(
    config,
    params,
    jnp.asarray(text.prompt_tokens),
    valid_BT=jnp.asarray(text.prompt_valid),
    max_new_tokens=writing.max_new_tokens,
    sampling=generation.Sampling(temperature=writing.temperature),
    key=text.key,
  )
  return np.asarray(own.tokens), np.asarray(own.lengths)
