"""The published figures of TPU chips, and what a topology is called.

Reference: docs.cloud.google.com/tpu/docs/{v5e, v5p, v6e}, read in November
2026: peak bfloat16 compute, capacity and bandwidth of HBM, and the inter-chip
interconnect of a chip, all its links in one direction together.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
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
  "v5e": Chip(
    flops=197e12,
    hbm_bytes=16e9,
    hbm_rate=819e9,
    link_rate=200e9,
    topologies=_FLAT,
  ),
  "v5p": Chip(
    flops=459e12,
    hbm_bytes=95e9,
    hbm_rate=2765e9,
    link_rate=600e9,
    topologies=_CUBE,
  ),
  "v6e": Chip(
    flops=918e12,
    hbm_bytes=32e9,
    hbm_rate=1600e9,
    link_rate=400e9,
    topologies=_FLAT,
  ),
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
