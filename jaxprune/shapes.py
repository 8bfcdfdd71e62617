"""The one key to the letters that end array names.

Local arrays in model, method and probe code carry their dimensions as a
suffix: `x_BTD`, `w_IO`, `gram_II`, `mask_IO`.

  B  batch                      F  MLP width
  T  query position             V  vocabulary
  S  key position               L  layers
  D  residual width             I  input features of one kernel
  N  query heads                O  output features of one kernel
  K  key and value heads        P  probe directions or sparsity levels
  G  query heads per key head   C  options of a question
  H  head width

Kernels are `[I, O]`: a "comparison group per output" is a column, and n:m
groups run along axis 0.

Reference: Shazeer, "Shape Suffixes: Good Coding Style" (2024).
"""
