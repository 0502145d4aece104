"""The study: summaries against figures put together by hand, tables, and documents against what is committed."""

import itertools
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from commands import ROOT, config_of

from cdisc.app import config as config_lib
from cdisc.app.stages import benchmark
from cdisc.evaluation import protocol, study

COMMITTED = {path.stem: path for path in (ROOT / "docs" / "study").glob("*.json")}


def figures(joint, **changes):
    return dict.fromkeys(protocol.SCALARS) | {"joint_accuracy": joint, "samples": 8, "attribute_accuracy": {}} | changes


def results_of(values, dataset="planar", **methods):
    """A results file of classes a, b, ... with two seeds each, whose `poe` has `values` (classes, seeds)."""
    queries = [
        {"name": f"{c}{seed}", "attributes": {"x": c}, "seed": seed, "methods": {"poe": figures(value)}}
        for c, row in zip("abcdefgh", values, strict=False)
        for seed, value in enumerate(row)
    ]
    for name, shift in methods.items():
        for query in queries:
            query["methods"][name] = figures(query["methods"]["poe"]["joint_accuracy"] + shift)
    told = {
        "dataset": dataset,
        "data_hash": "d",
        "config_hash": "c",
        "versions": {},
        "features": "the judge's",
        "seconds": {"adapt": 7200},
    }
    return told | {"queries": queries, "methods": {name: {} for name in queries[0]["methods"]}}


def test_a_summary_has_intervals_over_classes_and_paired_differences():
    # Catches: seeds as independent items, whose interval would be narrower; methods resampled apart, whose difference
    # would have a width; a figure that no class has.
    values = np.asarray([[0.1, 0.3], [0.4, 0.6], [0.5, 0.7], [0.9, 0.9]])
    summary = study.summarise(results_of(values, lora=-0.25, lora_query=0.1, composed=0.25), {})
    estimate, low, high = summary["methods"]["poe"]["joint_accuracy"]
    means = values.mean(axis=1)
    assert estimate == pytest.approx(means.mean())
    error = means.std() / 2
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert summary["differences"]["lora - poe"] == {"joint_accuracy": pytest.approx([-0.25] * 3)}
    assert summary["differences"]["lora - lora_query"] == {"joint_accuracy": pytest.approx([-0.35] * 3)}
    assert summary["differences"]["composed - lora"] == {"joint_accuracy": pytest.approx([0.5] * 3)}
    beside_poe = {f"{name} - poe" for name in ("lora", "lora_query", "composed")}
    assert set(summary["differences"]) == beside_poe | {"lora - lora_query", "composed - lora"}
    assert list(summary["methods"]["poe"]) == ["joint_accuracy"]
    assert (summary["classes"], summary["queries"], summary["seeds"], summary["samples"]) == (4, 8, [0, 1], 8)


def test_a_sweep_compares_configurations_on_the_same_classes():
    # Catches: the difference's sign, another method's figures, a difference of unpaired intervals.
    values = np.asarray([[0.1], [0.4], [0.9]])
    runs = {"as it is": results_of(values, lora=0.0), "other": results_of(values + 0.05, lora=0.5)}
    found = study.sweep(runs, "poe", "as it is")
    assert found["other"]["joint_accuracy"]["difference"] == pytest.approx([0.05] * 3)
    assert found["as it is"]["joint_accuracy"]["difference"] is None
    assert found["other"]["joint_accuracy"]["estimate"][0] == pytest.approx(values.mean() + 0.05)
    assert set(found["other"]) == {"joint_accuracy"}


def test_one_class_has_no_interval_and_no_difference():
    summary = study.summarise(results_of([[0.2, 0.4]], lora=0.1), {})
    assert summary["methods"]["poe"]["joint_accuracy"] == [pytest.approx(0.3), None, None]
    assert summary["differences"] == {"lora - poe": {}}
    assert "| poe | 0.30 |" in study.markdown(summary)


def test_a_method_is_compared_on_the_classes_that_both_have():
    # Catches: the classes of one method beside other ones of the other.
    results = results_of([[0.1], [0.5], [0.9]], lora=0.2)
    results["queries"][1]["methods"]["lora"]["joint_accuracy"] = None
    summary = study.summarise(results, {})
    assert summary["differences"]["lora - poe"]["joint_accuracy"] == pytest.approx([0.2] * 3)
    assert summary["methods"]["lora"]["joint_accuracy"][0] == pytest.approx((0.3 + 1.1) / 2)


