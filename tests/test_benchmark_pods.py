"""Programs for pods: what the compiler's text says, and that small ones build.

The compiler for TPUs is the extra `tpu`; without it the last test is left out.
"""

import jax
import numpy as np
import pytest
import scripts

from jaxprune import devices, platforms
from jaxprune.studies.benchmark import tables
from jaxprune.studies.benchmark.pods import chips, hlo, measure, programs

TEXT = """HloModule m

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (p0: f32[10,8,4], p1: s32[]) -> f32[8,4] {
  %p0 = f32[10,8,4]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %ds = f32[1,8,4]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero)
  ROOT %b = f32[8,4]{1,0} bitcast(%ds)
}

%body (t: (s32[], f32[10,8,4], f32[2,8])) -> (s32[], f32[10,8,4], f32[2,8]) {
  %t = (s32[], f32[10,8,4]{2,1,0}, f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %w = f32[10,8,4]{2,1,0} get-tuple-element(%t), index=1
  %x = f32[2,8]{1,0} get-tuple-element(%t), index=2
  %f = f32[8,4]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %d = f32[2,4]{1,0} dot(%x, %f), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}, operand_precision={highest,highest}
  %r = f32[2,4]{1,0} all-reduce(%d), replica_groups=[4,2]<=[8], to_apply=%sum
  %g = f32[2,8]{1,0} all-gather(%r), replica_groups={{0,1},{2,3}}
  ROOT %o = (s32[], f32[10,8,4]{2,1,0}, f32[2,8]{1,0}) tuple(%i, %w, %g)
}

%condition (t: (s32[], f32[10,8,4], f32[2,8])) -> pred[] {
  %t = (s32[], f32[10,8,4]{2,1,0}, f32[2,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(10)
  ROOT %p = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (w: f32[10,8,4], x: f32[2,8]) -> f32[2,8] {
  %w = f32[10,8,4]{2,1,0} parameter(0)
  %x = f32[2,8]{1,0} parameter(1)
  %n = s32[] constant(0)
  %t = (s32[], f32[10,8,4]{2,1,0}, f32[2,8]{1,0}) tuple(%n, %w, %x)
  %l = (s32[], f32[10,8,4]{2,1,0}, f32[2,8]{1,0}) while(%t), \
condition=%condition, body=%body
  ROOT %y = f32[2,8]{1,0} get-tuple-element(%l), index=2
}
"""


@pytest.mark.parametrize("said", [False, True])
def test_what_moves_counts_as_often_as_it_runs(said):
  text = TEXT
  if said:
    trips = 'body=%body, backend_config={"known_trip_count":{"n":"10"}}'
    text = TEXT.replace("body=%body", trips).replace("=LT", "=NE")
  traffic = hlo.count(text)
  assert traffic.flops == 10 * 2 * 2 * 4 * 8
  assert traffic.passes == 6 * traffic.flops
  assert traffic.counts == {"all-reduce": 10, "all-gather": 10}
  # Of two chips each sends half: of 2 x 4 floats twice, of 2 x 8 once.
  assert traffic.links == {"all-reduce": 10 * 32.0, "all-gather": 10 * 32.0}
  # The slice [8, 4], not the stack [10, 8, 4] that it is cut from; an index.
  fusion = 128 + 4 + 128
  dot, reduce, gather = 64 + 128 + 32, 64, 32 + 64
  compare = 1 + 4 + 4
  assert traffic.memory == 10 * (fusion + dot + reduce + gather + compare)


def test_slices_and_meshes():
  assert chips.topology("v5p", 256) == "v5p:4x8x8"
  with pytest.raises(ValueError, match="12 chips"):
    chips.topology("v5e", 12)
  with pytest.raises(ValueError, match="chip 'v2'"):
    chips.topology("v2", 8)
  for count in (8, 64, 256):
    sizes = chips.mesh_sizes(count, 128)
    assert sizes["data"] * sizes["model"] == count and sizes["model"] <= 16
  assert chips.mesh_sizes(256, 4) == {"data": 4, "model": 64}


