"""A folder is what it says, and two folders are compared by their masks."""

import json

import numpy as np
import pytest
import scripts

from jaxprune import checkpoints
from jaxprune.checkpoints import masks as masks_file
from jaxprune.models import KERNELS
from jaxprune.pruning.checkpoint import verify, weights
from jaxprune.pruning.patterns import NofM, Unstructured
from tests.test_prune_weights import TOKENS, tiny

__all__ = ["tiny"]  # A fixture, not a leftover import.
NAMES = tuple("/".join(kernel) for kernel in KERNELS)


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
  """Pruned twice: 2:4 by magnitude, half of every output by Wanda."""
  home = tmp_path_factory.mktemp("pruned")
  weights.prune_weights(
    tiny, home / "nofm", method="magnitude", pattern=NofM(keep=2, of=4)
  )
  weights.prune_weights(
    tiny,
    home / "wanda",
    method="wanda",
    pattern=Unstructured(sparsity=0.5),
    tokens=TOKENS,
  )
  return home


def open_folder(folder):
  return checkpoints.open_checkpoint(folder)


def test_sound_folders(folders):
  for name in ("nofm", "wanda"):
    found = verify.verify(open_folder(folders / name))
    assert found.checks == {"shards": True, "masks": True, "pattern": True}
    assert found.values == {}
    assert len(found.rows) == 3 * len(KERNELS)
    assert all(row["sparsity"] == 0.5 for row in found.rows)


def test_any_folder_may_be_asked_for_n_of_m(tiny, folders):
  pattern = NofM(keep=2, of=4)
  checks = {
    folder: verify.verify(open_folder(folder), pattern=pattern).checks
    for folder in (tiny.folder, folders / "nofm", folders / "wanda")
  }
  assert checks[tiny.folder] == {
    "shards": None,
    "masks": None,
    "pattern": None,
    "2:4": False,
  }
  assert checks[folders / "nofm"]["2:4"] is True
  assert checks[folders / "wanda"]["2:4"] is False
  # At most 3 of 4 is less than 2 of 4 asks; 1 of 4 is more.
  source = open_folder(folders / "nofm")
  for keep, passed in ((3, True), (1, False)):
    found = verify.verify(source, pattern=NofM(keep=keep, of=4))
    assert found.checks[f"{keep}:4"] is passed


def test_overlap_by_hand(folders):
  source, other = (open_folder(folders / name) for name in ("nofm", "wanda"))
  found = verify.verify(source, other)
  ours, theirs = (
    masks_file.read_masks(folders / name / masks_file.FILE)[0]
    for name in ("nofm", "wanda")
  )

  def alike(pairs):
    x, y = (np.concatenate([np.ravel(p[i]) for p in pairs]) for i in (0, 1))
    return {
      "in_common": pytest.approx((x == y).mean(), abs=1e-6),
      "jaccard": pytest.approx((x & y).sum() / (x | y).sum(), abs=1e-6),
    }

  pairs = {"/".join(k): (ours[k[0]][k[1]], theirs[k[0]][k[1]]) for k in KERNELS}
  compared = found.values["masks"]
  for name, pair in pairs.items():
    assert compared["by_kernel"][name] == alike([pair])
  for index in range(3):
    part = [(x[index], y[index]) for x, y in pairs.values()]
    assert compared["by_layer"][index] == alike(part)
  total = {name: compared[name] for name in ("in_common", "jaccard")}
  assert total == alike(list(pairs.values()))
  row = found.rows[len(KERNELS) + NAMES.index("mlp/up")]
  assert (row["layer"], row["kernel"]) == (1, "mlp/up")
  x, y = (mask[1] for mask in pairs["mlp/up"])
  assert {name: row[name] for name in total} == alike([(x, y)])
  assert row["removed_alone"] == (~x & y).sum()
  assert row["kept_alone"] == (x & ~y).sum()
  assert found.values["max_weight_difference"] == 0
  # Without its masks a folder is compared by its zeros: the same here.
  (folders / "wanda" / masks_file.FILE).rename(folders / "kept")
  try:
    again = verify.verify(source, other)
  finally:
    (folders / "kept").rename(folders / "wanda" / masks_file.FILE)
  assert again.values == found.values


def test_a_folder_against_itself(folders):
  source = open_folder(folders / "nofm")
  compared = verify.verify(source, source).values["masks"]
  assert compared["in_common"] == compared["jaccard"] == 1.0


def test_damage_is_found(tiny, folders, tmp_path):
  weights.prune_weights(
    tiny, tmp_path / "out", method="magnitude", pattern=NofM(keep=1, of=4)
  )
  masks, metadata = masks_file.read_masks(tmp_path / "out" / masks_file.FILE)
  masks["mlp"]["up"][1] = ~masks["mlp"]["up"][1]
  masks_file.write_masks(tmp_path / "out" / masks_file.FILE, masks, metadata)
  shard = tmp_path / "out" / "model.safetensors"
  raw = bytearray(shard.read_bytes())
  raw[-4] ^= 1
  shard.write_bytes(raw)
  checks = verify.verify(open_folder(tmp_path / "out")).checks
  assert checks == {"shards": False, "masks": False, "pattern": False}


@pytest.mark.slow
def test_the_script(folders, tmp_path):
  done = scripts.call(
    "verify",
    f"--model={folders}/nofm",
    f"--against={folders}/wanda",
    "--pattern=2:4",
    f"--out={tmp_path}/out",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((tmp_path / "out/summary.json").read_text())
  assert summary["checks"]["2:4"] is True
  assert 0 < summary["masks"]["jaccard"] < summary["masks"]["in_common"] < 1
  assert set(summary["masks"]["by_kernel"]) == set(NAMES)
  done = scripts.call(
    "verify",
    f"--model={folders}/wanda",
    "--pattern=2:4",
    f"--out={tmp_path}/bad",
  )
  assert done.returncode == 1 and "failed 2:4" in done.stderr
