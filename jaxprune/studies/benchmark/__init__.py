"""Speed beside PyTorch in the same run, and what each method costs.

Each suite measures, writes its rows and returns its part of summary.json:
`cpu`, `transitions`, `methods`, `evaluation`, `accelerator` (gpu), `growth`
(scaling) and `pods` (tpu). `references` and `pruning_references` are what they
are compared with, `rates` and `floors` the limits, `tables` the Markdown.
"""
