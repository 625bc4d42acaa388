"""The bound on the negative log-likelihood."""

import math

import pytest
import torch
from helpers import make_ddlm, make_dictionary, make_diffusion_lm, make_genie, make_sample

from diffusion_fairseq.diffusion import likelihood
from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.process import posterior
from diffusion_fairseq.diffusion.schedules import SigmaEqualsT, build_schedule
from diffusion_fairseq.models import base
from diffusion_fairseq.models.bound import nll_bound

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")


def exact_denoiser(model, prior):
    """E[x_0 | x_t] of independent tokens under a prior (V,)."""
    vectors = model.vectors.double()

    def denoise(xt, t, memory, packing=None, previous=None):
        level = model.schedule.at(t)
        alpha, sigma = (torch.as_tensor(c).reshape(-1, 1, 1, 1) for c in (level.alpha, level.sigma))
        logits = prior.log() - (xt.double()[..., None, :] - alpha * vectors).square().sum(-1) / (2 * sigma[..., 0] ** 2)
        return memory.impose((logits.softmax(dim=-1) @ vectors).float())

    return denoise


@pytest.mark.parametrize("make, options", [
    (make_ddlm, {"latent_dim": 4, "t_min": 0.05, "t_max": 30.0}),
    (make_diffusion_lm, {"latent_dim": 4, "noise_schedule": "points", "given_tokens": "clean",
                         "noise_points": "0=0.9995,0.2=0.9,0.6=0.2,0.999=0.00001,1=0.000001"}),
])
def test_with_the_exact_posterior_the_bound_is_the_entropy(make, options):
    """Independent tokens, half of them likelier than the others: the mean of the bound over texts is their entropy,
    within three standard errors, the terms of discrete steps apart, which are few percent too large."""
    torch.manual_seed(1)
    model = make(DICTIONARY, **options)
    prior = torch.full((len(DICTIONARY),), 1e-30, dtype=torch.float64)
    prior[10:18] = torch.tensor([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05], dtype=torch.float64)
    entropy = -(prior[10:18] * prior[10:18].log()).sum().item()
    model.denoise = exact_denoiser(model, prior)
    count, length = 4000, 6
    target = torch.multinomial(prior, count * length, replacement=True).view(count, length)
    u = (torch.randperm(count) + 0.5) / count
    with torch.no_grad():
        bound = nll_bound(model, torch.full_like(target, MASK), target, u, Draws(torch.Generator().manual_seed(2)))
    assert bound.count.eq(length).all()
    per_token = bound.total / length
    error = per_token.std().item() / math.sqrt(count)
    assert error < 0.05 * entropy
    discretisation = 0.03 * entropy if make is make_diffusion_lm else 0
    assert abs(per_token.mean().item() - entropy) < 3 * error + discretisation


