"""Where do weights, activations and results live when there are many devices?

One mesh of two axes. Calibration sequences are split over `data`, the outputs
of a kernel over `model`; everything else is on every device. XLA adds the sums
over devices that statistics need (axes of type Auto).

With several processes each of them calls the same functions on the same files;
`to_host` gathers, and only the writer writes.

How much memory there is, and how much a process has used, is asked here too.
"""

import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "model")


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """A mesh over devices.

  Args:
    sizes: {'data': devices, 'model': devices}; a missing axis has 1.
    devices: which; None is all devices of all processes.

  Raises:
    ValueError: an unknown axis, a size below 1, or sizes whose product is not
      the number of devices.
  """
  unknown = set(sizes) - set(AXES)
  if unknown or min(sizes.values(), default=1) < 1:
    raise ValueError(
      f"mesh {dict(sizes)}: give the axes data and model, each at least 1"
    )
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  count = jax.device_count() if devices is None else len(devices)
  if shape[0] * shape[1] != count:
    raise ValueError(
      f"mesh data:{shape[0]},model:{shape[1]} needs {shape[0] * shape[1]}"
      f" devices, there are {count}"
    )
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def place(array: Any, mesh: Mesh | None, spec: P | None = None) -> jax.Array:
  """Put an array that every process holds whole on the devices.

  Args:
    array: the same in every process, or placed already.
    mesh: the devices; None is the default device.
    spec: which axes are split; None is none.
  """
  if mesh is None:
    return jnp.asarray(array)
  sharding = NamedSharding(mesh, spec or P())
  if isinstance(array, jax.Array) and (
    not array.is_fully_addressable
    or array.sharding.is_equivalent_to(sharding, array.ndim)
  ):
    return array
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: np.asarray(array[index])
  )


def batch_sharding(mesh: Mesh | None) -> jax.sharding.Sharding:
  """Where `place_batch` puts a micro-batch."""
  if mesh is None:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return NamedSharding(mesh, P("data"))


def place_batch(x_BTD: Any, mesh: Mesh | None) -> jax.Array:
  """Split a micro-batch over `data`.

  Args:
    x_BTD: [B, ...], the same in every process unless it is placed already.
    mesh: the devices; None is the default device.
  """
  return place(x_BTD, mesh, P("data"))


def place_leaf(leaf: Any, mesh: Mesh | None) -> jax.Array:
  """Put a leaf of a layer in float32; a kernel is split over its outputs.

  Kernels of experts [E, I, O] and of all layers [L, I, O] too. A kernel whose
  outputs `model` does not divide is on every device.

  Args:
    leaf: [I, O] or of another shape, the same in every process.
    mesh: the devices; None is the default device.
  """
  leaf = np.asarray(leaf).astype(np.float32, copy=False)
  if mesh is None:
    return jnp.asarray(leaf)
  return place(leaf, mesh, leaf_spec(leaf.shape, mesh))


def leaf_spec(shape: tuple[int, ...], mesh: Mesh) -> P:
  """How `place_leaf` splits a leaf.

  Args:
    shape: of the leaf: a kernel [I, O], or kernels with axes before these.
    mesh: the devices.
  """
  if len(shape) < 2 or shape[-1] % mesh.shape["model"]:
    return P()
  return P(*(None,) * (len(shape) - 1), "model")


def params_sharding(
  mesh: Mesh | None,
) -> Callable[[str, tuple[int, ...]], jax.sharding.Sharding]:
  """Where the parameters of a model lie, each split as often as it can be.

  Kernels [L, I, O] have their inputs split over `data` and their outputs over
  `model`, biases [L, O] their outputs, and tables [V, D] their rows over
  `model` and their columns over `data`; an axis that does not divide, and
  everything else, is on every device.

  Args:
    mesh: the devices; None is the default device.

  Returns:
    A function of the path of a leaf, such as "layers/mlp/up/kernel", and its
    shape.
  """
  if mesh is None:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return lambda path, shape: device
  wanted = {
    "kernel": ("data", "model"),
    "table": ("model", "data"),
    "bias": ("model",),
  }

  def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
    axes = wanted.get(path.rpartition("/")[2], ())[-len(shape) :]
    axes = (None,) * (len(shape) - len(axes)) + axes
    return NamedSharding(
      mesh,
      P(
        *(
          axis if axis and size % mesh.shape[axis] == 0 else None
          for axis, size in zip(axes, shape)
        )
      ),
    )

  return sharding


