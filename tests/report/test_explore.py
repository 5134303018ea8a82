"""`maskfold explore`: its page, its files, what it prints and its exit status."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from competition.cli import main
from competition.config.loading import load_experiment
from tests.conftest import ROOT
from tests.explore.planted import SOUND, picture, plant, sound, write
from tests.report.conftest import Page, check_self_contained

GROUP = "^([a-z]+)_"
PICTURES = {"sizes.png", "intensities.png", "samples.png", "classes.png", "objects.png"}


def competition_yaml(folder: Path, root: Path, **changes: object) -> Path:
    """Write `competition.yaml`."""
    plain: dict[str, object] = {
        "name": "host",
        "root": str(root),
        "dimensions": 2,
        "classes": ["cell"],
        "group": GROUP,
        "train": {"images": "images/{id}.png", "masks": "masks/{id}.png"},
        "test": {"images": "test/{id}.png"},
    }
    path = folder / "competition.yaml"
    path.write_text(yaml.safe_dump(plain | changes))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Run `maskfold explore` with these arguments; return its exit status."""
    monkeypatch.setattr("sys.argv", ["maskfold", "explore", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_data_without_faults_exit_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(tmp_path / "data")
    file = competition_yaml(tmp_path, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, file, f"root={tmp_path / 'data'}") == 0
    said = capsys.readouterr().out
    assert re.search(r"^cases +12 +3$", said, re.MULTILINE) and "0 faults, 0 remarks" in said
    assert "\x1b" not in said and "│" not in said
    assert {path.name for path in (tmp_path / "reports" / "host").iterdir()} == {
        *PICTURES,
        "cases.csv",
        "findings.csv",
        "suggested.yaml",
    }
    page = Page(tmp_path / "reports" / "host.html")
    check_self_contained(page)
    assert "None." in page.text and page.text.count("Minimum / median / maximum") == 1


def test_faults_are_on_the_terminal_on_the_page_and_in_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = competition_yaml(tmp_path, plant(tmp_path / "data"))
    output = tmp_path / "deep" / "look.html"
    assert run(monkeypatch, file, "-o", output) == 1
    said = capsys.readouterr().out
    page = Page(output)
    check_self_contained(page)
    rows = list(csv.DictReader((output.with_suffix("") / "findings.csv").read_text(encoding="utf-8").splitlines()))
    kinds = {(row["weight"], row["kind"]) for row in rows}
    assert kinds == {
        ("fault", "files"),
        ("fault", "image"),
        ("fault", "mask"),
        ("fault", "conflict"),
        ("remark", "group"),
        ("remark", "duplicate"),
        ("remark", "near-duplicate"),
        ("remark", "empty"),
    }
    for row in rows:
        line = f"{row['weight']} ({row['kind']}): {row['message']} {row['hint']}"
        assert line in said and row["message"] in page.text and row["hint"] in page.text
    cases = {
        row["id"]: row
        for row in csv.DictReader((output.with_suffix("") / "cases.csv").read_text().splitlines())
        if row["split"] == "train"
    }
    assert (
        cases["cut_1"]["faults"] == "1" and cases["cut_1"]["image_mean"] == "" and cases["p_0"]["cell_objects"] == "2"
    )
    assert (output.with_suffix("") / "alike.png").is_file()
    assert "6 faults, 5 remarks" in said


def test_printed_snippet_is_valid_in_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(tmp_path / "data")
    file = competition_yaml(tmp_path, tmp_path / "data")
    run(monkeypatch, file, "-o", tmp_path / "x.html")
    snippet = (tmp_path / "x" / "suggested.yaml").read_text()
    assert snippet in capsys.readouterr().out
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        "competition: competition.yaml\nmodel: {target: monai.networks.nets.BasicUNet}\n"
        f"loss: {{target: monai.losses.DiceLoss}}\n{snippet}"
    )
    exp = load_experiment(experiment)
    assert (exp.patch.size, exp.folds.scheme, exp.folds.k) == ([64, 64], "group", 4)


def test_page_of_volumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], demo3d: Path
) -> None:
    assert (
        run(
            monkeypatch,
            ROOT / "experiments" / "demo3d" / "competition.yaml",
            f"root={demo3d}",
            "-o",
            tmp_path / "x.html",
        )
        == 0
    )
    said = capsys.readouterr().out
    assert re.search(r"^orientation +[A-Z]{3} in \d, .+[A-Z]{3} in \d", said, re.MULTILINE) and "prepare:" in said
    assert {path.name for path in (tmp_path / "x").glob("*.png")} == PICTURES
    check_self_contained(Page(tmp_path / "x.html"))


