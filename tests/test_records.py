"""Run folders: what is written, what is refused, what survives a crash."""

import csv
import json
import math

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprune import report
from jaxprune.report import fields, records


def describe(**changes):
  return report.describe_run(
    **{
      "flags": {"method": "wanda", "sparsity": 0.5, "out": "x", "ids": (1, 2)},
      "command": ["prune.py", "--out=a b"],
      "seeds": {"calibration": 0},
      "checkpoint_hash": "abc",
      "calibration": {"source": "c4", "hash": "def"},
    }
    | changes
  )


def contents(folder):
  return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_run_json(tmp_path):
  folder = tmp_path / "deep" / "out"
  with report.RunFolder(folder, describe()):
    pass
  content = json.loads((folder / "run.json").read_text())
  assert content["command"] == "prune.py '--out=a b'"
  assert content["flags"]["sparsity"] == 0.5
  assert content["flags"]["ids"] == [1, 2]
  assert content["calibration"]["hash"] == "def"
  assert content["seeds"] == {"calibration": 0}
  assert set(content["versions"]) >= {
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "jaxprune",
    "python",
  }
  assert content["device"]["platform"] == "cpu"
  assert content["device"]["devices"] == 8
  assert contents(folder) == ["figures", "records.jsonl", "run.json"]


def test_rows_keep_every_digit(tmp_path):
  rows = [
    dict(
      protocol="teacher_forced",
      prompt=0,
      step=np.int32(3),
      layer=None,
      kl=np.float32(0.1),
      cos_h=jnp.float32(1) / 3,
      flip=np.bool_(True),
      token_dense=jnp.int32(7),
      js=1,
    ),
    dict(protocol="free_running", prompt=1, step=0, kl=1e-300, tv=0.1),
  ]
  with report.RunFolder(tmp_path, describe()) as run:
    run.write(rows[0])
    run.write_all(rows[1:])
    # Written rows are on disk before the run ends.
    assert len(report.read_records(tmp_path)) == 2
  first, second = report.read_records(tmp_path)
  assert first == dict(
    protocol="teacher_forced",
    prompt=0,
    step=3,
    kl=float(np.float32(0.1)),
    cos_h=float(np.float32(1) / np.float32(3)),
    flip=True,
    token_dense=7,
    js=1.0,
  )
  assert isinstance(first["js"], float) and first["flip"] is True
  assert second == rows[1]
  text = (tmp_path / "records.jsonl").read_text()
  assert '"tv": 0.1}' in text and text.endswith("\n")


@pytest.mark.parametrize(
  "row, message",
  [
    (dict(cos_q=1.0), "'cos_q' is unknown: did you mean cos_"),
    (dict(zzzzzz=1.0), "'zzzzzz' is unknown: pass it in extra_fields"),
    (dict(step=1.5), "step=1.5: must be a int, not float"),
    (dict(step=True), "step=True: must be a int"),
    (dict(flip=1), "flip=1: must be a bool"),
    (dict(kl="0.1"), "kl='0.1': must be a float"),
    (dict(kl=True), "kl=True: must be a float"),
    (dict(kl=np.zeros(1)), r"kl=\[0.0\]: must be a float, not list"),
    (dict(protocol=3), "protocol=3: must be a text"),
  ],
)
def test_bad_rows_are_refused_on_every_process(tmp_path, row, message):
  for main in (True, False):
    with report.RunFolder(tmp_path, describe(), main_process=main) as run:
      with pytest.raises(ValueError, match=message):
        run.write_all([dict(step=1), row])
  assert not (tmp_path / "records.jsonl").read_text()


def test_non_finite_numbers_are_null_and_counted(tmp_path):
  with report.RunFolder(tmp_path, describe()) as run:
    run.write(dict(step=0, kl=math.inf, tv=float("nan")))
    run.write(dict(step=1, kl=np.float32(-np.inf), tv=0.5))
    run.write_summary({"kl": {"mean": math.nan, "n": np.int64(2)}, "a": [1.5]})
  with report.RunFolder(tmp_path, describe(), resume=True) as run:
    assert run.non_finite == {"kl": 2, "tv": 1}
    run.write_summary({"kl": {"mean": math.nan, "n": np.int64(2)}, "a": [1.5]})
  rows = report.read_records(tmp_path)
  assert rows[0] == dict(step=0, kl=None, tv=None)
  assert json.loads((tmp_path / "summary.json").read_text()) == {
    "kl": {"mean": None, "n": 2},
    "a": [1.5],
    "non_finite": {"kl": 2, "tv": 1, "kl.mean": 1},
  }
  got = report.columns(rows)
  np.testing.assert_array_equal(got["tv"], [np.nan, 0.5])


def test_other_processes_write_nothing(tmp_path):
  with report.RunFolder(
    tmp_path / "out", describe(), main_process=False
  ) as run:
    run.write(dict(step=0))
    run.write_summary({})
    run.write_figure("a", "")
    run.write_page("")
  assert not (tmp_path / "out").exists()


