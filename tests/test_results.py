"""The page of measured results: it is what its records say, and the records can be used by others."""

import datetime
import json
import re
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY
from test_readme import PAGES, split

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import results  # noqa: E402

RECORDS = sorted(file.stem for file in results.RECORDS.glob("*.json"))
WORDS = ["--title", "Steps", "--said", "More is better.", "--paper", "none", "--command", "echo 3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A repository of results alone."""
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setattr(results, "RECORDS", tmp_path / "docs/results")
    monkeypatch.setattr(results, "PAGE", tmp_path / "docs/results.md")
    monkeypatch.setitem(results.FOUND, "commit", lambda: "0123abc")
    return tmp_path


def test_the_page_is_what_the_records_say():
    assert RECORDS
    written = results.page({name: results.read(name) for name in RECORDS})
    assert results.PAGE.read_text(encoding="utf-8") == written, "run: python scripts/results.py"


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_can_be_measured_again(name):
    # That the commands and their options exist is checked of the page, as of every other (test_readme.py).
    for command in results.read(name)["commands"]:
        assert list(split(command)), f"{command}: no script of ours, no command of fairseq's"


def test_links_to_tables_lead_to_one():
    titles = {results.anchor(results.read(name)["title"]) for name in RECORDS}
    for page in (*PAGES, *(REPOSITORY / "examples").glob("*/README.md")):
        assert set(re.findall(r"results\.md#([^)]+)", page.read_text(encoding="utf-8"))) <= titles, page


@pytest.mark.parametrize("plot", sorted(results.RECORDS.glob("*.png")), ids=lambda plot: plot.stem)
def test_plots_are_small_and_of_a_record(plot):
    assert plot.stem in RECORDS and plot.stat().st_size <= results.PLOT_BYTES


def test_a_record_is_made_changed_and_measured_again(folder, capsys):
    table, plot = folder / "runs/study.txt", folder / "runs/study.png"
    table.parent.mkdir()
    table.write_text("steps  score\n    1      2\n\n")
    plot.write_bytes(b"png")
    made = "printf '|a|\\n|-|\\n|4|\\n' >runs/study.txt; printf new >runs/study.png"
    results.main(["--add", "steps", *WORDS, "--command", made, "--table", str(table), "--plot", str(plot)])
    record = json.loads((folder / "docs/results/steps.json").read_text())
    assert record["table"] == ["steps  score", "    1      2"] and record["output"] == "runs/study.txt"
    assert record["commit"] == "0123abc" and record["date"] == datetime.date.today().isoformat()
    assert "cores" in record["machine"] and "torch" in record["machine"]
    page = results.PAGE.read_text()
    assert "\n    steps  score\n        1      2\n\n![Steps](results/steps.png)" in page

    results.main(["--add", "steps", "--said", "Fewer is worse.", "--date", "2026-01-01"])
    changed = json.loads((folder / "docs/results/steps.json").read_text())
    assert changed == {**record, "said": "Fewer is worse.", "date": "2026-01-01"}

    with pytest.raises(UserError, match="runs/study.png, runs/study.txt is there, and would not be measured again"):
        results.main(["--run", "steps"])
    results.main(["--run", "steps", "--continue"])
    again = json.loads((folder / "docs/results/steps.json").read_text())
    assert again == {**record, "said": "Fewer is worse.", "table": ["|a|", "|-|", "|4|"]}
    assert again["plot"] == "runs/study.png"
    assert "\n|a|\n|-|\n|4|\n" in results.PAGE.read_text()
    assert (folder / "docs/results/steps.png").read_bytes() == b"new"
    assert "read again" in capsys.readouterr().out
    for file in (table, plot):
        file.unlink()
    results.main(["--add", "steps", "--command", "printf 5 >runs/study.txt"])
    results.main(["--run", "steps"])
    assert results.read("steps")["table"] == ["5"] and "of the old table, and is gone" in capsys.readouterr().out
    assert not (folder / "docs/results/steps.png").exists()


def test_a_plot_that_grew_too_large_costs_no_measured_table(folder, capsys):
    table, plot = folder / "runs/study.txt", folder / "runs/study.png"
    table.parent.mkdir()
    table.write_text("4")
    plot.write_bytes(b"png")
    made = f"printf 5 >runs/study.txt; truncate -s {results.PLOT_BYTES + 1} runs/study.png"
    results.main(["--add", "steps", *WORDS, "--command", made, "--table", str(table), "--plot", str(plot)])
    results.main(["--run", "steps", "--continue"])
    assert results.read("steps")["table"] == ["5"] and not (folder / "docs/results/steps.png").exists()
    assert "draw it smaller" in capsys.readouterr().out


def test_a_table_of_elsewhere_is_what_the_last_command_prints(folder, tmp_path_factory):
    table = tmp_path_factory.mktemp("elsewhere") / "table.txt"
    table.write_text("2")
    results.main(["--add", "steps", *WORDS, "--table", str(table), "--commit", "fedcba9", "--machine", "another"])
    record = results.read("steps")
    assert (record["commit"], record["machine"], "output" in record) == ("fedcba9", "another", False)
    results.main(["--run", "steps"])
    assert results.read("steps")["table"] == ["3"]


@pytest.mark.parametrize("words, said", [
    (["--title", "Steps"], "give --said, --paper, --command"),
    ([*WORDS, "--said", "Made in /home/me/study."], "'/home/me/study.' is a path"),
    ([*WORDS, "--commit", "main"], "'main' is no commit"),
    ([*WORDS, "--date", "yesterday"], "yesterday"),
    ([*WORDS, "--plot", "large.png"], "500001 bytes"),
])
def test_a_record_that_others_could_not_use_is_refused(folder, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    (folder / "table.txt").write_text("2")
    (folder / "large.png").write_bytes(bytes(results.PLOT_BYTES + 1))
    with pytest.raises((UserError, ValueError), match=said):
        results.main(["--add", "steps", *words, "--table", "table.txt"])
    assert list(results.RECORDS.iterdir()) == []


def test_a_measurement_that_fails_changes_nothing(folder):
    (folder / "table.txt").write_text("2")
    results.main(["--add", "steps", *WORDS, "--command", "exit 3", "--table", str(folder / "table.txt")])
    before = results.file_of("steps").read_text()
    with pytest.raises(UserError, match="status 3"):
        results.main(["--run", "steps"])
    assert results.file_of("steps").read_text() == before
    with pytest.raises(UserError, match="choose among steps"):
        results.main(["--run", "stops"])


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_with_changes_is_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/study.py").write_text("1")
    with pytest.raises(UserError, match="give --commit"):
        results.commit()
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "notes.txt").write_text("no code")
    assert re.fullmatch("[0-9a-f]{7,}", results.commit())
    (tmp_path / "scripts/study.py").write_text("2")
    assert results.commit().endswith("-dirty")
