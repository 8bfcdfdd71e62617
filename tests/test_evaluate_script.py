"""`evaluate` as a user runs it, on real folders."""

import json

import numpy as np
import pytest
import scripts

from jaxprune.pocket import shipped


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  items = shipped._tasks().choose[:6]
  (folder / "facts.jsonl").write_text(
    "\n".join(
      json.dumps(
        {
          "context": item.prompt,
          "options": [option.strip() for option in item.options],
          "answer": item.label,
        }
      )
      for item in items
    )
  )
  (folder / "openbookqa.jsonl").write_text(
    "\n".join(
      json.dumps(
        {
          "question_stem": item.prompt,
          "choices": {
            "text": [option.strip() for option in item.options],
            "label": ["A", "B", "C", "D"],
          },
          "answerKey": "ABCD"[item.label],
        }
      )
      for item in items
    )
  )
  written = shipped._tasks().generate[:4]
  (folder / "sums.jsonl").write_text(
    "\n".join(
      json.dumps({"prompt": item.prompt, "answer": item.answer})
      for item in written
    )
  )
  (folder / "text.txt").write_text(items[0].prompt * 40)
  return folder


@pytest.mark.slow
def test_two_models(files, tmp_path):
  out = tmp_path / "out"
  done = scripts.call(
    "evaluate",
    "--dense=pocket",
    "--pruned=pocket",
    f"--choice={files}/facts.jsonl",
    f"--generation={files}/sums.jsonl",
    f"--perplexity={files}/text.txt",
    f"--data={files}",
    "--tasks=openbookqa",
    "--few_shot=0",
    "--seq_len=32",
    "--max_new_tokens=80",
    f"--out={out}",
  )
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  tasks, rules = summary["tasks"], summary["rules"]
  # The answers are sentences, so that texts are compared as they are.
  assert "without regard to case" in rules["generation sums"]["exact"]
  assert "highest probability" in rules["choice facts"]["acc"]
  acc = tasks["choice facts"]["acc"]
  # It knows its world, and is the same as itself.
  assert acc["dense"]["value"] == acc["pruned"]["value"] == 1
  assert (
    acc["change"]["value"]
    == tasks["choice facts"]["flip changed"]["change"]["value"]
    == 0
  )
  # The same questions under a name are the same task.
  for name in ("acc", "margin", "ece@10"):
    assert tasks["openbookqa"][name] == tasks["choice facts"][name]
  assert tasks["generation sums"]["exact"]["dense"]["value"] >= 0.75
  assert tasks["generation sums"]["same"]["pruned"]["value"] == 1
  rows = [
    json.loads(line)
    for line in (out / "records.jsonl").read_text().splitlines()
  ]
  own = [
    row
    for row in rows
    if (row["model"], row["task"], row["metric"])
    == ("dense", "choice facts", "margin")
  ]
  assert len(own) == 6 and np.isclose(
    np.mean([row["value"] for row in own]),
    tasks["choice facts"]["margin"]["dense"]["value"],
  )
  nll = [
    row for row in rows if row["model"] == "dense" and row["metric"] == "nll"
  ]
  assert np.isclose(
    np.exp(
      sum(row["value"] for row in nll) / sum(row["tokens"] for row in nll)
    ),
    tasks["perplexity text"]["perplexity"]["dense"]["value"],
  )
  assert "choice facts" in (out / "report.html").read_text()


BAD = {
  "--model=pocket": "no task",
  "--pocket": "give either --model",
  "--model=pocket --dense=pocket --pocket": "give either --model",
  "--dense=pocket --pocket": "give either --model",
  "--model=/no/such/folder --pocket": "no such folder",
  "--model=pocket --choice=/no/such.jsonl": "/no/such.jsonl: no such file",
  "--model=pocket --retrieval=/no/such": "/no/such",
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line(arguments, tmp_path):
  done = scripts.call("evaluate", *arguments.split(), f"--out={tmp_path}/out")
  assert done.returncode == 1
  lines = [ln for ln in done.stderr.splitlines() if ln.startswith("error: ")]
  assert len(lines) == 1 and BAD[arguments] in lines[0], done.stderr
  assert "Traceback" not in done.stderr
  assert not list(tmp_path.iterdir())