def test_foreign_folders_are_refused(tmp_path):
  (tmp_path / "thesis.txt").write_text("x")
  with pytest.raises(ValueError, match="is not empty.*give a new folder"):
    report.RunFolder(tmp_path, describe())
  (tmp_path / "run.json").write_text('{"made_by": "someone"}')
  with pytest.raises(ValueError, match="is not empty"):
    report.RunFolder(tmp_path, describe())
  (tmp_path / "run.json").write_text("{")
  with pytest.raises(ValueError, match="is not empty"):
    report.RunFolder(tmp_path, describe(), resume=True)
  assert (tmp_path / "thesis.txt").read_text() == "x"
  with pytest.raises(ValueError, match="is a file"):
    report.RunFolder(tmp_path / "thesis.txt", describe())


def test_a_second_run_starts_anew_and_spares_other_files(tmp_path):
  with report.RunFolder(tmp_path, describe()) as run:
    run.write(dict(step=0))
    run.write_summary({})
    run.write_figure("old", "<svg/>")
    run.write_page("<html>")
  (tmp_path / "model.safetensors").write_text("weights")
  with report.RunFolder(tmp_path, describe(seeds={"calibration": 1})) as run:
    run.write(dict(step=5))
    run.write_figure("new", "<svg/>")
  assert report.read_records(tmp_path) == [dict(step=5)]
  assert contents(tmp_path) == [
    "figures",
    "figures/new.svg",
    "model.safetensors",
    "records.jsonl",
    "run.json",
  ]


def test_resume_appends_after_the_last_whole_row(tmp_path):
  with report.RunFolder(tmp_path, describe()) as run:
    run.write_all([dict(step=0), dict(step=1)])
    run.write_summary({})
  with open(tmp_path / "records.jsonl", "a") as file:
    file.write('{"step": 2, "k')
  assert len(report.read_records(tmp_path)) == 2
  other_out = describe(flags=describe()["flags"] | {"out": "y"})
  with report.RunFolder(tmp_path, other_out, resume=True) as run:
    assert not (tmp_path / "summary.json").exists()
    run.write(dict(step=2))
  assert report.read_records(tmp_path) == [
    dict(step=0),
    dict(step=1),
    dict(step=2),
  ]


def test_rows_written_together_count_together(tmp_path):
  """Killed while three rows are written: the resumed run has none of them."""
  with report.RunFolder(tmp_path, describe()) as run:
    run.write(dict(step=0))
    size = (tmp_path / "records.jsonl").stat().st_size
    run.write_all([dict(step=1), dict(step=2), dict(step=3)])
    assert not (tmp_path / ".records.batch").exists()
  content = (tmp_path / "records.jsonl").read_bytes()
  (tmp_path / ".records.batch").write_text(str(size))
  (tmp_path / "records.jsonl").write_bytes(content[:-5])
  with report.RunFolder(tmp_path, describe(), resume=True) as run:
    assert run.columns()["step"].tolist() == [0]
  assert report.read_records(tmp_path) == [dict(step=0)]


@pytest.mark.parametrize(
  "change",
  [
    dict(flags={"method": "magnitude"}),
    dict(seeds={"calibration": 1}),
    dict(checkpoint_hash="other"),
    dict(calibration=None),
  ],
)
def test_resume_refuses_other_settings(tmp_path, change):
  with report.RunFolder(tmp_path, describe()) as run:
    run.write(dict(step=0))
  with pytest.raises(ValueError, match=f"resume has {next(iter(change))}="):
    report.RunFolder(tmp_path, describe(**change), resume=True)
  assert len(report.read_records(tmp_path)) == 1


def test_extra_fields(tmp_path):
  extra = {"tokens_per_second": report.Field("float", "tokens/s", "speed")}
  with report.RunFolder(tmp_path, describe(), extra_fields=extra) as run:
    run.write(dict(tokens_per_second=2))
  written = json.loads((tmp_path / "run.json").read_text())["extra_fields"]
  assert written["tokens_per_second"]["unit"] == "tokens/s"


@pytest.mark.parametrize(
  "content, message",
  [
    (b'{"step": 0}\n{"step": \n', "line 2: not JSON"),
    (b"[1]\n", "line 1: not an object"),
    (b"\xff\n", "line 1: not JSON"),
  ],
)
def test_broken_records(tmp_path, content, message):
  (tmp_path / "records.jsonl").write_bytes(content)
  with pytest.raises(ValueError, match=message):
    report.read_records(tmp_path)
  with pytest.raises(ValueError, match="no such file"):
    report.read_records(tmp_path / "figures")


