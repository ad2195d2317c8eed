"""report.html: a campaign as one file that needs nothing else, for screens of any width, light and dark, and paper."""

from __future__ import annotations

from pathlib import Path

from ckptguard.files import atomic_writer
from ckptguard.report import html, sections
from ckptguard.report.markup import element
from ckptguard.report.run import Run, mapping, read

NAME = "report.html"


def write(folder: Path) -> Path:
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
    """The page of a run."""
    subject = mapping(run.campaign.get("subject"))
    name = str(subject.get("name") or "a checkpoint")
    title = f"What faults cost {Path(name).name}"
    return html.document(
        title,
        element("main",
            element("h1", title),
            element("p", _subtitle(run), class_="subject"),
            sections.verdict(run),
            sections.tiles(run),
            sections.identity(run),
            sections.results(run),
            sections.comparison(run),
            sections.layers_and_bits(run),
            sections.attribution(run),
            sections.channel(run),
            sections.checks(run),
            sections.rates(run),
            sections.other_metrics(run),
            sections.reproduce(run),
        ),
        sections.words(),
    )  # fmt: skip


def _subtitle(run: Run) -> str:
    said = run.campaign.get("tool")
    return f"{sections.size_of(run)}{f', {said}' if isinstance(said, str) else ''}"
