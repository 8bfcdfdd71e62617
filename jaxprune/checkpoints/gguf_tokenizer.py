"""Which tokenizer do the metadata of a GGUF file describe?

The vocabulary, merges and scores are in the file; how text is cut before they
apply is a name (`tokenizer.ggml.pre`) whose meaning is in the code of
llama.cpp. Byte-level BPE ("gpt2") and SentencePiece BPE ("llama") are built.

Reference: the vocabularies of llama.cpp, and the tokenizers that transformers 5
builds from a GGUF file (`convert_gguf_tokenizer`), whose ids these are.
Differs from the reference in: a pre-tokenizer that is not known here gives no
tokenizer, where transformers cuts text as GPT-2 does.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `pip install jaxprune` has it; models are read without it
  import tokenizers

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # kinds of tokens

_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _WORD + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
  rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
  rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
  r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = ""  # the expression of GPT-2, which the byte-level cut has by itself
# How each pre-tokenizer cuts text, whether it cuts out every digit first, and
# whether a word that is in the vocabulary is taken without merges.
_CUTS = {
  "gpt-2": (_GPT2, False, False),
  "gpt2": (_GPT2, False, False),
  "olmo": (_GPT2, False, False),
  "smollm": (_GPT2, True, False),
  "starcoder": (_GPT2, True, False),
  "llama-bpe": (_LLAMA3, False, True),
  "llama3": (_LLAMA3, False, True),
  "llama-v3": (_LLAMA3, False, True),
  "qwen2": (_QWEN2, False, False),
  "deepseek-r1-qwen": (_QWEN2, False, False),
  "tekken": (_TEKKEN, False, True),
}
_NORMALISED = ("qwen2", "deepseek-r1-qwen")  # to composed characters, NFC


def build_tokenizer(
  metadata: Mapping[str, Any],
) -> "tuple[tokenizers.Tokenizer | None, str]":
  """Build the tokenizer of a GGUF file.

  Args:
    metadata: all its keys and values.

  Returns:
    (tokenizer, ""), or (None, why there is none).
  """
  get = lambda key, default=None: metadata.get(f"tokenizer.ggml.{key}", default)
  kind, tokens = get("model"), get("tokens")
  if not tokens:
    return None, "the file has no tokens"
  kinds = list(get("token_type") or [1] * len(tokens))
  if kind == "gpt2":
    cut = get("pre")
    if cut not in _CUTS:
      return None, f"text is cut by {cut!r}, which is not known here"
    if not get("merges"):
      return None, "the file has no merges"
    tokenizer = _byte_level(tokens, kinds, get("merges"), cut)
    add_bos = get("add_bos_token", cut in ("llama-bpe", "llama3", "llama-v3"))
  elif kind == "llama":
    architecture = metadata.get("general.architecture", "")
    if not get("scores") and not get("merges"):
      return None, "the file has neither scores nor merges"
    tokenizer = _sentencepiece(
      tokens,
      get("scores"),
      get("merges"),
      space=get("add_space_prefix", True),
      gemma=architecture.startswith("gemma"),
    )
    add_bos = get("add_bos_token", True)
  else:
    return None, f"a vocabulary of kind {kind!r} is not known here"
  _add_special(tokenizer, tokens, kinds, get("unknown_token_id"))
  _add_ends(tokenizer, tokens, get, add_bos)
  return tokenizer, ""


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Return the tokenizer_config.json beside a tokenizer that was built.

  Args:
    metadata: all keys and values of the file.
  """
  tokens = metadata.get("tokenizer.ggml.tokens") or []
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_max_length": metadata.get(
      f"{metadata['general.architecture']}.context_length"
    ),
  }
  for name, key in (
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("unk_token", "unknown"),
    ("pad_token", "padding"),
  ):
    index = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if index is not None and index < len(tokens):
      config[name] = tokens[index]
  return config


