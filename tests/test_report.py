"""scripts/report.py: what it reads of a training, and the page that it writes."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib.metadata import version

import pytest
import torch
from browser import chromium, opened
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_genie
from omegaconf import OmegaConf
from test_cli import preprocess, run_module, write_pairs
from test_plot_losses import epoch, inner

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import _report_page  # noqa: E402, I001
import _training_run  # noqa: E402
import report  # noqa: E402

HOSTILE = '</script></svg><img src=x onerror="document.title=`broken`">'


def write_log(path, lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def training(updates, **more):
    more = {"mse": "2", "wps": "100", "ups": "2", "gnorm": "0.5", **more}
    return [inner(update, loss=f"{5 - update / 1000}", wall=str(update), **more) for update in updates]


def validation(update, **more):
    scores = {"embedding_rank": "12", "accuracy_x0": "0.9", "rouge_l": "21.5", "bound": "4", **more}
    return epoch("valid", update, loss="4.2", mse="1.6", **scores)


def write_generated(path, *texts):
    lines = [f"{kind}-{place}\t{text}" for place, (source, reference, written) in enumerate(texts)
             for kind, text in (("S", source), ("T", reference), ("H", f"-0.1\t{written}"), ("D", f"-0.1\t{written}"))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def save(path, model=None, cfg=None):
    state = {} if model is None else model.state_dict()
    torch.save({"args": None, "cfg": cfg or {"model": {"_name": ""}, "task": {"_name": ""}}, "model": state,
                "optimizer_history": [{"criterion_name": "", "optimizer_name": None, "lr_scheduler_state": {},
                                       "num_updates": 1234}],
                "extra_state": {"train_iterator": {"epoch": 1}, "previous_training_time": 3723.4}}, path)


def page_of(folder, tmp_path, *options):
    file = tmp_path / "page"
    report.main([str(folder), "--output", str(file), *options])
    return file.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """All text of a page, its ids, and what it would fetch."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.ids, self.fetched, self.tags = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not value.startswith("#"):
                self.fetched.append(value)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path):
    """A training with everything that a page shows."""
    place = tmp_path / "run"
    write_log(place / "train.log", [*training(range(10, 60, 10)), validation(50)])
    model = make_genie(make_dictionary())
    law = model.timestep_sampler("loss-second-moment")
    t = torch.arange(law.num_timesteps).repeat(20)
    law.update(t, t.float() + 1)
    save(place / "checkpoint_last.pt", model,
         {"model": {"_name": "genie_tiny", "dropout": 0.3}, "task": {"_name": ""},
          "criterion": {"_name": "diffusion_vlb", "timestep_sampler": "loss-second-moment"}})
    write_generated(place / "generated-20.txt", ("a source", "a reference", "early words"))
    write_generated(place / "generated.txt", ("a source", "a reference", "late words"))
    return place


def test_the_curves_are_parted_by_what_they_are_about(folder):
    parts = report.parted(_training_run.read_run(folder).series)
    assert {part: sorted(terms) for part, terms in parts.items()} == {
        "loss": ["loss", "mse"], "health": ["accuracy_x0", "embedding_rank"], "scores": ["bound", "rouge_l"],
        "speed": ["ups", "wps"], "step": ["gnorm", "lr"]}
    assert parts["loss"]["loss"]["train"][-1] == (50, 4.95) and parts["loss"]["loss"]["valid"] == [(50, 4.2)]
    assert set(parts["speed"]["wps"]) == {"train"}


def test_markdown_holds_every_part(folder, tmp_path):
    page = page_of(folder, tmp_path, "--format", "markdown")
    for line in ("| mse | train | 2 | 2 at 10 | 2 at 10 | 2 at 50 | ▁▁▁▁▁ |",
                 "| rouge\\_l | valid | 21.5 | 21.5 at 50 | 21.5 at 50 | 21.5 at 50 | ▁ |", "| its updates | 1,234 |",
                 "| training time by the checkpoint | 1:02:03 |", "| wall time by the logs | 0:00:50 |",
                 "| model | --dropout | 0.3 | 0.1 |", "| median wps | 100 |", f"| torch | {version('torch')} |"):
        assert line in page, line
    early, late = page.index("| generated-20 | early words |"), page.index("| generated | late words |")
    assert page.index("| reference | a reference |") < early < late and page.count("a reference") == 1
    assert "No " not in page and "hold no" not in page


