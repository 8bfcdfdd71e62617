"""Inputs that are broken on purpose, one change each.

`mutate` draws a change that suits the kind of a file: of its bytes, of the JSON
in it, of a line, of the header of a safetensors file, of an array. What must
come of it is in `mutation_judges`; `python tests/faults.py --kind=mutations`
draws any number of them.
"""

import gzip
import io
import json
import random
import zipfile

import numpy as np

DEEP = 5000  # levels
ODD = (
  *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**31, 2**63, 10**40, -(10**40)),
  *(0.5, 1.0, 1e308, 1e-320, float("nan"), float("inf")),
  *(
    "",
    "a",
    "1",
    "nan",
    "silu",
    "../x",
    "/etc/passwd",
    "\ud800",
    "\0",
    "é" * 9,
  ),
  *([], [1], [[]], [None], ["a", "a"], {}, {"a": 1}),
)
Key = str | int


def mutate(content: bytes, name: str, draw: random.Random) -> bytes:
  """Change a file.

  Args:
    content: of the file.
    name: of the file; its ending says what is in it.
    draw: what changes.

  Returns:
    The new content; at times the old one.
  """
  if name.endswith(".gz") and draw.random() < 0.5:
    inner = mutate(gzip.decompress(content), name.removesuffix(".gz"), draw)
    return gzip.compress(inner, 1, mtime=0)
  changes = [change_bytes]
  if name.endswith(".json"):
    changes += [change_json] * 4
  elif name.endswith(".jsonl"):
    changes += [change_lines] * 4
  elif name.endswith(".safetensors"):
    changes += [change_header] * 3 + [change_payload]
  elif name.endswith(".npz"):
    changes += [change_arrays] * 4
  elif name.endswith((".txt", ".jinja")):
    changes += [change_text]
  elif name.endswith((".tsv", ".csv")):
    changes += [change_table] * 4
  elif name.endswith(".parquet"):
    changes += [change_parquet] * 4
  return draw.choice(changes)(content, draw)


def change_bytes(content: bytes, draw: random.Random) -> bytes:
  """A bit, a byte, or a piece of any file."""
  if not content:
    return b"\0"
  at = draw.randrange(len(content))
  to = min(len(content), at + draw.choice((1, 4, 50, 1000)))
  kind = draw.randrange(10)
  if kind < 3:
    flipped = content[at] ^ (1 << draw.randrange(8))
    return content[:at] + bytes([flipped]) + content[at + 1 :]
  return {
    3: lambda: content[:at],
    4: lambda: content[:at] + content[to:],
    5: lambda: content[:at] + content[at:to] * 2 + content[to:],
    6: lambda: content[:at] + draw.randbytes(to - at) + content[to:],
    7: lambda: content[:at] + b"\0" + content[at:],
    8: lambda: b"\xff\xfe" + content,
    9: lambda: draw.choice((b"", b"\xef\xbb\xbf" + content, content * 2)),
  }[kind]()


def change_json(content: bytes, draw: random.Random) -> bytes:
  """One value of a JSON document."""
  return _changed_json(content.decode(), draw).encode(errors="surrogatepass")


def change_lines(content: bytes, draw: random.Random) -> bytes:
  """A line of a .jsonl file, or what is in it."""
  lines = content.decode().split("\n")
  at = draw.randrange(max(1, len(lines) - 1))
  kind = draw.randrange(8)
  if kind == 0:
    lines[at] = draw.choice(("", " ", "null", "[]", "{}", '"a"', "{", "1"))
  elif kind == 1:
    del lines[at]
  elif kind == 2:
    lines.insert(at, lines[draw.randrange(len(lines))])
  elif lines[at]:
    # A checksum may stand in front.
    front, brace, rest = lines[at].partition("{")
    lines[at] = front + _changed_json(brace + rest, draw)
  return "\n".join(lines).encode(errors="surrogatepass")


def change_text(content: bytes, draw: random.Random) -> bytes:
  """What is no plain text, in a place of one."""
  at = draw.randrange(len(content) + 1)
  odd = (
    *(b"\xed\xa0\x80", b"\xc3", b"\0", b"\x1b[31m", b"\r", b"\x0c", b"<|end"),
    *("\u202e\u200b".encode(), b"a" * 5000, b"\n" * 300, b"<s></s>"),
  )
  return content[:at] + draw.choice(odd) + content[at:]


def change_table(content: bytes, draw: random.Random) -> bytes:
  """A field of a table, or one of its lines."""
  lines = content.decode().split("\n")
  at = draw.randrange(max(1, len(lines) - 1))
  fields = lines[at].split("\t")
  place = draw.randrange(len(fields))
  kind = draw.randrange(6)
  if kind == 0:
    del lines[at]
  elif kind == 1:
    lines.insert(at, lines[draw.randrange(len(lines))])
  elif kind == 2:
    del fields[place]
  else:
    fields[place] = draw.choice((str(draw.choice(ODD)), "q0", "d1", "1e999"))
  if kind >= 2:
    lines[at] = "\t".join(fields)
  return "\n".join(lines).encode(errors="surrogatepass")