def _byte_level(tokens, kinds, merges, cut) -> "tokenizers.Tokenizer":
  """Byte-level BPE: every byte is a printable character."""
  from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
  )

  alphabet = set(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {}
  for index, (token, kind) in enumerate(zip(tokens, kinds)):
    if kind not in (_CONTROL, _USER_DEFINED) and not set(token) <= alphabet:
      token = _spell(token)
    vocabulary[token] = index
  expression, digits, whole_words = _CUTS[cut]
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=[tuple(merge.split(" ")) for merge in merges],
      ignore_merges=whole_words,
    )
  )
  steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
  if expression:
    steps.append(pre_tokenizers.Split(Regex(expression), behavior="isolated"))
  steps.append(
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not expression)
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if cut in _NORMALISED:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _spell(token: str) -> str:
  """Write text in the alphabet of byte-level BPE."""
  from tokenizers import pre_tokenizers

  cut = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return "".join(part for part, _ in cut.pre_tokenize_str(token))


def _sentencepiece(
  tokens, scores, merges, *, space, gemma
) -> "tokenizers.Tokenizer":
  """SentencePiece BPE: a space is a letter, unknown characters are bytes."""
  from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
  )

  letter = "\u2581"
  if gemma:  # runs of spaces are written as they are, and go in their order
    tokens = [
      letter * len(token) if token and not token.strip(" ") else token
      for token in tokens
    ]
    scores = [-index for index in range(len(tokens))]
  vocabulary = {token: index for index, token in enumerate(tokens)}
  pairs = (
    [tuple(merge.split(" ")) for merge in merges]
    if merges
    else _implied_merges(vocabulary, scores)
  )
  unknown = {"unk_token": "<unk>"} if "<unk>" in vocabulary else {}
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocabulary,
      merges=pairs,
      fuse_unk=True,
      byte_fallback=True,
      **unknown,
    )
  )
  steps = [
    decoders.Replace(letter, " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
  ]
  if gemma:
    tokenizer.normalizer = normalizers.Replace(" ", letter)
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      replacement=letter,
      prepend_scheme="first" if space else "never",
      split=False,
    )
    if space:
      steps.append(decoders.Strip(content=" ", left=1))
  tokenizer.decoder = decoders.Sequence(steps)
  return tokenizer


def _implied_merges(
  vocabulary: Mapping[str, int], scores: Sequence[float]
) -> list[tuple[str, str]]:
  """The merges of which every token can be the result, best score first.

  Of equal scores the longer left part goes first, then the longer right part,
  then the lower ids.
  """
  found = []
  for token, index in vocabulary.items():
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in vocabulary and right in vocabulary:
        rank = (-scores[index], -len(left), -len(right), index)
        ids = (vocabulary[left], vocabulary[right])
        found.append((rank, ids, (left, right)))
  found.sort(key=lambda entry: entry[:2])
  return [pair for _, _, pair in found]


def _add_special(tokenizer, tokens, kinds, unknown) -> None:
  """Keep whole what the file marks, and the token for what is unknown."""
  from tokenizers import AddedToken

  known = tokenizer.get_vocab()
  special, plain = [], []
  for index, (token, kind) in enumerate(zip(tokens, kinds)):
    if known.get(token) != index:
      continue
    if kind == _CONTROL or index == unknown:
      special.append(AddedToken(token, normalized=False, special=True))
    elif kind == _USER_DEFINED:
      plain.append(AddedToken(token, normalized=False, special=False))
  tokenizer.add_special_tokens(special)
  tokenizer.add_tokens(plain)


def _add_ends(tokenizer, tokens, get, add_bos) -> None:
  """Put the tokens before and behind a text that the file asks for."""
  from tokenizers import processors

  first = last = ""
  special = []
  if add_bos and get("bos_token_id") is not None:
    first = tokens[get("bos_token_id")]
    special.append((first, get("bos_token_id")))
  if get("add_eos_token", False) and get("eos_token_id") is not None:
    last = tokens[get("eos_token_id")]
    special.append((last, get("eos_token_id")))
  if special:
    single = [part for part in (first, "$A", last) if part]
    pair = [*single, *(f"{part}:1" for part in (first, "$B", last) if part)]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=single, pair=pair, special_tokens=sorted(set(special))
    )
