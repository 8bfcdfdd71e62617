"""Tasks by name: entries by hand, the harness' own words, and a small model."""

import dataclasses
import importlib.util
import json
import pathlib
import re

import pytest
import scripts

from jaxprune.evaluation import tasks as tasks_lib
from jaxprune.evaluation.multiple_choice import Question
from jaxprune.evaluation.tasks import choices, problems
from jaxprune.evaluation.tasks import items as items_lib
from jaxprune.evaluation.tasks.table import CHOICE, TASKS, USE
from jaxprune.studies.tasks import named
from jaxprune.studies.tasks.asked import Tasks

ARC = {
  "question": "Which is soft?",
  "choices": {"text": ["gray", "fur", "rock"], "label": ["A", "B", "C"]},
  "answerKey": "B",
}
# One entry of each set in its public format.
PUBLIC = {
  "arc_easy": ARC,
  "arc_challenge": ARC,
  "openbookqa": {
    "question_stem": "Fog is around",
    "choices": {"text": ["a lake", "a desert"], "label": ["A", "B"]},
    "answerKey": " A",
  },
  "piqa": {"goal": "Boil water.", "sol1": "Heat.", "sol2": "Cool.", "label": 0},
  "winogrande": {
    "sentence": "Ann beat Bea because _ was fast.",
    "option1": "Ann",
    "option2": "Bea",
    "answer": "1",
  },
  "hellaswag": {
    "activity_label": "Cooking",
    "ctx_a": "A man stands. [step] He",
    "ctx_b": "the pan",
    "endings": ["burns  it. [title] Now", "sings."],
    "label": "1",
  },
  "boolq": {"passage": "Ice melts.", "question": "does ice melt", "label": 1},
  "mmlu": {
    "question": " 1+1? ",
    "choices": ["1", "2", "3", "4"],
    "answer": 1,
    "subject": "abstract_algebra",
  },
  "gsm8k": {"question": "1+1?", "answer": "It is 1+1=<<1+1=2>>2.\n#### 2"},
}
INSTRUCTIONS = {
  "arc_easy": {
    "instruction": "Please choose the correct answer to the question: Which is"
    " soft?\n\nAnswer1: gray Answer2: fur Answer3: rock\n\nAnswer format:"
    " answer1/answer2/answer3",
    "answer": "answer2",
  },
  "piqa": {
    "instruction": "Please choose the correct solution to the question: Boil"
    " water.\n\nSolution1: Heat.\n\nSolution2: Cool.\n\nAnswer format:"
    " solution1/solution2",
    "answer": "solution1",
  },
  "winogrande": {
    "instruction": "Please choose the correct answer to fill in the blank to"
    " complete the given sentence: Ann beat Bea because _ was fast.\n\nOption1:"
    " Ann Option2: Bea Answer format: option1/option2",
    "answer": "option1",
  },
}


def read(name, entry):
  return TASKS[name].read(entry)


@pytest.mark.parametrize("name", sorted(INSTRUCTIONS))
def test_an_instruction_is_the_same_question(name):
  assert read(name, INSTRUCTIONS[name]) == read(name, PUBLIC[name])


def test_questions_by_hand():
  assert read("arc_easy", ARC) == Question(
    context="Question: Which is soft?\nAnswer:",
    options=("gray", "fur", "rock"),
    answer=1,
  )
  assert read("winogrande", PUBLIC["winogrande"]) == Question(
    contexts=("Ann beat Bea because Ann", "Ann beat Bea because Bea"),
    options=("was fast.", "was fast."),
    answer=0,
  )
  assert read("mmlu", PUBLIC["mmlu"]).context.endswith(
    "about abstract algebra.\n\n1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
  )
  assert read("boolq", PUBLIC["boolq"]).answer == 1


def test_the_words_of_the_harness():
  """Contexts and options are those of lm-evaluation-harness' own files."""
  jinja2 = pytest.importorskip("jinja2")
  yaml = pytest.importorskip("yaml")
  found = importlib.util.find_spec("lm_eval")
  if found is None:
    pytest.skip("needs lm-eval: pip install jaxprune[eval]")
  folder = pathlib.Path(found.origin).parent / "tasks"
  files = {
    "arc_easy": "arc/arc_easy.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
  }
  for name, file in files.items():
    rows = yaml.safe_load(
      re.sub("!function.*", "''", (folder / file).read_text())
    )
    entry = PUBLIC[name]

    def render(text, entry=entry):
      if text in entry:
        return str(entry[text])
      return jinja2.Template(text).render(entry)

    item, context = read(name, entry), render(rows["doc_to_text"])
    if TASKS[name].kind != CHOICE:
      assert item.prompt == context
      assert TASKS[name].few_shot == rows["num_fewshot"]
      continue
    assert item.context.endswith(context), name
    assert str(item.answer) == render(str(rows["doc_to_target"])), name
    if isinstance(rows["doc_to_choice"], list):
      assert list(item.options) == rows["doc_to_choice"]


def test_solutions_as_options_differ_in_results_only():
  text = "She has 4*2=<<4*2=8>>8 and 8-5=<<8-5=3>>3 left.\n#### 3"
  question = choices.solution_of_gsm8k(
    {"question": "How many?", "answer": text}
  )
  right = "She has 4*2=8 and 8-5=3 left.\n#### 3"
  assert question.options[question.answer] == right
  assert "She has 4*2=9 and 9-5=4 left.\n#### 4" in question.options
  assert len(set(question.options)) == 4


