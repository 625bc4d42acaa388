"""The classifier with a DDLM's layers: what it reads, what it takes over, and what stays frozen."""

import logging
from types import SimpleNamespace

import pytest
import torch
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from helpers import make_ddlm, make_dictionary, make_sample, see_time
from omegaconf import OmegaConf

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import DDLMClassifierConfig
from diffusion_fairseq.models.ddlm_classifier import DDLMClassifierModel
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.models.presets import DDLM_CLASSIFIER
from diffusion_fairseq.modules.packing import Packing

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
HEAD = "sentence_classification_head"


def make_model(classes=3, seed=0, head=HEAD, **options):
    """A tiny classifier with random weights, in evaluation mode, without dropout unless asked for."""
    torch.manual_seed(seed)
    sizes = {**DDLM_CLASSIFIER["ddlm_classifier_tiny"], "dropout": 0.0, "max_positions": 24, **options}
    task = SimpleNamespace(source_dictionary=DICTIONARY, label_dictionary=None)
    model = DDLMClassifierModel.build_model(OmegaConf.structured(DDLMClassifierConfig(**sizes)), task)
    model.register_classification_head(head, num_classes=classes)
    return see_time(model).eval()


def scores(model, tokens):
    return model(src_tokens=tokens, src_lengths=None, features_only=True, classification_head_name=HEAD)[0]


def loaded(model, weights):
    model.load_state_dict({key: value.clone() for key, value in weights.items()})
    return model


TEXTS = make_sample(DICTIONARY, [9, 4, 6])["target"]


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("t", [0.5, 5.0])
def test_it_reads_clean_texts_as_the_ddlm_would_at_its_time(t, rotary):
    ddlm = see_time(make_ddlm(DICTIONARY, rotary=rotary))
    model = loaded(make_model(seed=1, classification_time=t, rotary=rotary), ddlm.state_dict())
    mask = TEXTS != DICTIONARY.pad()
    x0 = ddlm.embed(TEXTS)
    torch.testing.assert_close(x0.norm(dim=-1), torch.full(TEXTS.shape, 32**0.5))
    hidden = ddlm.network(x0, torch.tensor(t), Prompt(TEXTS, mask, None, x0), Packing.of(mask), None)
    expected = torch.stack([part.mean(dim=0) for part in hidden[: int(mask.sum())].split(mask.sum(dim=1).tolist())])
    torch.testing.assert_close(model.features(TEXTS), expected, rtol=1e-5, atol=1e-5)


def test_padding_and_other_texts_change_nothing():
    model = make_model()
    together = scores(model, make_sample(DICTIONARY, [9, 4, 6], width=20)["target"])
    for row, length in enumerate((9, 4, 6)):
        torch.testing.assert_close(scores(model, TEXTS[row : row + 1, :length])[0], together[row], rtol=1e-5, atol=1e-5)


def test_the_time_is_read_and_belongs_to_those_of_the_training():
    found = [scores(make_model(classification_time=t), TEXTS) for t in (0.5, 1.0, 10.0)]
    assert not torch.allclose(found[0], found[1], atol=1e-4) and not torch.allclose(found[1], found[2], atol=1e-4)
    for t in (0.1, 11.0, 0.0):
        with pytest.raises(UserError, match=f"--classification-time {t:g} is a time .* --t-min 0.5 to --t-max 10"):
            make_model(classification_time=t)


def loss_of(model):
    criterion = SentencePredictionCriterion(SentencePredictionConfig(), SimpleNamespace(label_dictionary=None))
    sample = {**make_sample(DICTIONARY, [9, 4, 6]), "target": torch.tensor([[0], [1], [2]])}
    loss, size, log = criterion(model, sample)
    assert size == 3 and 0 <= log["ncorrect"] <= 3
    return loss


