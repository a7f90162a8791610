"""The linking benchmark on the sample data set, so that it runs when it is needed."""

import json
import subprocess
import sys

import pytest

from bench.inputs.linking_split import HELD_OUT
from bench.linking_scores import Material, key, unpacked
from bench.linking_table import FOLDS, Grid, named_scorings
from tests.conftest import REPOSITORY, TIMEOUT_FACTOR

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.timeout(1200)
def test_rows_are_complete_and_kept(tmp_path):
    out = tmp_path / "linking.json"
    command = [sys.executable, REPOSITORY / "bench/linking_quality.py", "--device", "cpu", "--sample", "--out", out]
    command += ["--folder", tmp_path / "sample", "--steps", "2", "--seeds", "1"]

    def run(*options):
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, check=False, timeout=1100 * TIMEOUT_FACTOR
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("--variants", "untrained", "recipe", "names and mentions", "recipe, averaged")
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["untrained", "recipe", "names and mentions", "recipe, averaged"]
    assert all(row["tokens"] > 0 for row in rows[1:])
    hits = rows[0]["hits"]
    right = dict(zip(hits["scorings"], unpacked(hits["held_out"], len(hits["scorings"]), 1390), strict=True))
    exact, remembered = (right[f"context=0 graph=0 memory={memory} spelling=0"] for memory in ("none", "0.1"))
    assert 0.25 < exact.mean() < remembered.mean()
    table = run("--variants", "untrained", "recipe", "--table")
    assert "alone → names" in table
    assert "| recipe: any, without memory | untrained: alone → names |" in table
    assert "| names and mentions |" not in table
    assert json.loads(out.read_text())["rows"] == rows
    _folds_are_scored_with_what_was_best_on_the_others(rows, tmp_path / "sample")


def _folds_are_scored_with_what_was_best_on_the_others(rows, folder):
    grid = Grid(rows, Material.open(folder), HELD_OUT)
    documents, strata = grid.documents.tolist(), grid.strata
    hits = rows[1]["hits"]
    right = dict(zip(hits["scorings"], unpacked(hits[HELD_OUT], len(hits["scorings"]), len(documents)), strict=True))
    family = named_scorings()["both → names and graph views"]
    choice = grid.chosen("recipe", family)
    scored = grid.right("recipe", choice)[0]
    for fold in range(FOLDS):
        outside = [row for row, document in enumerate(documents) if document % FOLDS != fold]

        def measure(scoring, outside=outside):
            total = 0.0
            for stratum in ("new pair", "unseen", "ambiguous"):
                kept = [row for row in outside if strata[stratum][row]]
                total += sum(right[key(scoring)][row] for row in kept) / max(1, len(kept))
            return total

        best = choice.of_folds[fold]
        assert measure(best) >= max(map(measure, family)) - 1e-9
        inside = sorted(set(range(len(documents))) - set(outside))
        assert scored[inside].tolist() == right[key(best)][inside].tolist()
