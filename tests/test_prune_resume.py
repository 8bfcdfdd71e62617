"""A run that was cut off ends with the same bits; another leaves it be."""

import json

import cut_runs
import pytest

from jaxprune import files
from jaxprune.pruning.checkpoint import resume, streaming, weights
from jaxprune.pruning.patterns import Unstructured
from tests.test_prune_weights import HALF, TOKENS, bytes_of, half, tiny

__all__ = ["half", "tiny"]  # Fixtures, not leftover imports.


def test_resumed_run_ends_with_the_same_bits(tiny, half, tmp_path):
  options = HALF | {"memory": streaming.Memory(micro_batch=4)}
  for _ in range(2):
    cut_runs.prune_a_layer(tiny, tmp_path / "cut", **options)
    assert not (tmp_path / "cut").exists()
  left, log = cut_runs.go_on(tiny, tmp_path / "cut", **options)
  assert left == [2] and len(log) == 3
  assert bytes_of(tmp_path / "cut") == half
  assert not list((tmp_path / "cut").glob("states-*"))


def test_what_a_killed_step_left_is_written_anew(
  tiny, half, tmp_path, monkeypatch
):
  """Killed between the activations and the line that makes a layer count."""
  work = tmp_path / "cut.partial"
  write = files.atomic_write_json

  def stop(path, value):
    if path.name == resume.PROGRESS and len(value["layers"]) == 2:
      raise cut_runs.KilledError
    write(path, value)

  with monkeypatch.context() as patched:
    patched.setattr(files, "atomic_write_json", stop)
    with pytest.raises(cut_runs.KilledError):
      weights.prune_weights(tiny, tmp_path / "cut", **HALF)
  # The activations of both layers are there, and only one layer counts.
  progress = json.loads((work / "new" / resume.PROGRESS).read_text())
  assert len(progress["layers"]) == 1
  assert {p.name for p in work.glob("states-*")} == {
    "states-00001",
    "states-00002",
  }
  # So might be a write of orbax that never got its name.
  (work / "states-00002.orbax-checkpoint-tmp-0").mkdir()
  left, _ = cut_runs.go_on(tiny, tmp_path / "cut", **HALF)
  assert left == [1, 2]
  assert bytes_of(tmp_path / "cut") == half
  assert not list((tmp_path / "cut").glob("states-*"))


def test_activations_of_another_cut_are_refused(tiny, tmp_path):
  memory = streaming.Memory(micro_batch=2)
  cut_runs.prune_a_layer(tiny, tmp_path / "out", memory=memory, **HALF)
  with pytest.raises(ValueError, match="the micro_batch of the run that began"):
    weights.prune_weights(
      tiny, tmp_path / "out", memory=streaming.Memory(micro_batch=3), **HALF
    )


def test_another_job_does_not_take_up_the_work(tiny, tmp_path):
  cut_runs.prune_a_layer(tiny, tmp_path / "out", **HALF)
  options = dict(method="wanda", tokens=TOKENS)
  with pytest.raises(ValueError, match="sparsity was 0.5, now 0.6"):
    weights.prune_weights(
      tiny, tmp_path / "out", pattern=Unstructured(sparsity=0.6), **options
    )
