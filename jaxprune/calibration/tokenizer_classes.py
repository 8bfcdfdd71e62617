"""What does stock transformers make of tokenizer.json?

Some tokenizer classes of transformers 5 take only vocabulary, merges and
post-processor from the file and bring their own normaliser, splitting and
decoder. Which class it is depends on the family of the model and on
`tokenizer_class`. The same is done here, so that ids are as AutoTokenizer gives
them.

Reference: transformers 5, AutoTokenizer and the classes of `_CLASSES`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import tokenizers

# The class that AutoTokenizer has for a family; the others believe the folder.
FAMILY_CLASSES = {
  "gemma2": "GemmaTokenizer",
  "gemma3_text": "GemmaTokenizer",
  "gpt2": "GPT2Tokenizer",
  "gpt_neox": "GPTNeoXTokenizer",
  "mistral": "TokenizersBackend",
  "olmo2": "TokenizersBackend",
  "opt": "GPT2Tokenizer",
  "phi3": "TokenizersBackend",
  "qwen2": "Qwen2Tokenizer",
  "qwen3": "Qwen2Tokenizer",
  "qwen3_moe": "Qwen2Tokenizer",
}
# Families whose folders name a wrong class so often that it is not believed.
DISBELIEVED = ("phi3", "qwen2")
PLAIN = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizer")
_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_END = "<|endoftext|>"
# What a piece of text is, with the spaces and line ends around it.
_QWEN2_PIECES = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
  r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StockClass:
  """A class that rebuilds the tokenizer.

  Attributes:
    tokens: special tokens that it has where the folder is silent.
    rebuild: changes a tokenizer in place; takes it and tokenizer_config.json.
  """

  tokens: Mapping[str, str]
  rebuild: Callable[["tokenizers.Tokenizer", Mapping[str, Any]], None]


def class_name(
  family: str | None, named: str | None, byte_level: Callable[[], bool]
) -> str:
  """Return the class that AutoTokenizer takes.

  Args:
    family: `model_type` of config.json.
    named: `tokenizer_class` of the folder, if it names one.
    byte_level: whether tokenizer.json works on bytes; asked where it counts.
  """
  own = FAMILY_CLASSES.get(family)
  named = named.removesuffix("Fast") if named else None
  if named is None:
    return own or PLAIN[0]
  if named == "LlamaTokenizer" and family not in DISBELIEVED and byte_level():
    return PLAIN[0]
  if own is None or own == named:
    return named
  if own in PLAIN:
    return PLAIN[0]
  return own if family in DISBELIEVED else named


def find_class(name: str) -> StockClass | None:
  """Return what a class does; None where it takes tokenizer.json as it is."""
  return _CLASSES.get(name)


def add_special_tokens(
  tokenizer: "tokenizers.Tokenizer",
  fields: Mapping[str, Any],
  defaults: Mapping[str, str],
) -> None:
  """Add the special tokens that the folder names and tokenizer.json lacks.

  Args:
    tokenizer: changed in place.
    fields: of tokenizer_config.json.
    defaults: special tokens of the class.
  """
  named = [
    fields.get(f"{key}_token", defaults.get(f"{key}_token")) for key in _NAMED
  ]
  for key in ("extra_special_tokens", "additional_special_tokens"):
    more = fields.get(key) or ()
    named += more.values() if isinstance(more, dict) else more
  texts = (text_of(token) for token in named)
  known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
  missing = [text for text in texts if text and text not in known]
  if missing:
    tokenizer.add_special_tokens(list(dict.fromkeys(missing)))


def text_of(token: Any) -> str | None:
  """The text of a special token, which may be written as an object."""
  text = token.get("content") if isinstance(token, dict) else token
  return text if isinstance(text, str) else None


# The options of a BPE model that was given none.
_NEW_BPE = {
  "dropout": None,
  "unk_token": None,
  "continuing_subword_prefix": None,
  "end_of_word_suffix": None,
  "fuse_unk": False,
  "byte_fallback": False,
  "ignore_merges": False,
}


def _set_bpe(tokenizer, **options) -> bool:
  """Set the options of a BPE model, the others as a new one has them."""
  import tokenizers

  model = tokenizer.model
  if not isinstance(model, tokenizers.models.BPE):
    return False
  for name, value in (_NEW_BPE | options).items():
    setattr(model, name, value)
  return True


def _llama(tokenizer, fields) -> None:
  from tokenizers import decoders, pre_tokenizers

  if not _set_bpe(tokenizer, fuse_unk=True, byte_fallback=True):
    return
  space = fields.get("add_prefix_space")
  space = True if space is None else bool(space)
  where = "always" if fields.get("legacy", False) else "first"
  tokenizer.normalizer = None
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    replacement="▁", prepend_scheme=where if space else "never", split=False
  )
  steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  if space:
    steps.append(decoders.Strip(content=" ", left=1))
  tokenizer.decoder = decoders.Sequence(steps)


def _gemma(tokenizer, fields) -> None:
  from tokenizers import decoders, normalizers, pre_tokenizers

  unknown = text_of(fields.get("unk_token", "<unk>"))
  if not _set_bpe(
    tokenizer, fuse_unk=True, byte_fallback=True, unk_token=unknown
  ):
    return
  tokenizer.normalizer = normalizers.Replace(" ", "▁")
  tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  )


def _qwen2(tokenizer, fields) -> None:
  from tokenizers import Regex, decoders, normalizers, pre_tokenizers

  if not _set_bpe(tokenizer):
    return
  tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_QWEN2_PIECES), behavior="isolated"),
      pre_tokenizers.ByteLevel(
        add_prefix_space=bool(fields.get("add_prefix_space")), use_regex=False
      ),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()


def _gpt2(tokenizer, fields) -> None:
  from tokenizers import decoders, pre_tokenizers

  if not _set_bpe(tokenizer):
    return
  tokenizer.normalizer = None
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=bool(fields.get("add_prefix_space"))
  )
  tokenizer.decoder = decoders.ByteLevel()


def _gpt_neox(tokenizer, fields) -> None:
  from tokenizers import normalizers, processors

  _gpt2(tokenizer, fields)
  tokenizer.normalizer = normalizers.NFC()
  # It puts nothing around a text, whatever tokenizer.json says.
  tokenizer.post_processor = processors.TemplateProcessing(
    single="$A", pair="$A $B:1", special_tokens=[]
  )


_CLASSES = {
  "GPT2Tokenizer": StockClass(
    tokens={"bos_token": _END, "eos_token": _END, "unk_token": _END},
    rebuild=_gpt2,
  ),
  "GPTNeoXTokenizer": StockClass(
    tokens={
      "bos_token": _END,
      "eos_token": _END,
      "unk_token": _END,
      "pad_token": "<|padding|>",
    },
    rebuild=_gpt_neox,
  ),
  "GemmaTokenizer": StockClass(
    tokens={
      "bos_token": "<bos>",
      "eos_token": "<eos>",
      "unk_token": "<unk>",
      "pad_token": "<pad>",
      "mask_token": "<mask>",
    },
    rebuild=_gemma,
  ),
  "LlamaTokenizer": StockClass(
    tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    rebuild=_llama,
  ),
  "Qwen2Tokenizer": StockClass(
    tokens={"eos_token": _END, "unk_token": _END, "pad_token": _END},
    rebuild=_qwen2,
  ),
}
