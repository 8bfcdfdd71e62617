"""One sublayer replaced or left out at a time: the records of `transitions`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints, report
from jaxprune.calibration import prompts as prompts_lib
from jaxprune.probes import lm_head, position
from jaxprune.probes.decoder import transitions
from jaxprune.studies import texts

PROTOCOL = "transitions"
SUBLAYERS = ("attention", "mlp")
NUM_DIRECTIONS = 16  # of the LM head
FIELDS = {
  "history": report.Field(
    "text",
    "",
    "whose keys and values pruned attention reads: dense, pruned or none",
  ),
  "head_gain_h": report.Field("float", "", "|W h| / |h| of the LM head W"),
  "head_gain_dh": report.Field("float", "", "|W dh| / |dh| of the LM head W"),
  "attenuation": report.Field(
    "float", "", "head_gain_dh / head_gain_h; below 1 the head shrinks dh"
  ),
  "attenuation_centred": report.Field(
    "float", "", "the same for logits less their means"
  ),
  "head_energy_h": report.Field(
    "float", "", "share of |h|^2 in the largest directions of the head"
  ),
  "head_energy_dh": report.Field(
    "float", "", "share of |dh|^2 in the largest directions of the head"
  ),
  "offset_dz": report.Field(
    "float", "", "share of |dz|^2 that is one constant for all tokens"
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(texts.Comparison):
  """How sublayers are replaced; the flags of `transitions`.

  `seed` is that of the draws and of the intervals.

  Attributes:
    history: of `probes.transitions.HISTORIES`.
  """

  history: str = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
  """What was measured.

  Attributes:
    settings: how it was measured.
    table: columns of the records: a row for each prompt, step, layer and
      sublayer.
    head: the largest singular directions of the dense LM head.
    embed_dim: D.
  """

  settings: Settings
  table: dict[str, np.ndarray]
  head: lm_head.Spectrum
  embed_dim: int


def measure(
  dense: checkpoints.Source,
  pruned: checkpoints.Source | None,
  prompts: prompts_lib.Prompts,
  settings: Settings,
  run: report.RunFolder,
  progress: Any,
) -> Measured:
  """Continue every prompt and write a row per step, layer and sublayer.

  Args:
    dense: the model that writes and is read.
    pruned: whose sublayers replace dense ones; None leaves each out.
    prompts: to continue.
    settings: how.
    run: the rows are written to its records.
    progress: told of every prompt.

  Returns:
    The columns that were written, and the spectrum of the LM head.

  Raises:
    ValueError: the sublayers of one model do not fit into the other.
  """
  if pruned is not None:
    transitions.check_replaceable(dense.config, pruned.config)
  config, params = checkpoints.load_params(dense, jnp.float32)
  other = (
    None
    if pruned is None
    else (checkpoints.load_params(pruned, jnp.float32)[1])
  )
  head = lm_head.spectrum(
    transitions.head_kernel(config, params),
    jax.random.key(settings.seed),
    min(NUM_DIRECTIONS, config.embed_dim, config.vocab_size),
  )
  measurement = transitions.Measurement(
    lens=settings.lens,
    history=settings.history,
    temperature=settings.analysis_temperature,
    head=head,
  )
  common = {
    "protocol": PROTOCOL,
    "intervention": "dropped" if pruned is None else "pruned",
    "history": settings.history,
    "lens": settings.lens,
    "analysis_temperature": settings.analysis_temperature,
  }
  for text in texts.dense_texts(config, params, prompts.tokens, settings):
    # One text at a time: its steps share every pass over the weights already,
    # and on a real model a batch takes minutes.
    for row in range(text.count):
      records, gains = transitions.compare_transitions(
        config,
        params,
        other,
        jnp.asarray(text.tokens[row, None]),
        jnp.asarray(text.valid[row, None]),
        measurement,
        num_steps=settings.max_new_tokens,
      )
      leaves = position.fields_of(records) | {
        "head_gain_h": gains.gain_h,
        "head_gain_dh": gains.gain_dh,
        "attenuation": gains.attenuation,
        "attenuation_centred": gains.attenuation_centred,
        "head_energy_h": gains.energy_h[..., -1],
        "head_energy_dh": gains.energy_dh[..., -1],
        "offset_dz": gains.offset_dz,
      }
      prompt = int(text.prompts[row])
      run.write_all(
        _rows(leaves, np.flatnonzero(text.alive[row]), common, prompt)
      )
      progress.step(prompt)
  return Measured(
    settings=settings,
    table=run.columns(),
    head=head,
    embed_dim=config.embed_dim,
  )


def _rows(leaves, steps, common, prompt) -> Iterator[dict[str, Any]]:
  """Flat rows of one text, whose steps end with it."""
  leaves = {name: np.asarray(leaf)[:, :, 0] for name, leaf in leaves.items()}
  for step in steps:
    for layer in range(len(leaves["kl"])):
      for index, sublayer in enumerate(SUBLAYERS):
        yield (
          common
          | {
            "prompt": prompt,
            "step": int(step),
            "layer": layer,
            "sublayer": sublayer,
          }
          | {name: leaf[layer, index, step] for name, leaf in leaves.items()}
        )
