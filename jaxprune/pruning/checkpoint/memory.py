"""Does a pruning run fit, and where do its bytes go?

Counted from shapes before anything is read: the peak on one device and on the
host of one process. A count is an upper bound on what pruning holds at the
same time; the compiler's scratch space is taken as one more copy of the largest
intermediate of a micro-batch.
"""

import dataclasses
import math

import jax

from jaxprune import devices, platforms
from jaxprune.calibration.observers import OBSERVERS
from jaxprune.checkpoints import names
from jaxprune.models import KERNEL_INPUTS, ModelConfig
from jaxprune.pruning.change import Change
from jaxprune.pruning.checkpoint.streaming import Memory

_FLOAT = 4  # bytes; everything is pruned in float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
  """Bytes, at the peak of a run.

  Attributes:
    layer: one layer as it was and as it becomes, on a device.
    statistics: of all kernel inputs of a layer, and a second copy in work.
    activations: of all calibration sequences, on a device or, offloaded, on
      the host.
    working: intermediates of one micro-batch, on a device.
    device: sum of what lies on one device.
    host: sum of what lies in the memory of one process beside its devices.
  """

  layer: int
  statistics: int
  activations: int
  working: int
  device: int
  host: int

  @property
  def text(self) -> str:
    """The counts as a line for the person who waits."""
    parts = {
      name: devices.gib(count)
      for name, count in dataclasses.asdict(self).items()
    }
    return (
      "device {device} (layer {layer}, statistics {statistics}, activations"
      " {activations}), host {host}".format(**parts)
    )


def estimate_bytes(
  config: ModelConfig,
  change: Change,
  *,
  sequences: int,
  length: int,
  memory: Memory,
) -> Estimate:
  """Count the bytes of pruning weights, or of choosing sublayers to drop.

  Args:
    config: the model.
    change: what is done to it.
    sequences: calibration sequences; 0 without calibration.
    length: tokens of each.
    memory: how activations are held, and on which devices.
  """
  count = _drop_bytes if change.drops else _weight_bytes
  return count(config, change, sequences, length, memory)


def _weight_bytes(config, change, sequences, length, memory):
  """Of `weights.prune_weights`."""
  shapes = names.kernel_shapes(config)
  size = sum(math.prod(shape[1:]) for shape in shapes.values())
  ways = dict(memory.mesh.shape) if memory.mesh else {"data": 1, "model": 1}
  # The old and the new kernels, and one kernel with its scores, keys and mask.
  largest = max(math.prod(shape[1:]) for shape in shapes.values())
  layer = _FLOAT * (2 * size + 4 * largest) // ways["model"]
  # The statistics of experts are as many as the experts.
  inputs = {
    KERNEL_INPUTS[kernel]: (math.prod(shape[1:-2]), shape[-2])
    for kernel, shape in shapes.items()
  }
  statistics = _statistics(change.row.statistic, inputs.values())
  activations = working = 0
  if sequences:
    batch = memory.size(sequences) // ways["data"]
    activations = _FLOAT * sequences * length * config.embed_dim
    wide = 3 * config.mlp_dim + 6 * config.embed_dim
    # Each token passes through several experts.
    wide += getattr(config, "experts_per_token", 0) * config.mlp_dim
    working = 2 * _FLOAT * batch * length * wide
    # On a CPU attention handles 64 queries at a time.
    if not platforms.on_cpu():
      working += _FLOAT * batch * config.num_heads * length**2
  on_device = 0 if memory.offload else activations // ways["data"]
  on_host = activations if memory.offload else 0
  # The layer as read and as written, its masks, and the activations that are
  # saved.
  host = _FLOAT * 2 * size + size + on_host + activations
  return Estimate(
    layer=layer,
    statistics=statistics,
    activations=activations,
    working=working,
    device=layer + statistics + on_device + working,
    host=host,
  )


def _drop_bytes(config, change, sequences, length, memory):
  """Of `sublayers`, which scores what it may drop."""
  sizes = names.file_shapes(config).values()
  model = _FLOAT * sum(map(math.prod, sizes))
  ways = memory.mesh.shape["data"] if memory.mesh else 1
  layer = model // config.num_layers
  tokens = sequences * length
  activations = _FLOAT * tokens * config.embed_dim
  batch = memory.size(sequences) // ways if sequences else 0
  wide = 3 * config.mlp_dim + 6 * config.embed_dim
  if change.row.score == "kl":
    # The whole model, two copies of the logits, and four numbers a position and
    # candidate.
    layer, wide = model, wide + 2 * config.vocab_size
    activations = 4 * _FLOAT * tokens * config.num_layers
  elif change.row.selection == "consecutive":
    activations *= 1 + change.drop_count
  working = 2 * _FLOAT * batch * length * wide
  offloaded = activations if memory.offload else 0
  return Estimate(
    layer=layer,
    statistics=0,
    activations=activations,
    working=working,
    device=layer + working + (activations - offloaded) // ways,
    host=layer + offloaded,
  )


def _statistics(statistic, inputs):
  widths = [width for count, width in inputs for _ in range(count)]
  if statistic is None:
    return 0
  if OBSERVERS[statistic].square:
    # The summed statistics, those of the next micro-batch, and two factors that
    # are being computed.
    return _FLOAT * (2 * sum(w**2 for w in widths) + 2 * max(widths) ** 2)
  return _FLOAT * 4 * sum(widths)


def check_fits(estimate: Estimate) -> None:
  """Refuse a run that cannot fit.

  Raises:
    ValueError: it needs more than the device or the host has; says what to
      change.
  """
  device, host = devices.available_bytes()
  shared = jax.default_backend() == "cpu"
  need = estimate.device + estimate.host if shared else estimate.device
  if device is not None and need > device:
    raise ValueError(
      f"needs {devices.gib(need)} on the device, of which activations"
      f" {devices.gib(estimate.activations)}, statistics"
      f" {devices.gib(estimate.statistics)};"
      f" there are {devices.gib(device)}: use fewer or shorter calibration"
      " sequences, a smaller micro_batch, offloading or a mesh"
    )
  if not shared and host is not None and estimate.host > host:
    raise ValueError(
      f"needs {devices.gib(estimate.host)} of host memory, there are"
      f" {devices.gib(host)}:"
      " use fewer or shorter calibration sequences"
    )
