"""Campaign reports: pages, figures and the terminal table, over runs of every kind."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import campaign_runs
import numpy as np
import pytest
import safetensors.numpy

from ckptguard.campaign import sweep as campaign_sweep
from ckptguard.errors import MissingExtraError, UsageError
from ckptguard.report import campaign, figures, html, markup, page, palette, plots, svg, ticks, views
from ckptguard.report.run import Run, build, read

HOSTILE = """</title><script>alert(1)</script>&"'\x00\u202e\n]]><b>"""


@pytest.fixture(scope="module", params=campaign_runs.KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every kind."""
    return campaign_runs.make(tmp_path_factory.mktemp(request.param) / "run", request.param, trials=4)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return campaign_runs.make(tmp_path_factory.mktemp("one") / "run", "sweep", trials=8)


def parsed(path: Path) -> ElementTree.Element:
    """The page as XML, which is stricter than HTML."""
    return ElementTree.fromstring(path.read_text("utf-8").removeprefix("<!DOCTYPE html>\n"))


def words(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def test_a_page_is_well_formed_and_closes_every_element(folder: Path) -> None:
    root = parsed(page.write(folder))
    assert root.tag == "html"
    assert [child.tag for child in root] == ["head", "body"]


def test_a_page_loads_nothing_and_runs_nothing(folder: Path) -> None:
    class Found(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "iframe", "link", "object", "embed", "video", "audio", "base", "form")
            for name, value in attrs:
                assert name not in ("src", "href", "xlink:href", "srcset", "action", "style"), (tag, name, value)
                assert not name.startswith("on"), (tag, name)

    text = page.write(folder).read_text("utf-8")
    Found().feed(text)
    assert not re.search(r"url\(|@import", text)
    assert set(re.findall(r"https?://[^\"' <)]*", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_the_same_run_gives_the_same_page(folder: Path) -> None:
    first = page.write(folder).read_bytes()
    assert page.write(folder).read_bytes() == first


def test_every_point_and_variant_has_a_row_in_a_table(folder: Path) -> None:
    run, root = read(folder), parsed(page.write(folder))
    found = {(words(row), label) for label, row in _rows(root, "accuracy of every point")}
    for point in run.points:
        for variant in run.variants:
            cell = run.cell(point, variant, "accuracy")
            assert cell is not None
            expected = run.say("accuracy", cell.median)
            assert any(label == views.place(point) and variant in row and expected in row for row, label in found)


def _rows(root: ElementTree.Element, about: str) -> list[tuple[str, ElementTree.Element]]:
    """Rows of the table that is about something, each with the head of its group."""
    regions = [region for region in root.iter("div") if region.get("aria-label") == about]
    assert regions
    found, label = [], ""
    for region in regions:
        for row in region.findall("./table/tbody/tr"):
            head = row.find("th")
            label = words(head) if head is not None else label
            found.append((label, row))
    return found


def test_every_figure_has_a_title_a_description_and_its_data_as_a_table(folder: Path) -> None:
    root = parsed(page.write(folder))
    drawn = list(root.iter("figure"))
    assert drawn
    for figure in drawn:
        assert figure.find("./details//table") is not None
        drawings = [part for part in figure.iter() if part.get("role") == "img"]
        assert len(drawings) == 2
        for drawing in drawings:
            names = {part.get("id"): words(part) for part in drawing if part.get("id")}
            labelled = (drawing.get("aria-labelledby") or "").split()
            assert len(labelled) == 2
            assert all(names[name] for name in labelled)


def test_identifiers_in_a_page_are_unique(folder: Path) -> None:
    names = [part.get("id") for part in parsed(page.write(folder)).iter() if part.get("id")]
    assert len(names) == len(set(names))


def test_nothing_is_drawn_outside_its_figure(folder: Path) -> None:
    for drawing in (part for part in parsed(page.write(folder)).iter() if part.get("role") == "img"):
        width, height = (float(part) for part in (drawing.get("viewBox") or "").split()[2:])
        for text in (part for part in drawing.iter() if part.tag.endswith("text")):
            assert 0 <= float(text.get("x", "nan")) <= width
            assert 0 <= float(text.get("y", "nan")) <= height
        for path in (part for part in drawing.iter() if part.tag.endswith("path")):
            x, y = map(float, re.findall(r"-?[0-9.]+", path.get("d", "M0 0"))[:2])
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_no_text_of_an_axis_hides_another(folder: Path) -> None:
    """Base-line neighbours keep apart, at the width that the page assumes for its letters."""
    for drawing in (part for part in parsed(page.write(folder)).iter() if part.get("role") == "img"):
        rows: dict[str, list[tuple[float, float, str]]] = {}
        for text in (part for part in drawing.iter() if part.tag.endswith("text") and not part.get("class")):
            said = "".join(t for t in [text.text or "", *(child.tail or "" for child in text)])
            x, room = float(text.get("x", "0")), 6.2 * len(said)
            start = x - {"middle": room / 2, "end": room}.get(text.get("text-anchor", ""), 0.0)
            rows.setdefault(text.get("y", ""), []).append((start, start + room, said))
        for row in rows.values():
            for (_, end, left), (start, _, right) in zip(sorted(row), sorted(row)[1:], strict=False):
                assert end <= start + 1, (left, right)


def test_names_from_files_cannot_become_markup(tmp_path: Path) -> None:
    folder = campaign_runs.make(tmp_path / "run", "layer", trials=2)
    record, rows = campaign_runs.load(folder)
    text = json.dumps(record).replace("embedding.weight", "NAME").replace('"none"', '"NAME"')
    record = json.loads(text.replace("NAME", json.dumps(HOSTILE)[1:-1]))
    record["subject"]["name"] = HOSTILE
    rows = [row | {"variant": HOSTILE} for row in rows]
    campaign_runs.write(folder, record, rows, record["analysis"]["summary"])
    root = parsed(page.write(folder))
    assert not list(root.iter("script"))
    assert not [part for part in root.iter("b") if not words(part)]
    assert "<script>alert(1)</script>" in words(root)
    assert "\x00" not in words(root)
    assert "\u202e" not in words(root)
    assert "\\u202e" in words(root)


def test_failed_trials_are_shown_as_failures(tmp_path: Path) -> None:
    folder = campaign_runs.make(tmp_path / "run", "sweep", trials=3)
    record, rows = campaign_runs.load(folder)
    last = record["points"][-1]["id"]
    for row in rows:
        if (row["point"], row["variant"]) == (last, "none"):
            row["metrics"] = {"accuracy": "nan", "loss": "inf"}
    for cell in record["analysis"]["summary"]:
        if (cell["point"], cell["variant"]) == (last, "none"):
            cell |= {"failures": 3, "worst": math.nan, "q05": math.nan, "median": math.nan}
            cell |= {"mean": math.nan, "mean_low": math.nan, "mean_high": math.nan}
    campaign_runs.write(folder, record, rows, record["analysis"]["summary"])
    root = parsed(page.write(folder))
    row = next(row for label, row in _rows(root, "accuracy of every point") if label == "10⁻²" and "none" in words(row))
    cells = [words(cell) for cell in row if cell.tag == "td"]
    assert cells[0] == "none"
    assert cells[1] == "failed"
    assert cells[-1] == "3"
    assert [part for part in root.iter() if part.get("class") == "failed"]
    assert "Infinity" not in page.write(folder).read_text("utf-8")


def test_a_page_says_the_verdict_first(sweep: Path) -> None:
    main = parsed(page.write(sweep)).find("./body/main")
    assert main is not None
    box = next(part for part in main if part.get("role") == "status")
    assert box.get("class") == "verdict fail"
    assert words(box).startswith("FAIL fisher-0.5%")
    assert [part.tag for part in main][:3] == ["h1", "p", "div"]


def test_sections_without_data_are_left_out(tmp_path: Path) -> None:
    folder = campaign_runs.make(tmp_path / "run", "sweep", trials=2)
    record, rows = campaign_runs.load(folder)
    for name in ("checks", "identity", "command", "limit", "clean", "metrics", "run"):
        del record[name]
    record["analysis"] = {"summary": record["analysis"]["summary"]}
    campaign_runs.write(folder, record, rows, record["analysis"]["summary"])
    titles = [words(title) for title in parsed(page.write(folder)).iter("h2")]
    assert titles == [
        "What was tested",
        "Function under faults",
        "Variants compared",
        "What the channel did",
        "Other metrics",
    ]


def test_devices_are_shown_with_operating_point_source_and_confidence(tmp_path: Path) -> None:
    root = parsed(page.write(campaign_runs.make(tmp_path / "run", "device", trials=3)))
    label, row = _rows(root, "devices")[0]
    cells = [words(cell) for cell in row]
    assert label == "nand.mlc"
    assert cells[1:] == ["pe 0, days 90", "bsc:2.3e-05", "B", "Cai et al., DATE 2012, table 2"]
    assert "Failures in time" in words(root)
    assert "stretches and devices fail independently" in words(root)


@pytest.mark.parametrize("kind", ["sweep", "layer"])
def test_the_terminal_table_is_short_and_of_plain_signs(kind: str, tmp_path: Path) -> None:
    record, rows = campaign_runs.load(campaign_runs.make(tmp_path / "run", kind, trials=3))
    text = campaign.text(record, rows)
    assert text.isascii()
    assert len(text.splitlines()) < 32
    assert max(map(len, text.splitlines()[1:])) <= 110
    assert text.startswith("FAIL: fisher-0.5%: " if kind == "sweep" else "Faults in ")
    assert "clean accuracy: 0.8763" in text


def test_the_terminal_table_keeps_the_judged_variant_where_rows_are_left_out(sweep: Path) -> None:
    text = campaign.text(*campaign_runs.load(sweep))
    assert len(re.findall(r"fisher-0\.5%  +[0-9]", text)) == 9
    assert "... and 7 more (--json has all)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "'other'"),
    ],
)
def test_records_of_another_format_are_refused(change: dict[str, Any], message: str, sweep: Path) -> None:
    record, rows = campaign_runs.load(sweep)
    with pytest.raises(UsageError, match=message):
        build(record | change, rows)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"campaign\.json is missing"):
        page.write(tmp_path)
    (tmp_path / "campaign.json").write_text("{", "utf-8")
    (tmp_path / "results.jsonl").write_text("", "utf-8")
    with pytest.raises(UsageError, match="damaged"):
        page.write(tmp_path)


def test_figures_are_written_in_every_format(sweep: Path) -> None:
    pytest.importorskip("matplotlib")
    written = figures.write(sweep, ("svg",))
    assert {path.name for path in written} >= {
        "rate-accuracy.svg",
        "trials-accuracy.svg",
        "redundancy-accuracy.svg",
        "paired-accuracy.svg",
        "rate-loss.svg",
    }
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in written)


def test_the_same_plot_gives_the_same_files(sweep: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = views.main(read(sweep), "accuracy")
    assert plot is not None
    first, second = (figures.save(plot, tmp_path / name, ("png", "pdf", "svg")) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("kind", ["layers", "bit"])
def test_figures_of_layers_and_bits_are_written(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = figures.write(campaign_runs.make(tmp_path / "run", kind, trials=2), ("png",))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_figures_without_matplotlib_say_what_to_install(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ckptguard\[figures\]'"):
        figures.write(sweep)


def test_unknown_formats_of_figures_are_refused(sweep: Path) -> None:
    with pytest.raises(UsageError, match="'gif'"):
        figures.write(sweep, ("gif",))


def test_a_frontier_shows_every_point_and_puts_no_redundancy_at_the_left_end() -> None:
    uniform = [(0.02, 85.0, 84.0, 86.0), (0.0, 20.0, 18.0, 22.0)]
    methods = [("uniform", uniform), ("fisher", [(0.0004, 86.0, 85.5, 86.5)])]
    plot = plots.frontier(methods, y_label="accuracy (%)", clean=87.6)
    drawing = ElementTree.fromstring(svg.draw(plot))
    assert plot.lines[0].x[0] < 0.0004
    assert plot.lines[0].y == (20.0, 85.0)
    texts = [words(part) for part in drawing.iter() if part.tag.endswith("text")]
    assert "0" in texts
    assert [part for part in drawing.iter() if part.tag.endswith("title") and "fisher: r = 0.0004" in words(part)]


def test_a_damage_table_has_one_cell_per_tensor_and_bit() -> None:
    values = [[1e-9, 10.0, 0.0], [1e-3, math.inf, math.nan]]
    plot = plots.damage(["a", "b"], values, unit="loss")
    drawing = ElementTree.fromstring(svg.draw(plot, svg.NARROW))
    titles = [words(part) for part in drawing.iter() if part.tag.endswith("title")]
    assert "a, 0: 1·10⁻⁹" in titles
    assert "b, 1: all trials failed" in titles
    assert len([title for title in titles if re.match("[ab], ", title)]) == 5


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_every_series_stands_out_from_its_page(colours: tuple[str, ...]) -> None:
    page_colour = "#ffffff" if colours is palette.LIGHT else "#14161a"
    assert min(html.contrast(colour, page_colour) for colour in colours) >= 3.0


@pytest.mark.parametrize("colours", [palette.HEAT_LIGHT, palette.HEAT_DARK], ids=["light", "dark"])
def test_numbers_on_heat_colours_can_be_read_and_the_colours_are_in_order(colours: tuple[str, ...]) -> None:
    assert min(html.contrast(html.ink(colour), colour) for colour in colours) >= 4.5
    bright = [html.luminance(colour) for colour in colours]
    assert bright == sorted(bright, reverse=colours is palette.HEAT_LIGHT)


def test_contrast_is_that_of_the_guidelines() -> None:
    """Black on white is 21; #767676 is the lightest grey that passes 4.5 on white (WCAG 2.2, G18)."""
    assert html.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert html.contrast("#767676", "#ffffff") >= 4.5 > html.contrast("#777777", "#ffffff")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (87.1, 88.0, (87.2, 87.4, 87.6, 87.8, 88.0)),
        (-30.0, 70.0, (-20.0, 0.0, 20.0, 40.0, 60.0)),
        (3.0, 3.0, (3.0,)),
    ],
)
def test_marks_are_round_numbers_inside_the_axis(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert ticks.linear(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e-6, 1e-2, ["10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²"]),
        (1e-3, 0.1, ["0.001", "0.01", "0.1"]),
        (2e-4, 9e-4, ["2·10⁻⁴", "5·10⁻⁴"]),
        (1e-12, 1.0, ["10⁻¹²", "10⁻¹⁰", "10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²", "1"]),
    ],
)
def test_marks_of_a_logarithmic_axis_are_powers_of_ten(low: float, high: float, expected: list[str]) -> None:
    assert ticks.powers(ticks.logarithmic(low, high)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.87634, "0.8763"), (-1.5, "−1.5"), (6229.4, "6229"), (12345.6, "12,346"), (1.5e-7, "1.5·10⁻⁷"), (2e9, "2·10⁹")],
)
def test_values_have_four_digits(value: float, text: str) -> None:
    assert ticks.short(value) == text


