"""scripts/plot_losses.py: what it reads out of a log, and the picture it draws."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "plot_losses.py"
spec = importlib.util.spec_from_file_location("plot_losses_script", SCRIPT)
plot_losses = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot_losses)

PREFIX = "2026-01-01 10:00:00 | INFO | {} | "


def inner(update, **terms):
    record = {"epoch": 1, "update": 0.5, **terms, "num_updates": str(update), "lr": "0.1", "train_wall": "3"}
    return PREFIX.format("train_inner") + json.dumps(record)


def epoch(subset, update, **terms):
    record = {**terms, "num_updates": str(update), "wps": "9", "best_loss": "1", "train_wall": "3"}
    return PREFIX.format(subset) + json.dumps({"epoch": 1, **{f"{subset}_{k}": v for k, v in record.items()}})


LOG = [
    PREFIX.format("fairseq_cli.train") + "{'_name': None, 'common': {}}",
    "Model(\n  (layers): {}\n)",
    inner(10, loss="4.5", mse="2", prior="0"),
    inner(20, loss="4", mse="1.5", prior="1e-4"),
    epoch("valid", 20, loss="4.2", mse="1.6", prior="0"),
    epoch("train", 20, loss="4.25", mse="1.75", prior="0"),
    '{"epoch": 1, "loss": "3", "num_upd',
    '[1, 2] {"loss": "3"}',
]


@pytest.fixture
def log(tmp_path):
    def write(lines, name="train.log"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write


def test_terms_and_curves_come_from_the_records_only(log):
    assert plot_losses.read_series([log(LOG)]) == {
        "loss": {"train": [(10, 4.5), (20, 4.0)], "valid": [(20, 4.2)]},
        "mse": {"train": [(10, 2.0), (20, 1.5)], "valid": [(20, 1.6)]},
        "prior": {"train": [(10, 0.0), (20, 1e-4)], "valid": [(20, 0.0)]},
    }


def test_records_without_a_prefix_read_the_same(log):
    bare = [line[line.find("{") :] if " | " in line else line for line in LOG]
    assert plot_losses.read_series([log(bare)]) == plot_losses.read_series([log(LOG)])


def plain(record):
    """A JSON line as --log-format simple writes it."""
    before, _, text = record.rpartition(" | ")
    subset = before.rpartition(" | ")[2]
    values = {k.removeprefix(f"{subset}_"): v for k, v in json.loads(text).items() if k not in ("epoch", "update")}
    if subset == "train_inner":
        return f"{before} | epoch 001:     10 / 20 " + ", ".join(f"{k}={v}" for k, v in values.items())
    title = "epoch 001" if subset == "train" else f"epoch 001 | valid on '{subset}' subset"
    return f"{before} | {title} | " + " | ".join(f"{k} {v}" for k, v in values.items())


def test_plain_records_read_the_same(log):
    lines = [plain(line) for line in LOG[2:6]]
    assert " / " in lines[0] and "valid on 'valid' subset" in lines[2] and "{" not in "".join(lines)
    assert plot_losses.read_series([log(lines)]) == plot_losses.read_series([log(LOG)])


def test_broken_lines_are_numbered_and_others_are_not(log):
    whole = inner(30, mse="1")
    lines = [
        *LOG[:6],
        '{"epoch": 1, "loss": "3", "num_upd',
        plain(whole)[:-40],
        PREFIX.format("train_inner"),
        "\0\0\0",
        "| INFO | fairseq_cli.train | begin training epoch 1",
        "epoch 001:  50%|#####     | 10/20 [00:01<00:01, loss=3]",
        "{}",
        "\0\0" + whole,
    ]
    broken = {}
    series = plot_losses.read_series([log(lines)], broken=broken)
    assert list(broken.values()) == [[9, 10, 11, 12]]  # one line of LOG is three
    assert series["mse"]["train"][-1] == (30, 1.0)


def test_epoch_means_stand_in_where_there_is_no_train_inner(log):
    series = plot_losses.read_series([log([epoch("train", 20, mse="2"), epoch("valid1", 20, mse="3")])])
    assert series == {"mse": {"train": [(20, 2.0)], "valid1": [(20, 3.0)]}}


def test_a_resumed_training_replaces_what_it_repeats(log):
    first = log([inner(update, mse="1") for update in (10, 20, 30)], "a.log")
    second = log([inner(update, mse="2") for update in (20, 40)], "b.log")
    assert plot_losses.read_series([first, second])["mse"]["train"] == [(10, 1.0), (20, 2.0), (40, 2.0)]


def test_values_that_are_no_finite_number_are_left_out(log):
    lines = [
        inner(10, mse="nan"),
        inner(20, mse="inf"),
        inner(30, mse="-1"),
        inner(40, mse="x"),
        inner(50, mse=None),
        inner(60, mse=10**400),
    ]
    assert plot_losses.read_series([log(lines)])["mse"]["train"] == [(30, -1.0)]


def test_the_total_comes_first_and_terms_can_be_chosen(log):
    series = plot_losses.read_series([log([inner(10, t0="1", loss="3", anchor="2")])])
    assert plot_losses.choose_terms(series, None) == ["loss", "anchor", "t0"]
    assert plot_losses.choose_terms(series, "t0, loss") == ["t0", "loss"]
    with pytest.raises(SystemExit, match="error: --terms: no mes; the log has t0, loss, anchor"):
        plot_losses.choose_terms(series, "t0,mes")


def test_running_mean_is_centred_and_shorter_at_the_ends():
    assert plot_losses.running_mean([1, 2, 3, 4, 9], window=2) == [1, 1.5, 2.5, 3.5, 6.5]
    assert plot_losses.running_mean([5, 5, 5], window=1) == [5, 5, 5]


def test_each_term_has_a_labelled_panel_with_a_log_axis_where_positive(log):
    pytest.importorskip("matplotlib")
    series = plot_losses.read_series([log(LOG)])
    figure = plot_losses.draw(series, ["loss", "mse", "prior"], "A title")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["loss", "mse", "prior"]
    assert [axes.get_yscale() for axes in panels] == ["log", "log", "linear"]
    assert [axes.get_ylabel() for axes in panels] == ["loss (log scale)", "mse (log scale)", "prior"]
    assert {axes.get_xlabel() for axes in panels} == {"update"}
    assert figure.get_suptitle() == "A title"
    lines = {line.get_label(): list(line.get_xdata()) for line in panels[0].get_lines()}
    assert lines == {"train": [10, 20], "valid": [20]}


def test_many_points_get_a_running_mean(log):
    pytest.importorskip("matplotlib")
    series = plot_losses.read_series([log([inner(update, mse=str(update)) for update in range(1, 400)])])
    (panel,) = plot_losses.draw(series, ["mse"], "").axes
    assert len(panel.get_lines()) == 2
    assert panel.get_legend().get_texts()[0].get_text() == "train (running mean)"


def test_all_panels_span_the_same_updates_and_a_single_point_shows(log):
    pytest.importorskip("matplotlib")
    series = plot_losses.read_series(
        [log([inner(100, mse="1"), inner(200, t0="1", mse="1"), inner(300, mse="1")])]
    )
    mse, t0 = plot_losses.draw(series, ["mse", "t0"], "").axes
    assert mse.get_xlim() == t0.get_xlim()
    assert t0.get_xlim()[0] < 100 and t0.get_xlim()[1] > 300
    assert t0.get_lines()[0].get_marker() == "."


def test_every_number_of_panels_fits(log):
    pytest.importorskip("matplotlib")
    for count in range(1, 9):
        series = plot_losses.read_series([log([inner(10, **{f"term{i}": "1" for i in range(count)})])])
        figure = plot_losses.draw(series, plot_losses.choose_terms(series, None), "")
        assert sum(axes.get_visible() for axes in figure.axes) == count


def test_a_picture_is_written(log, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    plot_losses.main([log(LOG), "--output", str(tmp_path / "losses.png")])
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert "losses.png: loss, mse, prior" in capsys.readouterr().out


def test_errors_are_one_line(log, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: .*none\.log: No such file or directory$"):
        plot_losses.main([str(tmp_path / "none.log")])
    with pytest.raises(
        SystemExit, match=r"^error: .*train\.log: no loss in it; train with --log-format json$"
    ):
        plot_losses.main([log(["epoch 001 | loss 3.2", "{}"])])
    with pytest.raises(SystemExit, match=r"^error: .*x\.png: "):
        plot_losses.main([log(LOG), "--output", str(tmp_path / "none" / "x.png")])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit, match="^error: plots need matplotlib: pip install matplotlib$"):
        plot_losses.main([log(LOG)])
