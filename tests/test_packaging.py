"""What is installed: the wheel, the source archive, and what they depend on."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where the name of a package on the index is not the name that is imported.
IMPORTED_AS = {
  "absl-py": "absl",
  "lm-eval": "lm_eval",
  "orbax-checkpoint": "orbax",
  "pillow": "PIL",
  "pytest-xdist": "xdist",
}
# Called by name, from a command line or by another package.
TOOLS = {"accelerate", "ruff", "setuptools", "xdist"}
TOOLS |= {"furo", "ipykernel", "myst_nb", "sphinx"}


def named(requirements):
  """Names as they are imported, of requirements such as `jax[tpu]>=0.10`."""
  for requirement in requirements:
    name = re.match(r"[\w.-]+", requirement)[0].lower()
    yield IMPORTED_AS.get(name, name.replace("-", "_"))


def imported(*folders):
  """Outside packages that the Python files of some folders import."""
  names = set()
  for folder in folders:
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
          names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
          names.add(node.module.split(".")[0])
  ours = {"jaxprune", "experiments", *(p.stem for p in ROOT.glob("tests/*.py"))}
  return names - ours - {"tests"} - sys.stdlib_module_names


def test_dependencies_are_what_the_code_imports():
  extras = dict(PROJECT["optional-dependencies"])
  dev = set(named(extras.pop("dev")))
  docs = set(named(extras.pop("docs")))
  core = set(named(PROJECT["dependencies"]))
  optional = set(named(sum(extras.values(), [])))
  used = imported("jaxprune", "experiments")
  assert core <= used
  assert optional <= used
  assert used <= core | optional
  tested = imported("tests")
  assert dev - TOOLS <= tested
  assert tested <= core | optional | dev
  assert docs - TOOLS <= imported("docs") <= core | docs


def test_the_lock_holds_every_direct_dependency():
  locked = {
    line.partition("==")[0].lower().replace("-", "_")
    for line in (ROOT / "requirements-lock.txt").read_text().splitlines()
  }
  extras = PROJECT["optional-dependencies"]
  asked = PROJECT["dependencies"] + sum(extras.values(), [])
  names = {
    re.match(r"[\w.-]+", requirement)[0].lower().replace("-", "_")
    for requirement in asked
  }
  assert names <= locked


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The source archive of a copy of the checkout, and the wheel made of it."""
  version = tuple(map(int, metadata.version("setuptools").split(".")[:1]))
  if version < (77,):
    pytest.skip("setuptools is older than 77, which pyproject.toml asks for")
  folder = tmp_path_factory.mktemp("packaging")
  ignored = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis")
  copy = folder / "checkout"
  copy.mkdir()
  for path in ROOT.iterdir():
    if path.name in (".ci", "docs", "experiments", "jaxprune", "tests"):
      shutil.copytree(path, copy / path.name, ignore=ignored)
    elif path.is_file() and path.name != ".git":
      shutil.copy(path, copy)
  archive = build("sdist", copy, folder)
  with tarfile.open(archive) as tar:
    tar.extractall(folder, filter="data")
  unpacked = folder / archive.name.removesuffix(".tar.gz")
  return unpacked, build("wheel", unpacked, folder)


def build(kind, source, folder):
  """Run the build back end as an installer would; the file that it made."""
  code = (
    "import sys; from setuptools import build_meta;"
    f"print(build_meta.build_{kind}(sys.argv[1]))"
  )
  done = subprocess.run(
    [sys.executable, "-W", "ignore", "-c", code, folder],
    capture_output=True,
    text=True,
    cwd=source,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return folder / done.stdout.split()[-1]


def test_the_source_archive_is_complete(built):
  unpacked, _ = built
  there = {
    path.relative_to(unpacked).as_posix()
    for path in unpacked.rglob("*")
    if path.is_file()
  }
  wanted = {"README.md", "BUILD.md", "LICENSE", "requirements-lock.txt"}
  wanted |= {"setup.py", "setup.cfg", "pyproject.toml", ".ci/run"}
  wanted |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"}
  for folder in ("docs", "jaxprune", "experiments", "tests"):
    wanted |= {
      path.relative_to(ROOT).as_posix()
      for path in (ROOT / folder).rglob("*")
      if path.is_file() and "__pycache__" not in path.parts
    }
  assert wanted <= there


def test_the_wheel_has_one_top_level_package(built):
  _, wheel = built
  with zipfile.ZipFile(wheel) as file:
    names = file.namelist()
  tops = {name.split("/")[0] for name in names}
  assert {top for top in tops if not top.endswith(".dist-info")} == {"jaxprune"}
  for source, target in (
    ("jaxprune", "jaxprune"),
    ("experiments", "jaxprune/experiments"),
  ):
    wanted = {
      f"{target}/{path.relative_to(ROOT / source).as_posix()}"
      for kind in ("*.py", "*.yaml", "*.json", "*.safetensors", "templates/*")
      for path in (ROOT / source).rglob(kind)
    }
    assert wanted <= set(names)


def test_a_script_runs_from_the_installed_wheel(built, tmp_path):
  _, wheel = built
  venv.create(tmp_path / "venv")
  python = tmp_path / "venv" / "bin" / "python"

  def run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
      list(map(str, command)),
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env=environment | {"JAX_PLATFORMS": "cpu"},
      check=False,
    )

  done = run(
    *(sys.executable, "-m", "pip", "--python", python, "install"),
    *("--no-index", "--no-deps", "--quiet", wheel),
  )
  assert done.returncode == 0, done.stderr
  # The dependencies are those of this interpreter.
  site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
  packages = [path for path in sys.path if path.endswith("-packages")]
  (site / "dependencies.pth").write_text("\n".join(packages))
  done = run(python, "-m", "jaxprune.experiments.quickstart", "--help")
  assert "--max_new_tokens" in done.stdout, done.stderr
  done = run(tmp_path / "venv/bin/jaxprune", "harness", "--help")
  assert "usage: jaxprune harness MODEL TASK OUT" in done.stdout, done.stderr
  done = run(python, "-c", "import jaxprune; print(jaxprune.__file__)")
  assert done.stdout.startswith(str(tmp_path))
  done = run(python, "-c", "import experiments")
  assert "No module named 'experiments'" in done.stderr
