"""What does one row of a table of tensors say?

Data types only: `tables` holds the tables, `names` reads them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

# The config field behind each letter of a row's shape.
SIZES = {
  "D": "embed_dim",
  "E": "num_experts",
  "F": "mlp_dim",
  "H": "head_dim",
  "K": "num_kv_heads",
  "N": "num_heads",
  "P": "num_position_rows",
  "S": "max_positions",
  "V": "vocab_size",
  "Y": "num_token_types",
}


@dataclasses.dataclass(frozen=True)
class Part:
  """Where a leaf lies in a tensor that it shares with others.

  The output axis of the tensor is `groups` times all of `sizes`, one behind the
  other; the leaf is the part `index` of every group.

  Attributes:
    sizes: of the parts; letters of `SIZES`, several are multiplied.
    index: of the leaf's part.
    groups: how often the parts come again, letters of `SIZES`; "" is once.
  """

  sizes: tuple[str, ...]
  index: int
  groups: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor of a model.

  Attributes:
    name: in the file; `{}` stands for the index of the layer.
    path: of the leaf in the tree, joined by "/"; within the layer for rows of
      a layer.
    shape: sizes of the leaf's axes; letters are those of `SIZES`, several
      are multiplied.
    transpose: whether the file holds the transpose of the leaf.
    when: (config field, value) under which the model has this tensor.
    part: which part of the tensor the leaf is; None is all of it.
    experts: whether the leaf is a stack, [E, ...], of what as many tensors
      hold; `shape` is of one, and `{expert}` in the name is its index.
    expert: which of the stack, in a row of one tensor.
  """

  name: str
  path: str
  shape: tuple[str, ...]
  transpose: bool = False
  when: tuple[str, Any] | None = None
  part: Part | None = None
  experts: bool = False
  expert: int | None = None

  @property
  def key(self) -> str:
    """The path, and of a stack the index, joined by "/"."""
    return self.path if self.expert is None else f"{self.path}/{self.expert}"

  def of_expert(self, index: int) -> "Row":
    """The row of one tensor of a stack."""
    return dataclasses.replace(
      self,
      name=self.name.replace("{expert}", str(index)),
      experts=False,
      expert=index,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """The tensors of one architecture.

  Attributes:
    outer: rows outside the layers.
    layer: rows of each layer.
    tied: row of the output head, which a tied model may hold a second copy of,
      and the row it equals.
    ignored: ends of names of buffers that older files hold and that the model
      computes itself.
    sublayer_outputs: for each sublayer, the path of the projection that writes
      to the residual stream; a zero there, bias included, is the sublayer
      dropped: it adds nothing. In a post-norm encoder its norm stays.
    fused_experts: the tensor in which a file may hold those of all experts
      behind one another, [E, ...], and the tensors of each expert that lie in
      it; all as the ends of their names.
    prefix: what names begin with, those of a head excepted; a file may hold the
      names without it.
    optional: (config field, tensor): a bool field that config.json does not
      give and that says whether the file has this tensor.
  """

  outer: tuple[Row, ...]
  layer: tuple[Row, ...]
  tied: tuple[str, str] | None
  ignored: tuple[str, ...]
  sublayer_outputs: Mapping[str, str]
  fused_experts: Mapping[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  prefix: str = ""
  optional: tuple[str, str] | None = None
