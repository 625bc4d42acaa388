import copy
import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.logging import metrics
from fairseq.optim.amp_optimizer import AMPOptimizer
from helpers import make_dictionary, make_diffuseq, make_genie, make_sample

from diffusion_fairseq.criterions.anchor import DiffusionAnchorConfig, DiffusionAnchorCriterion
from diffusion_fairseq.criterions.base import draw_timesteps
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.training_pass import GRADIENT_PATHS
from diffusion_fairseq.tasks.updates import SharedUpdates, finite_gradient

DICTIONARY = make_dictionary()


def make_criterion(**options):
    return DiffusionVLBCriterion(DiffusionVLBConfig(**options), task=None)


def parts_of(model, sample, t):
    return model(sample["net_input"]["src_tokens"], sample["target"], t, draws=Draws(torch.Generator().manual_seed(0)))


def terms_of(criterion, model, sample, t):
    parts = parts_of(model, sample, t)
    weight = criterion.position_weights(parts)
    return {name: term for name, (_, term) in criterion.terms(parts, t, weight, model.schedule).items()}, parts


def test_mse_at_t_0_is_against_the_clean_embedding():
    model = make_genie(DICTIONARY)
    sample, t = make_sample(DICTIONARY, [5, 9]), torch.tensor([0, 900])
    terms, parts = terms_of(make_criterion(), model, sample, t)
    clean = ((parts.pred_x0 - parts.embedded) ** 2).mean(-1)
    noised = ((parts.pred_x0 - parts.x0) ** 2).mean(-1)
    torch.testing.assert_close(terms["mse"], torch.stack([(clean[0] * parts.counts[0]).sum(),
                                                          (noised[1] * parts.counts[1]).sum()]))
    assert (clean[0] - noised[0]).abs().max() > 1e-3


def test_predicted_noise_is_compared_with_the_noise():
    model = make_genie(DICTIONARY, parameterization="noise")
    sample, t = make_sample(DICTIONARY, [5, 9]), torch.tensor([400, 900])
    terms, parts = terms_of(make_criterion(), model, sample, t)
    level = model.schedule.at(t)
    alpha, sigma = (c.float()[:, None, None] for c in (level.alpha, level.sigma))
    # The aim is the noise of xt: alpha x0 + sigma aim is the xt that was denoised.
    xt = alpha * parts.pred_x0 + sigma * parts.prediction
    torch.testing.assert_close(alpha * parts.x0 + sigma * parts.aim, xt, rtol=1e-4, atol=1e-4)
    expected = (((parts.prediction - parts.aim) ** 2).mean(-1) * parts.counts).sum(-1)
    torch.testing.assert_close(terms["mse"], expected)


@pytest.mark.parametrize("in_mean, expected", [(False, [6.0, 10.0]), (True, [24.0, 24.0])])
def test_padding_counts_as_one_position_or_like_words(in_mean, expected):
    model = make_genie(DICTIONARY, length_model="fixed")
    parts = parts_of(model, make_sample(DICTIONARY, [5, 9]), torch.tensor([0, 900]))
    weight = make_criterion(padding_in_mean=in_mean).position_weights(parts)
    torch.testing.assert_close(weight.sum(dim=1), torch.tensor(expected))
    assert weight[parts.counts].eq(1).all()


def loss_and_gradient(criterion, model, sample):
    model = copy.deepcopy(model)
    loss, sample_size, log = criterion(model, sample)
    loss.backward()
    return loss, sample_size, {n: p.grad for n, p in model.named_parameters()}


def test_loss_does_not_depend_on_padding():
    """The validation pass draws the same noise for the same batch; more padding columns change nothing."""
    model = make_genie(DICTIONARY, self_conditioning=False)
    criterion = make_criterion()
    narrow, wide = (make_sample(DICTIONARY, [5, 9, 4], width=w) for w in (9, 12))
    wide["target"] = narrow["target"]
    (one, size_one, grad_one), (other, size_other, grad_other) = (
        loss_and_gradient(criterion, model, sample) for sample in (narrow, wide))
    assert size_one == size_other == 18
    torch.testing.assert_close(one, other)
    for name in grad_one:
        torch.testing.assert_close(grad_one[name], grad_other[name], rtol=1e-4, atol=1e-5)