def statistic_spec(shape: tuple[int, ...], mesh: Mesh | None) -> P:
  """How a statistic of kernel inputs is split.

  A Gram matrix [I, I] by its rows over all devices, or over those of `model`;
  everything else, and rows that neither divides, is on every device.

  Args:
    shape: of the statistic.
    mesh: the devices.
  """
  if mesh is not None and len(shape) == 2 and shape[0] == shape[1]:
    for axes in (AXES, ("model",)):
      if shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0:
        return P(axes)
  return P()


def constrain(array: jax.Array, mesh: Mesh | None, spec: P) -> jax.Array:
  """Ask, inside jit, that an array is split so.

  Args:
    array: any.
    mesh: the devices; None changes nothing.
    spec: which axes are split.
  """
  if mesh is None:
    return array
  return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def on_every_device(tree: Any, mesh: Mesh | None) -> Any:
  """Ask, inside jit, for results that are whole on every device.

  Args:
    tree: of arrays.
    mesh: the devices; None changes nothing.
  """
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def to_host(tree: Any) -> Any:
  """Bring arrays to NumPy, gathered from all processes.

  Every process must call it, at the same place.
  """

  def gather(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)

  return jax.tree.map(gather, tree)


def is_writer() -> bool:
  """Whether this is the one process that writes files."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Wait until every process is here; nothing with a single one."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def ask_writer(question: Callable[[], str | None]) -> str:
  """Call a function in the writer process; all processes get its answer.

  Every process must call this, at the same place.

  Args:
    question: gives a short text (None is ""), or raises a ValueError.

  Returns:
    The answer.

  Raises:
    ValueError: that of the writer, in every process.
  """
  if jax.process_count() == 1:
    return question() or ""
  message = np.zeros(4096, np.uint8)
  if is_writer():
    try:
      text = "=" + (question() or "")
    except ValueError as error:
      text = "!" + str(error)
    raw = text.encode("utf-8")[: message.size]
    message[: len(raw)] = np.frombuffer(raw, np.uint8)
  said = bytes(np.asarray(multihost_utils.broadcast_one_to_all(message)))
  text = said.rstrip(b"\0").decode("utf-8", "replace")
  if text.startswith("!"):
    raise ValueError(text[1:])
  return text[1:]


def available_bytes() -> tuple[int | None, int | None]:
  """Bytes of one device and of the host, None where they are not told.

  On a CPU both are the same memory: that of the machine, or of the control
  group that the process may use.
  """
  host = host_bytes()
  if jax.default_backend() == "cpu":
    return host, host
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit"), host


def total_bytes() -> int | None:
  """Bytes of all hosts and devices together; None where they are not told."""
  device, host = available_bytes()
  if host is None or device is None:
    return None
  total = host * jax.process_count()
  if jax.default_backend() != "cpu":
    total += device * jax.device_count()
  return total


def peak_bytes() -> int:
  """Peak bytes in use: of the first device where it tells, else resident."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "peak_bytes_in_use" in stats:
    return int(stats["peak_bytes_in_use"])
  return peak_resident_bytes()


def peak_resident_bytes() -> int:
  """Peak resident memory of this process so far, bytes."""
  # The ru_maxrss of Linux is never below what the process was started from had.
  with contextlib.suppress(OSError, LookupError):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
  import resource  # absent on Windows, where nothing else needs it

  # macOS counts bytes, others KiB.
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, int]:
  """What of this machine the bits of a result depend on, as JSON values.

  On CPUs `cores`, those that this process may use: sums over many tokens and
  factorisations are divided among them, and so round differently. Nothing on
  other devices, which say by their kind how they work.
  """
  if jax.default_backend() != "cpu":
    return {}
  if hasattr(os, "sched_getaffinity"):
    return {"cores": len(os.sched_getaffinity(0))}
  return {"cores": os.cpu_count() or 1}


def gib(count: int) -> str:
  """Bytes as a short text in GiB."""
  return f"{count / 2**30:.3g} GiB"


def host_bytes() -> int | None:
  """Bytes of memory of the machine, or of the control group of this process.

  None where the system does not tell. No device is asked.
  """
  limits = []
  if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
    limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
  limit = pathlib.Path("/sys/fs/cgroup/memory.max")
  if limit.is_file() and limit.read_text().strip().isdigit():
    limits.append(int(limit.read_text()))
  return min(limits, default=None)
