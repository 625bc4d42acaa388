"""The anchor loss: its terms by direct formulas, and what each may do to the embeddings."""

import pytest
import torch
from fairseq.logging import metrics
from helpers import make_dictionary, make_genie, make_sample

from diffusion_fairseq.criterions.anchor import DiffusionAnchorConfig, DiffusionAnchorCriterion
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.training_pass import GRADIENT_PATHS
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.text.embedding import embedding_health

DICTIONARY = make_dictionary()
T = torch.tensor([0, 700])


def make_criterion(**options):
    return DiffusionAnchorCriterion(DiffusionAnchorConfig(**options), task=None)


def run(model, criterion, sample, noises):
    parts = model(sample["net_input"]["src_tokens"], sample["target"], T, *noises, objective=criterion.objective)
    weight = criterion.position_weights(parts)
    return parts, criterion.terms(parts, T, weight, model.schedule)


@pytest.fixture
def sample():
    return make_sample(DICTIONARY, [5, 9])


def noises_for(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 2, 9, model.embedding.embedding_dim, generator=generator, dtype=dtype)


@pytest.mark.parametrize("parameterization", ["x0", "noise"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_terms_are_the_formulas(sample, parameterization, smoothing):
    model = make_genie(DICTIONARY, parameterization=parameterization, self_conditioning=False)
    criterion = make_criterion(rounding_weight=0.5, label_smoothing=smoothing)
    noises = noises_for(model)
    parts, terms = run(model, criterion, sample, noises)
    target, mask = sample["target"], sample["target"] != DICTIONARY.pad()
    beta0 = model.schedule.betas[0]
    x0 = model.embedding(target) + beta0.sqrt().float() * noises[0]
    level = model.schedule.at(T)
    alpha, sigma = (c.float()[:, None, None] for c in (level.alpha, level.sigma))
    xt = alpha * x0 + sigma * noises[1]
    memory = model.memory(model.encode(sample["net_input"]["src_tokens"]))
    pred_x0 = model.denoise(xt, T, memory, Packing.of(mask))

    def nll(x):
        scores = (x @ model.embedding.weight.t() + model.rounding_bias).log_softmax(-1)
        chosen = scores.gather(-1, target[..., None])[..., 0]
        return -((1 - smoothing) * chosen + smoothing * scores.mean(-1)) * mask

    torch.testing.assert_close(terms["rounding"][1], nll(x0).sum(1), rtol=1e-4, atol=1e-4)
    close = {"rtol": 1e-3, "atol": 1e-2} if parameterization == "noise" else {"rtol": 1e-4, "atol": 1e-4}
    own = nll(parts.pred_x0)
    torch.testing.assert_close(terms["anchor"][1], own.sum(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.pred_x0[mask], pred_x0[mask], **close)
    assert terms["anchor"][0] == 1 and terms["rounding"][0] == 0.5


def test_without_a_weight_rounding_is_not_computed(sample):
    model = make_genie(DICTIONARY)
    parts, terms = run(model, make_criterion(), sample, noises_for(model))
    assert parts.rounding_nll is None and "rounding" not in terms and "anchor" in terms


def losses(model, criterion, sample, noises):
    _, terms = run(model, criterion, sample, noises)
    return {name: term.sum() for name, (_, term) in terms.items()}


@pytest.mark.parametrize("path, changed", [
    ("input", {"mse", "anchor"}), ("aim", {"mse"}), ("prior", {"prior"}), ("rounding-x0", {"rounding"}),
    ("rounding-softmax", {"rounding"}), ("anchor-softmax", {"anchor"}),
])
def test_each_path_closes_what_it_names(sample, path, changed):
    """The gradient of every term into the embeddings, by finite differences of the loss in which the closed path keeps
    the old embeddings; terms that the path does not belong to keep their gradient."""
    model = make_genie(DICTIONARY, self_conditioning=False).double()
    noises = noises_for(model, torch.float64)
    whole, closed = make_criterion(rounding_weight=1.0), make_criterion(rounding_weight=1.0, detach=path)

    def gradients(criterion):
        found = {}
        for name, loss in losses(model, criterion, sample, noises).items():
            grad = None
            if loss.requires_grad:
                grad, = torch.autograd.grad(loss, model.embedding.weight, retain_graph=True, allow_unused=True)
            found[name] = torch.zeros_like(model.embedding.weight) if grad is None else grad
        return found

    before, after = gradients(whole), gradients(closed)
    for name in before:
        same = torch.allclose(before[name], after[name], rtol=1e-6, atol=1e-9)
        assert same == (name not in changed), name
    # With all paths open the gradient is that of the loss.
    token, step = int(sample["target"][0, 0]), 1e-3
    direction = torch.zeros_like(model.embedding.weight)
    direction[token] = torch.linspace(-1, 1, direction.size(1), dtype=torch.float64)
    for name in before:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.embedding.weight += sign * step * direction
            values.append(losses(model, whole, sample, noises)[name].item())
            with torch.no_grad():
                model.embedding.weight -= sign * step * direction
        numerical = (values[0] - values[1]) / (2 * step)
        # The latents are computed in float32.
        assert numerical == pytest.approx(float((before[name] * direction).sum()), rel=2e-2, abs=2e-2)


def test_all_paths_closed_leave_the_embeddings_alone(sample):
    model = make_genie(DICTIONARY, self_conditioning=False)
    criterion = make_criterion(rounding_weight=1.0, detach=",".join(GRADIENT_PATHS))
    sum(losses(model, criterion, sample, noises_for(model)).values()).backward()
    assert model.embedding.weight.grad is None or not model.embedding.weight.grad.any()
    assert model.down_projection[2].weight.grad.any() and model.rounding_bias.grad.any()


@pytest.mark.parametrize("options, match", [
    ({"detach": "aim,nothing"}, "--detach 'aim,nothing'.*anchor-softmax"),
    ({"label_smoothing": 1.0}, "--label-smoothing must be at least 0"),
])
def test_options_out_of_range_are_one_line(options, match):
    with pytest.raises(UserError, match=match):
        make_criterion(**options)


def test_health_of_embeddings():
    healthy = embedding_health(torch.eye(8))
    assert healthy["norm"] == pytest.approx(1) and healthy["nearest"] == pytest.approx(2**0.5)
    assert healthy["rank"] == pytest.approx(7, rel=1e-3)  # eight centred corners of a simplex span seven dimensions
    line = torch.arange(8.0)[:, None] * torch.ones(1, 8)
    assert embedding_health(line)["rank"] == pytest.approx(1, abs=0.01)
    assert embedding_health(torch.zeros(5, 4)) == {"norm": 0, "nearest": 0, "rank": pytest.approx(1)}


def test_validation_logs_collapse_and_accuracy(sample):
    model, criterion = make_genie(DICTIONARY), make_criterion()
    logs = [criterion(model, sample)[2] for _ in range(2)]
    with metrics.aggregate() as aggregate:
        criterion.reduce_metrics(logs)
    values = aggregate.get_smoothed_values()
    health = embedding_health(model.embedding.weight)
    for name, value in health.items():
        assert values[f"embedding_{name}"] == pytest.approx(value, abs=1e-3)
    model.train()
    assert not any(name.startswith(("embedding_", "accuracy")) for name in criterion(model, sample)[2])
    model.eval()
    model.embedding.weight.data.mul_(50)  # as fairseq's optimizers write; far apart: the start's noise confuses none
    model.rounding_bias.data.zero_()
    with metrics.aggregate() as aggregate:
        criterion.reduce_metrics([criterion(model, sample)[2]])
    assert aggregate.get_smoothed_values()["accuracy_x0"] == 1
    assert aggregate.get_smoothed_values()["embedding_norm"] == pytest.approx(50 * health["norm"], rel=1e-3)
