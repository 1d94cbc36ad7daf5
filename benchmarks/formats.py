"""Sheets of text cells as terminal text, Markdown, LaTeX (booktabs), CSV and one self-contained HTML page."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

WIDTH = 118  # of wrapped notes in a terminal
Line = tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """A table of text cells: the first `labels` columns say whose row it is, a block is a row and the lines under it."""

    name: str  # of its files
    title: str
    labels: int
    head: Line
    blocks: tuple[tuple[Line, ...], ...]
    notes: Line = ()

    @property
    def lines(self) -> list[Line]:
        return [line for block in self.blocks for line in block]


def wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_text(sheet: Sheet) -> str:
    """For a terminal: what the labels but the last have in common stands above its rows; numbers stand right."""
    keep = sheet.labels - 1
    rows = [list(sheet.head[keep:])]
    for labels, lines in groupby(sheet.lines, key=lambda line: line[:keep]):
        if keep:
            rows.append([", ".join(labels), *[""] * (len(sheet.head) - sheet.labels)])
        rows += [[("  " if keep else "") + line[keep], *line[sheet.labels :]] for line in lines]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    numbers = [all(_is_number(row[at]) for row in rows[1:]) for at in range(len(rows[0]))]
    cells = [
        [
            cell.rjust(width) if number and at else cell
            for at, (cell, width, number) in enumerate(zip(row, widths, numbers, strict=True))
        ]
        for row in rows
    ]
    said = [line for note in sheet.notes for line in wrapped(f"- {note}")]
    return "\n".join([*wrapped(sheet.title), "", text_table(cells), "", *said, ""])


def _is_number(text: str) -> bool:
    return not text or text in ("yes", "no") or text[0] in "0123456789+-±"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    body = ["| " + " | ".join(cell.strip() for cell in row) + " |" for row in rows]
    return "\n".join([body[0], "|" + "---|" * len(rows[0]), *body[1:]])


def as_markdown(sheet: Sheet) -> str:
    """A heading, the table, its notes as a list."""
    rows = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in line] for line in (sheet.head, *sheet.lines)]
    return "\n".join([f"## {sheet.title}", "", markdown_table(rows), "", *(f"- {note}" for note in sheet.notes), ""])


LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    ">": r"$>$",
    "<": r"$<$",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex(text: str) -> str:
    """A cell's text with everything escaped that LaTeX would act on; a leading minus is one."""
    escaped = "".join(LATEX.get(sign, sign) for sign in text)
    return f"$-${escaped[1:]}" if text[:1] == "-" and text[1:2].isdigit() else escaped


def as_latex(sheet: Sheet) -> str:
    """A `table` of booktabs; a label that repeats stands once, and a rule parts what it holds together. The notes follow."""
    columns = "l" * sheet.labels + "r" * (len(sheet.head) - sheet.labels)
    body, above = [], None
    for line in sheet.lines:
        group = line[: max(sheet.labels - 1, 0)]
        if above is not None and group != above:
            body.append(r"\midrule")
        shown = ("",) * len(group) if group == above else group
        body.append(" & ".join(map(latex, (*shown, *line[len(group) :]))) + r" \\")
        above = group
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex(sheet.title)}}}",
            f"\\label{{tab:{sheet.name}}}".replace("_", "-"),
            f"\\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(latex, sheet.head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(r"\par\footnotesize " + _coded(note, latex, r"\texttt{", "}") for note in sheet.notes),
            r"\end{table}",
            "",
        ]
    )


def _coded(note: str, escaped: Callable[[str], str], start: str, end: str) -> str:
    """A note whose `commands` are marked as such."""
    return "".join(start + escaped(part) + end if at % 2 else escaped(part) for at, part in enumerate(note.split("`")))