def test_rounding_never_gives_ten_times_a_power() -> None:
    assert ticks.short(9.97e-12, 2) == "1·10⁻¹¹"


@pytest.mark.parametrize(("most", "step"), [(4, 8), (8, 4), (16, 2), (32, 1)])
def test_bit_positions_are_marked_at_powers_of_two(most: int, step: int) -> None:
    assert ticks.whole(-0.6, 31.6, most) == tuple(map(float, range(0, 32, step)))


def test_signs_of_a_keyboard_say_the_same() -> None:
    assert ticks.keyboard("3·10⁻⁵ – 10⁻² and −1.5·10¹²") == "3e-05 to 1e-02 and -1.5e+12"


def test_thinned_trials_keep_the_worst_and_the_best() -> None:
    values = [float(i % 997) for i in range(5000)]
    kept = svg.thinned(values)
    assert len(kept) == plots.MOST_DOTS
    assert (kept[0], kept[-1]) == (0.0, 996.0)


def test_markup_escapes_text_and_attributes() -> None:
    made = markup.element("p", "<b>", title="\"'<&>")
    assert ElementTree.fromstring(made).attrib == {"title": "\"'<&>"}
    assert ElementTree.fromstring(made).text == "<b>"


@pytest.mark.parametrize(
    ("metric", "higher"), [("accuracy", True), ("loss", False), ("perplexity", False), ("top5", True)]
)
def test_what_is_better_follows_from_the_name_where_the_campaign_is_silent(metric: str, higher: bool) -> None:
    run = Run({}, (), (), (metric,), {}, {})
    assert run.better_is_higher(metric) is higher


