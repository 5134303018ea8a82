"""What a run says of its cases, members, weights and predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from competition.config.competition import Competition
from competition.errors import MaskfoldError
from competition.runs.fold import PLAIN_WEIGHTS, RESULT_FILE, SOUP_WEIGHTS, FoldJob, FoldResult
from competition.runs.run import load_run
from competition.training.cross_validate import open_run

SEEDS = "seed=[5, 6]"


@pytest.fixture
def opened(tiny, tmp_path, monkeypatch):
    """`opened("folds.k=3")`: a run of ten 2D cases whose folder is not written."""
    monkeypatch.chdir(tmp_path)
    return lambda *overrides: open_run(tiny(2, *overrides), "demo2d-tiny")


def finish(run, fold, seed, weights=PLAIN_WEIGHTS):
    """Write the result of a member that was not trained."""
    plain = {"score": 0.5, "dice": {}, "epochs": 1, "steps": 1, "minutes": 1.0, "peak_gib": 1.0, "threads": 1}
    words = {"precision": "32-true", "device": "cpu", "torch": "2", "stopped": ""}
    result = FoldResult(fold=fold, seed=seed, weights=weights, **plain, **words)
    run.member_folder(fold, seed).mkdir(parents=True, exist_ok=True)
    result.write(run.member_folder(fold, seed))
    return result


# Cases


def test_each_case_is_validated_by_one_fold_and_trains_the_others(opened):
    run = opened("folds.k=3")
    validated = [run.validation_cases(fold) for fold in run.fold_numbers()]
    assert sorted(pd.concat(validated)["id"]) == sorted(run.cases["id"]) and len(validated) == 3
    for fold, table in enumerate(validated):
        assert list(table.columns) == list(run.cases.columns)
        assert {run.fold_of()[case] for case in table["id"]} == {fold}
        order = run.cases["id"].tolist()
        assert table["id"].tolist() == sorted(table["id"], key=order.index)
        assert run.training_ids(fold) == [case for case in run.folds["id"] if case not in set(table["id"])]
    assert run.test_share().empty


def test_a_fold_that_is_named_twice_is_trained_once(opened):
    assert opened("folds.run=[1, 0, 1]").members() == [(1, 0), (0, 0)]


def test_the_fit_on_all_cases_trains_on_all_and_validates_none(opened):
    run = opened("folds.scheme=holdout", "folds.shares=[0.6, 0.2, 0.2]")
    assert run.training_ids(-1) == run.folds["id"].tolist()
    assert run.validation_cases(-1).empty and list(run.validation_cases(-1).columns) == list(run.cases.columns)


def test_a_holdout_has_one_fold_and_a_test_share(opened):
    run = opened("folds.scheme=holdout", "folds.shares=[0.6, 0.2, 0.2]")
    assert run.fold_numbers() == [0] and run.members() == [(0, 0)]
    parts = [set(run.training_ids(0)), set(run.validation_cases(0)["id"]), set(run.test_share()["id"])]
    assert [len(part) for part in parts] == [6, 2, 2] and len(set.union(*parts)) == 10
    assert set(run.fold_of().values()) == {-1, 0, -2}


def test_rows_are_in_the_order_of_the_table(opened):
    run = opened()
    rows, ids = run.rows(), run.cases["id"].tolist()
    assert list(rows) == ids and all(row.id == case for case, row in rows.items())
    assert vars(rows[ids[3]]) == run.cases.iloc[3].to_dict()
    assert list(run.rows([ids[4], "unknown", ids[1]])) == [ids[1], ids[4]]
    assert list(run.rows(case for case in ids[:2])) == ids[:2] and run.rows([]) == {}


def test_groups_are_those_of_the_competition(opened):
    run = opened()
    assert run.groups() is None
    comp = Competition.model_validate({**run.exp.competition.model_dump(), "group": "(.*)"})
    grouped = replace(run, exp=run.exp.model_copy(update={"competition": comp}))
    grouped.cases["group"] = [f"patient {number // 2}" for number in range(10)]
    assert grouped.groups() == {case: f"patient {number // 2}" for number, case in enumerate(run.cases["id"])}


def test_the_full_name_is_experiment_and_hash(opened):
    run = opened()
    assert run.full_name == f"demo2d-tiny/{run.folder.name}"


# Members


def test_a_run_of_several_seeds_with_a_missing_fold(opened):
    run = opened(SEEDS, "folds.k=3", "folds.run=[2, 0]")
    assert run.members() == [(2, 0), (2, 1), (0, 0), (0, 1)]
    assert run.possible_members() == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (-1, 0), (-1, 1)]
    assert run.finished_members() == [] and run.results() == [] and run.checkpoints() == []
    written = [finish(run, *member) for member in [(2, 1), (0, 0), (-1, 0), (0, 1)]]
    assert run.finished_members() == [(0, 0), (0, 1), (2, 1), (-1, 0)]
    assert run.results() == [written[1], written[3], written[0], written[2]]
    assert run.result(2, 1) == written[0] and run.result(1, 0) is None and run.result(2, 0) is None
    assert [folder.name for folder in sorted(run.folder.iterdir())] == [
        "fold_0",
        "fold_0_seed_1",
        "fold_2_seed_1",
        "full",
    ]


def test_folds_that_do_not_exist_cannot_be_selected(opened):
    with pytest.raises(MaskfoldError, match="found fold 7") as caught:
        opened("folds.run=[7]").members()
    assert caught.value.status == 2


def test_a_damaged_result_is_an_error(opened):
    run = opened()
    finish(run, 0, 0)
    (run.member_folder(0, 0) / RESULT_FILE).write_text("{")
    for read in (run.results, run.finished_members, run.checkpoints, lambda: run.weights(0, 0)):
        with pytest.raises(MaskfoldError, match="is damaged"):
            read()


# Weights and predictions


def test_weights_are_those_that_the_result_selects(opened):
    run = opened(SEEDS)
    assert run.weights(1, 1) == run.folder / "fold_1_seed_1" / PLAIN_WEIGHTS  # not finished
    finish(run, 0, 0, SOUP_WEIGHTS)
    finish(run, 0, 1)
    assert run.weights(0, 0).name == SOUP_WEIGHTS and run.weights(0, 1).name == PLAIN_WEIGHTS
    with pytest.raises(MaskfoldError, match="Cannot read the weights") as caught:
        run.checkpoints()
    assert str(run.member_folder(0, 0)) in caught.value.hint
    (run.weights(0, 0)).write_bytes(b"soup")
    (run.weights(0, 1)).write_bytes(b"")
    first, second = run.checkpoints()
    assert (first.path, first.fold, first.seed, first.size) == (run.weights(0, 0), 0, 0, 4)
    assert (second.seed, second.size) == (1, 0)
    assert second.sha256 == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_networks_have_the_weights_of_their_members(finished, tiny):
    run = finished(tiny(2, SEEDS))
    networks = list(run.networks(1))
    assert len(networks) == 4 and len({id(network) for network in networks}) == 4
    assert not any(network.training for network in networks)
    inputs = torch.zeros(1, 1, 32, 32)

    def outputs(network):
        with torch.no_grad():
            return network(inputs).numpy()

    separate = [outputs(network) for network in networks]
    assert not np.array_equal(separate[0], separate[1])
    shared, reused = [], set()
    for network in run.networks(1, "cpu", reuse=True):
        shared.append(outputs(network))
        reused.add(id(network))
    np.testing.assert_array_equal(shared, separate)
    assert len(reused) == 1
    (only,) = run.networks(1, members=[(1, 1)])
    np.testing.assert_array_equal(outputs(only), separate[3])
    run.weights(1, 1).unlink()
    with pytest.raises(MaskfoldError, match="do not exist"):
        list(run.networks(1))


def test_out_of_fold_predictions_of_the_finished_folds(finished, tiny):
    run = finished(tiny(2, SEEDS))
    oof = run.oof()
    assert oof.fold_of == {case: run.fold_of()[case] for case in run.cases["id"]}
    assert list(oof.rows()) == run.cases["id"].tolist()
    assert {fold: len(stores) for fold, stores in oof.stores.items()} == {0: 2, 1: 2}
    for seed in (0, 1):
        (run.member_folder(1, seed) / RESULT_FILE).unlink()
    first = run.oof()
    assert set(first.fold_of.values()) == {0} and set(first.rows()) == set(run.validation_cases(0)["id"])
    assert run.oof((1,)).rows() == {}
    (store, *_) = run.oof(weights=SOUP_WEIGHTS).stores[0]
    assert store.folder == run.member_folder(0, 0) / "soup_oof"


# Files


def test_a_run_read_from_its_folder_is_the_same(opened):
    run = opened("folds.scheme=holdout", "folds.shares=[0.6, 0.2, 0.2]", SEEDS)
    run.write()
    back = load_run(run.folder)
    assert back.fold_of() == run.fold_of() and back.full_name == run.full_name
    assert back.members() == run.members() == [(0, 0), (0, 1)]
    assert {case: vars(row) for case, row in back.rows().items()} == {
        case: vars(row) for case, row in run.rows().items()
    }


def test_a_result_and_a_job_come_back_from_their_files(opened, tmp_path):
    run = opened()
    result = finish(run, 1, 0)
    assert FoldResult.read(run.member_folder(1, 0)) == result == run.result(1, 0)
    job = FoldJob(run.folder, run.member_folder(1, 0), 1, 0, tmp_path / "prepared", 2, ("mine",))
    assert FoldJob.from_json(job.to_json()) == job