def test_html_is_one_file_that_fetches_nothing_and_follows_the_colour_scheme(folder, tmp_path):
    pytest.importorskip("matplotlib")
    page = page_of(folder, tmp_path)
    found = Reader(page)
    assert found.fetched == [] and len(found.ids) == len(set(found.ids)) and found.tags.count("svg") == 6
    assert "color-scheme: light dark" in page and "currentColor" in page and _report_page.INK not in page
    assert "url(#chart" in page and "@import" not in page


def test_text_of_others_is_shown_as_text(folder, tmp_path):
    hostile = {HOSTILE: "1", r"$\frac$": "2"}
    write_log(folder / "train.log", [*training((10, 20), **hostile), validation(20, **hostile)])
    write_generated(folder / "generated.txt", (HOSTILE, "[a](b) | *c*", "d"))
    pages = [page_of(folder, tmp_path, "--format", "markdown")]
    assert r"| reference | \[a\](b) \| \*c\* |" in pages[0]
    if report.importlib.util.find_spec("matplotlib"):
        pages.append(page_of(folder, tmp_path))
        assert HOSTILE in Reader(pages[1]).texts
    for page in pages:
        assert "<img" not in page and "onerror" in page


def test_logs_of_a_resumed_training_are_joined_by_their_stamps(tmp_path):
    write_log(tmp_path / "a.log", [line.replace("10:00:00", "11:00:00") for line in training((10, 40), extra="1")])
    write_log(tmp_path / "b.log", training((10, 20, 30)))
    write_log(tmp_path / "export.log", ["no record"])
    run = _training_run.read_run(tmp_path)
    assert [log.name for log in run.logs] == ["b.log", "a.log"]
    assert [update for update, _ in run.series["loss"]["train"]] == [10, 40] and "extra" in run.series


def test_the_time_of_a_resumed_training_is_that_of_all_its_parts():
    assert report.seconds_of_all([(10, 60.0), (20, 120.0), (30, 70.0), (40, 130.0), (50, 5.0)]) == 120 + 130 + 5
    assert report.seconds_of_all([(10, 60.0)]) == 60


def test_logs_without_stamps_are_joined_by_their_first_updates(tmp_path):
    write_log(tmp_path / "a.log", [line[line.index("{"):] for line in training((20, 40))])  # as --log-file holds them
    write_log(tmp_path / "b.log", training((10, 20, 30)))
    run = _training_run.read_run(tmp_path)
    assert [log.name for log in run.logs] == ["b.log", "a.log"]
    assert [update for update, _ in run.series["loss"]["train"]] == [10, 20, 40]


def test_logs_above_the_folder_are_its_own(tmp_path):
    (tmp_path / "one").mkdir()
    for name in ("one", "two"):
        write_log(tmp_path / f"{name}.log", [str({"save_dir": f"runs/{name}"}), *training((10,))])
    write_generated(tmp_path / "generated.txt", ("a", "b", "c"))
    run = _training_run.read_run(tmp_path / "one")
    assert [log.name for log in run.logs] == ["one.log"] and [path.name for path in run.generated] == ["generated.txt"]
    (log,) = _training_run.read_run(tmp_path / "one", [tmp_path / "two.log"]).logs
    assert log.name == "two.log"


def test_broken_lines_are_counted_and_named(tmp_path, capsys):
    write_log(tmp_path / "train.log", [*training((10,)), '{"epoch": 1, "loss": "3', "other", *training((20,)), "\0\0"])
    page = page_of(tmp_path, tmp_path, "--format", "markdown")
    assert "| log | train.log: 2 broken lines, left out: 2, 5 |" in page
    assert "broken lines: 2" in capsys.readouterr().out