def as_csv(sheets: Sequence[Sheet]) -> str:
    """The lines of sheets that share a head, below it once; without the notes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [sheets[0].head, *(line for sheet in sheets for line in sheet.lines)]
    )
    return text.getvalue()


STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --quiet: #5a5a5a; --back: #fff; --line: #c9c9c9; --band: #f1f4f8; --mark: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --quiet: #a9a9a9; --back: #16181b; --line: #43474d; --band: #20242a; --mark: #7db8f5 } }
body { margin: 0 auto; padding: 1rem; max-width: 100rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--back) }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem }
.scroll { overflow-x: auto } .scroll:focus-visible { outline: 2px solid var(--mark) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line) }
td.number { text-align: right } tbody tr + tr td { color: var(--quiet); font-size: .9em }
tbody:nth-of-type(even) { background: var(--band) }
th { background: var(--back) }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
th button:focus-visible, select:focus-visible, summary:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px }
th button::after { content: " \\2195"; color: var(--quiet) }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--mark) }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--mark) }
ul { max-width: 70rem; padding-left: 1.2rem; color: var(--quiet) } summary { cursor: pointer; margin: .6rem 0; color: var(--mark) }
"""

# A click sorts up, a second down, a third brings back the paper's order; empty cells stay last.
SCRIPT = """
const key = (body, at) => { const text = body.rows[0].cells[at].textContent.trim()
  const number = parseFloat(text.replace('\\u00b1', '')); return text === '' || text === '-' ? null : isNaN(number) ? text : number }
const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b))
for (const table of document.querySelectorAll('table')) {
  const order = [...table.tBodies], heads = [...table.tHead.rows[0].cells]
  heads.forEach((head, at) => head.firstChild.addEventListener('click', () => {
    const next = { none: 'ascending', ascending: 'descending', descending: 'none' }[head.getAttribute('aria-sort')]
    heads.forEach(other => other.setAttribute('aria-sort', other === head ? next : 'none'))
    const sign = next === 'descending' ? -1 : 1
    const sorted = next === 'none' ? order : order.map(body => [key(body, at), body]).sort(([a], [b]) =>
      a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)).map(([, body]) => body)
    table.append(...sorted) })) }
const choice = document.querySelector('select'), sections = [...document.querySelectorAll('section')]
const show = () => sections.forEach(section => { section.hidden = choice.value !== '' && section.id !== choice.value })
choice.closest('p').hidden = false
choice.addEventListener('change', show)
show()
"""


def as_html(pages: Sequence[tuple[Sequence[Sheet], Sheet | None]]) -> str:
    """One page, nothing fetched: for each table its sheets and, folded in, the sheet with a line for each cell."""
    options = "".join(f'<option value="{own[0].name}">{escape(own[0].title)}</option>' for own, _ in pages)
    sections = []
    for own, long in pages:
        parts = [f'<section id="{own[0].name}"><h2>{escape(own[0].title)}</h2>', *_with_notes(own[0])]
        for sheet in own[1:]:
            parts += [f"<h3>{escape(sheet.title)}</h3>", *_with_notes(sheet)]
        if long is not None:
            parts += [
                "<details><summary>Cell by cell: published, measured, difference, noise, place, what to run</summary>"
            ]
            parts += [_html_table(long), "</details>"]
        sections.append("\n".join([*parts, "</section>"]))
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Published and measured</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body><h1>Published and measured</h1>",
            "<p>The numbers of arXiv 2509.14735 and its neighbours, beside what this project's records measured. A row as printed; "
            "below it, where it was measured, score, interval, difference and whether that is within noise. A click on a "
            "column's head sorts.</p>",
            f'<p hidden><label>Show <select><option value="">all tables</option>{options}</select></label></p>',
            *sections,
            f"<script>{SCRIPT}</script></body></html>\n",
        ]
    )


def _with_notes(sheet: Sheet) -> list[str]:
    said = "".join(f"<li>{_coded(note, escape, '<code>', '</code>')}</li>" for note in sheet.notes)
    return [_html_table(sheet), f"<ul>{said}</ul>"]


def _html_table(sheet: Sheet) -> str:
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(name)}</button></th>' for name in sheet.head
    )
    bodies = []
    for block in sheet.blocks:
        rows = []
        for line in block:
            kinds = [
                "" if at < sheet.labels or not _is_number(cell) else ' class="number"' for at, cell in enumerate(line)
            ]
            rows.append(
                "<tr>"
                + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, line, strict=True))
                + "</tr>"
            )
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    about = escape(sheet.title)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{about}"><table><thead><tr>{head}</tr></thead>{"".join(bodies)}</table></div>'
