import pytest
import torch
import torch.nn.functional as F
from helpers import make_dictionary, make_genie, make_sample, make_task
from omegaconf import OmegaConf

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.presets import GENIE
from diffusion_fairseq.modules.packing import Packing

DICTIONARY = make_dictionary()
PAD = DICTIONARY.pad()


def inputs(model, rows=3, length=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, model.embedding.embedding_dim, generator=generator), torch.tensor([3, 70, 1999])


def test_genie_base_has_the_published_size():
    """67.0 M encoder and 77.0 M denoiser parameters with BERT's 30,522 word pieces."""
    with torch.device("meta"):
        cfg = GenieConfig(max_source_positions=512, max_target_positions=512, **GENIE["genie_base"])
        model = GenieModel(OmegaConf.structured(cfg), 30522, 30522, 0)
    total = sum(p.numel() for p in model.parameters())
    encoder = sum(p.numel() for p in model.encoder.parameters())
    # BERT's pooler is left out: 0.6 M.
    assert 66e6 < encoder < 67e6 and 76e6 < total - encoder < 77.5e6


@pytest.mark.parametrize("options", [
    {}, {"self_conditioning": False}, {"parameterization": "noise"},
    {"self_conditioning": False, "parameterization": "noise"}, {"copy_source": True},
], ids=str)
def test_gradients_reach_every_parameter(options):
    model = make_genie(DICTIONARY, **options)
    sample = make_sample(DICTIONARY, [5, 9])
    parts = model(sample["net_input"]["src_tokens"], sample["target"], torch.tensor([0, 900]))
    sum(x.square().sum() for x in (parts.prediction, parts.rounding_nll, parts.length_logits)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("copy_source", [False, True])
def test_source_padding_changes_nothing(left, copy_source):
    model = make_genie(DICTIONARY, copy_source=copy_source)
    tokens = make_sample(DICTIONARY, [6, 6, 6])["net_input"]["src_tokens"]
    padding = torch.full((3, 4), PAD)
    padded = torch.cat([padding, tokens] if left else [tokens, padding], dim=1)
    x, t = inputs(model)
    one, other = (model.denoise(x, t, model.memory(model.encode(s))) for s in (tokens, padded))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    one, other = (model.length_logits(model.encode(s)) for s in (tokens, padded))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_attend_source_padding_is_the_published_leak():
    model = make_genie(DICTIONARY, attend_source_padding=True)
    tokens = make_sample(DICTIONARY, [6, 6, 6])["net_input"]["src_tokens"]
    padded = torch.cat([tokens, torch.full((3, 4), PAD)], dim=1)
    x, t = inputs(model)
    one, other = (model.denoise(x, t, model.memory(model.encode(s))) for s in (tokens, padded))
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("copy_source", [False, True])
def test_target_padding_changes_nothing(copy_source):
    model = make_genie(DICTIONARY, copy_source=copy_source)
    memory = model.memory(model.encode(make_sample(DICTIONARY, [6, 4, 5])["net_input"]["src_tokens"]))
    x, t = inputs(model)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[:, 5:] = False
    longer = torch.cat([x, torch.full((3, 3, x.size(-1)), 9.0)], dim=1)
    for packing in (Packing.of(mask), Packing.padded(mask)):
        torch.testing.assert_close(model.denoise(longer, t, memory, packing)[:, :5], model.denoise(x, t, memory),
                                   rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy_source", [False, True])
def test_candidates_share_the_memory_of_their_source(copy_source):
    model = make_genie(DICTIONARY, copy_source=copy_source)
    tokens = make_sample(DICTIONARY, [6, 4])["net_input"]["src_tokens"]
    x, t = torch.randn(6, 5, model.embedding.embedding_dim), torch.tensor(100)
    folded = model.denoise(x, t, model.memory(model.encode(tokens)))
    copied = model.denoise(x, t, model.memory(model.encode(tokens.repeat_interleave(3, 0))))
    torch.testing.assert_close(folded, copied, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("copy_source", [False, True])
def test_memory_of_some_sources(copy_source):
    model = make_genie(DICTIONARY, copy_source=copy_source)
    tokens = make_sample(DICTIONARY, [6, 4, 5])["net_input"]["src_tokens"]
    x, t = inputs(model)
    memory, rows = model.memory(model.encode(tokens)), torch.tensor([2, 0])
    torch.testing.assert_close(model.denoise(x[rows], t[rows], memory.select(rows)), model.denoise(x, t, memory)[rows],
                               rtol=1e-5, atol=1e-5)


def test_both_parameterizations_estimate_x0():
    """Under `noise` the network's output is eps: x0 = (xt - sigma eps) / alpha."""
    model = make_genie(DICTIONARY, parameterization="noise")
    memory = model.memory(model.encode(make_sample(DICTIONARY, [6, 4, 5])["net_input"]["src_tokens"]))
    x, t = inputs(model)
    level, eps = model.schedule.at(t), model.network(x, t, memory, Packing((3, 5)), None)
    alpha, sigma = (c.float()[:, None, None] for c in (level.alpha, level.sigma))
    torch.testing.assert_close(alpha * model.denoise(x, t, memory) + sigma * eps, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length_model, expected", [("fixed", 24), ("longest", 13), ("predicted", 9)])
def test_modelled_positions(length_model, expected):
    model = make_genie(DICTIONARY, length_model=length_model)
    sample = make_sample(DICTIONARY, [5, 9])
    model.train()
    parts = model(sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 900]))
    assert parts.target.shape == (2, expected) and parts.counts.sum(dim=1).tolist() == [5, 9]
    assert parts.modelled.sum(dim=1).tolist() == ([5, 9] if length_model == "predicted" else [expected] * 2)
    assert model.longest_target == expected
    model.longest_target.fill_(513)
    assert model.bfloat16().longest_target == 513 and model.embedding.weight.dtype == torch.bfloat16


def test_scores_in_half_precision_are_finite_where_an_estimate_has_no_bound():
    model = make_genie(DICTIONARY, parameterization="noise")
    x, tokens = 4000 * torch.randn(6, model.embedding.embedding_dim), torch.arange(6)
    exact = model.token_nll(x, tokens)
    assert F.linear(x.half(), model.vectors.half()).isinf().any()
    assert model.half().token_nll(x, tokens).isfinite().all() and exact.isfinite().all()
    assert model.round_logits(x).isfinite().all() and model.entropy(x.view(-1, x.size(-1))).isfinite().all()


@pytest.mark.parametrize("length_model", ["predicted", "fixed"])
def test_tokens_that_training_never_generated_are_known(length_model):
    model, sample = make_genie(DICTIONARY, length_model=length_model), make_sample(DICTIONARY, [5, 9])
    passed = sample["net_input"]["src_tokens"], sample["target"], torch.tensor([3, 900])
    model(*passed)
    assert not model.unmet_tokens().any(), "nothing is known before training"
    model.train()
    model(*passed)
    met = set(sample["target"].unique().tolist()) - ({PAD} if length_model == "predicted" else set())
    assert set((~model.unmet_tokens()).nonzero().flatten().tolist()) == met
    fresh = make_genie(DICTIONARY, length_model=length_model, seed=1)
    fresh.load_state_dict(model.state_dict())
    assert fresh.unmet_tokens().equal(model.unmet_tokens())
    older = model.state_dict()
    del older["met_tokens"]
    fresh.load_state_dict(older)
    assert not fresh.unmet_tokens().any()


def test_target_padding_never_leaks_into_the_training_pass():
    """Under predicted lengths a target alone gives what it gives beside a longer one."""
    model = make_genie(DICTIONARY)
    sample = make_sample(DICTIONARY, [5, 9])
    src, tgt, t = sample["net_input"]["src_tokens"], sample["target"], torch.tensor([30, 900])
    noise = torch.randn(2, 2, 9, model.embedding.embedding_dim)
    model.self_conditioning = False
    model.up_projection[0] = torch.nn.Linear(model.embedding.embedding_dim, 64)
    both = model(src, tgt, t, noise[0], noise[1])
    alone = model(src[:1, :5], tgt[:1, :5], t[:1], noise[0][:1, :5], noise[1][:1, :5])
    torch.testing.assert_close(both.prediction[:1, :5], alone.prediction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options, message", [
    ({"noise_schedule": "quadratic"}, "--noise-schedule.*quadratic.*sqrt"),
    ({"diffusion_timesteps": 0}, "at least 1"),
    ({"latent_dim": 7}, "--latent-dim"),
    ({"parameterization": "v"}, "--parameterization.*x0, noise"),
    ({"length_model": "guess"}, "--length-model.*fixed"),
    ({"attention_heads": 5}, "--attention-heads 5"),
    ({"copy_source": True, "parameterization": "noise"}, "--copy-source.*--parameterization x0"),
])
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        make_genie(DICTIONARY, **options)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused():
    model = make_genie(DICTIONARY)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["norm.bias"][0] = float("nan")
    with pytest.raises(UserError, match="not finite.*norm.bias"):
        model.load_state_dict(state)


def test_weights_of_another_dictionary_are_refused():
    state = make_genie(make_dictionary(30)).state_dict()
    with pytest.raises(UserError, match="dictionary of 34 types.*has 44"):
        make_genie(DICTIONARY).load_state_dict(state)


def test_task_of_another_kind_is_refused():
    with pytest.raises(UserError, match="--task seq2seq_diffusion"):
        GenieModel.build_model(OmegaConf.structured(GenieConfig()), object())


def test_what_the_timestep_sampler_learned_is_saved_with_the_weights():
    model = make_genie(DICTIONARY)
    model.timestep_sampler("loss-second-moment").update(torch.tensor([3, 3]), torch.tensor([0.5, 2.0]))
    fresh = make_genie(DICTIONARY, seed=1)
    fresh.load_state_dict(model.state_dict())
    assert fresh.timestep_sampler("loss-second-moment").counts[3] == 2
    assert fresh.timesteps.losses[3, :2].tolist() == [0.5, 2.0]
    # A file without it leaves ours as it is; a sampler that learns nothing takes its place when asked for.
    fresh.load_state_dict(make_genie(DICTIONARY).state_dict())
    assert fresh.timesteps.counts[3] == 2
    assert not fresh.timestep_sampler("uniform").state_dict()


def test_shared_embeddings():
    model = make_genie(DICTIONARY, share_embeddings=True)
    tokens = make_sample(DICTIONARY, [6])["net_input"]["src_tokens"]
    model.encode(tokens).hidden.square().sum().backward()
    assert model.embedding.weight.grad[tokens[0]].abs().sum() > 0


@pytest.mark.parametrize("option", ["share_embeddings", "copy_source"])
def test_what_needs_one_dictionary_for_both_sides(option):
    task = make_task(DICTIONARY)
    task.source_dictionary = make_dictionary(7)
    cfg = OmegaConf.structured(GenieConfig(**{option: True}, max_source_positions=9, max_target_positions=9))
    with pytest.raises(UserError, match=f"--{option.replace('_', '-')}.*--joined-dictionary"):
        GenieModel.build_model(cfg, task)


def test_no_name_contains_version():
    """fairseq's EMA skips keys that contain it."""
    assert not [name for name in make_genie(DICTIONARY).state_dict() if "version" in name]
