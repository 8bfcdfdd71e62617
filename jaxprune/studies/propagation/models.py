"""Which changed models does `propagation` look at? Pruned ones, and chance.

Beside every pruned model stand two changes as large as its own: `random`, as
many weights of every output, or as many sublayers, taken at random; `noise`, a
normal change of every kernel with the norm of the method's.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import checkpoints
from jaxprune.probes.decoder.propagation import path
from jaxprune.pruning import controls
from jaxprune.studies.sweep import configurations

SOURCES = ("pruned", "random", "noise")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A changed model.

  Attributes:
    cell: METHOD:AMOUNT, or `pruned` for a folder that was given.
    source: one of SOURCES.
    seed: of the calibration and of the control.
    both: parameters from `propagation_driver.add_delta`.
  """

  cell: str
  source: str
  seed: int
  both: Any


def of_cells(
  source: checkpoints.Source,
  params: Any,
  cells: Sequence[configurations.Cell],
  drawn: Mapping[int, np.ndarray],
  work: pathlib.Path,
  *,
  with_controls: bool,
) -> Iterator[Model]:
  """Prune once per cell and seed; the folders are removed again.

  Args:
    source: the dense checkpoint.
    params: its parameters, float32.
    cells: what is done to it.
    drawn: calibration tokens by seed.
    work: where folders are written.
    with_controls: whether chance is measured too.
  """
  for cell in cells:
    for seed, tokens in drawn.items():
      folder = work / f"{cell.file}-seed{seed}"
      configurations.prune(source, cell, tokens, seed, folder)
      found = checkpoints.load_params(
        checkpoints.open_checkpoint(folder), jnp.float32
      )
      shutil.rmtree(work)
      yield from _with_controls(
        source.config, params, *found, cell.name, seed, with_controls
      )


def of_pair(
  source: checkpoints.Source,
  params: Any,
  pruned: checkpoints.Source,
  seeds: Sequence[int],
  *,
  with_controls: bool,
) -> Iterator[Model]:
  """One pruned folder, and chance once per seed."""
  found = checkpoints.load_params(pruned, jnp.float32)
  for seed in seeds:
    models = _with_controls(
      source.config, params, *found, "pruned", seed, with_controls
    )
    for model in models:
      if model.source != "pruned" or seed == seeds[0]:
        yield model


def count(cells: int, seeds: int, *, with_controls: bool) -> int:
  """How many models `of_cells`, or `of_pair` with no cell, will give."""
  chance = len(SOURCES) - 1 if with_controls else 0
  return cells * seeds * (1 + chance) if cells else 1 + seeds * chance


def _with_controls(
  config, params, pruned_config, pruned_params, cell, seed, with_controls
):
  for number, source in enumerate(SOURCES if with_controls else SOURCES[:1]):
    changed = pruned_params
    if source != "pruned":
      draw = (
        controls.random_control
        if source == "random"
        else controls.random_changes
      )
      layers = draw(
        jax.random.fold_in(jax.random.key(seed), number),
        params["layers"],
        pruned_params["layers"],
      )
      changed = {**params, "layers": layers}
    yield Model(
      cell=cell,
      source=source,
      seed=seed,
      both=path.add_delta(config, params, pruned_config, changed),
    )
