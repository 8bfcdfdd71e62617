"""Breakdown of positions and decodings on tables small enough to do by hand."""

import numpy as np
import pytest

from jaxprune import report
from jaxprune.studies.comparison import breakdown, decodings, text_sections


def row(
  prompt,
  step,
  kl,
  *,
  seed=0,
  tokens=(1, 1),
  protocol="free_running",
  aligned=True,
  entropy=1.0,
  position=None,
):
  return {
    "protocol": protocol,
    "prompt": prompt,
    "seed": seed,
    "step": step,
    "position": 5 + step if position is None else position,
    "kl": kl,
    "cos_h": 1 - kl,
    "cos_z": 1 - kl,
    "cos_z_centred": 1 - kl,
    "cos_p": 1 - kl,
    "one_minus_cos_p": kl,
    "tv": kl,
    "flip": tokens[0] != tokens[1],
    "entropy": entropy,
    "token_dense": tokens[0],
    "token_pruned": tokens[1],
    "aligned": aligned,
  }


# Prompt 0 parts at step 1, prompt 1 never; prompt 0 has a second seed.
ROWS = [
  row(0, 0, 0.1),
  row(0, 1, 0.2, tokens=(1, 2)),
  row(0, 2, 0.9, aligned=False, tokens=(3, 4)),
  row(0, 0, 0.3, seed=1, tokens=(1, 2)),
  row(0, 1, 0.7, seed=1, aligned=False),
  row(1, 0, 0.0, entropy=3.0),
  row(1, 1, 0.2, entropy=3.0),
]
TABLE = report.columns(ROWS)


def test_a_text_is_a_prompt_and_a_seed():
  assert breakdown.text_ids(TABLE).tolist() == [0, 0, 0, 1, 1, 2, 2]
  without = {k: v for k, v in TABLE.items() if k != "seed"}
  assert breakdown.text_ids(without).tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_lengths_and_steps_from_the_divergence():
  lengths = breakdown.with_lengths(TABLE)
  assert lengths["text_length"].tolist() == [3, 3, 3, 2, 2, 2, 2]
  np.testing.assert_array_equal(
    breakdown.steps_since_divergence(TABLE), [-1, 0, 1, 0, 1, np.nan, np.nan]
  )


def test_means_of_each_bin():
  found = breakdown.break_down(TABLE, seed=0)
  assert set(found) == set(breakdown.QUANTITIES)
  assert [one["kl"]["value"] for one in found["step"]] == pytest.approx(
    [0.4 / 3, 1.1 / 3, 0.9]
  )
  assert [one["prompts"] for one in found["step"]] == [2, 2, 1]
  assert [one["positions"] for one in found["text_length"]] == [4, 3]
  assert found["text_length"][1]["kl"]["value"] == pytest.approx(0.4)
  assert found["entropy"][1]["kl"]["value"] == pytest.approx(0.1)
  assert found["entropy"][1]["low"] == 3
  assert [one["flip"]["value"] for one in found["position"]] == pytest.approx(
    [1 / 3, 1 / 3, 1]
  )


def test_around_the_divergence():
  before, at, after = breakdown.around_divergence(TABLE, seed=0)
  assert (before["low"], at["low"], after["low"]) == (-1, 0, 1)
  assert before["kl"]["value"] == pytest.approx(0.1)
  assert at["kl"]["value"] == pytest.approx(0.25)
  assert after["kl"]["value"] == pytest.approx(0.8)
  never = {k: v[5:] for k, v in TABLE.items()}
  assert breakdown.around_divergence(never, seed=0) == []


@pytest.fixture(scope="module")
def tables():
  """The decoding above, and a control that differs by 0.1 at every step."""
  control = [
    row(
      r["prompt"], r["step"], r["kl"] + 0.1, seed=r["seed"], protocol="control"
    )
    for r in ROWS[:-1]
  ]
  return {"free_running": TABLE, "control": report.columns(control)}


def test_decodings(tables):
  found = decodings.summarise(tables, seed=0)
  assert set(found) == {"free_running", "control"}
  own = found["free_running"]
  assert own["positions"] == 7 and own["prompts_parted"] == 1
  assert own["fraction_aligned"] == pytest.approx(5 / 7)
  assert own["parted"]["kl"]["value"] == pytest.approx(0.8)
  assert own["aligned"]["kl"]["value"] == pytest.approx(0.16)
  # One token in common, none, and both of the text that never parts.
  first = own["first_divergence"]
  assert first["value"] == 1 and first["texts"] == 3
  assert first["never_parted"] == 1
  assert [one["seed"] for one in own["by_seed"]] == [0, 1]
  assert own["by_seed"][1]["kl"] == pytest.approx(0.5)
  # Only the steps that both have: the last of prompt 1 is not in the control.
  assert own["minus_control"]["kl"]["value"] == pytest.approx(-0.1)
  assert own["minus_control"]["kl"]["high"] == pytest.approx(-0.1)
  assert "minus_control" not in found["control"]


def test_parts_of_the_decodings(tables):
  found = decodings.break_down(tables, seed=0)
  assert set(found) == {
    "free_running, aligned",
    "free_running, parted",
    "free_running",
    "control, aligned",
  }
  # The length is that of the whole text, not of the rows that are left.
  lengths = found["free_running, aligned"]["text_length"]
  assert [(one["low"], one["positions"]) for one in lengths] == [(2, 3), (3, 2)]
  parted = found["free_running, parted"]["step"]
  assert [one["kl"]["value"] for one in parted] == pytest.approx([0.7, 0.9])
  assert len(found["free_running"]["around_divergence"]) == 3


def test_sections(tables):
  made = text_sections.of_breakdowns(decodings.break_down(tables, seed=0))
  assert len(made) == 1 and made[0].figures and made[0].tables
  assert "kl_by_entropy" in {figure.name for figure in made[0].figures}
  assert text_sections.of_breakdowns({}) == []
  (section,) = text_sections.of_decodings(decodings.summarise(tables, seed=0))
  assert [row[0] for row in section.tables[2].rows] == ["free_running"]