def test_tables_stand_beside_the_papers_values_and_name_what_differs():
    results = results_of([[0.1], [0.5], [0.9]], dataset="colormnist", lora=0.2)
    pooled = {of: {name: 0.5 for name, _ in study.PAPER_COLUMNS.values()} for of in protocol.COMPARISONS}
    for comparison in pooled.values():
        comparison["standard_error"] = dict.fromkeys(comparison, 0.01)
    results["methods"]["poe"]["pooled"] = pooled
    settings = study.PUBLISHED["colormnist"] | {"discover.starts_per_t": 4, "evaluate.seeds": (42,)}
    summary = study.summarise(results, settings)
    text = study.markdown(summary)
    assert "| poe | here | 0.500 ± 0.010 | 50.0 ± 1.0 | 50.0 ± 1.0 | 50.0 ± 1.0 | 50.0 ± 1.0 |" in text
    assert "| lora | the paper's | 62.6 ± 2.5 | 95.1 ± 0.1 | 89.5 ± 2.0 | 88.0 ± 2.8 | 87.6 ± 2.1 |" in text
    assert "| lora | the paper's | 84.7 ± 2.8 |" in text
    assert "* config.discover.starts_per_t is 4, and 128 in the paper." in text
    assert len([said for said in summary["deviations"] if said.startswith("config.")]) == 1
    assert "the judge's features, not in Inception's" in text
    assert "| lora - poe | **+0.20 [+0.20, +0.20]** |" in text
    assert "has no planar" in study.markdown(study.summarise(results_of([[0.1], [0.5]]), {}))


def test_without_pools_generalization_is_that_of_single_queries():
    results = results_of([[0.1], [0.5]], dataset="colormnist")
    for query in results["queries"]:
        query["methods"]["poe"] |= {"frechet_distance": 12.25, "f1": 0.25}
    summary = study.summarise(results, {})
    text = study.markdown(summary)
    assert "| poe | here | 12.2 | - | - | - | 25.0 |" in text
    assert "**Faithfulness" not in text
    assert any("no set of queries to be faithful to" in said for said in summary["deviations"])


def test_latex_has_the_rows_of_the_markdown_and_escapes_what_is_special():
    summary = study.summarise(results_of([[0.1], [0.5]], query_only=0.5), {})
    text = study.latex(summary)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(study.tables(summary))
    assert r"query\_only - poe & \textbf{+0.50 [+0.50, +0.50]}" in text
    assert not re.search(r"(?<!\\)[_%](?!.*compare)", text.split(r"\begin{table}", 1)[1])


def test_a_chart_has_a_row_for_each_method_at_its_place():
    # Catches: intervals of another method, marks outside the axes, an axis without its unit and number.
    summary = study.summarise(results_of([[0.0], [0.5], [1.0]], lora=0.5), {})
    text = study.chart(summary, "joint_accuracy")
    root = xml.etree.ElementTree.fromstring(text)
    marks = [float(mark.get("cx")) for mark in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert marks == [pytest.approx(180 + 380 * 0.5 / 1.5, abs=0.1), pytest.approx(180 + 380 * 1.0 / 1.5, abs=0.1)]
    assert "joint accuracy, mean and 95% interval over 3 classes" in text
    assert text.count("stroke-width") == 2


@pytest.mark.parametrize("name", ["colormnist.py", "avatars.py", "letters.py", "celeba.py"])
def test_a_benchmark_adds_what_knows_the_query_alone_with_the_same_budget(name):
    # Catches: a baseline of fewer steps, another rate or start; a level that is added twice; seeds that are lost.
    variant = {"colormnist.py": "small", "avatars.py": "small", "letters.py": "small", "celeba.py": "avatars"}[name]
    config = config_lib.read(config_of(name, variant))
    found = benchmark.expanded(config)
    levels, before = found.adapt.levels, config.adapt.levels
    assert levels["lora"] == before["lora"] and before["lora"].pool != "query"
    changed = {f: v for f, v in vars(levels["lora_query"]).items() if v != getattr(before["lora"], f)}
    assert changed == {"pool": "query"}
    changed = {f: v for f, v in vars(levels["inversion"]).items() if v != getattr(before["embedding"], f)}
    assert changed in ({"start": "normal", "candidates": 1}, {"start": "normal"})
    for new, old in (("lora_query", "lora"), ("inversion", "embedding")):
        assert vars(found.evaluate.methods[new]) == vars(config.evaluate.methods[old]) | {"level": new}
    assert (found.evaluate.per_class, found.evaluate.seeds) == (1, (0, 1, 2))
    assert benchmark.expanded(found) == found
    config = config_of("mixture.py")
    config.evaluate.update(per_class=3, seeds=(7,))
    again = benchmark.expanded(config_lib.read(config)).evaluate
    assert (again.per_class, again.seeds, again.methods) == (3, (7,), {})


def test_the_page_is_that_of_the_committed_summaries():
    # Catches: a table edited by hand, summaries that were replaced without the page.
    from benchmarks.study import page

    assert COMMITTED
    assert (ROOT / "docs" / "study.md").read_text(encoding="utf-8") == page()


HEADERS = {header: figure for figure, header, _ in study.SHOWN} | {"of right samples": "right_recall"}


def _tables() -> list:
    """(document, data set, methods, table) of each table that says that it shows figures of the study."""
    found = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        for dataset, methods, table in re.findall(r"<!-- study (\w+): (.*?) -->\n+((?:\|.*\n)+)", text):
            found.append(pytest.param(dataset, methods.split(", "), table, id=f"{path.name}-{dataset}"))
    return found


def check(summary: dict, methods: list[str], table: str) -> int:
    """Compares a table's numbers with a summary, to the digits that they have; returns how many there were."""
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines())
    compared = 0
    for method, row in zip(methods, rows, strict=True):
        for name, cell in itertools.islice(zip(header, row, strict=True), 1, None):
            known = summary["methods"][method][HEADERS[name]]
            for value, text in zip(known, re.findall(r"-?\d+\.\d+|-?\d+", cell), strict=False):
                digits = len(text.partition(".")[2])
                assert f"{round(value, 9) + 0.0:.{digits}f}" == text, (method, name, text, value)
                compared += 1
    return compared


