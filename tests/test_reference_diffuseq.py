"""DiffuSeq's released code and ours on the same weights, inputs and noise: forward pass, losses.

The file holds random weights in the released layout and what the released code computes from them. Another file of
the same layout, at other widths, is read from DIFFUSION_FAIRSEQ_DIFFUSEQ_REFERENCE when that is set.
"""

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.models.config import DiffuSeqConfig
from diffusion_fairseq.models.diffuseq import DiffuSeqModel
from diffusion_fairseq.models.published_diffuseq import from_published

OWN_FILE = Path(__file__).parent / "data/diffuseq_reference_tiny.pt"
FILE = Path(os.environ.get("DIFFUSION_FAIRSEQ_DIFFUSEQ_REFERENCE") or OWN_FILE)
PAD, EOS = 0, 102  # BERT's
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no reference file {FILE}")


@pytest.fixture(scope="module")
def reference():
    return torch.load(FILE, weights_only=True)


def make_model(reference, **options):
    sizes = reference["config"]
    half = sizes["max_positions"] // 2
    cfg = DiffuSeqConfig(
        model_dim=sizes["hidden"], ffn_dim=4 * sizes["hidden"], attention_heads=sizes["heads"],
        encoder_layers=sizes["layers"], latent_dim=sizes["latent"], time_dim=sizes["time_channels"], dropout=0.0,
        max_source_positions=half, max_target_positions=sizes["max_positions"] - half, **options,
    )
    model = DiffuSeqModel(OmegaConf.structured(cfg), sizes["vocab"], PAD, EOS)
    state = from_published(reference["state_dict"])
    state["longest_target"] = torch.tensor(float(sizes["max_positions"]))
    model.load_state_dict(state)
    return model.eval()


def test_diffuseq_reference_forward(reference):
    model, inputs = make_model(reference), reference["forward"]
    nothing_given = model.encode(torch.zeros(len(inputs["x"]), 1, dtype=torch.int64))
    with torch.no_grad():
        pred_x0 = model.denoise(inputs["x"], inputs["t"], nothing_given)
    torch.testing.assert_close(pred_x0, inputs["output"], **CLOSE)


@pytest.mark.parametrize("noising", ["partial", "full"])
def test_diffuseq_reference_loss_terms(reference, noising):
    given = reference["loss"]
    options = {"jitter_source": True} if noising == "partial" else {"noising": "full"}
    model = make_model(reference, length_model="longest", length_margin=0, **options).train()
    ids, generated = given["ids"], given["noise_mask"] == 1
    source = ids.masked_fill(generated, PAD)
    order = (~generated).int().argsort(dim=1, stable=True)
    target = ids.masked_fill(~generated, PAD).gather(1, order)
    criterion = DiffusionVLBCriterion(DiffusionVLBConfig(padding_in_mean=True, given_in_loss=True), task=None)
    with torch.no_grad():
        parts = model(source, target, given["t"], given["noise_start"], given["noise"],
                      objective=criterion.objective._replace(anchor=True))
        weight = criterion.position_weights(parts)
        terms = {name: term / weight.sum(dim=1) for name, (_, term) in
                 criterion.terms(parts, given["t"], weight, model.schedule).items()}
    assert weight.eq(1).all() and parts.target.equal(ids)
    theirs = given[noising]
    torch.testing.assert_close(terms["mse"], theirs["mse"], **CLOSE)
    torch.testing.assert_close(sum(terms.values()), theirs["loss"], **CLOSE)
    # What the released code calls nll, and does not learn from, is the anchor term at the noised positions.
    counted = generated.float() if noising == "partial" else torch.ones_like(ids, dtype=torch.float32)
    torch.testing.assert_close((parts.anchor_nll * counted).sum(1) / counted.sum(1), theirs["nll"], **CLOSE)


def test_diffuseq_reference_names_are_checked(reference):
    state = reference["state_dict"]
    with pytest.raises(ValueError, match="input_transformers.layer.0.crossattention"):
        from_published({**state, "input_transformers.layer.0.crossattention.self.query.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="ties"):
        from_published({**state, "lm_head.weight": state["lm_head.weight"] + 1})