def test_where_padding_is_generated_it_is_paid_for():
    """Two equally likely texts of 2 and of 12 tokens, told apart by their padding alone: their bound under the exact
    posterior is ln 2, whereas their tokens' terms alone would fall below it."""
    torch.manual_seed(1)
    model = make_genie(DICTIONARY, latent_dim=4, length_model="fixed", max_target_positions=12, noise_schedule="points",
                       noise_points="0=0.9995,0.2=0.9,0.6=0.2,0.999=0.00001,1=0.000001")
    texts = torch.full((2, 12), DICTIONARY.pad())
    texts[0, :2], texts[1] = 10, 10
    clean = model.embed(texts).double()

    def denoise(xt, t, memory, packing=None, previous=None):
        level = model.schedule.at(t)
        alpha, sigma = (torch.as_tensor(c).reshape(-1, 1, 1, 1) for c in (level.alpha, level.sigma))
        apart = (xt.double()[:, None] - alpha * clean).square().sum(dim=(2, 3)) / (2 * sigma[:, 0, 0] ** 2)
        return torch.einsum("bk,kld->bld", (-apart).softmax(dim=1), clean).float()

    model.denoise = denoise
    count = 20_000
    target, u = texts.repeat(count // 2, 1), (torch.randperm(count) + 0.5) / count
    with torch.no_grad():
        bound = nll_bound(model, torch.full((count, 2), 10), target, u, Draws(torch.Generator().manual_seed(2)))
    assert bound.count[:2].tolist() == [2, 12] and bound.length.eq(0).all()
    error = bound.total.std().item() / math.sqrt(count)
    assert error < 0.05 and abs(bound.total.mean().item() - math.log(2)) < 3 * error + 0.03


def test_the_discrete_term_is_the_kl_of_the_two_posteriors():
    schedule = build_schedule("sqrt", 50)
    x0, pred_x0, xt = torch.randn(3, 2, 3, 5, dtype=torch.float64)
    for t in (1, 20, 49):
        before, level = (schedule.at(torch.tensor(time)) for time in (t - 1, t))
        (mean, variance), (other, _) = (posterior(x, xt, before, level) for x in (x0, pred_x0))
        kl = ((mean - other) ** 2 / (2 * variance)).sum(dim=-1)
        torch.testing.assert_close(likelihood.discrete_diffusion(x0, pred_x0, before, level), kl)


def test_the_continuous_term_is_the_limit_of_the_discrete_one():
    x0, pred_x0 = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    schedule, t, step = SigmaEqualsT(0.1, 10), torch.tensor([2.0, 0.7], dtype=torch.float64), 1e-6
    discrete = likelihood.discrete_diffusion(x0, pred_x0, schedule.at(t - step), schedule.at(t)) / step
    torch.testing.assert_close(likelihood.continuous_diffusion(x0, pred_x0, t), discrete, rtol=1e-4, atol=1e-6)


def test_the_prior_term_is_the_kl_of_two_normals():
    x0 = torch.randn(2, 3, 4, dtype=torch.float64)
    level = build_schedule("linear", 100).at(torch.tensor(99))
    ours = torch.distributions.Normal(level.alpha * x0, level.sigma)
    kl = torch.distributions.kl_divergence(ours, torch.distributions.Normal(torch.zeros(()).double(), 1.0)).sum(-1)
    torch.testing.assert_close(likelihood.prior(x0, level), kl)
    noisy = SigmaEqualsT(1, 10).at(torch.tensor(10.0))
    torch.testing.assert_close(likelihood.prior(x0, noisy), x0.square().sum(-1) / 200)


def test_given_tokens_and_padding_do_not_count():
    model = make_ddlm(DICTIONARY)
    target = torch.tensor([[7, 8, 9, 2], [9, 2, DICTIONARY.pad(), DICTIONARY.pad()]])
    source = target.masked_fill(torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).bool(), MASK)
    bound = nll_bound(model, source, target, torch.tensor([0.3, 0.8]), Draws())
    assert bound.count.tolist() == [2, 1] and torch.isfinite(bound.total).all() and (bound.total > 0).all()


def test_the_vocabulary_is_scored_a_few_examples_at_a_time(monkeypatch):
    model, sample = make_genie(DICTIONARY), make_sample(DICTIONARY, [5] * 20)

    def bound():
        return nll_bound(model, sample["net_input"]["src_tokens"], sample["target"], torch.linspace(0, 0.95, 20),
                         Draws(torch.Generator().manual_seed(0))).total

    whole, sizes, score = bound(), [], likelihood.reconstruction
    monkeypatch.setattr(base, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(likelihood, "reconstruction", lambda scores, xt, *more: sizes.append(len(xt)) or score(
        scores, xt, *more))
    torch.testing.assert_close(bound(), whole)
    assert max(sizes) < 20 and sum(sizes) == 20


def test_models_with_a_source_have_a_bound():
    model, sample = make_genie(DICTIONARY), make_sample(DICTIONARY, [5, 9])
    bound = nll_bound(model, sample["net_input"]["src_tokens"], sample["target"], torch.tensor([0.3, 0.8]), Draws())
    assert bound.count.tolist() == [5, 9] and (bound.total > 0).all()


def test_a_predicted_length_is_paid_for():
    model, sample = make_genie(DICTIONARY, length_model="predicted"), make_sample(DICTIONARY, [5, 9])
    source = sample["net_input"]["src_tokens"]
    bound = nll_bound(model, source, sample["target"], torch.tensor([0.3, 0.8]), Draws())
    log = model.length_logits(model.encode(source)).log_softmax(dim=-1)
    torch.testing.assert_close(bound.length, -log[[0, 1], [5, 9]].double())
    parts = (bound.reconstruction, bound.diffusion, bound.prior, bound.length)
    torch.testing.assert_close(bound.total, sum(parts))


def test_a_single_level_has_no_diffusion_term():
    model = make_genie(DICTIONARY, diffusion_timesteps=1)
    sample = make_sample(DICTIONARY, [3, 5])
    found = nll_bound(model, sample["net_input"]["src_tokens"], sample["target"], torch.tensor([0.2, 0.7]), Draws())
    assert found.diffusion.eq(0).all() and found.total.isfinite().all() and found.total.gt(0).all()
