"""Speed beside PyTorch in the same run, and what each method costs.

`models`, `transitions` and `methods` are the suites; each measures, writes its
rows and returns its part of summary.json. `references` is what they are
compared with.
"""
