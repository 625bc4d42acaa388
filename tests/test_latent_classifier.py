"""The classifier of x_t: the space it reads, what it learns from, and the models that it refuses."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from helpers import (
    CLASSIFIER,
    REPOSITORY,
    make_classifier,
    make_ddlm,
    make_dictionary,
    make_diffuseq,
    make_diffusion_lm,
    make_genie,
    make_sample,
    save_model,
)
from omegaconf import OmegaConf

from diffusion_fairseq.criterions.latent_classification import (
    LatentClassificationConfig,
    LatentClassificationCriterion,
)
from diffusion_fairseq.diffusion.noise import Draws, RowDraws
from diffusion_fairseq.diffusion.process import posterior
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.guidance import ClassifierGuidance
from diffusion_fairseq.models.config import LatentClassifierConfig
from diffusion_fairseq.models.latent_classifier import LatentClassifierModel
from diffusion_fairseq.models.latent_space import LatentSpace
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.tasks.latent_classification import LatentClassificationTask, LatentClassificationTaskConfig

sys.path.insert(0, str(REPOSITORY / "scripts"))
import export_checkpoint  # noqa: E402, I001

DICTIONARY = make_dictionary()
MASK = DICTIONARY.add_symbol("<mask>")
PAD = DICTIONARY.pad()


def make_lm(**options):
    model = make_diffusion_lm(DICTIONARY, **options)
    model.dictionaries = {"source": fingerprint(DICTIONARY), "target": fingerprint(DICTIONARY)}
    return model


def space_of(tmp_path, model, arch="diffusion_lm_tiny", **options):
    save_model(tmp_path / "model.pt", arch, model, **{"noise_schedule": "sqrt", **options})
    return LatentSpace.of_checkpoint(str(tmp_path / "model.pt"))


@pytest.mark.parametrize("options", [{}, {"noise_schedule": "pw_lin", "diffusion_timesteps": 200},
                                     {"adaptive_schedule_updates": 5, "diffusion_timesteps": 80}], ids=str)
def test_the_space_of_a_checkpoint_is_that_of_its_model(tmp_path, options):
    model = make_lm(**options)
    if options.get("adaptive_schedule_updates"):
        model.schedule.log_snr[:, 1:-1] += 0.1 * torch.rand(len(model.schedule.log_snr), 78).cumsum(dim=1) / 78
    space = space_of(tmp_path, model, **options)
    assert space.embedding.equal(model.embedding.weight) and space.longest == 24
    assert space.dictionary == fingerprint(DICTIONARY)
    t = torch.arange(model.schedule.num_timesteps)
    ours, theirs = (schedule.at(t).cut(7) for schedule in (space.schedule, model.schedule))
    for mine, its in ((ours.alpha, theirs.alpha), (ours.sigma, theirs.sigma)):
        torch.testing.assert_close(mine, its.view(len(t), -1).expand(-1, 7), rtol=1e-12, atol=1e-12)
    space.check_belongs(model, "x.pt")


def test_texts_are_noised_as_in_the_training_of_the_diffusion_model(tmp_path):
    model, seen = make_lm(self_conditioning=False).train(), []
    space = space_of(tmp_path, model)
    text = make_sample(DICTIONARY, [6, 4])["target"]
    hidden = model.hidden
    model.hidden = lambda xt, *more: seen.append(xt) or hidden(xt, *more)
    t = torch.tensor([300, 1200])
    model(text, text, t, draws=Draws(torch.Generator().manual_seed(3)))
    found = space.noised(text, t, Draws(torch.Generator().manual_seed(3)))
    torch.testing.assert_close(found, seen[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length_model, width", [("given", 6), ("longest", 10), ("fixed", 24)])
def test_texts_are_padded_as_the_diffusion_model_pads_them(tmp_path, length_model, width):
    model = make_lm(length_model=length_model)
    space = space_of(tmp_path, model, length_model=length_model, length_margin=4)
    text = make_sample(DICTIONARY, [6, 4])["target"]
    tokens, packing = space.modelled(text, PAD)
    assert tokens.equal(model.modelled_target(text)) and packing.shape == (2, width)
    assert (packing.mask is None) == (length_model != "given")


def test_the_space_is_neither_trained_nor_cast():
    model = make_classifier(make_lm(), ["a", "b"])
    model.half()
    assert model.space.embedding.dtype == torch.float32 and model.space.schedule.log_snr.dtype == torch.float64
    assert model.head.weight.dtype == torch.float16
    assert not [name for name, _ in model.named_parameters() if name.startswith("space.")]


def test_a_checkpoint_is_enough_to_classify(tmp_path):
    lm = make_lm()
    model = make_classifier(lm, ["bad", "good"])
    save_model(tmp_path / "c.pt", "latent_classifier_tiny", model)
    found = LatentClassifierModel.of_checkpoint(str(tmp_path / "c.pt"))
    text, t = make_sample(DICTIONARY, [6, 4])["target"], torch.tensor([3, 500])
    xt = model.space.noised(text, t, Draws(torch.Generator().manual_seed(1)))
    packing = model.space.modelled(text, PAD)[1]
    assert found.logits(xt, t, packing).equal(model.logits(xt, t, packing))
    assert found.labels == ["bad", "good"] and found.space.dictionary == fingerprint(DICTIONARY)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    found.space.check_belongs(lm, "c.pt")


def test_a_checkpoint_is_enough_for_the_task_and_refuses_other_labels(data):
    model = make_classifier(make_lm(length_model="longest", length_margin=2), ["a", "b"])
    weights, text = model.state_dict(), make_sample(DICTIONARY, [6, 4])["target"]
    found = set_up(data).build_model(options(diffusion_path="deleted.pt"), from_checkpoint=True)
    found.load_state_dict(weights)
    t, rows = torch.tensor([3, 500]), torch.arange(2)
    assert found.eval()(text, t, RowDraws(rows)).equal(model(text, t, RowDraws(rows)))
    assert found.space.modelled(text, PAD)[0].shape == (2, 8)
    model.labels = ["b", "a"]
    with pytest.raises(UserError, match="the checkpoint's labels are b, a; the data's a, b"):
        set_up(data).build_model(options(), from_checkpoint=True).load_state_dict(model.state_dict())


def other(**options):
    return lambda: make_lm(**options)


def shuffled():
    model = make_lm()
    model.dictionaries["target"] = "another"
    return model


def later():
    model = make_lm()
    with torch.no_grad():
        model.embedding.weight[7] += 1e-3
    return model


@pytest.mark.parametrize("model, message", [
    (other(latent_dim=16), "reads embeddings of 45 tokens of width 32, the model has 45 tokens of width 16"),
    (lambda: make_genie(make_dictionary(10)), "reads embeddings of 45 tokens"),
    (shuffled, "another dictionary, of as many types"),
    (later, "other embeddings, of as many tokens"),
    (other(diffusion_timesteps=500), "trained with 2000 timesteps, the model with 500"),
    (other(noise_schedule="cosine"), "other noise levels"),
    (other(adaptive_schedule_updates=5, noise_schedule="linear"), "other noise levels"),
])
def test_a_classifier_of_another_space_is_refused_in_one_line(model, message):
    model, own = model(), make_lm()
    if message.startswith(("trained", "other noise")):
        with torch.no_grad():
            model.embedding.weight.copy_(own.embedding.weight)
    with pytest.raises(UserError, match=message) as error:
        make_classifier(own, ["a", "b"]).space.check_belongs(model, "c.pt")
    assert "\n" not in str(error.value) and str(error.value).startswith("c.pt ")


def test_a_classifier_that_was_exported_belongs_to_its_model():
    model = make_lm()
    weights = make_classifier(model, ["a", "b"]).state_dict()
    for name, tensor in weights.items():
        weights[name] = tensor.float()
    weights = export_checkpoint.halved(weights) | {"space.embedding": weights["space.embedding"]}
    LatentSpace.of_weights(weights).check_belongs(model, "c.pt")


def test_a_model_without_a_table_of_noise_levels_is_refused(tmp_path):
    lm = make_ddlm(DICTIONARY, latent_dim=32)
    with pytest.raises(UserError, match="no table of noise levels"):
        save_model(tmp_path / "m.pt", "ddlm_tiny", lm)
        LatentSpace.of_checkpoint(str(tmp_path / "m.pt"))
    classifier = make_classifier(make_lm(), ["a", "b"])
    classifier.space.embedding = lm.vectors.detach()
    with pytest.raises(UserError, match="noise levels of a table, which this model has not"):
        classifier.space.check_belongs(lm, "c.pt")


def test_files_of_other_kinds_are_refused(tmp_path):
    model = make_lm()
    save_model(tmp_path / "lm.pt", "diffusion_lm_tiny", model)
    with pytest.raises(UserError, match="lm.pt holds a model of architecture 'diffusion_lm_tiny', which is no Latent"):
        LatentClassifierModel.of_checkpoint(str(tmp_path / "lm.pt"))
    classifier = make_classifier(model, ["a", "b"])
    with torch.no_grad():
        classifier.head.weight[0, 0] = torch.nan
    save_model(tmp_path / "nan.pt", "latent_classifier_tiny", classifier)
    with pytest.raises(UserError, match="not finite .head.weight"):
        LatentClassifierModel.of_checkpoint(str(tmp_path / "nan.pt"))
    with pytest.raises(UserError, match="'latent_classifier_tiny', which is no DiffusionModel"):
        LatentSpace.of_checkpoint(str(tmp_path / "nan.pt"))
    save_model(tmp_path / "bare.pt", "latent_classifier_tiny", SimpleNamespace(state_dict=lambda: dict(
        make_classifier(model, ["a", "b"]).state_dict())))
    with pytest.raises(UserError, match="bare.pt holds no names of labels"):
        LatentClassifierModel.of_checkpoint(str(tmp_path / "bare.pt"))


def sample_of(lengths, width=0):
    sample = make_sample(DICTIONARY, lengths, width=width)
    return {**sample, "target": torch.arange(len(lengths))[:, None] % 2}


def test_the_loss_does_not_depend_on_padding_and_its_gradient_reaches_every_parameter():
    model = make_classifier(make_lm(), ["a", "b"])
    criterion = LatentClassificationCriterion(LatentClassificationConfig(), task=None)
    xt = {}
    model.space.noised = lambda tokens, t, draws: xt.setdefault(tokens.size(1), torch.nn.functional.pad(
        torch.ones(4, 6, 32), (0, 0, 0, tokens.size(1) - 6)))
    short, size, log = criterion(model, sample_of([6, 4, 5, 3]))
    wide, _, _ = criterion(model, sample_of([6, 4, 5, 3], width=9))
    assert size == 4 == log["sample_size"] and 0 <= log["accuracy"] <= 4
    torch.testing.assert_close(short, wide)
    short.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_validation_draws_the_same_noise_each_time():
    model = make_classifier(make_lm(), ["a", "b"])
    criterion = LatentClassificationCriterion(LatentClassificationConfig(), task=None)
    losses = [criterion(model, sample_of([6, 4, 5, 3]))[0] for _ in range(2)]
    assert losses[0].equal(losses[1])
    model.train()
    assert not criterion(model, sample_of([6, 4, 5, 3]))[0].equal(losses[0])


def test_it_learns_labels_best_at_low_noise_and_its_gradient_climbs():
    """Label 1 where the words are of the second half of the dictionary."""
    lm = make_lm(diffusion_timesteps=50)
    model = make_classifier(lm, ["low", "high"]).train()
    criterion = LatentClassificationCriterion(LatentClassificationConfig("loss-second-moment"), task=None)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    torch.manual_seed(1)
    for _ in range(150):
        target = torch.randint(2, (32,))
        tokens = torch.randint(4, 24, (32, 6)) + 20 * target[:, None]
        loss, size, _ = criterion(model, {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 1})
        optimizer.zero_grad()
        (loss / size).backward()
        optimizer.step()
    model.eval()
    target = torch.arange(200) % 2
    tokens = torch.randint(4, 24, (200, 6)) + 20 * target[:, None]
    sample = {"id": torch.arange(200), "net_input": {"src_tokens": tokens}, "target": target, "ntokens": 1}
    _, _, log = criterion(model, sample)
    low = log["accuracy_low_noise"] / log["low_noise"]
    assert low > 0.9 and low > log["accuracy"] / 200 > 0.6
    s, t = (lm.schedule.at(torch.tensor(time)) for time in (20, 25))
    xt = model.space.noised(tokens, torch.full((200,), 25), Draws())
    xs, _ = posterior(lm.embed(tokens), xt, s, t)
    packing = Packing((200, 6))
    moved = ClassifierGuidance(model, 1, 10.0, 3, 0.01)(xs, s, t, packing, None)
    p = [model.logits(x, s.t, packing).softmax(dim=-1)[:, 1].mean() for x in (xs, moved)]
    assert p[1] > p[0] + 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Labelled texts, binarised as for fairseq's sentence_prediction."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = [(f"w{i % 7} w{i % 5}" + " w3" * (3 * i), "ab"[i % 2]) for i in range(20)]
    DICTIONARY.save(str(folder / "dict.txt"))
    for part, column in (("input0", 0), ("label", 1)):
        (folder / f"train.{part}").write_text("".join(line[column] + "\n" for line in lines))
        words = [sys.executable, "-m", "fairseq_cli.preprocess", "--only-source", "--destdir", folder / part,
                 "--trainpref", folder / f"train.{part}"]
        words += ["--srcdict", folder / "dict.txt"] if part == "input0" else []
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
    return folder


def set_up(data):
    cfg = LatentClassificationTaskConfig(data=str(data), seed=1)
    return LatentClassificationTask.setup_task(OmegaConf.structured(cfg))


def options(**given):
    cfg = OmegaConf.structured(LatentClassifierConfig(**{**vars(CLASSIFIER), **given}))
    cfg._name = "latent_classifier_tiny"
    return cfg


def test_the_task_reads_labelled_texts_and_cuts_them_to_the_model(data, tmp_path):
    task, lm = set_up(data), make_lm()
    assert task.labels == ["a", "b"]
    save_model(tmp_path / "lm.pt", "diffusion_lm_tiny", lm, noise_schedule="sqrt")
    model = task.build_model(options(diffusion_path=str(tmp_path / "lm.pt")))
    task.load_dataset("train")
    batch = task.dataset("train").collater([task.dataset("train")[i] for i in range(20)])
    assert batch["net_input"]["src_tokens"].size(1) == 24 == task.max_positions()
    assert sorted(batch["target"].view(-1).tolist()) == [0] * 10 + [1] * 10
    assert model.labels == ["a", "b"] and model.space.embedding.equal(lm.embedding.weight)


def test_what_the_task_cannot_serve_is_refused_in_one_line(data, tmp_path):
    task, foreign = set_up(data), make_diffusion_lm(make_dictionary(50))
    save_model(tmp_path / "lm.pt", "diffusion_lm_tiny", foreign, noise_schedule="sqrt")
    save_model(tmp_path / "dq.pt", "diffuseq_tiny", make_diffuseq(DICTIONARY), noise_schedule="sqrt", noising="partial")
    no_task = SimpleNamespace(target_dictionary=Dictionary())
    for build, message in (
        (lambda: task.build_model(options(diffusion_path=str(tmp_path / "lm.pt"))), "lm.pt was trained with another"),
        (lambda: task.build_model(options(diffusion_path=str(tmp_path / "dq.pt"))), "diffuseq_tiny denoises its text"),
        (lambda: task.build_model(options()), "--diffusion-path is needed"),
        (lambda: task.build_model(options(diffusion_path=str(tmp_path / "no.pt"))), "no.pt cannot be read"),
        (lambda: task.build_criterion(OmegaConf.create({"_name": "cross_entropy", "sentence_avg": False})),
         "--criterion cross_entropy is not of this task: give --criterion latent_classification"),
        (lambda: task.build_model(OmegaConf.create({"_name": "genie_tiny"})), "a latent_classifier, not 'genie_tiny'"),
        (lambda: LatentClassifierModel.build_model(options(), no_task), "pass --task latent_classification"),
        (lambda: task.load_dataset("valid"), "no .*input0/valid.idx: binarise that split"),
        (lambda: set_up(tmp_path), "no dictionary .*input0/dict.txt"),
    ):
        with pytest.raises(UserError, match=message) as error:
            build()
        assert "\n" not in str(error.value)
