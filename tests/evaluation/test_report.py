import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from bali_ds.cli import main
from bali_ds.config import ObjectiveConfig
from bali_ds.errors import InputError
from bali_ds.evaluation.charts import COLORS, line_chart, number, thinned, ticks
from bali_ds.evaluation.page import page
from bali_ds.evaluation.report import write_report
from bali_ds.evaluation.run_results import read_metrics

INTERVAL = {"value": 0.51, "low": 0.5, "high": 0.53}
VOID = {"meta", "line", "circle", "polyline"}


class Checker(HTMLParser):
    """Collects what a page refers to and whether its elements close."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # noqa: ARG002
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: <b>odd</b>\nseed: 1\n")
    rows = [
        {"step": step, "epoch": step / 9, "loss": 5 / step, "contrastive": 3 / step, "masked_language_model": 2 / step,
         "text_to_graph": 4 / step, "graph_to_text": 2 / step, "information_cap": 2.0,
         "learning_rate": 1e-5, "samples_per_second": 10.0, "data_wait": 0.1, "seconds": step}
        for step in range(1, 50)
    ]  # fmt: skip
    rows.insert(20, {"step": 20, "validation/text_to_graph_r@1": 0.3})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 50, "lo')
    subset = {"n": 1200, "acc@1": INTERVAL, "acc@5": INTERVAL, "mrr": INTERVAL}
    same = {"all": subset, "unique": subset, "unique_unseen_pair": subset | {"n": 7}}
    figures = {"untrained": same, "trained": same, "difference": same}
    log = ["2026-01-02T03:04:05+00:00    host  node01, 8 processors", "2026-01-02T03:04:06+00:00  step 1/49  epoch 0.1"]
    (tmp_path / "train.log").write_text("\n".join(log) + "\n")
    (tmp_path / "evaluation.json").write_text(json.dumps({"linking": figures}))
    return tmp_path


def test_the_page_is_whole_and_needs_no_network(run):
    checker = Checker()
    page = write_report(run).read_text()
    checker.feed(page)
    assert checker.open == []
    assert checker.links == []
    assert "http" not in page
    assert "url(" not in page
    text = " ".join(checker.text)
    for expected in (
        "Loss",
        "Throughput",
        "Retrieval on held-out passages",
        "51.0",
        "1,200 mentions",
        "seed: 1",
        "facts from text 0.0816",
        "Mutual information",
        "nats a pair",
        "all mentions, unique pairs",
        "host  node01, 8 processors",
        "contrastive, step 1: 3",
    ):
        assert expected in text
    assert "<b>odd" not in page
    assert "step 1/49" not in page  # the chart has it


def test_a_run_without_metrics_has_its_recipe(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("name: young\n")
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "young" in (tmp_path / "report.html").read_text()
    assert main(["report", str(tmp_path / "none")]) == 2


def test_half_a_last_line_is_left_out_and_damage_is_named(run):
    assert len(read_metrics(run / "metrics.jsonl")) == 50
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    with pytest.raises(InputError, match=r"metrics\.jsonl:2"):
        write_report(run)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.02), (-3, 17), (5, 5), (0, 0), (1e-6, 2e-5), (1e5, 1e6)])
def test_ticks_enclose_the_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8


def test_numbers_and_long_series():
    assert [number(value) for value in (0, 12000, 0.35, 2e-5, 1.5e-4, 2.0)] == [
        "0", "12,000", "0.35", "2e-5", "1.5e-4", "2",
    ]  # fmt: skip
    one = line_chart({"a": [(7.0, 0.25)], "b": [(7.0, 0.5)]}, x_label="step", y_label="y", from_zero=True)
    assert one.count('cx="340.0"') == 4  # two dots and what tells their values, halfway between the margins
    assert "a 0.25" in one
    points = [(float(x), float(x)) for x in range(1001)]
    assert len(thinned(points)) <= 400
    assert "no values" in line_chart({"x": [(1.0, float("nan"))]}, x_label="step", y_label="y")


def test_every_objective_and_their_total_have_a_color_of_the_page():
    """The decoder's losses stand in a chart of their own."""
    names = {"total", *ObjectiveConfig.model_fields} - {"dual"}
    drawn = line_chart({name: [(0, 1.0), (1, 2.0)] for name in names}, x_label="step", y_label="loss")
    for number_of_line in range(len(names)):
        assert f'class="line c{number_of_line}"' in drawn
        assert f".c{number_of_line} {{ --line:" in page("run", [], [])
    assert len(names) <= COLORS


def test_two_runs_are_compared_with_the_keys_that_differ(run, tmp_path_factory, monkeypatch):
    other = shutil.copytree(run, tmp_path_factory.mktemp("other") / "second")
    (other / "recipe.yaml").write_text("name: other\nseed: 1\noptimizer: {warmup: 0.5}\n")
    monkeypatch.chdir(other)
    assert main(["report", str(run), str(other)]) == 0
    checker = Checker()
    checker.feed((other / "comparison.html").read_text())
    assert checker.open == []
    text = " ".join(checker.text)
    for expected in (run.name, "second", "optimizer.warmup", "Loss", "51.0"):
        assert expected in text
    assert "seed" not in text
    assert main(["report", str(run), "--out", "x.html"]) == 2


@pytest.mark.parametrize("width", [420, 1200])
def test_the_page_fits_a_screen(run, tmp_path, width):
    """In Chromium, nothing but code that scrolls by itself is wider than the screen, and tables show all columns."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium")
    cut = "[...document.querySelectorAll('.wide')].filter(each => each.scrollWidth > each.clientWidth).length"
    size = "${document.documentElement.scrollWidth} of ${innerWidth}"
    measure = f"<script>document.title = `{size}, ${{{cut}}} cut`</script>"
    (tmp_path / "measured.html").write_text(write_report(run).read_text().replace("</body>", f"{measure}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command = [browser, *options, f"--window-size={width},900", "--dump-dom", f"file://{tmp_path}/measured.html"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout
    found = re.search(r"<title>(\d+) of (\d+), (\d+) cut</title>", said)
    assert found, said[:500]
    assert int(found[1]) <= int(found[2])
    assert found[3] == "0"  # no table hides a column
