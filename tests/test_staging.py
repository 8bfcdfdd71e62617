"""A folder appears whole or not at all, and one run at a time may write it."""

import os
import pathlib
import subprocess
import sys
import time

import faults
import pytest

from jaxprune import files, staging


@pytest.fixture
def stage(tmp_path):
  return staging.stage(tmp_path / "out")


def make(stage, text="new", **options):
  staging.begin(stage, {"text": text}, **{"resume": False} | options)
  (stage.new / "deep").mkdir(parents=True)
  (stage.new / "deep" / "file").write_text(text)


def written(stage):
  return (stage.folder / "deep" / "file").read_text()


@pytest.mark.parametrize("exchange", [True, False])
def test_every_point_of_a_publication(stage, monkeypatch, exchange):
  """Old or new at any moment, where names can be exchanged; then new."""
  if not exchange:
    monkeypatch.setattr(staging, "exchange", lambda one, other: False)

  def run():
    staging.settle(stage)
    if not stage.folder.is_dir() or written(stage) == "old":
      make(stage)
      staging.publish(stage)

  def renew():
    faults.shutil.rmtree(stage.folder, ignore_errors=True)
    make(stage, "old")
    staging.publish(stage)

  renew()
  death = faults.Death()
  with faults.dying(death, stage.folder.parent):
    run()
  assert death.count > 10
  for point in range(1, death.count + 1):
    renew()
    with pytest.raises(faults.DeathError):
      with faults.dying(faults.Death(at=point), stage.folder.parent):
        run()
    if exchange:
      assert written(stage) in ("old", "new")
    run()
    assert written(stage) == "new"
    assert os.listdir(stage.folder.parent) == ["out"]


def test_the_first_publication_takes_an_empty_folder(stage):
  stage.folder.mkdir()
  make(stage)
  staging.publish(stage)
  assert written(stage) == "new" and not stage.scaffold.exists()


def test_unfinished_work_is_taken_up_by_its_job_alone(stage):
  make(stage, "a", resume=True)
  (stage.new / ".file.123.tmp").touch()
  assert staging.begin(stage, {"text": "a"}, resume=True)
  assert not (stage.new / ".file.123.tmp").exists()
  for resume in (True, False):
    with pytest.raises(ValueError, match="another job .text was 'a', now 'b'"):
      staging.begin(stage, {"text": "b"}, resume=resume)
  assert (stage.new / "deep" / "file").read_text() == "a"


def test_work_that_nobody_takes_up_is_removed(stage):
  make(stage, "a")
  assert not staging.begin(stage, {"text": "b"}, resume=True)
  assert not stage.new.exists()


def test_whether_there_is_work(stage):
  staging.begin(stage, {}, resume=True)
  stage.new.mkdir()
  (stage.new / "records.jsonl").touch()
  (stage.new / "run.json").write_text("{}")
  assert not staging.has_work(stage, besides={"run.json"})
  assert staging.has_work(stage)
  assert not staging.has_work(staging.stage(stage.folder / "other"))


def test_what_is_not_the_work_of_a_run_stays(stage):
  stage.scaffold.mkdir()
  (stage.scaffold / "thesis.tex").write_text("mine")
  with pytest.raises(ValueError, match="not the work of a run"):
    staging.begin(stage, {}, resume=False)
  assert (stage.scaffold / "thesis.tex").read_text() == "mine"


