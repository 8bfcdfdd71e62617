"""For which platform are programs traced?

Some forms of the model and of the probes are chosen by platform when a program
is traced: a CPU runs other forms faster than an accelerator. That is the
platform JAX runs on, unless a program is compiled ahead of time for another.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar(
  "target", default=None
)


def target() -> str:
  """Name of the platform, such as cpu, gpu or tpu."""
  return _TARGET.get() or jax.default_backend()


def on_cpu() -> bool:
  """Whether programs are traced for a CPU."""
  return target() == "cpu"


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
  """Trace programs for a platform that need not be there.

  JAX keeps what it traced without asking for which platform that was, so it
  forgets all of it at both ends.

  Args:
    platform: cpu, gpu or tpu.
  """
  jax.clear_caches()
  token = _TARGET.set(platform)
  try:
    yield
  finally:
    _TARGET.reset(token)
    jax.clear_caches()