def test_sums_make_any_split_of_a_batch_give_the_same_gradient():
    model = make_genie(DICTIONARY, self_conditioning=False)
    criterion = make_criterion()
    sample = make_sample(DICTIONARY, [5, 9])
    src, tgt, t = sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 900])
    noise = torch.randn(2, 2, 9, model.embedding.embedding_dim)

    def gradient(rows):
        part = copy.deepcopy(model)
        parts = part(src[rows], tgt[rows], t[rows], noise[0][rows], noise[1][rows])
        weight = criterion.position_weights(parts)
        terms = criterion.terms(parts, t[rows], weight, model.schedule).values()
        sum(term.sum() for _, term in terms).backward()
        return part.layers[0].ffn[2].weight.grad

    whole, first, second = (gradient(rows) for rows in ([0, 1], [0], [1]))
    torch.testing.assert_close(whole, first + second, rtol=1e-4, atol=1e-5)


def test_copies_that_share_an_encoding_are_separate_examples():
    """Two noised copies of each target give the terms of two passes with the same noise, but that the rounding of x0 is
    looked at once; one encoding is made."""
    model = make_genie(DICTIONARY, self_conditioning=False)
    criterion, sample = make_criterion(timesteps_per_encoding=2), make_sample(DICTIONARY, [5, 9])
    src, tgt, t = sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 40, 900, 7])
    noise = torch.randn(2, 4, 9, model.embedding.embedding_dim)

    def terms(parts, t):
        weight = criterion.position_weights(parts)
        found = {name: term for name, (_, term) in criterion.terms(parts, t, weight, model.schedule).items()}
        return found.pop("rounding"), sum(found.values())

    encoded = []
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    together = model(src, tgt, t, noise[0], noise[1])
    assert len(encoded) == 1
    rounding, others = terms(together, t)
    for copy_number in (0, 1):
        rows = [copy_number, 2 + copy_number]
        alone = model(src, tgt, t[rows], noise[0][rows], noise[1][rows])
        own_rounding, own_others = terms(alone, t[rows])
        torch.testing.assert_close(others[rows], own_others, rtol=1e-4, atol=1e-4)
        if copy_number == 0:
            torch.testing.assert_close(rounding, own_rounding.repeat_interleave(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(criterion.length_loss(together), criterion.length_loss(alone))


def test_copies_count_in_training_alone():
    model, criterion = make_genie(DICTIONARY), make_criterion(timesteps_per_encoding=3)
    sample = make_sample(DICTIONARY, [5, 9])
    assert criterion(model, sample)[1] == 14
    model.train()
    loss, sample_size, _ = criterion(model, sample)
    assert sample_size == 42 and torch.isfinite(loss)
    with pytest.raises(UserError, match="--timesteps-per-encoding"):
        make_criterion(timesteps_per_encoding=0)


def test_validation_is_reproducible_and_training_draws_anew():
    model, criterion, sample = make_genie(DICTIONARY), make_criterion(), make_sample(DICTIONARY, [5, 9, 6])
    first, second = (criterion(model, sample)[0].item() for _ in range(2))
    assert first == second
    model.train()
    first, second = (criterion(model, sample)[0].item() for _ in range(2))
    assert first != second


def test_the_time_of_a_validated_example_does_not_depend_on_its_batch():
    model, criterion, sample, met = make_genie(DICTIONARY), make_criterion(), make_sample(DICTIONARY, [5, 9, 6]), []
    model.register_forward_pre_hook(lambda _, inputs: met.append(inputs[2].tolist()))
    criterion(model, sample)
    for row in (2, 0, 1):
        one = {name: sample[name][row : row + 1] for name in ("id", "target")}
        criterion(model, {**one, "net_input": {"src_tokens": sample["net_input"]["src_tokens"][row : row + 1]}})
    together, *alone = met
    assert alone == [[together[2]], [together[0]], [together[1]]]
    t, _, _ = draw_timesteps(model.timestep_sampler("uniform"), 4000, torch.device("cpu"), torch.arange(4000))
    assert (torch.bincount(t // 200, minlength=10) - 400).abs().max() <= 2  # of 2000 levels, each tenth as often


@pytest.mark.parametrize("make", [make_genie, make_diffuseq], ids=["genie", "diffuseq"])
def test_the_loss_of_validation_does_not_depend_on_its_batches(make):
    model, criterion = make(DICTIONARY, self_conditioning=True), make_criterion()
    sample = make_sample(DICTIONARY, [5, 9, 6, 9, 7])
    _, _, whole = criterion(model, sample)
    single = [criterion(model, {**{name: sample[name][row : row + 1] for name in ("id", "target")}, "net_input": {
        "src_tokens": sample["net_input"]["src_tokens"][row : row + 1]}})[2] for row in range(5)]
    for name in ("mse", "rounding", "accuracy", "accuracy_x0"):
        torch.testing.assert_close(sum(log[name] for log in single), whole[name], msg=name)
    assert len({round(float(log["mse"] / log["sample_size"]), 6) for log in single}) == 5


def test_weights_of_the_terms():
    model, sample = make_genie(DICTIONARY), make_sample(DICTIONARY, [5, 9, 6])
    criterion = make_criterion(mse_weight=2.0, rounding_weight=3.0, prior_weight=5.0, length_weight=7.0)
    loss, _, log = criterion(model, sample)
    torch.testing.assert_close(loss, 2 * log["mse"] + 3 * log["rounding"] + 5 * log["prior"] + 7 * log["length"])


@pytest.mark.parametrize("criterion", [
    DiffusionVLBCriterion(DiffusionVLBConfig(rounding_weight=0.0), task=None),
    DiffusionAnchorCriterion(DiffusionAnchorConfig(anchor_weight=0.0), task=None),
    DiffusionAnchorCriterion(DiffusionAnchorConfig(anchor_weight=0.0, detach=",".join(GRADIENT_PATHS)), task=None),
], ids=["vlb", "anchor", "detached"])
def test_a_weight_of_0_leaves_the_term_out(criterion):
    model = make_genie(DICTIONARY).train()
    loss, _, log = criterion(model, make_sample(DICTIONARY, [5, 9, 6]))
    assert log.keys() >= {"mse", "prior"} and not log.keys() & {"rounding", "anchor"}
    loss.backward()  # several processes share a gradient of every parameter
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not model.rounding_bias.grad.any()


def test_loss_aware_sampler_learns_from_training_alone():
    model, criterion = make_genie(DICTIONARY), make_criterion(timestep_sampler="loss-second-moment")
    sample = make_sample(DICTIONARY, [5, 9, 6])
    criterion(model, sample)
    assert model.timesteps.counts.sum() == 0
    model.train()
    criterion(model, sample)
    assert model.timesteps.counts.sum() == 0
    criterion(model, {**sample, "ignored": True})
    model.end_update()
    assert model.timesteps.counts.sum() == 3


class Overflowing(AMPOptimizer):
    """What --amp hands over: it steps only where no gradient overflowed, and the host then tries again."""

    def __init__(self, model):
        self.model, self.stepped = model, 0

    def step(self, *args, **kwargs):
        self.stepped += finite_gradient(self.model)

    supports_step_with_scale = supports_groups = False


def test_of_an_update_that_overflowed_under_amp_nothing_is_learned():
    model, task = make_genie(DICTIONARY).train(), SharedUpdates(SimpleNamespace(seed=1))
    criterion, sample = make_criterion(timestep_sampler="loss-second-moment"), make_sample(DICTIONARY, [5, 9, 6])
    optimizer = Overflowing(model)
    optimizer.backward = lambda loss: (loss * optimizer.scale).backward()
    for optimizer.scale, learned in ((math.inf, 0), (1.0, 3)):
        model.zero_grad()
        task.train_step(sample, model, criterion, optimizer, update_num=0)
        task.optimizer_step(optimizer, model, update_num=0)
        assert model.timesteps.counts.sum() == learned
    assert optimizer.stepped == 1


def test_unknown_timestep_sampler_is_one_line():
    with pytest.raises(UserError, match="--timestep-sampler 'often'.*low-discrepancy"):
        make_criterion(timestep_sampler="often")(make_genie(DICTIONARY), make_sample(DICTIONARY, [5]))


def test_every_term_is_logged_under_its_name_per_position():
    model, criterion = make_genie(DICTIONARY), make_criterion()
    logs = [criterion(model, make_sample(DICTIONARY, lengths))[2] for lengths in ([5, 9], [4, 4, 4])]
    with metrics.aggregate() as aggregate:
        criterion.reduce_metrics(logs)
    values = aggregate.get_smoothed_values()
    assert {"loss", "mse", "rounding", "prior", "length"} <= set(values)
    torch.testing.assert_close(values["mse"], float(logs[0]["mse"] + logs[1]["mse"]) / 26, atol=1e-3, rtol=0)
    torch.testing.assert_close(values["length"], float(logs[0]["length"] + logs[1]["length"]) / 5, atol=1e-3, rtol=0)
    assert all(isinstance(value, (int, float)) for value in values.values())
