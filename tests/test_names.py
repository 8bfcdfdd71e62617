"""Names and places of tensors: rows of the tables on hand-sized arrays."""

import collections

import numpy as np
import pytest
from tiny_config import tiny_llama

from jaxprune.checkpoints import names, tables
from jaxprune.checkpoints.rows import Part, Row

# 4 heads of width 4 read 2 key heads: rows 0..15, 16..23 and 24..31 of a file.
CONFIG = tiny_llama()
SIZES = ("NH", "KH", "KH")


@pytest.mark.parametrize(
  "index, leaf, begin", [(0, "NH", 0), (1, "KH", 16), (2, "KH", 24)]
)
def test_leaves_that_lie_behind_one_another(index, leaf, begin):
  row = Row("w", "w", ("D", leaf), True, part=Part(SIZES, index))
  w_OI = np.arange(32 * 16, dtype=np.float32).reshape(32, 16)
  assert names.tensor_shape(CONFIG, row) == (32, 16)
  size = names.leaf_shape(CONFIG, row)[1]
  found = names.leaf_of(CONFIG, row, w_OI)
  np.testing.assert_array_equal(found, w_OI[begin : begin + size].T)
  assert np.shares_memory(found, w_OI)
  out = np.zeros_like(w_OI)
  names.put_leaf(CONFIG, row, out, -found)
  np.testing.assert_array_equal(out[begin : begin + size], -found.T)
  assert not out[:begin].any() and not out[begin + size :].any()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("rank", [1, 2])
def test_leaves_that_take_turns(rank, transpose):
  """Head by head a query, a key and a value: the output axis is (N, 3, H)."""
  shape = ("D", "NH")[-rank:]
  w_IO = np.arange(16 * 48, dtype=np.float32).reshape(16, 48)
  w_IO = w_IO if rank == 2 else w_IO[0]
  tensor = np.ascontiguousarray(w_IO.T) if transpose else w_IO
  out = np.zeros_like(tensor)
  for index in range(3):
    part = Part(("H", "H", "H"), index, groups="N")
    row = Row("w", "w", shape, transpose, part=part)
    assert names.tensor_shape(CONFIG, row) == tensor.shape
    found = names.leaf_of(CONFIG, row, tensor)
    columns = [n * 12 + index * 4 + h for n in range(4) for h in range(4)]
    np.testing.assert_array_equal(found, w_IO[..., columns])
    names.put_leaf(CONFIG, row, out, found)
  np.testing.assert_array_equal(out, tensor)


@pytest.mark.parametrize("family", tables.TABLES)
def test_the_parts_of_a_tensor_are_all_of_it(family):
  """Rows that share a tensor agree on its parts and take each one once."""
  table, shared = tables.TABLES[family], collections.defaultdict(list)
  for row in table.outer + table.layer:
    shared[row.name].append(row)
  for rows in shared.values():
    parts = [row.part for row in rows]
    if parts == [None]:
      continue
    assert len({(p.sizes, p.groups) for p in parts}) == 1
    assert sorted(p.index for p in parts) == list(range(len(parts[0].sizes)))
    for row in rows:
      assert sorted(row.shape[-1]) == sorted(
        row.part.groups + row.part.sizes[row.part.index]
      )
