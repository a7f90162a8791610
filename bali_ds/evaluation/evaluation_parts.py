"""Parts of a run's final evaluation: each is written when it is computed, and kept if the evaluation is interrupted."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.evaluation.run_results import EVALUATION, read_evaluation
from bali_ds.files import write_json
from bali_ds.terminal import print_progress


class EvaluationParts:
    """Writes evaluation.json; its key `made_from` has the hash of what each part was computed from.

    Attributes:
        figures: the parts so far, by name.
    """

    def __init__(self, run: Path, common: dict[str, Any]) -> None:
        """Read an earlier evaluation of the run; one that is damaged is replaced.

        Args:
            run: the run directory.
            common: JSON values that all parts depend on, such as the hash of the checkpoint.
        """
        self._file, self._common = run / EVALUATION, common
        self._earlier: dict[str, Any] = {}
        try:
            self._earlier = read_evaluation(run)
        except InputError as error:
            print_progress(f"{error}; it is written again")
        self.figures: dict[str, Any] = {"made_from": {}}

    def add(self, name: str, settings: dict[str, Any], compute: Callable[[], Any]) -> None:
        """Keep a part of the earlier evaluation if that had the same settings, or else compute it, and write the file.

        Args:
            name: key of the part.
            settings: JSON values that this part depends on.
            compute: returns the part.
        """
        text = json.dumps([self._common, settings], sort_keys=True)
        made_from = hashlib.sha256(text.encode()).hexdigest()
        earlier = self._earlier.get("made_from", {})
        if name in self._earlier and earlier.get(name) == made_from:
            print_progress(f"{name}: evaluated before, from the same checkpoint and settings; kept")
            self.figures[name] = self._earlier[name]
        else:
            self.figures[name] = compute()
        self.figures["made_from"][name] = made_from
        # the parts that follow stay until they are reached: another interruption may come first
        write_json(self._file, {**self._earlier, **self.figures, "made_from": {**earlier, **self.figures["made_from"]}})

    def finish(self) -> None:
        """Write the parts that were added, without those of an earlier evaluation that were not."""
        write_json(self._file, self.figures)
