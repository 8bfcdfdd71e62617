"""Pruning that is cut off after a layer, and pruning that goes on."""

import pytest

from jaxprune.pruning.checkpoint import weights


class KilledError(Exception):
  """The process would be dead from here on."""


def prune_a_layer(source, out, **options) -> None:
  """Finish one more layer of a run, and no other."""

  def stop(row):
    raise KilledError

  with pytest.raises(KilledError):
    weights.prune_weights(source, out, on_layer=stop, **options)


def go_on(source, out, **options):
  """Finish a run; the layers that were left to do, and the rows of all."""
  left = []
  log = weights.prune_weights(
    source, out, on_layer=lambda row: left.append(row["layer"]), **options
  )
  return left, log
