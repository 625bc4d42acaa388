"""Tables of numbers as text: rows are systems, columns are measures."""

from collections.abc import Mapping, Sequence

Cell = float | str | None


def text_table(rows: Mapping[str, Mapping[str, Cell]], columns: Sequence[str], digits: int = 1) -> str:
    """Aligned plain text, one line a row; None or a missing cell shows as a dash, text as it is."""
    table = _cells(rows, columns, digits)
    widths = [max(len(line[column]) for line in table) for column in range(len(columns) + 1)]
    lines = [_aligned(line, widths, "  ") for line in table]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(rows: Mapping[str, Mapping[str, Cell]], columns: Sequence[str], digits: int = 1) -> str:
    """The same table for a README; a vertical bar in a name is escaped."""
    table = [[cell.replace("|", "\\|") for cell in line] for line in _cells(rows, columns, digits)]
    widths = [max(len(line[column]) for line in table) for column in range(len(columns) + 1)]
    lines = ["| " + _aligned(line, widths, " | ") + " |" for line in table]
    rules = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines.insert(1, "| " + " | ".join(rules) + " |")
    return "\n".join(lines)


def _cells(rows: Mapping[str, Mapping[str, Cell]], columns: Sequence[str], digits: int) -> list[list[str]]:
    body = [[name, *(_number(row.get(column), digits) for column in columns)] for name, row in rows.items()]
    return [["system", *columns], *body]


def _number(value: Cell, digits: int) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(cells: Sequence[str], widths: Sequence[int], separator: str) -> str:
    first, *others = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return separator.join([first, *others])
