"""The arrows of the design: farther right imports farther left, never back."""

import ast
import functools
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ORDER = (
  "shapes",
  "platforms",
  "files",
  "staging",
  "models",
  "devices",
  "checkpoints",
  "calibration",
  "statistics",
  "pruning",
  "probes",
  "recovery",
  "evaluation",
  "report",
  "pocket",
  "studies",
  "api",
  "experiments",
)
# What a folder may load besides the standard library and its left neighbours:
# the row of the innermost folder that has one.
ARRAYS = {"jax", "numpy", "einops"}
ALLOWED = {
  "shapes": set(),
  "platforms": {"jax"},
  "files": set(),
  "staging": set(),
  "models": ARRAYS | {"flax"},
  "devices": {"jax", "numpy"},
  "checkpoints": ARRAYS
  | {
    "gguf",
    "huggingface_hub",
    "ml_dtypes",
    "orbax",
    "safetensors",
    "tokenizers",
  },
  "calibration": ARRAYS | {"datasets", "pyarrow", "tokenizers"},
  "statistics": {"numpy", "scipy"},
  "pruning": ARRAYS,
  "probes": ARRAYS,
  "recovery": ARRAYS | {"optax"},
  "evaluation": ARRAYS
  | {"lm_eval", "mteb", "tokenizers", "torch", "transformers"},
  "report": {"jax", "jinja2", "numpy"},
  "pocket": ARRAYS | {"ml_dtypes", "optax", "tokenizers"},
  "studies": ARRAYS | {"tokenizers"},
  "studies/benchmark": ARRAYS | {"lm_eval", "torch", "transformers"},
  "studies/tasks": ARRAYS | {"lm_eval", "tokenizers"},
  "api": ARRAYS | {"tokenizers"},
  "experiments": ARRAYS
  | {"absl", "ml_dtypes", "torch", "tqdm", "transformers"},
}
# The array rooms: arrays, pytrees and callables in, so that any JAX project
# can import them. They see no model and no disk; what does is a folder in them.
ARRAY_ROOMS = {
  "pruning": "jaxprune.pruning.checkpoint",
  "probes": "jaxprune.probes.decoder",
}


def modules():
  for folder in ("jaxprune", "experiments"):
    yield from sorted((ROOT / folder).rglob("*.py"))


def room(path):
  """The entry of ORDER a file belongs to, or None for jaxprune/__init__."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  name = parts[1] if parts[0] == "jaxprune" else "experiments"
  return None if name == "__init__" else name


@functools.cache
def imported(path):
  """Absolute dotted names of everything a file imports, lazily too."""
  package, found = path.relative_to(ROOT).parent.parts, []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        base = ".".join((*package[: len(package) - node.level + 1], base))
      base = base.rstrip(".")
      found += [f"{base}.{alias.name}" for alias in node.names]
  return found


@pytest.mark.parametrize(
  "path", list(modules()), ids=lambda p: str(p.relative_to(ROOT))
)
def test_arrows(path):
  here = room(path)
  if here is None:  # what it offers, it loads when that is used
    names = {name.split(".")[0] for name in imported(path)}
    assert names <= {"jaxprune", *sys.stdlib_module_names}
    return
  assert here in ORDER, f"{path}: a folder the design does not know"
  for name in imported(path):
    parts = name.split(".")
    if parts[0] == "jaxprune" and len(parts) > 1 and parts[1] in ORDER:
      assert ORDER.index(parts[1]) <= ORDER.index(here), (
        f"{path.relative_to(ROOT)} imports {name}, to its right"
      )
    assert parts[0] != "experiments" or here == "experiments"


@pytest.mark.parametrize(
  "path", list(modules()), ids=lambda p: str(p.relative_to(ROOT))
)
def test_outside_packages(path):
  here = room(path)
  if here is None:
    return
  folders = path.relative_to(ROOT).parent.parts[1:]
  rows = ["/".join(folders[:depth]) for depth in range(len(folders), 0, -1)]
  allowed = next(ALLOWED[name] for name in (*rows, here) if name in ALLOWED)
  for name in imported(path):
    top = name.split(".")[0]
    if top in ("jaxprune", "experiments", *sys.stdlib_module_names):
      continue
    assert top in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
  "path",
  [p for p in modules() if room(p) in ARRAY_ROOMS],
  ids=lambda p: str(p.relative_to(ROOT)),
)
def test_array_rooms_know_no_model(path):
  aware = ARRAY_ROOMS[room(path)]
  here = ".".join(path.relative_to(ROOT).with_suffix("").parts)
  if here.startswith(aware):
    return
  for name in imported(path):
    assert not name.startswith(
      ("jaxprune.models", "jaxprune.checkpoints", aware)
    ), name