def change_parquet(content: bytes, draw: random.Random) -> bytes:
  """A parquet file with another column, type, row or compression."""
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.parquet.read_table(io.BytesIO(content))
  name = draw.choice(table.column_names)
  values, names = table.column(name).to_pylist(), list(table.column_names)
  place, odd = names.index(name), draw.choice((None, "", "\0", "a" * 5000, "é"))
  kind = draw.randrange(6)
  if kind == 0:
    names[place] = draw.choice(("Text", "", "id", "text.text"))
    table = table.rename_columns(names)
  elif kind == 1:
    table = table.slice(0, draw.choice((0, 1)))
  else:
    values = [value if value is None else str(value) for value in values]
    values[draw.randrange(len(values))] = odd
    column = (
      lambda: [[value] for value in values],
      lambda: [{"text": value} for value in values],
      lambda: [value and value.encode() for value in values],
      lambda: values,
    )[kind - 2]()
    table = table.set_column(place, name, pyarrow.array(column))
  out = io.BytesIO()
  packed = draw.choice(("none", "snappy", "zstd", "gzip"))
  pyarrow.parquet.write_table(table, out, compression=packed)
  return out.getvalue()


def change_header(content: bytes, draw: random.Random) -> bytes:
  """The header of a safetensors file; its length fits, as a rule."""
  length = int.from_bytes(content[:8], "little")
  header, rest = content[8 : 8 + length], content[8 + length :]
  header = _changed_json(header.decode(), draw).encode(errors="surrogatepass")
  length = len(header)
  if draw.random() < 0.1:
    length = draw.choice((0, length - 1, length + 8, 2**40, 2**63))
  return length.to_bytes(8, "little") + header + rest


def change_payload(content: bytes, draw: random.Random) -> bytes:
  """A number of a safetensors file: another one, NaN or an infinity."""
  start = 8 + int.from_bytes(content[:8], "little")
  if start + 4 >= len(content):
    return content[:-1]
  at = draw.randrange(start, len(content) - 4, 4)
  number = draw.choice((0.0, -1.5, float("nan"), float("inf"), 3e38))
  return content[:at] + np.float32(number).tobytes() + content[at + 4 :]


def change_arrays(content: bytes, draw: random.Random) -> bytes:
  """An .npz with other arrays, or an array that is not what it says."""
  with np.load(io.BytesIO(content)) as archive:
    arrays = dict(archive)
  name = draw.choice(sorted(arrays))
  array, out = arrays[name], io.BytesIO()
  kind = draw.randrange(9)
  if kind < 6:
    arrays[name] = (
      array.astype(draw.choice((np.float32, np.int64, np.uint8, bool, "S3"))),
      array.T.copy(order="F"),
      array[draw.choice((slice(0), 0, slice(None, None, -1)))],
      array + draw.choice((-100, 1, 1 << 20)),
      array.astype(object),
      np.array(draw.choice((7, "a"))),
    )[kind]
    if kind == 4 or draw.random() < 0.3:
      arrays = {draw.choice(("x", "../x", name)): arrays[name]}
    np.savez(out, **arrays)
    return out.getvalue()
  header = repr(
    {
      "descr": draw.choice(("<i8", "<i4", "|O", "<f8", "<U9", "nonsense", [])),
      "fortran_order": draw.choice((False, True, 3)),
      "shape": draw.choice(
        ((4, 8), (10**12, 4), (-1, 8), (2**63, 2), (), "a", (0, 0), (8,) * 40)
      ),
    }
  ).encode()
  if kind == 8:
    header = draw.choice((b"(" * 5000, b"{'descr': 1}", b"\xff", b""))
  magic = draw.choice((b"\x93NUMPY\x01\x00", b"\x93NUMPY\x07\x00", b"PK"))
  body = magic + len(header).to_bytes(2, "little") + header
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(f"{name}.npy", body + array.tobytes())
  return out.getvalue()


def _changed_json(text: str, draw: random.Random) -> str:
  """A JSON text with one value, key or piece of text changed."""
  document = json.loads(text)
  kind = draw.randrange(12)
  if kind == 0:
    return draw.choice(
      ("[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "NaN")
    )
  where = _path(document, draw)
  parent, key = _parent(document, where)
  if parent is None:
    return json.dumps(draw.choice(ODD))
  odd = draw.choice(ODD)
  if kind < 6:
    parent[key] = odd
  elif kind == 6:
    del parent[key]
  elif kind == 7 and isinstance(parent, dict):
    parent[draw.choice((f"{key}s", key.upper(), "\ud800", ""))] = parent.pop(
      key
    )
  elif kind == 8 and isinstance(parent, dict):
    parent[draw.choice(("extra", "__class__", "auto_map", "dtype"))] = odd
  elif kind == 9 and isinstance(parent[key], int | float):
    parent[key] = draw.choice((-1, 1)) * parent[key] + draw.choice((0, 1, 0.5))
  elif kind == 10:
    inner = json.dumps(parent[key])
    marked = "\x01"
    parent[key] = marked
    again = draw.choice(
      ("[" * DEEP + "]" * DEEP, inner + f', "{key}": ' + inner)
    )
    return json.dumps(document).replace(json.dumps(marked), again)
  else:
    other, place = _parent(document, _path(document, draw))
    if other is not None:
      parent[key], other[place] = other[place], parent[key]
  return json.dumps(document, ensure_ascii=draw.random() < 0.8)


def _path(document, draw: random.Random) -> list[Key]:
  """A place in a JSON document, no matter how many there are below it."""
  where: list[Key] = []
  while isinstance(document, dict | list) and document:
    key = draw.choice(
      list(document) if isinstance(document, dict) else range(len(document))
    )
    where.append(key)
    document = document[key]
    if draw.random() < 0.25:
      break
  return where


def _parent(document, where: list[Key]):
  """What holds a place, and its key there; (None, None) for the document."""
  if not where:
    return None, None
  for key in where[:-1]:
    document = document[key]
  return document, where[-1]
