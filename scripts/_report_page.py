"""Sections of text, tables and charts as one HTML page that needs no network, or as Markdown."""

import html
import io
import math
import re
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

Cells = Sequence[Any]
BARS = "▁▂▃▄▅▆▇█"
INK = "#010203"  # in a chart, where the page has its own colour of text
CHART = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.family": "sans-serif",
         "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "text.color": INK,
         "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
STYLE = """
:root { color-scheme: light dark; --faint: #8886; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
       background: Canvas; color: CanvasText; }
nav a { margin-right: 1rem; }
h2 { border-bottom: 1px solid var(--faint); margin-top: 2.5rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto;
        font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--faint);
         overflow-wrap: anywhere; min-width: 4rem; }
svg { max-width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """Rows under columns, with a title above it."""

    columns: Sequence[str]
    rows: Sequence[Cells]
    title: str = ""


class Section(NamedTuple):
    """A part of a report; `chart` draws a matplotlib Figure, which HTML alone shows."""

    title: str
    said: Sequence[str] = ()
    tables: Sequence[Table] = ()
    chart: Optional[Callable[[], Any]] = None


def number(value: Any) -> str:
    """A number as it is read: four digits of a fraction, whole ones with their thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{int(value):,}" if whole else f"{value:.4g}"


def trend(values: Sequence[float], width: int = 24) -> str:
    """A curve as a line of bars, means of neighbours where there are many values."""
    means = thin([(0, value) for value in values], width)
    low, high = (choose(value for _, value in means) for choose in (min, max))
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for _, value in means)


def thin(points: Sequence[Tuple[int, float]], most: int) -> List[Tuple[int, float]]:
    """At most so many points, each the mean of as many neighbours."""
    size = math.ceil(len(points) / most)
    chunks = [points[first : first + size] for first in range(0, len(points), size)]
    return [(round(sum(x for x, _ in chunk) / len(chunk)), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def as_svg(chart: Callable[[], Any], name: str) -> str:
    """A chart in the page's colours; its ids begin with `name`, so that no two charts of a page share one."""
    import matplotlib

    with matplotlib.rc_context(CHART):
        figure, file = chart(), io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'(\bid="|\burl\(#|href="#)', rf"\1{name}-", text).replace(INK, "currentColor")


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The page."""
    links = "".join(f'<a href="#part{place}">{html.escape(part.title)}</a>' for place, part in enumerate(sections))
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
            f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1><nav>{links}</nav>\n"
            + "".join(html_section(place, section) for place, section in enumerate(sections)) + "</body></html>\n")


def html_section(place: int, section: Section) -> str:
    parts = [f'<section id="part{place}"><h2>{html.escape(section.title)}</h2>']
    parts += [f"<p>{html.escape(line)}</p>" for line in section.said]
    if section.chart is not None:
        parts.append(as_svg(section.chart, f"chart{place}"))
    for table in section.tables:
        parts.append(f"<h3>{html.escape(table.title)}</h3>" if table.title else "")
        rows = [html_row("th", table.columns), *(html_row("td", row) for row in table.rows)]
        parts.append("<table>" + "\n".join(rows) + "</table>")
    return "\n".join(parts) + "</section>\n"


def html_row(tag: str, cells: Cells) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(number(cell))}</{tag}>" for cell in cells) + "</tr>"


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The page without its charts."""
    parts = [f"# {marked(title)}"]
    for section in sections:
        parts += [f"## {marked(section.title)}", *map(marked, section.said)]
        for table in section.tables:
            parts += [f"### {marked(table.title)}"] if table.title else []
            rows = [table.columns, ["---"] * len(table.columns), *(map(marked, row) for row in table.rows)]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def marked(cell: Any) -> str:
    """Text that Markdown shows as it is, in one line."""
    text = html.escape(" ".join(number(cell).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
