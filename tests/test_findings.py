"""The headline of every page says what was found, in words."""

import pytest

from jaxprune.report.page import Part
from jaxprune.statistics import Estimate
from jaxprune.studies.guidance import page as guidance
from jaxprune.studies.guidance import shipped, shipped_page
from jaxprune.studies.interventions import finding as interventions
from jaxprune.studies.propagation import finding as propagation
from jaxprune.studies.retrieval import page as retrieval
from jaxprune.studies.sweep import page as sweep
from jaxprune.studies.tasks import code_page, harness_page
from jaxprune.studies.tasks import page as tasks
from jaxprune.studies.transitions import page as transitions


def value(number):
  return {"value": number, "low": number, "high": number, "count": 9}


def test_transitions():
  counts = {"cos_z_above_cos_h": 29, "cos_p_below_cos_z": 30, "layers": 30}
  summary = {"orderings": {"attention": counts, "mlp": counts}}
  assert transitions.finding(summary) == (
    "Logits turn less than h in 29 of 30 attention layers and 29 of 30 MLP"
    " layers, p more than logits in 30 of 30 attention layers and 30 of 30 MLP"
    " layers"
  )


@pytest.mark.parametrize(
  "total, said",
  [
    (
      0.2,
      "wanda:0.5: the attentions cause 25 % of the KL and the MLPs 75 %, most"
      " of it mlp 3 (50 %)",
    ),
    (0.0, "wanda:0.5: nothing changed"),
  ],
)
def test_propagation(total, said):
  entry = {
    "source": "pruned",
    "configuration": "wanda:0.5",
    "change": {"kl": value(total)},
    "by_kind": {"attention": {"kl": value(0.05)}, "mlp": {"kl": value(0.15)}},
    "largest": [("mlp 3", 0.1)],
  }
  random = entry | {"source": "random"}
  assert propagation.finding({"models": [random, entry]}) == said


def test_interventions():
  plain = {
    **{"protocol": "teacher_forced", "configuration": "a", "source": "pruned"},
    **{"intervention": "pruned", "depth": None},
    **{"kl": value(0.2), "kl_at_flips": value(0.15)},
  }
  nothing = plain | {"configuration": "b", "kl": value(0.0)}
  summary = {"configurations": {"a": {}, "b": {}}, "entries": [plain, nothing]}
  assert interventions.finding(summary) == (
    "This much of the KL lies where the likeliest token changed: a: 75 %"
  )


def test_tasks():
  task = {"acc": {"dense": value(0.625), "pruned": value(0.5)}}
  summary = {"models": ["dense", "pruned"], "tasks": {"facts": task}}
  assert tasks.finding(summary) == "facts 0.625 → 0.5 (acc)"
  summary["tasks"] = {f"task {i}": task for i in range(6)}
  assert tasks.finding(summary).endswith("task 3 0.625 → 0.5 (acc) and 2 more")


def test_a_sweep():
  entries = [
    {"configuration": name, "task": "choose", "state": state}
    for name, state in (("dense", "kept"), ("a", "kept"), ("b", "lost"))
  ]
  assert sweep.finding({"retained": entries}) == (
    "choose is kept by 1 of 2 pruned models and lost by 1"
  )
  assert sweep.finding({"retained": []}) == ""


def test_guidance():
  answers = [
    {"task": task, "answer": answer}
    for task, answer in (("a", "no"), ("b", "yes"), ("c", "yes"))
  ]
  parts = guidance.judged_parts({"answers": answers, "tested": False})
  assert parts == [
    Part(text="Fit for b, c", tone="good"),
    Part(text="; "),
    Part(text="not fit for a", tone="bad"),
    Part(text=" (by a rule never checked on this model)"),
  ]


def test_retrieval():
  models = {
    name: {"ndcg@10": {"difference": {"high": high}}}
    for name, high in (("a", 0.01), ("b", -0.1))
  }
  assert retrieval.finding({"models": models}) == (
    "1 of 2 pruned encoders retrieve not measurably worse than the dense one"
  )


def test_the_harness():
  metrics = {"acc,none": value(0.5), "acc_norm,none": value(0.4)}
  summary = {"tasks": {f"task {i}": metrics for i in range(5)}}
  assert harness_page.finding(summary) == (
    "task 0 0.5 (acc), task 1 0.5 (acc), task 2 0.5 (acc), task 3 0.5 (acc) and"
    " 1 more"
  )
  page = harness_page.render(summary, {"lm_eval": "0.4"})
  assert "acc_norm,none" in page and "version 0.4" in page


def test_code_tasks():
  summary = {"tasks": 20, "format": "MBPP", "executed": False}
  assert code_page.finding(summary) == "Nothing was run of 20 tasks of MBPP"
  score = {"value": 0.25, "low": 0.11, "high": 0.47, "count": 20}
  summary |= {"isolation": "bubblewrap", "pass@1": score}
  assert code_page.finding(summary) == (
    "25 % [11 to 47] of 20 tasks of MBPP are solved"
  )
  page = code_page.render(summary, ["passed", "limit", "limit"], {})
  assert "isolated by bubblewrap" in page
  assert page.index("limit") < page.index("passed")


def test_the_shipped_rule():
  judged = {
    kind: shipped.Judgement(
      kind=kind, state=state, probability=0.5, error=error, sentence=""
    )
    for kind, state, error in (
      ("choice", "kept", Estimate(0.1, 0.0, 0.3, 9)),
      ("generation", "lost", None),
    )
  }
  assert shipped_page.finding(judged) == [
    Part(text="Fit for choosing an answer", tone="good"),
    Part(text="; "),
    Part(text="not fit for writing an answer", tone="bad"),
    Part(text=" (by a rule that is wrong in 10 % of cases)"),
  ]
