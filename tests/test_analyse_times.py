"""scripts/analyse_times.py: linear fits of the loss over u."""

import sys

import pytest
import torch
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_genie

from diffusion_fairseq.errors import UserError

sys.path.insert(0, str(REPOSITORY / "scripts"))
import analyse_times  # noqa: E402


def known_loss(t):
    """Rises from 0 to 4, fastest near t = 3."""
    return 4 * torch.sigmoid(2.5 * (t.log() - 1.1))


def test_a_line_fits_a_line_and_not_a_step():
    x = torch.linspace(0, 1, 50, dtype=torch.float64)
    fit = analyse_times.linear_fit(x, 3 * x - 1)
    assert fit.r2 == pytest.approx(1) and fit.off == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(fit.line, 3 * x - 1)
    step = analyse_times.linear_fit(x, (x > 0.5).double())
    assert step.r2 == pytest.approx(0.75, abs=0.01) and step.off > 0.4


def test_both_learned_laws_flatten_the_loss_over_u_and_the_uniform_one_does_not(tmp_path):
    model = make_ddlm(make_dictionary(), t_min=0.5, t_max=20.0)
    law = model.timestep_sampler("time-warp")
    for _ in range(20):
        law.update(law.middles, known_loss(law.middles))
    assert analyse_times.learned_law(model) is law
    times = torch.logspace(-0.30103, 1.30103, 200, dtype=torch.float64)
    rows = analyse_times.analyse(model, times, known_loss(times))
    assert list(rows) == ["uniform", "time-warp", "gumbel"]
    assert rows["uniform"]["R2"] < 0.8 and rows["uniform"]["off the line"] > 0.2
    assert rows["time-warp"]["R2"] > 0.995 and rows["time-warp"]["off the line"] < 0.05
    assert rows["gumbel"]["R2"] > 0.95 and rows["gumbel"]["off the line"] < 0.12
    assert rows["uniform"]["median t"] == pytest.approx(10.25) and 2 < rows["gumbel"]["median t"] < 4
    pytest.importorskip("matplotlib")
    analyse_times.plot(rows, times, known_loss(times), tmp_path / "times.png")
    assert (tmp_path / "times.png").stat().st_size > 10000


@pytest.mark.parametrize("make, name", [(make_ddlm, "uniform"), (make_genie, "low-discrepancy")])
def test_a_model_without_a_learned_law_is_one_line(make, name):
    model = make(make_dictionary())
    model.timestep_sampler(name)
    with pytest.raises(UserError, match="has learned no law of t.*--timestep-sampler time-warp"):
        analyse_times.learned_law(model)