@pytest.mark.parametrize(("dataset", "methods", "table"), _tables())
def test_figures_of_the_documents_are_those_of_the_study(dataset, methods, table):
    summary = json.loads(COMMITTED[dataset].read_text(encoding="utf-8"))
    assert check(summary, methods, table) > 0


def test_the_comparison_finds_a_wrong_digit():
    summary = {"methods": {"poe": {"joint_accuracy": [0.974, 0.9, 1.0], "right_recall": [0.02, None, None]}}}
    table = "| method | joint accuracy | of right samples |\n|---|---|---|\n| x | 0.97 [0.90, 1.00] | 0.02 |\n"
    assert check(summary, ["poe"], table) == 4
    for right, wrong in (("0.97", "0.98"), ("0.90", "0.91"), ("0.02", "0.03")):
        with pytest.raises(AssertionError, match="poe"):
            check(summary, ["poe"], table.replace(right, wrong))


def test_what_is_told_without_a_judge_is_as_committed():
    # Catches: a figure of the page that another run has changed.
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "docs" / "trust.json").read_text(encoding="utf-8"))
    for mean, deviation in found["novelty"].values():
        assert f"| {mean:.2f}, {deviation:.2f} |" in text
    for kind in ("factors by the sum of parts", "factors by the nearest class"):
        for estimate, low, high in found[kind].values():
            assert f"{estimate:.2f} ({low:.2f} to {high:.2f})" in text
    estimate, low, high = found["variance of wrong samples"]
    assert f"{estimate:.2f} ({low:.2f} to {high:.2f})" in text
    assert all(f"{share:.3f}" in text for share in found["right"].values())


def test_what_discovery_buys_in_the_plane_is_as_committed():
    # Catches: a rounded figure, an interval or a bold face that the measurement does not give.
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    figures = {"nats": "likelihood", "accuracy": "draws", "recall of right": "draws", "coverage": "draws"}
    for variant, measures in json.loads((ROOT / "docs" / "likelihood.json").read_text(encoding="utf-8")).items():
        table = text.split(f"\n| {variant} cells")[1].split("\n\n")[0]
        for start, row in (
            ("product", "product of the concepts"),
            ("query", "N(query, s^2 I)"),
            ("var", "N(query, v)"),
        ):
            found = {m: next(row for name, row in of.items() if name.startswith(start)) for m, of in measures.items()}
            values = [found[measure][figure][0] for figure, measure in figures.items()]
            assert f"| {row} | " + " | ".join(f"{value:.3f}" for value in values) + " |" in table
            differences = (found[measure][f"product minus it, {figure}"] for figure, measure in figures.items())
            cells = (f"{at:+.3f} [{low:+.3f}, {high:+.3f}]" for at, low, high in differences)
            shown = [f"**{cell}**" if cell.count("+") in (0, 3) else cell for cell in cells]
            assert start == "product" or "| product minus " + row + " | " + " | ".join(shown) + " |" in table
