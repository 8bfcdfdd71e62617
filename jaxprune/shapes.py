"""The one key to the letters that end array names.

Local arrays carry their dimensions as a suffix: `x_BTD`, `w_IO`, `gram_II`,
`mask_IO`. A digit is a dimension of that size: `index_I1`.

  A  documents of a retrieval task (answers)
  B  batch: sequences that are run together
  C  options of a question (choices), and the experts that a token passes
     through
  D  residual width, and the width of an embedding of a text
  E  experts of one MLP, and seeds: the repetitions of an experiment
  F  MLP width
  G  query heads per key head
  H  head width, or half of it where pairs of features are turned
  I  input features of one kernel, or a stretch of them
  J  rows of tokens that belong to one question
  K  key and value heads
  L  layers
  M  members of one group of U
  N  query heads
  O  output features of one kernel
  P  variants that are tried side by side: directions, interventions, levels
  Q  queries of a retrieval task
  R  rows: the positions that are measured or written, or positions of all
     sequences one after the other
  S  position of a key
  T  position of a token, and of a query
  U  units of one whole: groups of an input axis, chunks of positions, spellings
     of an option
  V  vocabulary
  W  random directions that span the space in which others are searched
  X  examples of a data set: prompts, questions, documents, rows of tokens
  Y  causes of what a step computes: the text before, or an earlier step
  Z  nodes and other values of t on the path from the dense to the pruned model

Kernels are `[I, O]`: a "comparison group per output" is a column, and n:m
groups run along axis 0.

Reference: Shazeer, "Shape Suffixes: Good Coding Style" (2024).
"""
