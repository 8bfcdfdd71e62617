"""Pages in Markdown hold places, between two marks, that a command writes."""


def replace_between(text: str, begin: str, end: str, new: str) -> str:
  """Replace what stands between two marks.

  Args:
    text: of the page.
    begin: the first mark.
    end: the second.
    new: what stands there afterwards, line ends included.

  Raises:
    ValueError: the marks are not there in this order.
  """
  before, found, rest = text.partition(begin)
  _, closed, after = rest.partition(end)
  if not (found and closed):
    raise ValueError(f"no place {begin} ... {end}; add these two lines")
  return f"{before}{begin}{new}{end}{after}"
