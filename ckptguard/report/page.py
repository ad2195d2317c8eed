"""report.html: a campaign as one file that needs nothing else, for screens of any width, light and dark, and paper."""

from __future__ import annotations

from pathlib import Path

from ckptguard.files import atomic_writer
from ckptguard.report import findings, html, provenance, sections
from ckptguard.report.markup import element
from ckptguard.report.run import Run, read

NAME = "report.html"


def write(folder: Path | str) -> Path:
    """Write `report.html` into the folder of a finished run and return its path; the same run gives the same bytes.

    Raises:
        UsageError: the folder holds no finished run.
    """
    path = Path(folder) / NAME
    text = page(read(Path(folder)))
    with atomic_writer(path, overwrite=True) as file:
        file.write(text.encode("utf-8"))
    return path


def page(run: Run) -> str:
    """The page of a run: what was found first, then what it rests on."""
    title = f"What faults cost {provenance.name_of(run)}"
    tool = run.campaign.get("tool")
    body = (
        element("h1", title),
        element("p", findings.size_of(run), f", {tool}" if isinstance(tool, str) else None, class_="subject"),
        sections.verdict(run),
        sections.tiles(run),
        provenance.identity(run),
        sections.results(run),
        sections.comparison(run),
        sections.layers_and_bits(run),
        sections.thresholds(run),
        sections.attribution(run),
        sections.channel(run),
        provenance.checks(run),
        provenance.rates(run),
        sections.other_metrics(run),
        provenance.reproduce(run),
    )
    return html.document(title, element("main", *body), provenance.words())