def test_what_is_missing_is_said(tmp_path):
    write_log(tmp_path / "train.log", training((10,)))
    page = page_of(tmp_path, tmp_path, "--format", "markdown")
    assert page.count(f"No checkpoint in {tmp_path}".replace("_", "\\_")) == 3
    for text in ("No generated", "it is logged at every validation", "--eval-rouge, --eval-bound or --eval-bleu"):
        assert text in page
    (tmp_path / "train.log").unlink()
    save(tmp_path / "other.pt")
    page = page_of(tmp_path, tmp_path, "--format", "markdown")
    assert page.count("No log of a training in") == 6 and "| checkpoint | other.pt |" in page
    assert "Not recorded: losses at each t are kept with --timestep-sampler" in page


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    write_log(tmp_path / "train.log", training((10,)))
    (tmp_path / "checkpoint_last.pt").write_bytes(b"nothing")
    (tmp_path / "generated.txt").write_text("D-3\t-1\tword\n")
    page = page_of(tmp_path, tmp_path, "--format", "markdown").replace("\\_", "_")
    assert "checkpoint_last.pt refused" in page or "checkpoint_last.pt cannot be read" in page
    assert "Not shown: " in page and "3 of 4 ids are missing" in page and "| loss | train |" in page


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Program:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_log(tmp_path / "train.log", training((10,)))
    torch.save({"model": {}, "cfg": Program()}, tmp_path / "checkpoint_last.pt")
    assert "refused" in page_of(tmp_path, tmp_path, "--format", "markdown")
    assert not (tmp_path / "ran").exists()