def test_the_criterion_of_the_host_reaches_every_parameter():
    model = make_model().train()
    loss_of(model).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_frozen_encoder_has_neither_gradients_nor_dropout_and_a_linear_head():
    model = make_model(freeze_encoder=True, dropout=0.5).train()
    assert scores(model, TEXTS).equal(scores(model, TEXTS))
    features = model.features(TEXTS)
    difference = scores(model, TEXTS) - features @ model.classification_heads[HEAD][-1].weight.T
    torch.testing.assert_close(difference, difference[:1].expand(3, -1))
    loss_of(model).backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"classification_heads.{HEAD}.0.{part}" for part in ("weight", "bias")}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    free = make_model(dropout=0.5).train()
    assert not scores(free, TEXTS).equal(scores(free, TEXTS))


def test_weights_survive_saving():
    model = make_model()
    assert scores(loaded(make_model(seed=1), model.state_dict()), TEXTS).equal(scores(model, TEXTS))


def test_a_ddlm_gives_all_but_the_head(caplog):
    ddlm, own = make_ddlm(DICTIONARY).train(), make_model(seed=1)
    ddlm.timestep_sampler("time-warp")
    head = {key: value.clone() for key, value in own.state_dict().items() if key.startswith("classification")}
    with caplog.at_level(logging.INFO):
        model = loaded(own, ddlm.state_dict())
    state = model.state_dict()
    assert "heads that the weights do not have begin anew: classification_heads" in caplog.text
    assert {key: value for key, value in state.items() if key in head}.keys() == head.keys()
    assert all(state[key].equal(value) for key, value in head.items())
    shared = state.keys() - head.keys()
    assert all(state[key].equal(ddlm.state_dict()[key]) for key in shared)
    assert {key.split(".")[0] for key in ddlm.state_dict().keys() - shared} == {"head", "timesteps"}


def test_a_classifier_of_other_labels_gives_all_but_its_head_to_a_new_training_alone():
    other = make_model(classes=2)
    model = loaded(make_model(classes=3, seed=1), other.state_dict())
    assert model.layers[0].ffn[0].weight.equal(other.layers[0].ffn[0].weight)
    assert scores(model, TEXTS).shape == (3, 3)
    model.set_num_updates(0)
    model = loaded(make_model(head="another", seed=1), other.state_dict())
    assert model.classification_heads.keys() == {"another"}
    with pytest.raises(UserError, match="training cannot go on .*classification_heads.another"):
        model.set_num_updates(7)


def test_longer_texts_than_those_of_the_pre_training_get_new_positions():
    ddlm = make_ddlm(DICTIONARY)
    model = loaded(make_model(max_positions=40), ddlm.state_dict())
    assert model.positions.weight[:24].equal(ddlm.positions.weight) and model.max_positions() == 40


def test_weights_that_do_not_fit_are_refused():
    weights = make_ddlm(DICTIONARY).state_dict()
    for change, error, message in (
        (lambda w: w.pop("layers.0.ffn.0.weight"), RuntimeError, 'Missing key.*"layers.0.ffn.0.weight"'),
        (lambda w: w.update(more=torch.zeros(1)), RuntimeError, 'Unexpected key.*"more"'),
        (lambda w: w.update({"embedding.weight": torch.zeros(9, 32)}), UserError, "a dictionary of 9 types"),
        (lambda w: w.update({"final_norm.modulation.bias": torch.full((128,), torch.nan)}), UserError, "not finite"),
    ):
        changed = dict(weights)
        change(changed)
        with pytest.raises(error, match=message):
            make_model().load_state_dict(changed)
    shuffled = make_ddlm(DICTIONARY)
    shuffled.dictionaries = {"source": "other", "target": "other"}
    with pytest.raises(UserError, match="trained with another target dictionary"):
        make_model().load_state_dict(shuffled.state_dict())
    shuffled.dictionaries = {"target": fingerprint(DICTIONARY)}
    make_model().load_state_dict(shuffled.state_dict())


def test_another_task_and_wrong_sizes_end_in_one_line():
    with pytest.raises(UserError, match="pass --task sentence_prediction"):
        DDLMClassifierModel.build_model(OmegaConf.structured(DDLMClassifierConfig()), SimpleNamespace())
    for options, message in (({"t_min": 9.0, "t_max": 2.0}, "--t-min, --t-max"),
                             ({"model_dim": 30, "attention_heads": 4}, "--model-dim 30 must be a multiple")):
        with pytest.raises(UserError, match=message):
            make_model(**options)