def test_names_with_markup_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class has a name that is HTML, and an id is markup of rich."""
    sound(tmp_path / "data", ids=(*SOUND, "p_[red]x[", "q_$x_1$"))
    (tmp_path / "data" / "masks" / "p_[red]x[.png").unlink()
    file = competition_yaml(tmp_path, tmp_path / "data", classes=["<script>alert(1)<script>"])
    assert run(monkeypatch, file, "-o", tmp_path / "x.html") == 1
    assert re.search(r"fault \(files\): .*p_\[red\]x\[.*images/p_\[red\]x\[\.png", capsys.readouterr().out)
    page = Page(tmp_path / "x.html")
    check_self_contained(page)
    assert "script" not in page.tags and "<script>alert(1)<script>" in page.text


def test_figures_of_an_earlier_exploration_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = competition_yaml(tmp_path, plant(tmp_path / "data"))
    run(monkeypatch, file, "-o", tmp_path / "x.html")
    (tmp_path / "data" / "images" / "near_1.png").unlink()
    (tmp_path / "data" / "masks" / "near_1.png").unlink()
    run(monkeypatch, file, "-o", tmp_path / "x.html")
    assert not (tmp_path / "x" / "alike.png").exists()
    assert "alike" not in [value for tag, name, value in Page(tmp_path / "x.html").attributes if name == "id"]


def test_skipped_cases_are_remarks_and_not_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(tmp_path / "data")
    (tmp_path / "data" / "masks" / "p_0.png").unlink()
    file = competition_yaml(tmp_path, tmp_path / "data")
    assert run(monkeypatch, file, "-o", tmp_path / "x.html") == 1
    assert "competition.on_bad_case=skip" in capsys.readouterr().out
    assert run(monkeypatch, file, "on_bad_case=skip", "-o", tmp_path / "x.html") == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^remark \(left out\): .*p_0.* `maskfold cv` skips this case \(on_bad_case: skip\)\.$", said, re.MULTILINE
    )
    assert "on_bad_case=skip" not in said and "0 faults, 1 remark" in said
    assert re.search(r"^skipped by cv +1 +0$", said, re.MULTILINE)
    (tmp_path / "data" / "masks" / "p_0.jpg").write_bytes(b"")
    file = competition_yaml(tmp_path, tmp_path / "data", on_bad_case="skip", classes=["cell", "never"])
    assert run(monkeypatch, file, "-o", tmp_path / "x.html") == 1, "other faults count as ever"


def test_legend_of_sizes_is_below_the_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The points are all over the panel, so the legend is below it."""
    from competition.explore import explore
    from competition.report import explore as explore_report
    from tests.host import competition, write_png

    for number, size in enumerate([(50, 50), (50, 90), (90, 50), (90, 90), (70, 70), (50, 70), (70, 50)]):
        write(tmp_path, f"c_{number}", *picture(number, size))
        write_png(tmp_path / "test" / f"t_{number}.png", picture(90 + number, size)[0])
    drawn = []
    monkeypatch.setattr(explore_report, "save_figure", lambda figure, path: drawn.append(figure))
    explore_report.draw_sizes(explore(competition(tmp_path, test={"images": "test/{id}.png"})), tmp_path / "sizes.png")
    (figure,) = drawn
    figure.canvas.draw()
    (axes,), (box,) = figure.axes, figure.legends
    assert axes.get_legend() is None and [text.get_text() for text in box.get_texts()] == ["train (7)", "test (7)"]
    assert box.get_window_extent().y1 <= axes.get_window_extent().y0


def test_page_without_readable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        for kind in ("images", "masks"):
            path = tmp_path / "data" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no picture")
    file = competition_yaml(tmp_path, tmp_path / "data", group=None, test=None)
    assert run(monkeypatch, file, "-o", tmp_path / "x.html") == 1
    said = capsys.readouterr().out
    assert said.count("cannot be read") == 3 and "Suggested" not in said
    check_self_contained(Page(tmp_path / "x.html"))


@pytest.mark.parametrize(
    ("words", "named"), [(["root=/nowhere"], "/nowhere"), (["classes=7"], "classes"), (["-o", "page.txt"], "page.txt")]
)
def test_invalid_arguments_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    sound(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, competition_yaml(tmp_path, tmp_path / "data"), *words) == 2
    assert named in capsys.readouterr().err


def test_many_findings_of_one_kind_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound(tmp_path / "data", ids=tuple(f"p_{number}" for number in range(30)))
    for path in sorted((tmp_path / "data" / "masks").iterdir())[5:]:
        path.unlink()
    assert run(monkeypatch, competition_yaml(tmp_path, tmp_path / "data"), "-o", tmp_path / "x.html") == 1
    said = capsys.readouterr().out
    assert said.count("but no mask:") == 20 and re.search(r"^fault \(files\): .*\b5 more", said, re.MULTILINE)
    assert Page(tmp_path / "x.html").text.count("but no mask:") == 25
    assert "25 faults," in said