def test_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match="holds neither a log of a training nor a checkpoint"):
        _training_run.read_run(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        _training_run.read_run(tmp_path / "none")
    done = subprocess.run([sys.executable, REPOSITORY / "scripts/report.py", tmp_path / "none"], capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_options_are_compared_with_the_defaults_of_what_was_chosen():
    config = {"model": {"_name": "genie_tiny", "model_dim": 64, "ffn_dim": 512, "dropout": 0.1},
              "optimizer": {"_name": "adam", "lr": [0.1], "adam_eps": 1e-6}, "optimization": {"lr": [0.1]},
              "common": {"seed": 1, "fp16": True, "user_dir": "${oc.env:HOME}"}, "mine": {"_name": None, "x": 1}}
    cfg = _training_run.configuration({"cfg": OmegaConf.create(config)})
    assert [(group, name, value) for group, name, value, _ in _training_run.changed_options(cfg)] == [
        ("model", "ffn_dim", 512), ("optimizer", "adam_eps", 1e-6), ("optimization", "lr", [0.1]),
        ("common", "fp16", True), ("common", "user_dir", "${oc.env:HOME}"), ("mine", "x", 1)]
    defaults = {name: default for _, name, _, default in _training_run.changed_options(cfg)}
    assert defaults["ffn_dim"] == 128 and defaults["x"] is None and defaults["fp16"] is False


def test_the_losses_that_a_discrete_law_has_met_are_means_over_its_history(folder):
    found = _training_run.loss_over_time(_training_run.read_run(folder).state)
    assert found.law == "loss-second-moment" and not found.cumulative
    torch.testing.assert_close(found.loss, found.t + 1)
    torch.testing.assert_close(found.drawn.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert found.drawn[-1] > 10 * found.drawn[0]


@pytest.mark.parametrize("name", ["time-warp", "gumbel"])
def test_the_losses_and_the_cdf_of_a_continuous_law_are_its_own(name):
    model = make_ddlm(make_dictionary(), t_min=0.5, t_max=20.0)
    law = model.timestep_sampler(name)
    assert _training_run.loss_over_time({"model": model.state_dict()}) is None
    law.update(law.middles, law.middles.log())
    state = {"model": model.state_dict(), "cfg": {"criterion": {"timestep_sampler": name}}}
    found = _training_run.loss_over_time(state)
    assert found.law == name and found.cumulative
    torch.testing.assert_close(found.loss, law.middles.log())
    torch.testing.assert_close(found.drawn, law.cdf(law.middles))


def test_thinned_points_are_means_of_their_bins():
    points = [(update, float(update)) for update in range(1, 1001)]
    thinned = _report_page.thin(points, 300)
    assert len(thinned) == 250 and thinned[0] == (2, 2.5) and thinned[-1] == (998, 998.5)
    assert sum(y for _, y in thinned) / 250 == sum(y for _, y in points) / 1000
    assert _report_page.thin(points[:300], 300) == points[:300]
    assert _report_page.trend([1, 2, 3]) == "▁▅█"


def test_generated_files_come_in_the_order_of_training():
    names = ["generated.txt", "generated-1000.txt", "generated-200.txt", "generated-untrained.txt"]
    ordered = sorted(map(_training_run.Path, names), key=_training_run.progress)
    assert [path.name for path in ordered] == names[::-1]
    assert report.evenly(list(range(100)), 12)[::11] == [0, 99] and report.evenly([1, 2], 12) == [1, 2]


def test_what_is_too_much_is_left_out_and_named(tmp_path, monkeypatch):
    write_log(tmp_path / "train.log", training((10,), **{f"term{i:02}": "1" for i in range(40)}))
    for number in range(30):
        write_generated(tmp_path / f"generated-{number}.txt", ("a", "b", "c" * 5000))
    write_generated(tmp_path / "generated.txt", ("other source", "b", "c"))
    page = page_of(tmp_path, tmp_path, "--format", "markdown")
    assert "Without a panel: term22, term23, " in page and "| term39 | train |" in page
    assert "12 of 31 files, evenly chosen." in page and "c" * 1000 + " ..." in page and "c" * 1001 not in page
    assert page.index("| generated-27 |") < page.index("| source | other source |") < page.index("| generated | c |")


def test_without_matplotlib_there_are_tables(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    page = page_of(folder, tmp_path)
    assert "<svg" not in page and "they need matplotlib" in page and "rouge_l" in page


def test_a_page_opens_without_an_error(folder, tmp_path):
    pytest.importorskip("matplotlib")
    write_generated(folder / "generated.txt", (HOSTILE, "b", "c"))
    page_of(folder, tmp_path)
    (tmp_path / "page").rename(tmp_path / "page.html")
    with chromium() as browser:
        for scheme in ("dark", "light"):
            with opened(browser, (tmp_path / "page.html").as_uri(), color_scheme=scheme) as page:
                assert page.title() == f"Training: {folder.parent.name}/run" and page.locator("svg").count() == 6
                colour, ground = page.evaluate(
                    "[document.querySelector('svg text'), document.body].map((e, i) => getComputedStyle(e)"
                    "[i ? 'backgroundColor' : 'fill'].match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))")
                assert abs(colour - ground) > 400


@pytest.mark.slow
def test_a_log_of_100000_updates_gives_a_small_page(tmp_path):
    pytest.importorskip("matplotlib")
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(100_000, 12, generator=generator).tolist()
    lines = [inner(update, wps="100", ups="2", gnorm="0.5", **{f"term{i}": f"{x:.4f}" for i, x in enumerate(row)})
             for update, row in enumerate(noise, start=1)]
    write_log(tmp_path / "train.log", lines)
    assert len(page_of(tmp_path, tmp_path)) < 2e6


@pytest.mark.slow
def test_a_real_training(tmp_path):
    for split, count, seed in (("train", 60, 1), ("valid", 10, 2)):
        write_pairs(tmp_path, split, count, seed)
    preprocess(tmp_path, tmp_path / "bin", "valid")
    save_dir = tmp_path / "checkpoints"
    for updates in (4, 6):
        done = run_module("train", tmp_path / "bin", "--task", "seq2seq_diffusion", "--arch", "genie_tiny",
                          "--criterion", "diffusion_vlb", "--timestep-sampler", "loss-second-moment", "--optimizer",
                          "adam", "--lr", 3e-3, "--batch-size", 20, "--cpu", "--seed", 7, "--num-workers", 0,
                          "--log-interval", 1, "--no-epoch-checkpoints", "--save-dir", save_dir, "--eval-bound", 1,
                          "--log-format", "json" if updates == 4 else "simple", "--max-update", updates)
        (tmp_path / f"{updates}.log").write_text(done.stdout)
    page = page_of(save_dir, tmp_path, "--format", "markdown")
    assert "6.log" in page and "| last update in the logs | 6 |" in page and "| its updates | 6 |" in page
    for text in ("| mse | train |", "| mse | valid |", "| embedding\\_rank | valid |", "| bound | valid |",
                 "| optimization | --max-update | 6 | 0 |", "--timestep-sampler loss-second-moment met last",
                 "| criterion | --timestep-sampler | loss-second-moment | low-discrepancy |", "| wps | train |"):
        assert text in page, text
    assert "broken" not in page
