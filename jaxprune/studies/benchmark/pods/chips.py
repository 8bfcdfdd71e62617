"""The published figures of TPU chips, and what a topology is called.

Reference: docs.cloud.google.com/tpu/docs/{v5e, v5p, v6e}, read in November
2026: peak bfloat16 compute, capacity and bandwidth of HBM, and the inter-chip
interconnect of a chip, all its links in one direction together.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    flops: bfloat16 operations per second.
    hbm_bytes: memory.
    hbm_rate: bytes per second to and from memory.
    link_rate: bytes per second that leave a chip.
    topologies: name of the topology by number of chips.
  """

  flops: float
  hbm_bytes: float
  hbm_rate: float
  link_rate: float
  topologies: dict[int, str]


_FLAT = {8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
}
CHIPS = {
  "v5e": Chip(197e12, 16e9, 819e9, 200e9, _FLAT),
  "v5p": Chip(459e12, 95e9, 2765e9, 600e9, _CUBE),
  "v6e": Chip(918e12, 32e9, 1600e9, 400e9, _FLAT),
}


def topology(chip: str, count: int) -> str:
  """The name of a slice, such as v5e:2x4.

  Args:
    chip: a name in `CHIPS`.
    count: chips of the slice.

  Raises:
    ValueError: an unknown chip, or a number of chips without a slice.
  """
  if chip not in CHIPS:
    raise ValueError(f"chip {chip!r}: use one of {', '.join(CHIPS)}")
  names = CHIPS[chip].topologies
  if count not in names:
    raise ValueError(
      f"{count} chips: use {', '.join(map(str, names))}, as slices come"
    )
  return f"{chip}:{names[count]}"


def mesh_sizes(count: int, sequences: int) -> dict[str, int]:
  """A mesh for pruning: at most 16 ways over the outputs of kernels.

  Args:
    count: chips.
    sequences: of calibration; the ways of `data` divide them.
  """
  model = min(16, 2 ** math.ceil(math.log2(count) / 2))
  while sequences % (count // model):
    model *= 2
  return {"data": count // model, "model": model}
