"""How does a page look? The frame of the document and its one style sheet.

Colours follow the reader's light or dark setting and have a contrast of at
least 4.5; printed pages are black on white.
"""

DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1c1e21; --soft: #5b6068; --rule: #d8dbe0;
  --panel: #f4f6f8; --accent: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --ink: #e6e7e9; --soft: #a2a7af; --rule: #383c42;
    --panel: #1f2226; --accent: #56b4e9;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans",
    sans-serif;
}
main { max-width: 48rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 1.25rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.75rem 0 .75rem; }
h1, h2, p, figcaption { overflow-wrap: anywhere; }
p { margin: 0 0 .85rem; }
.verdict {
  background: var(--panel); border-left: .3rem solid var(--accent);
  border-radius: .25rem; padding: 1rem 1.15rem; font-size: 1.06rem;
}
.verdict p:last-child { margin-bottom: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td {
  padding: .36rem .75rem .36rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--rule);
}
th:last-child, td:last-child { padding-right: 0; }
td:not(.num) { overflow-wrap: anywhere; white-space: pre-wrap; }
thead th {
  border-bottom: 2px solid var(--soft); vertical-align: bottom;
  font-weight: 600;
}
tbody th { font-weight: 500; min-width: 7.5rem; }
.num {
  text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
}
thead .num { white-space: normal; }
.ends { color: var(--soft); font-size: .92em; padding-left: .25em; }
figure { margin: 1.5rem 0 2rem; }
img {
  display: block; max-width: 100%; height: auto; background: #ffffff;
  padding: .5rem; border: 1px solid var(--rule); border-radius: .25rem;
}
figcaption { color: var(--soft); font-size: .9rem; margin: .5rem 0; }
@media (max-width: 40rem) {
  .ends { display: block; padding: 0; }
}
@page { margin: 1.6cm; }
@media print {
  :root {
    --page: #ffffff; --ink: #000000; --soft: #444444; --rule: #bbbbbb;
    --panel: #ffffff; --accent: #000000;
  }
  html { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  figure, tr, .verdict { break-inside: avoid; }
  h2, thead { break-after: avoid; }
  img { border: 0; padding: 0; }
  figure:has(table) { break-inside: auto; }
}"""
