"""The page: whole in itself, well formed, and true to what it was given."""

import base64
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Iterator
from html import parser
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from commands import ROOT
from PIL import Image

from cdisc import storage
from cdisc.app.report import cards, figures, html
from cdisc.app.report import results as results_lib
from cdisc.data import pictures
from cdisc.diffusion.exact import GaussianMixture
from cdisc.diffusion.gaussian import Gaussian
from cdisc.discovery import modes, selection
from cdisc.discovery.concepts import Discovery, DiscoveryInfo

_VOID = {"img", "meta", "br", "source", "link", "input", "hr"}


class _Reader(parser.HTMLParser):
    """Collects a document's pictures and text, and fails on tags that do not match."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.charts: dict[str, list[tuple[str, dict[str, str | None]]]] = {}
        self.sources: list[str] = []
        self.names: list[str] = []
        self.words: list[str] = []
        self.feed(document)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "svg":
            self.charts[dict(attrs)["aria-label"] or ""] = []
        elif "svg" in self.open:
            next(reversed(self.charts.values())).append((tag, dict(attrs)))
        self.sources.extend(value or "" for name, value in attrs if name in ("src", "srcset", "href"))
        self.names.extend(value or "" for name, value in attrs if name == "id")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _pixels(image: dict[str, str | None]) -> np.ndarray:
    source = image["src"]
    assert source is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def _image(reader: _Reader, start: str) -> dict[str, str | None]:
    found = [image for image in reader.images if (image["alt"] or "").startswith(start)]
    assert len(found) == 1
    return found[0]


def _measures(accuracy: float | None, recall: float | None, **extra: Any) -> dict[str, Any]:
    return {
        "joint_accuracy": accuracy,
        "attribute_accuracy": {"digit_colour": accuracy},
        "precision": None,
        "recall": recall,
        "distance_to_query": 0.25,
        **extra,
    }


def _results() -> dict[str, Any]:
    error = {**_measures(0.02, 0.01), "distance_to_query": None}
    return {
        "schema_version": results_lib.SCHEMA_VERSION,
        "dataset": "colormnist",
        "data_hash": "def",
        "config_hash": "c0ffee",
        "seed": 5,
        "versions": {"jax": "0.10.2"},
        "seconds": {"pretrain": 1234.5, "discover": 2.0},
        "queries": [
            {"name": "q", "attributes": None, "source": "s", "prototypes": [], "nfe": nfe, "methods": {}}
            for nfe in (2000, 2500)
        ],
        "methods": {
            "poe": _measures(0.701, 0.1, samples=1200, queries=2, standard_error=error),
            "top1": _measures(0.699, 0.3, samples=1200, queries=2, standard_error=error),
        },
    }


def _panel(shape: tuple[int, ...] = (8, 8, 3), concepts: int = 2, **changes: Any) -> cards.Panel:
    """A query with a pool of one mode more than its concepts, which are picked from last to first."""
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.ones(max(concepts, 1)), shape)
    size = concepts + 1
    entry = {
        "name": "cyan 3",
        "attributes": {"digit_colour": "cyan", "digit": "3"},
        "prototypes": [
            {"t": 50 * (j + 1), "basin": 1234, "gain": -5.4, "curvature": None, "residual": 0.0}
            for j in range(concepts)
        ],
        "methods": {"poe": _measures(0.5, 0.25, samples=7)},
        **changes,
    }
    discovery = Discovery(
        pool=modes.ModePool(
            x=rng.uniform(-1, 1, (size, *shape)),
            m=rng.uniform(-1, 1, (size, *shape)),
            t=np.full(size, 50),
            basin=np.ones(size, int),
            residual=np.zeros(size),
            curvature=np.full(size, -0.5),
            mask=np.ones(size, bool),
        ),
        experts=Gaussian(mean=rng.uniform(-1, 1, (size, *shape)), variance=rng.uniform(0.1, 1, (size, *shape))),
        selection=selection.Selection(
            indices=np.array([*range(concepts, 0, -1), 0]),
            mask=np.arange(size) < concepts,
            gains=np.zeros(size),
        ),
        ownership=np.concatenate([np.moveaxis(shares, -1, 0)[:concepts], np.zeros((1, *shape))]),
        teacher=Gaussian(mean=rng.uniform(-1, 1, shape), variance=rng.uniform(0.1, 1, shape)),
        info=DiscoveryInfo(*[np.int32(0)] * 12),
    )
    return cards.Panel(
        entry=entry,
        query=rng.uniform(-1, 1, shape),
        discovery=discovery,
        samples={"poe": rng.uniform(-1, 1, (7, *shape)), "top1": rng.uniform(-1, 1, (3, *shape))},
    )


def _page(*panels: cards.Panel, **changes: Any) -> html.Page:
    return html.Page(title="A title", results=_results(), panels=panels, **changes)


@pytest.fixture
def plane() -> html.Plane:
    def cells(*means: tuple[float, float]) -> GaussianMixture:
        return GaussianMixture(jnp.zeros(len(means)), jnp.asarray(means), jnp.full((len(means), 2), 0.01))

    return html.Plane(trained=cells((-1.0, -1.0), (1.0, 1.0)), held_out=cells((1.0, -1.0)))


def _is_whole(document: str) -> _Reader:
    """Checks that a document is well formed and needs nothing but itself; every picture is described."""
    reader = _Reader(document)
    assert reader.open == []
    inside = {f"#{name}" for name in reader.names}
    assert all(source.startswith("data:image/png;base64,") or source in inside for source in reader.sources)
    # A picture beside its name in the list of queries needs no words.
    assert all(image["alt"] or image["width"] == "28" for image in reader.images) and all(reader.charts)
    assert document.count("<script>") == document.count("<script") == 1
    assert "@import" not in document and document.count("url(") == document.count("url(#clip-")
    assert "http:" not in document and "https:" not in document
    return reader


def test_the_page_of_pictures_is_whole_and_made_for_light_and_dark() -> None:
    document = html.render(_page(_panel(), _panel((8, 8, 1))))
    reader = _is_whole(document)
    assert document.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in document
    # In the list, the query, two concepts, product, two sheets, three modes, two maps, variance, and three scales.
    assert len(reader.images) == 2 * (1 + 1 + 2 + 1 + 2 + 3 + 2 + 1 + 3)
    for expected in ("A title", "c0ffee", "jax 0.10.2", "1,234.5 s", "2,250 network evaluations"):
        assert expected in reader.text


def test_pictures_are_shown_pixel_for_pixel_and_scaled_by_a_whole_factor() -> None:
    panel = _panel()
    reader = _Reader(html.render(_page(panel)))
    found = panel.discovery
    assert found is not None
    query = _image(reader, "the query cyan 3")
    np.testing.assert_array_equal(_pixels(query), pictures.to_uint8(panel.query))
    assert query["class"] == "pixels"
    assert (query["width"], query["height"]) == ("144", "144")
    np.testing.assert_array_equal(_pixels(_image(reader, "mean of the product")), pictures.to_uint8(found.teacher.mean))
    # Concepts are the experts that were picked, from last to first.
    for number, picked in ((1, 2), (2, 1)):
        shown = _pixels(_image(reader, f"concept {number}"))
        np.testing.assert_array_equal(shown, pictures.to_uint8(found.experts.mean[picked]))
    np.testing.assert_array_equal(
        _pixels(_image(reader, "ownership of concept 1")), figures.ownership_map(found.ownership[0])
    )
    (elements,) = (of for name, of in reader.charts.items() if name.startswith("the regions of the query"))
    lines = [attrs["d"] for kind, attrs in elements if kind == "path"]
    assert lines == figures.outlines(found.ownership[:2])
    variance, low, high = figures.variance_map(found.teacher.variance)
    np.testing.assert_array_equal(_pixels(_image(reader, "variance of the product")), variance)
    assert f"{low:.2g}" in reader.text and f"{high:.2g}" in reader.text


def test_large_pictures_are_scaled_down_smoothly() -> None:
    query = _image(_Reader(html.render(_page(_panel((150, 300, 3), concepts=1)))), "the query")
    assert "class" not in query
    assert (query["width"], query["height"]) == ("148", "74")


def test_a_card_has_the_first_samples_and_says_how_many_there_are() -> None:
    panel = _panel()
    page = _page(panel)
    reader = _Reader(html.render(page, [cards.card(panel, samples_shown=4)]))
    sheet = _pixels(_image(reader, "samples of poe"))
    np.testing.assert_array_equal(sheet, pictures.grid(np.asarray(panel.samples["poe"])[:4]))
    assert "4 of 7 samples · joint 0.50 · recall 0.25 · distance 0.25" in reader.text
    assert "top1 3 samples" in reader.text


def test_queries_are_taken_one_by_one_and_shown_while_the_page_is_small(tmp_path: pathlib.Path) -> None:
    # Catches: thousands of queries held in memory, or in a page that no browser opens, or left out without a word.
    taken = []

    def panels() -> Iterator[cards.Panel]:
        for name in ("one", "two", "three"):
            taken.append((name, len(list(tmp_path.glob("cards/*.json")))))
            yield _panel((64, 64, 3), name=name)

    length = len(json.dumps(cards.card(_panel((64, 64, 3), name="one"))))
    page = _page(bytes_shown=int(2.5 * length))
    page.results["queries"].append(page.results["queries"][0])
    html.write(tmp_path, dataclasses.replace(page, panels=panels()))
    text = _is_whole((tmp_path / "index.html").read_text(encoding="utf-8")).text
    assert taken == [("one", 0), ("two", 1), ("three", 2)]
    assert "two" in text and "three" not in text
    assert "These are the first 2 of 3 queries" in text
    third = storage.read_json(tmp_path / "cards" / "query_0002.json", "")
    assert third == cards.card(_panel((64, 64, 3), name="three"))
    assert "These are the first" not in html.render(_page(_panel(), _panel()))
    assert "These are the first 1 of 2" in _Reader(html.render(_page(_panel(), bytes_shown=0))).text


def test_the_card_of_a_picture_says_all_that_was_found() -> None:
    # Catches: a share of another concept, a picture of another, a figure of another method; numbers that JSON has not.
    panel = _panel(novelty={"score": 2.0})
    found, card = panel.discovery, cards.card(panel)
    assert found is not None
    assert card["novelty"] == {"score": 2.0} and card["attributes"] == {"digit_colour": "cyan", "digit": "3"}
    assert [concept["t"] for concept in card["concepts"]] == [50, 100]
    for place, (concept, picked) in enumerate(zip(card["concepts"], (2, 1), strict=True)):
        assert concept["share"] == pytest.approx(found.ownership[place].mean())
        shown = _pixels({"src": concept["mean"]["source"]})
        np.testing.assert_array_equal(shown, pictures.to_uint8(found.experts.mean[picked]))
        assert concept["colour"] == figures.owner_colours(2)[place]
    assert card["samples"]["poe"]["figures"]["joint_accuracy"] == 0.5
    assert (card["samples"]["top1"]["drawn"], card["samples"]["top1"]["figures"]) == (3, {})
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    documented = (
        (ROOT / "docs" / "running.md").read_text(encoding="utf-8").split("## The card")[1].split("## Watching")[0]
    )
    parts = (card, card["concepts"][0], card["modes"][0], card["modes"][0]["tiles"][0], card["samples"]["poe"])
    assert {key for part in parts for key in part if f"`{key}`" not in documented} == set()


def test_methods_of_one_adaptation_are_turned_by_their_guidance() -> None:
    # Catches: a dial of one method, a sheet shown twice, marks that no dial names, baselines among the first.
    panel = _panel()
    for name in ("top1", "low", "high"):
        panel.samples[name] = panel.samples["poe"]
    page = _page(panel, dials={"high": {1.0: "low", 2.5: "high"}}, shown_first=("low", "high", "poe"))
    page.results["methods"] |= {name: page.results["methods"]["poe"] for name in ("low", "high")}
    document = html.render(page)
    reader = _is_whole(document)
    text = reader.text
    assert document.count('data-label="guidance of high"') == 2
    assert [document.count(f'data-step="{step}"') for step in ("1", "2.5")] == [2, 2]
    assert "high at guidance 2.5: joint accuracy 0.70, recall 0.10" in text
    assert len([image for image in reader.images if (image["alt"] or "").startswith("samples of high")]) == 1
    assert text.index("high, guidance 1") < text.index("What it is compared with") < text.index("top1 7 samples")


def test_captions_state_what_a_concept_is() -> None:
    text = _Reader(html.render(_page(_panel()))).text
    assert "Concept 2 t = 100 · basin 1,234 gain \N{MINUS SIGN}5 nats curvature \N{EN DASH}" in text
    assert "digit colour cyan digit 3" in text
    assert "(saddle)" not in text
    panel = _panel()
    panel.entry["prototypes"][1]["curvature"] = 0.25
    text = _Reader(html.render(_page(panel))).text
    assert text.count("(saddle)") == 1
    assert "Concept 2 (saddle) t = 100 · basin 1,234 gain \N{MINUS SIGN}5 nats curvature 0.25" in text


def test_what_a_discovery_left_out_is_said() -> None:
    # Catches: a share shown as if it were a percentage, one count in another's place, a residual at another level.
    counts = {"chains": 1920, "unconverged": 31, "dropped": 12, "leaders_dropped": 5, "saddles": 3}
    levels = {"timesteps": [50, 400], "smallest_residual": [0.0213, None]}
    info = counts | levels | {"clipped_below": 0.82, "clipped_above": 0.0, "experts_clipped_below": 0.25}
    text = _Reader(html.render(_page(_panel(discovery=info)))).text
    assert "Of 1,920 chains 31 did not converge and 12 were dropped; 5 points found no room and 3 were left" in text
    assert "82% are the floor, of the selected concepts' 25%" in text
    assert "pure noise: 0.021 at t = 50, \N{EN DASH} at t = 400." in text


def test_modes_stand_in_columns_from_fine_to_coarse_noise() -> None:
    # Catches: columns in another order, a saddle shown as a mode, more modes than the page has room for.
    panel = _panel(concepts=3)
    assert panel.discovery is not None
    pool = panel.discovery.pool.replace(
        t=np.array([50, 50, 50, 400]), basin=np.array([31, 21, 11, 61]), curvature=np.array([-0.5, 0.5, -0.5, -0.5])
    )
    panel = dataclasses.replace(panel, discovery=panel.discovery.replace(pool=pool))
    reader = _is_whole(html.render(_page(panel), [cards.card(panel, modes_shown=2)]))
    assert "t = 50 31 21 (saddle) 1 more t = 400 61" in reader.text
    np.testing.assert_array_equal(_pixels(_image(reader, "mode at t = 400")), pictures.to_uint8(pool.m[3]))
    # Places without a mode are not shown.
    absent = panel.discovery.replace(pool=pool.replace(mask=np.array([True, True, True, False])))
    assert "t = 400" not in _Reader(html.render(_page(dataclasses.replace(panel, discovery=absent)))).text


def _marks(reader: _Reader, chart: str, tag: str, *attributes: str) -> list[tuple[float, ...]]:
    """Where the elements of one kind stand in the chart whose description begins so."""
    (elements,) = (found for name, found in reader.charts.items() if name.startswith(chart))
    return [tuple(float(attrs[name] or "") for name in attributes) for kind, attrs in elements if kind == tag]


def test_the_hierarchy_is_drawn_once_with_parents_above_and_between_their_children() -> None:
    # Catches: levels upside down, a leaf over another's branch, a picture at another mode's place, thin main branches.
    # The children of mode 1 of t = 100 are the first and the last of their level: the middle one must not come between.
    levels = [
        {"t": 50, "modes": [{"parent": p, "basin": basin} for p, basin in ((1, 4), (0, 2), (1, 2))]},
        {"t": 100, "modes": [{"parent": 0, "basin": 2}, {"parent": 0, "basin": 6}]},
        {"t": 300, "modes": [{"parent": None, "basin": 8}]},
    ]
    pictures_of = [np.random.default_rng(i).uniform(-1, 1, (3 - i, 4, 4, 3)) for i in range(3)]
    page = _page(_panel(), _panel(), hierarchy={"nfe": 1234, "levels": levels}, hierarchy_modes=pictures_of)
    reader = _is_whole(html.render(page))
    assert "1,234 network evaluations" in reader.text
    (elements,) = (found for name, found in reader.charts.items() if name.startswith("the tree of modes from t = 50"))
    places = _marks(reader, "the tree", "image", "x", "y")
    images = [_pixels({"src": attrs["href"]}) for kind, attrs in elements if kind == "image"]
    for image, array in zip(images, [array for level in pictures_of for array in level], strict=True):
        np.testing.assert_array_equal(image, pictures.to_uint8(array))
    (first, middle, last), (left, right), (top,) = ([x for x, _ in places[i:j]] for i, j in ((0, 3), (3, 5), (5, 6)))
    assert right == pytest.approx((first + last) / 2)
    assert not first < middle < last and not last < middle < first
    assert top == pytest.approx((left + right) / 2)
    assert places[0][1] > places[3][1] > places[5][1]
    branches = [
        (attrs["d"] or "").replace("H", " ").replace("v", " ").split() for kind, attrs in elements if kind == "path"
    ]
    across = [float(path[3]) - 0.5 for path in branches]
    assert across == pytest.approx([right, left, right, top, top], abs=1e-3)
    widths = [attrs["style"] for kind, attrs in elements if kind == "path"]
    assert widths == [
        "stroke-width:3px",
        "stroke-width:2px",
        "stroke-width:2px",
        "stroke-width:2px",
        "stroke-width:4px",
    ]


def test_a_hierarchy_of_points_has_their_coordinates(plane: html.Plane) -> None:
    levels = [{"t": 50, "modes": [{"parent": None, "basin": 3}]}]
    page = _page(plane=plane, hierarchy={"nfe": 1, "levels": levels}, hierarchy_modes=[np.array([[0.25, -0.5]])])
    assert "0.25 \N{MINUS SIGN}0.50 3 t = 50" in _is_whole(html.render(page)).text


def test_the_table_has_means_with_errors_and_marks_what_prints_highest() -> None:
    document = html.render(_page())
    reader = _Reader(document)
    assert "Method Joint accuracy Digit colour Recall Distance to query poe" in reader.text
    assert "poe 1,200 samples, 2 queries 0.70 ± 0.02 0.70 ± 0.02 0.10 ± 0.01 0.25" in reader.text
    # On a narrow screen the heads of the columns stand beside their cells.
    heads = ["Joint accuracy", "Digit colour", "Recall", "Distance to query"]
    assert re.findall(r'<td data-heading="([^"]*)"', document) == 2 * heads
    # 0.701 and 0.699 print alike, so neither is better; the distance has no better end.
    assert re.findall(r'class="best">([^<]*)<', document) == ["0.30"]


def test_the_reference_and_columns_without_a_difference_have_no_winner() -> None:
    page = _page(reference="real")
    methods = page.results["methods"]
    methods["real"] = {**methods["poe"], "joint_accuracy": 1.0, "recall": 0.9}
    methods["top1"]["joint_accuracy"] = 0.5
    methods["poe"]["kid"], methods["top1"]["kid"] = 2.0, 1.0  # lower is better
    document = html.render(page)
    assert re.findall(r'class="best">([^<]*)<', document) == ["0.70", "0.30"]
    assert "; real, which are the class itself, take no part." in _Reader(document).text


def test_the_judge_is_judged() -> None:
    page = _page()
    assert "The judge" not in html.render(page)
    page.results["judge"] = {"joint_accuracy": 0.058}
    assert "5.8% of unseen real pictures" in _Reader(html.render(page)).text


def test_pooled_figures_have_tables_of_their_own_where_there_are_any() -> None:
    # Catches: the two comparisons swapped, a method without pooled figures in their tables.
    page = _page()
    assert "Faithfulness" not in _Reader(html.render(page)).text
    errors = {"precision": None, "recall": None, "f1": 0.02, "kid": None}
    page.results["methods"]["poe"]["pooled"] = {
        "faithfulness": {"precision": 0.9, "recall": 0.8, "f1": 0.847, "kid": 0.01, "standard_error": errors},
        "generalization": {"precision": 0.5, "recall": None, "f1": None, "kid": 0.2, "standard_error": errors},
        "classes": 23,
    }
    text = _Reader(html.render(page)).text
    rows = (
        text.split("Methods, all queries of a class together")[1].split("How to read")[0].split("lower is better.")[1]
    )
    assert "Method Precision Recall F1 KID poe 23 classes 0.90 0.80 0.85 ± 0.02 0.010" in rows
    assert rows.rstrip().endswith("Method Precision KID poe 23 classes 0.50 0.200")
    assert "top1" not in rows


def test_the_chart_has_recall_across_and_accuracy_up_and_needs_two_methods_with_both() -> None:
    # Catches: axes exchanged or upside down, an error bar across for one that stands upright.
    page = _page()
    methods = page.results["methods"]
    error = {**_measures(0.1, None)}
    methods["top1"] |= {"joint_accuracy": 1.0, "recall": 0.5, "standard_error": error}
    methods["none"] = {**methods["poe"], "recall": None}
    chart = "joint accuracy against recall"
    reader = _is_whole(html.render(page))
    assert _marks(reader, chart, "circle", "cx", "cy")[::2] == [(10.0, 29.9), (50.0, 0.0)]
    assert "1 1 poe top1 (n = 1200) 2 2 top1" in reader.text  # the title, the mark, the legend
    (elements,) = (found for name, found in reader.charts.items() if name.startswith(chart))
    bars = [attrs["d"] for kind, attrs in elements if attrs.get("class") == "outline"]
    assert bars == ["M9 29.9h2M10 27.9v4", "M50 0h0M50 -10v20"]
    methods["top1"]["recall"] = None
    assert chart not in html.render(page)


def test_no_table_without_methods_and_their_sentences_where_there_are() -> None:
    page = _page(methods={"poe": "The product guides."})
    assert "poe The product guides." in _Reader(html.render(page)).text
    page.results["methods"].clear()
    assert "Methods" not in html.render(page)


def test_a_query_that_no_concept_explains_has_a_panel() -> None:
    reader = _is_whole(html.render(_page(_panel(concepts=0))))
    assert "No concept explains this query better" in reader.text
    assert not any((image["alt"] or "").startswith("the owner") for image in reader.images)


def test_a_query_that_failed_says_why() -> None:
    # Catches: a failed query shown as one that the background explains.
    page = _page(_panel(concepts=0))
    next(iter(page.panels)).entry["failed"] = "the score led to no mode"
    text = _Reader(html.render(page)).text
    assert "For this query the score led to no mode." in text
    assert "No concept explains" not in text


def test_a_query_without_a_discovery_has_a_panel() -> None:
    panel = dataclasses.replace(_panel(prototypes=[]), discovery=None, samples={})
    reader = _is_whole(html.render(_page(panel)))
    assert _image(reader, "the query cyan 3")
    assert "their product" not in reader.text and "Who owns what" not in reader.text


def test_a_query_of_unknown_composition() -> None:
    panel = dataclasses.replace(_panel(attributes=None), samples={})
    text = _Reader(html.render(_page(panel))).text
    assert "digit colour cyan" not in text
    assert "Samples from this query alone" not in text


def test_every_text_from_outside_is_escaped() -> None:
    evil = "<b onload='x'>&amp;\""
    panel = _panel(name=evil, attributes={evil: evil})
    panel = dataclasses.replace(panel, samples={evil: np.zeros((1, 8, 8, 3))})
    results = _results()
    results.update(dataset=evil, config_hash=evil, versions={evil: evil}, seconds={evil: 1.0})
    results["methods"] = {evil: results["methods"]["poe"]}
    results["methods"][evil]["attribute_accuracy"] = {evil: 0.5}
    page = html.Page(title=evil, results=results, panels=(panel,), methods={evil: evil})
    document = html.render(page)
    reader = _is_whole(document)
    assert "<b onload" not in document
    # Unescaped by the parser, each comes back as it was: the head, the table, the legend, the panel and the run.
    assert reader.text.count(evil) == 17
    assert _image(reader, f"mean of the product for {evil}")


def test_the_page_of_points_is_whole_and_shows_all_samples(plane: html.Plane) -> None:
    page = _page(_panel((2,)), plane=plane)
    page.results["methods"]["top1"] = {**page.results["methods"]["poe"], "recall": None}
    document = html.render(page)
    reader = _is_whole(document)
    assert list(reader.charts) == [
        "the plane with the query cyan 3, 2 concepts and their product as 1-sigma ellipses",
        "samples of poe for cyan 3",
        "samples of top1 for cyan 3",
    ]
    assert "7 samples" in reader.text and "2 of 7" not in reader.text
    discovery = _panel((2,)).discovery
    assert discovery is not None
    mean, variance = discovery.teacher.mean[1], discovery.teacher.variance[1]
    shown = f"y: mean {mean:.2f}, variance {variance:.2g}".replace("-", "\N{MINUS SIGN}")
    assert shown in reader.text


def test_what_is_drawn_of_points_is_theirs(plane: html.Plane) -> None:
    # Catches: experts that were not picked, variances for standard deviations, an axis upside down, one colour for all.
    panel = _panel((2,))
    reader = _is_whole(html.render(_page(panel, plane=plane)))
    found, query = panel.discovery, np.asarray(panel.query)
    assert found is not None
    drawn = np.array(_marks(reader, "the plane", "ellipse", "cx", "cy", "rx", "ry"))
    cells = [[-1, 1, 0.2, 0.2], [1, -1, 0.2, 0.2], [1, 1, 0.2, 0.2]]  # two trained ones and one held out, at two sigma
    means = np.concatenate([found.experts.mean[[2, 1]], found.teacher.mean[None]])
    variances = np.concatenate([found.experts.variance[[2, 1]], found.teacher.variance[None]])
    expected = np.concatenate([cells, np.concatenate([means * [1, -1], np.sqrt(variances)], axis=1)])
    np.testing.assert_allclose(drawn, expected, rtol=1e-3)
    assert _marks(reader, "the plane", "circle", "cx", "cy") == [pytest.approx((query[0], -query[1]), rel=1e-3)]
    left, top, width, height = map(
        float, re.findall(r'viewBox="([^"]*)"', html.render(_page(panel, plane=plane)))[0].split()
    )
    assert left < -1.2 < 1.2 < left + width and top < -1.2 < 1.2 < top + height  # all cells are in view
    colours = figures.method_colours(["poe", "top1"])
    for name in ("poe", "top1"):
        (elements,) = (found for alt, found in reader.charts.items() if alt == f"samples of {name} for cyan 3")
        styles = {attrs["style"] for _, attrs in elements if attrs.get("class") == "sample"}
        assert styles == {f"color:{colours[name]}"}
        places = np.array(_marks(reader, f"samples of {name}", "circle", "cx", "cy"))[:-1]  # the last is the query
        np.testing.assert_allclose(places * [1, -1], panel.samples[name], rtol=1e-3)


def test_each_coordinate_is_divided_among_its_owners(plane: html.Plane) -> None:
    panel = _panel((2,))
    assert panel.discovery is not None
    widths = re.findall(r'style="background:(#\w+);width:(\d+)px"', html.render(_page(panel, plane=plane)))
    shares = (200 * panel.discovery.ownership[:2]).T.reshape(-1)  # x of both concepts, then y
    assert [colour for colour, _ in widths] == 2 * list(figures.owner_colours(2))
    assert [int(width) for _, width in widths] == pytest.approx(shares, abs=0.5)


def test_the_page_of_points_takes_a_query_that_no_concept_explains(plane: html.Plane) -> None:
    panel = dataclasses.replace(_panel((2,), concepts=0), samples={"poe": np.zeros((3, 2))})
    reader = _is_whole(html.render(_page(panel, plane=plane)))
    assert "Who owns each coordinate" not in reader.text


def test_points_need_the_plane() -> None:
    with pytest.raises(ValueError, match="needs `plane`"):
        html.render(_page(_panel((2,))))


def test_write_gives_the_same_bytes_each_time(tmp_path: pathlib.Path) -> None:
    page = _page(_panel())
    for name in ("a", "b"):
        html.write(tmp_path / name, page)
    assert (tmp_path / "a" / "index.html").read_bytes() == (tmp_path / "b" / "index.html").read_bytes()
    assert (tmp_path / "a" / "index.html").read_text(encoding="utf-8") == html.render(page)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"index.html", "cards"}
