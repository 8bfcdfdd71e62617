"""Run the notebooks, and keep what they show.

python docs/run_notebooks.py           # writes their outputs
python docs/run_notebooks.py --check   # only runs them

An error in a cell ends it. One minute of processor time each.
"""

import pathlib
import sys

import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent / "notebooks"


def run(path: pathlib.Path) -> nbformat.NotebookNode:
  """The notebook with the outputs of a new kernel.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell failed.
  """
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=600,
    startup_timeout=300,
    kernel_name="python3",
    record_timing=False,
    coalesce_streams=True,
    resources={"metadata": {"path": HERE}},
  ).execute()
  # Versions of the machine that ran it say nothing to a reader.
  notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
  return notebook


def main() -> None:
  for path in sorted(HERE.glob("*.ipynb")):
    notebook = run(path)
    if "--check" not in sys.argv[1:]:
      nbformat.write(notebook, path)
    print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
  main()