def test_a_real_campaign_gives_a_page_a_table_and_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    weights = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    safetensors.numpy.save_file({"a.weight": weights, "b.weight": weights[:4]}, tmp_path / "model.safetensors")

    def score(state: Mapping[str, Any]) -> dict[str, float]:
        lost = sum(float(np.abs(np.nan_to_num(value, nan=9.0)).clip(0, 9).mean()) for value in state.values())
        return {"accuracy": max(0.0, 1.5 - 0.5 * lost)}

    run = campaign_sweep.sweep(
        tmp_path / "model.safetensors",
        tmp_path / "run",
        evaluator=score,
        framework="np",
        ber=(1e-4, 1e-2),
        trials=3,
        masks="top:9",
        code="secded:72,64",
        controls=True,
        limit="accuracy=-0.1",
        jobs=1,
    )
    root = parsed(page.write(tmp_path / "run"))
    titles = [words(title) for title in root.iter("h2")]
    assert {"Function under faults", "Variants compared", "Threshold error rates", "Checks"} <= set(titles)
    labels = {label for label, _ in _rows(root, "accuracy of every point")}
    assert labels == {"10⁻⁴", "10⁻²"}
    text = campaign.text(run.campaign, [row.to_json() for row in run.rows])
    assert text.startswith(f"{run.campaign['analysis']['verdict']}: ")
    assert len(figures.write(tmp_path / "run", ("png",))) >= 3
