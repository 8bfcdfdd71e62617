"""What Rust prints of a panic stays off stderr; all else comes through."""

import json
import os
import shutil

import pytest

from jaxprune import calibration
from jaxprune.calibration import panics
from jaxprune.pocket import shipped


def test_a_panic_is_one_error_and_no_print(tmp_path, capfd):
  for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
    shutil.copy(shipped.FOLDER / name, tmp_path)
  fields = json.loads((tmp_path / "tokenizer.json").read_text())
  fields["post_processor"] = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
  }
  (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="tokenizer.json fails on the text") as e:
    calibration.encode(calibration.load_tokenizer(tmp_path), "a")
  assert panics.is_panic(e.value.__cause__)
  os.write(2, b"after\n")
  assert capfd.readouterr().err == "after\n"


PANIC = (
  b"\nthread '<unnamed>' (7) panicked at src/a.rs:5:6:\nno\nentry\n"
  b"stack backtrace:\n   0: main\nnote: run with `RUST_BACKTRACE=1`\n"
)


def test_other_output_is_shown_whatever_happens(capfd):
  with pytest.raises(KeyboardInterrupt):
    with panics.hidden():
      os.write(2, b"before\n" + PANIC + b"between\n" + PANIC)
      with panics.hidden():
        os.write(2, b"nested\n")
      assert not capfd.readouterr().err
      raise KeyboardInterrupt
  assert capfd.readouterr().err == "before\nbetween\nnested\n"


def test_without_stderr_nothing_is_hidden(capfd):
  kept = os.dup(2)
  os.close(2)
  try:
    with panics.hidden():
      pass
  finally:
    os.dup2(kept, 2)
    os.close(kept)
