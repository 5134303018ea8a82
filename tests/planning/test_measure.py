"""What a candidate's process does: its steps, a case, and the work of a fold's end that needs memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from competition.inference import sliding_window
from competition.planning.init import Initialised
from competition.planning.measure import largest_row, measure_here
from competition.planning.plan import PlanOptions, make_plan
from competition.records import read_record, write_json
from tests.host import write_png
from tests.planning.phantoms import picture

Start = Callable[..., Initialised]


def large_case(root: Path) -> None:
    """Eight small images, and one that is 36 times as large."""
    for number in range(9):
        image, mask = picture(number, (40, 48) if number else (240, 288))
        write_png(root / "images" / f"c{number}.png", image)
        write_png(root / "masks" / f"c{number}.png", mask)


@pytest.mark.xdist_group("serial")
def test_the_largest_case_is_predicted_with_two_views_and_drawn(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = start(large_case)
    train = [case for case in done.exploration.cases_of("train") if case.row is not None]
    largest = largest_row(train)
    assert largest is not None and largest[0]["id"] == "c0" and largest[1] == pytest.approx(36)
    jobs: list[dict[str, Any]] = []

    def measure(plain: dict[str, Any], rows: Any, folder: Path, threads: int, limit: float) -> str:
        jobs.append(plain)
        return "stopped"

    with pytest.raises(Exception, match="stopped"):
        make_plan(done.exploration, PlanOptions(2.0), measure=measure)
    plain = jobs[0]
    assert plain["inference"]["tta"] == "auto"
    from competition.config.loading import write_yaml

    folder = tmp_path / "measured"
    folder.mkdir()
    write_yaml(plain, folder / "experiment.yaml")
    write_json(folder / "job.json", {"rows": [largest[0]], "threads": 1, "seconds": 0.01})
    batches: list[tuple[int, int]] = []
    predict_batch = sliding_window._predict_batch

    def record(networks: Any, batch: torch.Tensor, views: Any, *rest: Any) -> Any:
        batches.append((len(batch), len(views)))
        return predict_batch(networks, batch, views, *rest)

    monkeypatch.setattr(sliding_window, "_predict_batch", record)
    threads = torch.get_num_threads()
    try:
        found = measure_here(folder)
    finally:
        torch.set_num_threads(threads)
    timed = [batch for batch in batches if batch[1] == 1]
    mirrored = [batch for batch in batches if batch[1] == 2]
    assert timed and mirrored and len(timed) + len(mirrored) == len(batches), "the times are those of one view"
    assert max(mirrored)[0] == max(timed)[0], "a whole batch of windows"
    assert len(mirrored) == 1, "the time of all views would be longer than that of training"
    assert (folder / "truth.png").exists()
    assert found.memory_gib > 0 and read_record(folder / "job.json")["threads"] == 1
