"""GENIE's released code and ours on the same weights, inputs and noise: forward pass, losses, sampling.

The file holds random weights in the released layout and what the released code computes from them. Another file of
the same layout, at other widths, is read from DIFFUSION_FAIRSEQ_GENIE_REFERENCE when that is set.
"""

import os
from pathlib import Path

import pytest
import torch
from helpers import clamped_sampling
from omegaconf import OmegaConf

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.schedules import build_schedule
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.published_genie import from_published

OWN_FILE = Path(__file__).parent / "data/genie_reference_tiny.pt"
FILE = Path(os.environ.get("DIFFUSION_FAIRSEQ_GENIE_REFERENCE") or OWN_FILE)
PAD = 0  # BERT's
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no reference file {FILE}")


@pytest.fixture(scope="module")
def reference():
    return torch.load(FILE, weights_only=True)


@pytest.fixture(scope="module")
def model(reference):
    sizes = reference["config"]
    cfg = GenieConfig(
        model_dim=sizes["hidden"], ffn_dim=4 * sizes["hidden"], attention_heads=sizes["heads"],
        encoder_layers=sizes["encoder_layers"], denoiser_layers=sizes["decoder_layers"],
        latent_dim=sizes["latent"], time_dim=sizes["time_channels"], dropout=0.0,
        max_source_positions=sizes["max_positions"], max_target_positions=sizes["max_positions"],
        attend_source_padding=True,
    )
    model = GenieModel(OmegaConf.structured(cfg), sizes["vocab"], sizes["vocab"], PAD)
    state = from_published(reference["state_dict"])
    state["longest_target"] = torch.tensor(float(sizes["max_positions"]))
    model.load_state_dict(state)
    return model.eval()


def source(reference):
    inputs = reference["forward"]
    return inputs["src"].masked_fill(inputs["src_mask"] == 0, PAD)


def memory_of(model, reference):
    with torch.no_grad():
        return model.memory(model.encode(source(reference)))


def test_genie_reference_forward(model, reference):
    inputs = reference["forward"]
    with torch.no_grad():
        pred_x0 = model.denoise(inputs["x"], inputs["t"], memory_of(model, reference))
    torch.testing.assert_close(pred_x0, inputs["output"], **CLOSE)
    torch.testing.assert_close(model.round_logits(inputs["x"]), inputs["logits"], **CLOSE)


def test_genie_reference_default_leaves_source_padding_out(model, reference):
    """The released code attends to source padding; by default ours does not, and the padded rows differ."""
    memory = memory_of(model, reference)._replace(mask=source(reference) != PAD)
    inputs = reference["forward"]
    with torch.no_grad():
        pred_x0 = model.denoise(inputs["x"], inputs["t"], memory)
    padded = (inputs["src_mask"] == 0).any(dim=1)
    difference = (pred_x0 - inputs["output"]).abs().amax(dim=(1, 2))
    assert (difference[~padded] < 1e-5).all() and (difference[padded] > 1e-3).all()


def test_genie_reference_loss_terms(model, reference):
    given = reference["loss"]
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(padding_in_mean=True), task=None)
    # The published target is as long as the given noise, whatever the model's longest one.
    model.length_model, model.length_margin = "longest", 0
    with torch.no_grad():
        parts = model(source(reference), given["tgt"], given["t"], given["noise_start"], given["noise"])
        weight = criterion.position_weights(parts)
        terms = {name: term / weight.sum(dim=1) for name, (_, term) in
                 criterion.terms(parts, given["t"], weight, model.schedule).items()}
    assert weight.eq(1).all()
    torch.testing.assert_close(terms["mse"], given["mse"], **CLOSE)
    torch.testing.assert_close(terms["rounding"], given["decoder_nll"], **CLOSE)
    torch.testing.assert_close(terms["prior"], given["tT_loss"], rtol=1e-5, atol=1e-10)
    torch.testing.assert_close(sum(terms.values()), given["loss"], **CLOSE)


def test_genie_reference_sampling_trajectory(model, reference):
    """Clamped ancestral sampling with variance beta_t over the last levels of the schedule."""
    given = reference["sampling"]
    assert given["clamped"] is True
    states = clamped_sampling(model, memory_of(model, reference), given)
    assert len(states) == len(given["trajectory"])
    for ours, theirs in zip(states, given["trajectory"]):
        torch.testing.assert_close(ours.xt, theirs, **CLOSE)


def test_genie_reference_betas(reference):
    for name, betas in reference["betas"].items():
        schedule, num_timesteps = name.split("/")
        ours = build_schedule(schedule, int(num_timesteps)).betas
        torch.testing.assert_close(ours, betas, rtol=0, atol=1e-12)


def test_genie_reference_names_are_checked(reference):
    state = reference["state_dict"]
    with pytest.raises(ValueError, match="transformer_blocks.0.attn3.to_q.weight"):
        from_published({**state, "transformer_blocks.0.attn3.to_q.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="ties"):
        from_published({**state, "lm_head.weight": state["lm_head.weight"] + 1})
