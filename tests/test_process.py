import pytest
import torch

from diffusion_fairseq.diffusion.process import (
    eps_from_x0,
    posterior,
    q_sample,
    score_from_x0,
    transition,
    x0_from_eps,
    x0_from_score,
)
from diffusion_fairseq.diffusion.schedules import BETAS, SigmaEqualsT, build_schedule

torch.set_default_dtype(torch.float32)


def some(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("name", BETAS)
def test_one_step_posterior_is_ddpm_equation_7(name):
    schedule = build_schedule(name, 1000)
    betas, alpha_bar = schedule.betas, schedule.alphas_cumprod
    x0, xt = some(4, 3, 2), some(4, 3, 2) + 1
    for t in (1, 13, 500, 999):
        mean, var = posterior(x0, xt, schedule.at(torch.tensor(t - 1)), schedule.at(torch.tensor(t)))
        expected = (
            betas[t] * alpha_bar[t - 1].sqrt() / (1 - alpha_bar[t]) * x0
            + (1 - alpha_bar[t - 1]) * (1 - betas[t]).sqrt() / (1 - alpha_bar[t]) * xt
        )
        torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(var, betas[t] * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]), rtol=1e-7, atol=0)


def test_posterior_mean_from_predicted_noise_is_genie_equation_4():
    schedule = build_schedule("sqrt", 2000)
    xt, eps, t = some(2, 3, 4), some(2, 3, 5)[..., :4], 700
    s_level, t_level = schedule.at(torch.tensor(t - 1)), schedule.at(torch.tensor(t))
    mean, var = posterior(x0_from_eps(xt, eps, t_level), xt, s_level, t_level)
    beta, alpha_bar = schedule.betas[t], schedule.alphas_cumprod
    expected = (xt - beta / (1 - alpha_bar[t]).sqrt() * eps) / (1 - beta).sqrt()
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    # eq. 5
    torch.testing.assert_close(var, (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", BETAS)
def test_posterior_over_a_stride_equals_respaced_betas(name):
    """Respacing keeps alpha-bars and re-derives betas: beta' = 1 - abar_t / abar_s."""
    schedule = build_schedule(name, 1000)
    x0, xt = some(1, 3, 2), some(1, 2, 2)[:, :1].expand(1, 3, 2)
    for s, t in ((0, 20), (480, 500), (100, 999)):
        bar_s, bar_t = schedule.alphas_cumprod[s], schedule.alphas_cumprod[t]
        beta = 1 - bar_t / bar_s
        mean, var = posterior(x0, xt, schedule.at(torch.tensor(s)), schedule.at(torch.tensor(t)))
        expected = beta * bar_s.sqrt() / (1 - bar_t) * x0 + (1 - bar_s) * (1 - beta).sqrt() / (1 - bar_t) * xt
        torch.testing.assert_close(mean, expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(var, beta * (1 - bar_s) / (1 - bar_t), rtol=1e-7, atol=0)


def test_posterior_at_the_clean_level_is_x0_without_noise():
    schedule = build_schedule("sqrt", 100)
    x0, xt = some(2, 2, 2), some(2, 3, 2)[:, :2]
    mean, var = posterior(x0, xt, schedule.at(torch.tensor(-1)), schedule.at(torch.tensor(40)))
    torch.testing.assert_close(mean, x0)
    assert var == 0


@pytest.mark.parametrize("level", [
    build_schedule("cosine", 100).at(torch.tensor([3, 90])), SigmaEqualsT().at(torch.tensor([1.5, 20.0])),
])
def test_conversions_are_inverses(level):
    x0, eps = some(2, 3, 4), some(2, 4, 4)[:, :3]
    xt = q_sample(x0, level, eps)
    torch.testing.assert_close(x0_from_eps(xt, eps, level), x0)
    torch.testing.assert_close(eps_from_x0(xt, x0, level), eps)
    score = score_from_x0(xt, x0, level)
    torch.testing.assert_close(score, -eps / level.sigma[:, None, None])
    torch.testing.assert_close(x0_from_score(xt, score, level), x0)


def test_two_transitions_compose():
    schedule = build_schedule("pw_lin", 1000)
    a, b, c = (schedule.at(torch.tensor(t)) for t in (5, 300, 800))
    alpha_ab, var_ab = transition(a, b)
    alpha_bc, var_bc = transition(b, c)
    alpha_ac, var_ac = transition(a, c)
    torch.testing.assert_close(alpha_ab * alpha_bc, alpha_ac)
    torch.testing.assert_close(alpha_bc**2 * var_ab + var_bc, var_ac)


def test_state_keeps_its_dtype():
    level = build_schedule("sqrt", 100).at(torch.tensor([1, 2]))
    x = torch.zeros(2, 3, 4)
    assert q_sample(x, level, x).dtype == torch.float32
    assert posterior(x, x, level, level)[0].dtype == torch.float32
