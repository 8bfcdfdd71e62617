"""The probes must be usable without the rest of the library."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = ("flax", "transformers", "safetensors", "matplotlib", "orbax", "torch")


def test_import_loads_nothing_heavy():
  code = (
    "import sys, jaxprune.probes; lazy = 'jax' not in sys.modules;"
    "jaxprune.probes.compare_position, jaxprune.probes.scan;"
    f"print(lazy, [name for name in {HEAVY} if name in sys.modules])"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == "True []"


def test_exported_names_exist():
  import jaxprune.probes as probes

  assert probes.__all__ == sorted(probes.__all__)
  for name in probes.__all__:
    # A function that shadowed its own module would break `import ... as`.
    assert not hasattr(getattr(probes, name), "__path__")
    assert callable(getattr(probes, name)), name