def test_tables_stand_in_their_place(tmp_path):
  page = tmp_path / "page.md"
  page.write_text("a\n<!-- tpu -->\nold\n<!-- end of tpu -->\nb\n")
  tables.replace(page, "tpu", tables.table(("x", "y"), [(1.5, None)]))
  assert page.read_text() == (
    "a\n<!-- tpu -->\n| x | y |\n| --- | --- |\n| 1.5 |  |\n"
    "<!-- end of tpu -->\nb\n"
  )
  with pytest.raises(ValueError, match="no place"):
    tables.replace(page, "cpu M", "")


@pytest.mark.parametrize(
  "flags, place",
  [
    (("--suite=cpu", "--size=S"), "cpu S"),
    (("--suite=cpu", "--model=a/smollm2"), "cpu smollm2"),
    (("--suite=scaling",), "scaling"),
    (
      ("--suite=tpu", "--shapes=llama3-70b", "--count=64", "--chips=v5p"),
      "tpu llama3-70b v5p:4x4x4",
    ),
  ],
)
def test_a_page_without_the_place_is_refused_first(
  tmp_path, monkeypatch, flags, place
):
  monkeypatch.setattr(measure, "has_compiler", lambda: True)
  page = tmp_path / "page.md"
  page.write_text("nothing\n")
  refused = scripts.call(
    "benchmark", *flags, f"--page={page}", f"--out={tmp_path}/out"
  )
  assert refused.returncode == 1
  assert f"no place <!-- {place} -->" in refused.stderr
  assert not list(tmp_path.glob("out*"))


def test_each_slice_has_a_place_of_its_own():
  row = {"program": "wanda 2:4", "error": "no"}
  row |= {"mesh": {"data": 2, "model": 4}, "sequences": 128, "length": 2048}
  rows = [
    row | {"shape": shape, "topology": topology}
    for shape, topology in (
      ("a", "v5e:2x4"),
      ("b", "v5e:2x4"),
      ("a", "v6e:2x4"),
    )
  ]
  made = tables.of_pods(rows)
  assert list(made) == ["tpu a v5e:2x4", "tpu b v5e:2x4", "tpu a v6e:2x4"]
  assert all(text.startswith("### ") for text in made.values())


def test_bytes_of_a_device_are_those_the_compiler_says():
  """The count for pods, on eight devices that are here."""
  mesh = devices.make_mesh({"data": 4, "model": 2})
  settings = measure.Settings(
    shapes=("tiny",), chips=("v5e",), count=(8,), sequences=8, length=16
  )
  case = measure.make_case(settings, "tiny", mesh)
  program = programs.list_programs(case)["statistics squares"]
  row = measure.describe(program.lower().compile(), program, chips.CHIPS["v5e"])
  layer = programs.layer_shapes(case)
  del layer["mlp"]["down"]  # whose output no statistic needs
  weights = sum(
    np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int)
    for leaf in jax.tree.leaves(layer)
  )
  # A part of `data` reads one sequence at a time, and the sums are small.
  batch, sums = 16 * 256, 3 * 256 + 512
  assert row["argument_bytes"] == pytest.approx(
    4 * (weights + batch + sums), rel=0.01
  )
  assert row["link_bytes"]["all-reduce"] > 0  # the sums over `data`


@pytest.mark.skipif(
  not measure.has_compiler(), reason="needs the extra tpu: pip install libtpu"
)
def test_small_programs_compile_for_a_tpu(tmp_path, monkeypatch):
  # Without, libtpu expects to be alone on the machine.
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  settings = measure.Settings(
    shapes=("tiny",),
    chips=("v5e",),
    count=(8,),
    sequences=8,
    length=128,
    cached=128,
    programs=("second pass", "wanda 2:4"),
  )
  lines = []
  rows = measure.measure(settings, tmp_path, lines.append)
  assert [row["program"] for row in rows] == ["second pass", "wanda 2:4"]
  assert all(row["fits"] and row["chip_bytes"] > 0 for row in rows)
  assert rows[0]["flops"] > 0 and sum(rows[0]["link_bytes"].values()) > 0
  # The rows are kept, and nothing is compiled again.
  assert measure.measure(settings, tmp_path, lines.append) == rows
  assert len(lines) == 2


def test_tracing_for_another_platform():
  assert platforms.on_cpu()
  with platforms.compiling_for("tpu"):
    assert platforms.target() == "tpu" and not platforms.on_cpu()
  assert platforms.on_cpu()