def test_columns_and_csv(tmp_path):
  rows = [
    dict(step=0, kl=0.1, note='a "b", c', flip=True, layer=3),
    dict(step=1, kl=None, note=None, flip=False, layer=None, protocol="x"),
  ]
  got = report.columns(rows)
  assert got["step"].dtype == np.int64 and got["flip"].dtype == bool
  np.testing.assert_array_equal(got["kl"], [0.1, np.nan])
  np.testing.assert_array_equal(got["layer"], [3, np.nan])
  assert got["note"].tolist() == ['a "b", c', None]
  assert report.columns([]) == {}
  report.write_csv(rows, tmp_path / "a.csv")
  with open(tmp_path / "a.csv", newline="") as file:
    header, first, second = csv.reader(file)
  assert header == ["protocol", "step", "layer", "flip", "kl", "note"]
  assert first == ["", "0", "3", "true", "0.1", 'a "b", c']
  assert second == ["x", "1", "", "false", "", ""]


ROWS = st.lists(
  st.fixed_dictionaries(
    {},
    optional={
      "step": st.integers(-5, 5),
      "layer": st.none() | st.integers(0, 3),
      "flip": st.booleans(),
      "kl": st.none() | st.floats(-10, 10),
      "js": st.none() | st.floats(-1, 1) | st.integers(0, 3) | st.booleans(),
      "task": st.none() | st.sampled_from("ab"),
      "note": st.none() | st.text(max_size=2),
    },
  ),
  max_size=12,
)


def column_by_definition(values):
  known = [value for value in values if value is not None]
  if any(isinstance(value, str) for value in known):
    return np.array(values, object)
  if len(known) == len(values):
    if all(isinstance(value, bool) for value in known):
      return np.array(values, bool)
    if all(isinstance(value, int) for value in known):
      return np.array(values, np.int64)
  return np.array(
    [math.nan if value is None else value for value in values], np.float64
  )


@given(ROWS, st.sampled_from([{}, {"task": "a"}, {"step": 1}, {"flip": True}]))
def test_selected_columns_are_those_of_the_selected_rows(rows, equal):
  table = report.Columns()
  table.extend(rows)
  for present, absent in (((), ()), (("kl",), ()), ((), ("layer", "x"))):
    chosen = [
      row
      for row in rows
      if all(name in row for name in present)
      and not any(name in row for name in absent)
      and all(row.get(name) == value for name, value in equal.items())
    ]
    got = table.select(present=present, absent=absent, **equal)
    assert set(got) == {name for row in chosen for name in row}
    chex.assert_shape(list(got.values()), (len(chosen),))
    for name, column in got.items():
      expected = column_by_definition([row.get(name) for row in chosen])
      if column.dtype == object:
        assert column.tolist() == [row.get(name) for row in chosen]
      else:  # or a wider kind of number, which the other rows are of
        assert np.result_type(column, expected) == column.dtype
        np.testing.assert_array_equal(column, expected)


def test_a_run_gives_its_columns_back(tmp_path):
  rows = [
    dict(task="a", step=0, kl=np.float32(0.5), flip=np.bool_(True)),
    dict(task="b", step=1, kl=math.inf, layer=2, js=None),
    dict(task="a", step=np.int32(2), flip=False),
  ]
  with report.RunFolder(tmp_path, describe()) as run:
    run.write_all(rows[:2])
  with report.RunFolder(tmp_path, describe(), resume=True) as run:
    run.write(rows[2])
    with pytest.raises(ValueError):
      run.write_all([dict(step=3), dict(step="x")])
  read = report.columns(report.read_records(tmp_path))
  got = run.columns()
  assert list(got) == list(read) == ["task", "step", "kl", "flip", "layer"]
  for name, column in got.items():
    assert column.dtype == read[name].dtype
    np.testing.assert_array_equal(column, read[name])
  assert run.columns(task="a")["flip"].tolist() == [True, False]
  assert run.columns(task="a", present=["kl"])["step"].tolist() == [0]
  assert run.columns(absent=["layer"])["step"].tolist() == [0, 2]
  assert run.columns(present=["layer"])["kl"].shape == (1,)
  assert run.columns(task="c") == {}


def test_the_table_has_what_other_programs_rely_on():
  promised = """protocol prompt step layer sublayer seed method cos_h cos_z
      cos_z_centred cos_p alpha_h rho_h alpha_z rho_z kl kl_reverse js tv
      kl_estimate one_minus_cos_p_estimate one_minus_cos_h_estimate
      one_minus_cos_z_estimate var_p var_r var_uniform entropy entropy_pruned
      margin max_abs_dz rms_dz flip token_dense token_pruned""".split()
  assert not set(promised) - set(report.FIELDS)
  for name, field in report.FIELDS.items():
    assert field.kind in ("text", "int", "float", "bool"), name
    assert field.meaning, name
  assert report.FIELDS["kl"].unit == "nats"
  assert fields.axis_label("kl") == "KL(p‖q) (nats)"
  assert set(fields._LABELS) <= set(report.FIELDS)


def test_position_fields_are_all_in_the_table():
  position = pytest.importorskip("jaxprune.probes.position")
  import dataclasses

  names = {field.name for field in dataclasses.fields(position.Position)}
  assert names <= set(records.FIELDS)