def test_places_where_no_folder_can_appear(tmp_path, monkeypatch):
  (tmp_path / "file").touch()
  with pytest.raises(ValueError, match="is a file"):
    staging.check_place(tmp_path / "file")
  with pytest.raises(ValueError, match="mount point"):
    staging.check_place(pathlib.Path("/proc"))
  (tmp_path / "below").mkdir()
  monkeypatch.chdir(tmp_path / "below")
  with pytest.raises(ValueError, match="holds the working directory"):
    staging.check_place(tmp_path)


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path):
  code = (
    "import sys, time; from jaxprune import staging\n"
    "with staging.lock(sys.argv[1]):\n  print('held', flush=True)\n"
    "  time.sleep(60)"
  )
  with subprocess.Popen(
    [sys.executable, "-c", code, tmp_path / "out"],
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[1],
  ) as first:
    assert first.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"another run .*{first.pid} on"):
      with staging.lock(tmp_path / "out"):
        pass
    first.kill()
  for _ in range(2):
    with staging.lock(tmp_path / "out"):
      pass
  assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path, monkeypatch):
  """Its holder ended between the opening and the locking of the file."""
  flock, calls = staging.fcntl.flock, []

  def late(descriptor, operation):
    flock(descriptor, operation)
    calls.append(descriptor)
    if len(calls) == 1:
      (tmp_path / ".out.lock").unlink()

  monkeypatch.setattr(staging.fcntl, "flock", late)
  with staging.lock(tmp_path / "out"):
    assert len(calls) == 2 and (tmp_path / ".out.lock").exists()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
  def none(descriptor, operation):
    raise OSError(staging.errno.ENOLCK, "No locks available")

  monkeypatch.setattr(staging.fcntl, "flock", none)
  with caplog.at_level("INFO"), staging.lock(tmp_path / "out"):
    pass
  assert "has no locks (No locks available)" in caplog.text


def test_the_first_difference_is_named():
  same = {"a": 1, "flags": {"x": [1], "y": 2}}
  for other, expected in (
    ({"a": 2, "flags": {}}, "a was 1, now 2"),
    ({"a": 1, "flags": {"x": [2], "y": 2}}, "flags/x was [1], now [2]"),
    ({"a": 1, "flags": {"x": [1]}}, "flags/y was 2, now None"),
    ({"a": 1, "b": None, "flags": {}}, "flags/x was [1], now None"),
    (same | {"b": None}, "b was None, now None"),
  ):
    assert staging.difference(same, other) == expected


def test_checksums(tmp_path):
  (tmp_path / "deep").mkdir()
  for name in ("a", "deep/b"):
    (tmp_path / name).write_text(name)
  files.write_checksums(tmp_path)
  files.check_folder(tmp_path)
  assert files.read_checked(tmp_path / "deep" / "b") == b"deep/b"
  (tmp_path / "deep" / "b").write_text("deep/c")
  for read in (
    lambda: files.read_checked(tmp_path / "deep" / "b"),
    lambda: files.check_folder(tmp_path),
  ):
    with pytest.raises(ValueError, match="deep/b: is not what the run wrote"):
      read()
  (tmp_path / "other").write_text("x")
  assert files.read_checked(tmp_path / "other") == b"x"  # nobody vouches for it


def test_signed_json(tmp_path):
  one, other = tmp_path / "one.json", tmp_path / "other.json"
  files.write_signed_json(one, {"x": 1})
  assert files.read_signed_json(one) == {"x": 1}
  one.rename(other)
  with pytest.raises(ValueError, match="not what was written under this name"):
    files.read_signed_json(other)
  other.write_text('{"x": 1}')  # older files have no signature
  assert files.read_signed_json(other) == {"x": 1}


def test_signed_json_of_what_json_writes_otherwise(tmp_path):
  path = tmp_path / "costs.json"
  # As numbers 2 comes before 10, as text after it.
  files.write_signed_json(path, {"costs": {2: 0.5, 10: 0.25}, "pair": (1, 2)})
  assert files.read_signed_json(path) == {
    "costs": {"2": 0.5, "10": 0.25},
    "pair": [1, 2],
  }


def test_killed_anywhere_a_pruning_run_goes_on(tmp_path):
  """A part of the points; tests/faults.py tries all of them."""
  home = faults.save_model(tmp_path)
  out = home / "out"
  flags = [*faults.prune_flags(home, "magnitude"), f"--out={out}"]
  began = time.monotonic()

  def points(number):
    assert number > 50
    return range(number // 4, number + 1, number // 4)

  wrong = faults.every_point(lambda: faults.call("prune", *flags), out, points)
  assert not wrong, wrong
  assert time.monotonic() - began < 300
