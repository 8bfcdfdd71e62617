"""The console command: which scripts there are, and how words become flags."""

import re
import subprocess
import sys

import pytest
import scripts

from experiments import console

NAMES = [name for group in console.COMMANDS.values() for name in group]


def console_command(*words):
  """The command in a process of its own; and whether that loaded JAX."""
  code = (
    "import sys, atexit; from experiments import console;"
    " atexit.register(lambda: print('jax' in sys.modules));"
    f" sys.argv = ['jaxprune', *{list(words)!r}]; console.main()"
  )
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=scripts.ROOT,
    check=False,
  )


def test_every_script_is_a_command():
  files = {
    path.stem
    for path in (scripts.ROOT / "experiments").glob("*.py")
    if re.search(r"^  launch\.run\(main\)$", path.read_text(), re.M)
  }
  assert set(NAMES) == files and len(NAMES) == len(files)


@pytest.mark.parametrize("word", ["--help", "help", "-h"])
def test_the_commands_are_listed(word, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["jaxprune", word])
  console.main()
  listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M)
  assert listed == NAMES


def test_an_unknown_command_is_one_line_with_the_nearest_name():
  done = console_command("quikstart")
  assert done.returncode == 1
  assert done.stderr.count("\n") == 1 and "mean quickstart?" in done.stderr
  assert done.stdout == "False\n"  # no JAX was loaded


def test_help_of_a_command():
  done = console_command("prune", "--help")
  assert done.returncode == 0 and done.stdout.endswith("\nFalse\n")
  assert "usage: jaxprune prune MODEL OUT [--FLAG=VALUE ...]" in done.stdout
  required, optional = done.stdout.split("\nflags:\n")
  assert "\n  --model=TEXT\n" in required and "\n  --out=TEXT\n" in required
  assert "\n  --method=wanda\n" in optional
  assert "--verbosity" not in done.stdout


def test_words_stand_for_required_flags(tmp_path):
  for words, message in (
    (("/no/such/folder", f"{tmp_path}/out"), "no such folder"),
    ((f"--out={tmp_path}/out", "/no/such/folder"), "no such folder"),
    (("--sparsity", "0.5", "/no/folder", "out"), "no such folder"),
    (("--model=x", "--out=y", "wanda"), "unexpected arguments: wanda"),
    (("x",), "--out missing: "),
    ((), "--model and --out missing: "),
    (("x", "y", "--sparcity=1"), "Did you mean: sparsity"),
    (("x", "y", "--method=wando"), "--method=wando"),
  ):
    done = scripts.call("prune", *words)
    assert done.returncode == 1, words
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_flag_with_bounds_is_not_required():
  done = scripts.call("trajectories", "--help")
  assert "trajectories DENSE PRUNED PROMPTS OUT [" in done.stdout