def test_prompts_with_examples():
  problem = problems.gsm8k(PUBLIC["gsm8k"])
  assert problem.reference == " It is 1+1=2.\n#### 2"
  assert problems.with_examples(problem, [problem], "") == (
    "Question: 1+1?\nAnswer: It is 1+1=2.\n#### 2\n\nQuestion: 1+1?\nAnswer:"
  )
  assert problems.with_examples(problem, [], "Number only.") == (
    "1+1?\nNumber only."
  )
  svamp = {"Body": "Two cats.", "Question": "How many?", "Answer": 2.0}
  assert problems.svamp(svamp) == problems.Problem(
    prompt="Question: Two cats. How many?\nAnswer:", answer="2.0"
  )


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("\n".join(json.dumps(row) for row in rows))


def test_files_of_a_folder(tmp_path):
  write(tmp_path / "arc_easy.jsonl", [ARC, ARC, ARC])
  assert len(tasks_lib.read("arc_easy", tmp_path, 2)) == 2
  head = "question,A,B,C,D,answer\n"
  for subject, rows in (
    ("law", "q1,a,b,c,d,0\nq2,a,b,c,d,3\n"),
    ("art", "q3,a,b,c,d,1\n"),
  ):
    path = tmp_path / "mmlu/test" / f"{subject}_test.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + rows)
  asked = tasks_lib.read("mmlu", tmp_path)  # subjects take turns
  assert [question.answer for question in asked] == [1, 0, 3]
  assert "about art." in asked[0].context


@pytest.mark.parametrize(
  ("name", "entry", "message"),
  [
    ("arc_easy", {"question": "x"}, "entry 0 is not in a format of arc_easy"),
    ("arc_easy", ARC | {"answerKey": "Z"}, "not in a format"),
    ("winogrande", PUBLIC["winogrande"] | {"sentence": "x"}, "has no blank"),
    (
      "piqa",
      INSTRUCTIONS["piqa"] | {"answer": "solution3"},
      "'solution3' is not one of",
    ),
  ],
)
def test_a_broken_entry_is_named(tmp_path, name, entry, message):
  write(tmp_path / f"{name}.jsonl", [entry])
  with pytest.raises(ValueError, match=f"{name}.jsonl.*{message}"):
    tasks_lib.read(name, tmp_path)


def test_what_cannot_be_asked(tmp_path):
  for texts, message in (
    (("nonsense",), "unknown; choose from mmlu"),
    (("piqa", "piqa:3"), "comes twice"),
    (("piqa:none",), "is no number of items"),
    (("piqa:0",), "is no number of items"),
    (("humaneval",), "--allow_code_execution"),
    (("piqa",), "has no qa/piqa/test.json or piqa.jsonl"),
  ):
    with pytest.raises(ValueError, match=message):
      named.check(Tasks(named=texts, data=str(tmp_path)), [])
  with pytest.raises(ValueError, match="no such folder"):
    named.check(Tasks(named=("piqa",), data=str(tmp_path / "none")), [])
  assert named.names(Tasks(named=("piqa:3", "mmlu"), limit=7)) == [
    ("piqa", 3),
    ("mmlu", 7),
  ]


def test_what_runs_code_is_isolated_before_anything_is_read(monkeypatch):
  def nothing_works(*, without_isolation):
    if not without_isolation:
      raise ValueError("code cannot be isolated here")

  monkeypatch.setattr(named.isolation, "find", nothing_works)
  tasks = Tasks(named=("mbpp",), data="none", allow_code_execution=True)
  with pytest.raises(ValueError, match="cannot be isolated"):
    named.check(tasks, [])
  tasks = dataclasses.replace(tasks, without_isolation=True)
  with pytest.raises(ValueError, match="--data|no such folder"):
    named.check(tasks, [])


def test_a_script_says_without_isolation(tmp_path):
  for script in ("evaluate", "discrepancy"):
    done = scripts.call(
      *(script, "--model=pocket", "--tasks=mbpp", f"--data={tmp_path}"),
      *("--without_isolation", f"--out={tmp_path}/out"),
    )
    assert done.returncode == 1 and "--allow_code_execution" in done.stderr


def test_texts_are_read_before_any_model_is_loaded(tmp_path):
  for kind in ("perplexity", "documents"):
    done = scripts.call(
      *("evaluate", "--model=pocket", f"--{kind}={tmp_path}/none.txt"),
      f"--out={tmp_path}/out",
    )
    assert done.returncode == 1 and "none.txt: no such file" in done.stderr
    assert not list(tmp_path.iterdir())


def test_rows_of_the_table():
  for name, task in TASKS.items():
    assert task.kind in USE, name
    assert 0 <= task.chance < 1
    if task.few_shot:
      assert task.examples


def test_too_few_solved_problems(tmp_path):
  write(tmp_path / "gsm8k/train.jsonl", [PUBLIC["gsm8k"]])
  assert len(items_lib.read_examples("svamp", tmp_path, 1)) == 1
  with pytest.raises(ValueError, match="1 solved problems for 5"):
    items_lib.read_examples("svamp", tmp_path, 5)
