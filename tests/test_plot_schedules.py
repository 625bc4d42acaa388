"""scripts/plot_schedules.py: the curves it takes from names and checkpoints, and the picture it draws."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from helpers import REPOSITORY, make_dictionary, make_genie

from diffusion_fairseq.diffusion.schedules import BETAS, build_schedule
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import GenieConfig

sys.path.insert(0, str(REPOSITORY / "scripts"))
import plot_schedules  # noqa: E402

POINTS = "0=0.9999,0.3=0.5,1=0.0001"


def write_checkpoint(path, cfg, state):
    history = {"optimizer_name": "Adam", "lr_scheduler_state": {}, "num_updates": 1}
    torch.save({"cfg": {"model": cfg}, "args": None, "model": state, "optimizer_history": [history],
                "extra_state": {"train_iterator": {}}}, path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a checkpoint of a tiny model; its first positions' levels are moved, and its options cut."""

    def write(forget=(), **options):
        options = {"diffusion_timesteps": 60, "max_source_positions": 9, "max_target_positions": 12, **options}
        model = make_genie(make_dictionary(), **options)
        state = model.state_dict()
        if "schedule.log_snr" in state:
            state["schedule.log_snr"][:4, 1:-1] += 0.01
        cfg = {k: v for k, v in dataclasses.asdict(GenieConfig(**options)).items() if k not in forget}
        return write_checkpoint(tmp_path / "model.pt", {**cfg, "_name": "genie_tiny"}, state)

    return write


def test_curves_of_names_are_their_alpha_bars():
    curves = plot_schedules.named_curves([*BETAS, "points"], 100, None, POINTS)
    assert [*curves] == [*BETAS, "points"]
    for name, alpha_bar in curves.items():
        schedule = build_schedule(name, 100, points=POINTS if name == "points" else None)
        assert alpha_bar.equal(schedule.alphas_cumprod)
        shown, log_snr, betas = plot_schedules.panel_values(alpha_bar)
        level = schedule.at(torch.arange(100))
        torch.testing.assert_close(shown, level.alpha**2)
        torch.testing.assert_close(log_snr, 2 * (level.alpha / level.sigma).log())
        torch.testing.assert_close(betas, schedule.betas)
    gamma = plot_schedules.named_curves(["linear"], 100, 0.5, None)["linear"]
    assert gamma.equal(build_schedule("linear", 100, 0.5).alphas_cumprod)


@pytest.mark.parametrize("count, positions", [(1, [0]), (2, [0, 1]), (4, [0, 1, 3]), (12, [0, 1, 3, 7, 11]),
                                              (64, [0, 1, 3, 7, 15, 31, 63])])
def test_positions_are_denser_at_the_beginning(count, positions):
    assert plot_schedules.shown_positions(count) == positions


def test_an_ordinary_checkpoint_gives_its_schedule(checkpoint):
    curves = plot_schedules.checkpoint_curves(checkpoint(noise_schedule="cosine"))
    assert [*curves] == ["cosine"] and curves["cosine"].equal(build_schedule("cosine", 60).alphas_cumprod)
    older = checkpoint(forget=("noise_points", "adaptive_schedule_updates", "adaptive_schedule_start"))
    assert [*plot_schedules.checkpoint_curves(older)] == ["sqrt"]


def test_an_adaptive_checkpoint_gives_its_positions_and_their_start(checkpoint):
    curves = plot_schedules.checkpoint_curves(checkpoint(adaptive_schedule_updates=5))
    assert [*curves] == ["start: sqrt", *(f"position {i}" for i in (0, 1, 3, 7, 11))]
    start = build_schedule("sqrt", 60).alphas_cumprod
    torch.testing.assert_close(curves["start: sqrt"], start)
    torch.testing.assert_close(curves["position 11"], start)
    assert (curves["position 3"] > start)[1:-1].all()


def test_each_panel_shows_every_curve_over_t_by_T():
    pytest.importorskip("matplotlib")
    curves = plot_schedules.named_curves(["sqrt", "cosine"], 50, None, None)
    figure = plot_schedules.draw(curves, "A title")
    assert figure.get_suptitle() == "A title"
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["alpha-bar", "log-SNR", "beta"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "linear", "log"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "t / T"
        assert [line.get_label() for line in axes.get_lines()] == ["sqrt", "cosine"]
        assert list(axes.get_lines()[0].get_xdata()) == pytest.approx([t / 50 for t in range(50)])


@pytest.mark.parametrize("arguments, shown", [
    ([], "linear, cosine, sqrt, trunc_cos, trunc_lin, pw_lin, pw_lin_paper"),
    (["--points", POINTS, "--timesteps", "100"],
     "linear, cosine, sqrt, trunc_cos, trunc_lin, pw_lin, pw_lin_paper, points"),
    (["--schedules", "sqrt, points", "--points", POINTS], "sqrt, points"),
])
def test_a_picture_is_written(tmp_path, capsys, arguments, shown):
    pytest.importorskip("matplotlib")
    plot_schedules.main([*arguments, "--output", str(tmp_path / "schedules.png")])
    assert (tmp_path / "schedules.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.endswith(f"schedules.png: {shown}\n")


@pytest.mark.slow
def test_libraries_say_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    words = [sys.executable, REPOSITORY / "scripts/plot_schedules.py", "--output", tmp_path / "schedules.png"]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stderr == ""


def test_a_checkpoint_stands_alone_or_beside_names(checkpoint, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, output = checkpoint(noise_schedule="pw_lin"), str(tmp_path / "schedules.png")
    plot_schedules.main(["--checkpoint", path, "--output", output])
    plot_schedules.main(["--checkpoint", path, "--schedules", "sqrt", "--timesteps", "100", "--output", output])
    assert [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()] == ["pw_lin", "sqrt, pw_lin"]


def test_errors_are_one_line(checkpoint, tmp_path, monkeypatch):
    other = write_checkpoint(tmp_path / "other.pt", {"_name": "transformer"}, {})
    path = checkpoint(adaptive_schedule_updates=5)
    state = torch.load(path, weights_only=True)
    del state["model"]["schedule.log_snr"]
    torch.save(state, path)
    for arguments, message in [
        (["--schedules", "magic"], "'magic'.*sqrt"), (["--timesteps", "0"], "at least 1"),
        (["--schedules", "points"], "give both"), (["--schedules", "sqrt", "--points", POINTS], "--points belongs"),
        (["--points", "0=1"], "from 0 to 1"), (["--checkpoint", other], "other.pt holds no diffusion model"),
        (["--checkpoint", path], "model.pt lacks its adaptive noise schedule"),
        (["--checkpoint", str(tmp_path / "none.pt")], "none.pt"),
        (["--output", str(tmp_path / "none" / "x.png")], "x.png: "),
    ]:
        with pytest.raises(UserError, match=message) as error:
            plot_schedules.main(arguments)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="plots need matplotlib"):
        plot_schedules.main([])
