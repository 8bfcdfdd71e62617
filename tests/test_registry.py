"""One row of the table adds a method, to the library and to the script."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

from jaxprune import checkpoints
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.checkpoints import masks as masks_file
from jaxprune.models import KERNELS
from jaxprune.pruning import registry
from jaxprune.pruning.change import ALLOCATIONS, Change
from jaxprune.pruning.checkpoint import allocation, memory
from jaxprune.pruning.checkpoint.streaming import Memory
from jaxprune.pruning.layerwise import drops
from jaxprune.pruning.patterns import (
  GROUPS,
  Levels,
  NofM,
  Unstructured,
  keep_mask,
)
from jaxprune.studies import prune
from jaxprune.studies.sweep import configurations
from tests.test_prune_weights import TOKENS, tiny

__all__ = ["tiny"]  # A fixture, not a leftover import.


def loudest(w_IO, statistics, pattern):
  """Made up: keeps the weights of the inputs with the largest norms."""
  score_IO = jnp.broadcast_to(statistics.sum_squares[:, None], w_IO.shape)
  mask_IO = keep_mask(score_IO, pattern)
  return jnp.where(mask_IO, w_IO, 0), mask_IO


@pytest.fixture
def made_up(monkeypatch):
  row = registry.KernelMethod(
    function=loudest, statistic="squares", groups=("matrix",)
  )
  monkeypatch.setitem(registry.METHODS, "loudest", row)


@pytest.mark.usefixtures("made_up")
def test_one_row_prunes_through_the_library(tiny, tmp_path):
  pattern = prune.make_pattern("loudest", sparsity=0.5)
  assert pattern == Unstructured(sparsity=0.5, group="matrix")
  change = Change(method="loudest", pattern=pattern)
  prune.check(tiny.config, change, tokens=True)
  with pytest.raises(ValueError, match="loudest looks at calibration"):
    prune.check(tiny.config, change, tokens=False)
  steps = []

  class Progress(prune.Silent):
    def step(self, index, **numbers):
      steps.append((index, numbers["sparsity"]))

  result = prune.prune(
    tiny, tmp_path / "out", change, TOKENS, progress=Progress
  )
  assert steps == [(0, 0.5), (1, 0.5), (2, 0.5)]
  assert result.settings == {
    "method": "loudest",
    "pattern": "unstructured",
    "group": "matrix",
  }
  assert result.summary["asked_sparsity"] == result.summary["sparsity"] == 0.5
  # Whole inputs leave: half of the rows of every kernel.
  masks, metadata = masks_file.read_masks(tmp_path / "out/masks.safetensors")
  assert metadata["method"] == "loudest"
  for group, kernel in KERNELS:
    keep_LI = masks[group][kernel].all(axis=2)
    np.testing.assert_array_equal(masks[group][kernel].any(axis=2), keep_LI)
    assert (2 * keep_LI.sum(axis=1) == keep_LI.shape[1]).all()
  estimate = memory.estimate_bytes(
    tiny.config,
    Change(method="loudest"),
    sequences=6,
    length=24,
    memory=Memory(),
  )
  assert estimate.statistics > 0


@pytest.mark.usefixtures("made_up")
def test_one_row_prunes_through_the_script(tiny, tmp_path):
  np.savez(tmp_path / "ids.npz", calibration=TOKENS)
  done = scripts.call(
    "prune",
    f"--model={tiny.folder}",
    f"--calibration={tmp_path}/ids.npz",
    "--method=loudest",
    "--sparsity=0.25",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  assert (summary["method"], summary["sparsity"]) == ("loudest", 0.25)
  checkpoints.open_checkpoint(tmp_path / "out")


def test_rows_are_sound():
  for name, row in registry.METHODS.items():
    if row.unit == registry.SUBLAYERS:
      assert row.selection in drops.SELECTIONS
      assert row.target is None or row.target in drops.TARGETS
      assert row.score in ("similarity", "kl")
      continue
    assert row.statistic is None or row.statistic in OBSERVERS
    assert callable(row.apply)
    assert set(row.groups) <= set(GROUPS)
    assert registry.default_group(name) == row.groups[0]
    assert row.rounds == (row.patterns == ("Levels",))
  assert registry.default_group("sparsegpt") == "matrix"
  with pytest.raises(ValueError, match="method 'best': use one of magnitude"):
    registry.find("best")


def _statistics(name, x_BTI):
  """What a row looks at, of some inputs."""
  statistic = registry.METHODS[name].statistic
  return (
    None if statistic is None else OBSERVERS[statistic].observe(x_BTI, None)
  )


def _draw(seed, *shape):
  draw = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(draw, jnp.float32)


@pytest.mark.parametrize("name", registry.names(registry.ENTRIES))
def test_every_kernel_method_keeps_the_contract(name):
  """Shapes, dtypes, finite weights, zeros at the mask, one trace, a map."""
  row, outputs = registry.METHODS[name], 8
  patterns = {
    "Unstructured": Unstructured(sparsity=0.5, group=row.groups[0]),
    "NofM": NofM(keep=2, of=4),
    "Levels": Levels(bits=3, group_size=8),
  }
  prepared, notes = row.prepare(_statistics(name, _draw(0, 3, 40, 16)))
  assert all(np.isfinite(value) for value in notes.values())
  for pattern in (patterns[kind] for kind in row.patterns):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(row.apply, n=1)
    apply = jax.jit(lambda w_IO, p, f=traced, q=pattern: f(w_IO, p, q))
    for seed in range(3):
      w_IO = _draw(seed + 1, 16, outputs)
      new_IO, mask_IO = apply(w_IO, prepared)
      chex.assert_shape(new_IO, (16, outputs))
      chex.assert_type(new_IO, jnp.float32)
      chex.assert_tree_all_finite(new_IO)
      if row.rounds:
        assert mask_IO is None
        continue
      chex.assert_shape(mask_IO, (16, outputs))
      chex.assert_type(mask_IO, bool)
      assert not new_IO[~mask_IO].any()
      kept = float(mask_IO.mean())
      assert kept == 0.5 if row.exact else abs(kept - 0.5) < 0.02
  # Mapped as well; of any pattern, as masks are in test_patterns.
  stack_LIO = jnp.stack([_draw(seed, 16, outputs) for seed in (4, 5)])
  mapped = jax.jit(
    jax.vmap(lambda w_IO, q=pattern: row.apply(w_IO, prepared, q))
  )
  alone = [apply(w_IO, prepared) for w_IO in stack_LIO]
  chex.assert_trees_all_close(
    mapped(stack_LIO),
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.parametrize("name", registry.names(registry.HIDDEN_UNITS))
@pytest.mark.parametrize("gated", [True, False])
def test_every_unit_method_keeps_the_contract(name, gated):
  row = registry.METHODS[name]
  shapes = {"gate": (6, 16), "up": (6, 16), "down": (16, 6)}
  if not gated:
    del shapes["gate"]
  chex.clear_trace_counter()
  traced = chex.assert_max_traces(row.apply, n=1)
  apply = jax.jit(lambda mlp, s: traced(mlp, s, 0.25))
  for seed in range(2):
    mlp = {
      part: {"kernel": _draw(seed, *shape)} for part, shape in shapes.items()
    }
    statistics = _statistics(name, _draw(seed, 3, 40, 16))
    new, masks, bias_D = apply(mlp, statistics)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, mlp)
    chex.assert_tree_all_finite((new, bias_D))
    assert (bias_D is not None) == row.compensates
    keep_F = masks["down"][:, 0]
    assert int(keep_F.sum()) == 12
    for part, mask_IO in masks.items():
      chex.assert_shape(mask_IO, shapes[part])
      chex.assert_type(mask_IO, bool)
      chex.assert_trees_all_equal(
        new[part]["kernel"], jnp.where(mask_IO, mlp[part]["kernel"], 0)
      )


def test_names_by_unit():
  assert ALLOCATIONS == (*allocation.ALLOCATIONS, "kl")
  parts = (
    configurations.ENTRIES,
    configurations.UNITS,
    configurations.ROUNDING,
    configurations.DROPS,
  )
  assert sorted(sum(parts, ())) == sorted(registry.METHODS)
  assert configurations.DATA_FREE == ("magnitude", "rtn")
  assert configurations.ROUNDING == ("rtn", "awq")


@pytest.mark.parametrize(
  "method, group, words",
  [
    ("wanda", "global", "use magnitude, or group output or matrix"),
    ("wanda_variant", "matrix", "does not take group matrix: use output"),
    ("drop_mlp", "output", "drops sublayers"),
  ],
)
def test_groups_that_a_method_does_not_take(tiny, method, group, words):
  from jaxprune.pruning.checkpoint import weights

  with pytest.raises(ValueError, match=words):
    weights.check_job(
      tiny.config, method, Unstructured(sparsity=0.5, group=group), tokens=True
    )
