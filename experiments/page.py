"""The page: one HTML file, without any outside resource, that shows all results on disk."""

from __future__ import annotations

import base64
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from experiments import files
from experiments.claims import Claim, describe, number

FILE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")

SHOWN_ROWS = 12
"""Tables with more rows than this are shown by their first rows, with a link to the rest."""

PIXELS_PER_INCH = 140
"""Figures are shown larger than in print, where a column is 3.4 inches wide."""


def build(output: Path) -> Path:
    """Write ``output/index.html`` from every result found below ``output``.

    Args:
        output: The folder of all results.

    Returns:
        The page's path.

    Raises:
        ValueError: A result's JSON cannot be read; the file is named.
    """
    results = list(_results(output))
    claims = [claim for result in results for claim in result["claims"]]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["number"] = number
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        results=results,
        counts={
            verdict: sum(entry["claim"].verdict == verdict for entry in claims)
            for verdict in ("confirmed", "refuted", "not measured")
        },
        surprises=sum(entry["claim"].surprising for entry in claims),
        failures=sum(result["error"] is not None for result in results),
    )
    files.write_text(output / FILE, text)
    return output / FILE


def _results(output: Path) -> Iterator[dict[str, Any]]:
    for index in sorted(output.glob("*/*/experiment.json")):
        folder = index.parent
        record = files.read_json(index)
        claims = [Claim.from_json(entry) for entry in files.read_json(folder / "claims.json")]
        yield {
            **record,
            "anchor": record["name"].replace("/", "-"),
            "folder": record["name"],
            "config": files.read_json(folder / "config.json"),
            "claims": [{"claim": claim, "cells": describe(claim)} for claim in claims],
            "figures": [_figure(folder, figure) for figure in record["figures"]],
            "tables": [_table(folder, table, len(record["notes"])) for table in record["tables"]],
        }


def _figure(folder: Path, figure: dict[str, Any]) -> dict[str, Any]:
    image = (folder / f"{figure['name']}.png").read_bytes()
    return {
        **figure,
        "image": base64.b64encode(image).decode("ascii"),
        "pixels": round(figure["width"] * PIXELS_PER_INCH),
    }


def _table(folder: Path, table: dict[str, Any], notes: int) -> dict[str, Any]:
    with (folder / f"{table['name']}.csv").open(encoding="utf-8", newline="") as file:
        # the notes are comments at the head of the file
        rows = csv.reader(itertools.islice(file, notes, None))
        header = next(rows)
        body = list(itertools.islice(rows, SHOWN_ROWS))
    numeric = [all(_is_number(row[column]) for row in body) for column in range(len(header))]
    cells = [
        [_cell(text) if isnumber else text for text, isnumber in zip(row, numeric, strict=True)]
        for row in body
    ]
    return {**table, "header": header, "numeric": numeric, "body": cells}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cell(text: str) -> str:
    # integers keep all their digits, floats are shortened; the CSV has everything
    return text if text.lstrip("-").isdigit() else number(float(text))
