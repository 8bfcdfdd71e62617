"""Folders that appear and disappear whole."""

import pytest

from jaxprune import files


def test_a_removal_that_is_cut_off_leaves_no_half_of_a_folder(
  tmp_path, monkeypatch
):
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text("{}")

  def cut_off(path, ignore_errors=False):
    if not ignore_errors:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(files.shutil, "rmtree", cut_off)
    with pytest.raises(KeyboardInterrupt):
      files.remove_tree(folder)
  assert not folder.exists()
  files.remove_tree(folder)  # the rest of the first
  assert not any(tmp_path.iterdir())
