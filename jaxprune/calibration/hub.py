"""Data sets of the Hugging Face hub, through the package `datasets`."""

from typing import Any

from jaxprune import files


def load(
  name: str,
  place: tuple[str, str | None, str],
  *,
  file: str | None = None,
  otherwise: str,
) -> Any:
  """Load one split of a data set.

  Args:
    name: what the user asked for; begins every message.
    place: (data set, configuration or None, split).
    file: the only file of the split that is read; None is all.
    otherwise: ends every message: what to do without the hub.

  Returns:
    The rows, as `datasets` gives them.

  Raises:
    ValueError: `datasets` is not installed, or the hub is out of reach.
  """
  path, configuration, split = place
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      f"{name}: the hub data set {path} needs the package datasets: pip"
      f" install 'jaxprune[data]', or {otherwise}"
    ) from error
  try:
    return datasets.load_dataset(
      path,
      configuration,
      split=split,
      data_files=None if file is None else {split: file},
    )
  # the hub client raises many unrelated types when offline
  except Exception as error:
    reason = files.reason(error)
    raise ValueError(
      f"{name}: {path} is not to be had from the hub"
      f" ({type(error).__name__}: {reason}); {otherwise}"
    ) from error
