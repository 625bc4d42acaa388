"""scripts/convert_diffuseq.py: a released DiffuSeq becomes a checkpoint and dictionaries that compute the same."""

import json
import math
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from helpers import REPOSITORY, run_module
from omegaconf import OmegaConf

from diffusion_fairseq.diffusion.noise import combine, gaussian_noise, sequence_keys
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.solvers import SamplerState, ddpm_step
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DiffuSeqConfig
from diffusion_fairseq.models.diffuseq import DiffuSeqModel
from diffusion_fairseq.models.published_diffuseq import from_published
from diffusion_fairseq.text.embedding import clamp_to_tokens, nearest_tokens

sys.path.insert(0, str(REPOSITORY / "scripts"))
from convert_diffuseq import Sizes, config_of, main, released_layout  # noqa: E402, I001

FILE = Path(__file__).parent / "data/diffuseq_reference_tiny.pt"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
HEADS, SEQUENCE, VOCABULARY = 4, 32, 193
# As in BERT: padding first, the other special pieces somewhere later, unused ones between.
SPECIAL = {0: "[PAD]", 1: "[unused0]", 2: "[unused1]", 50: "[UNK]", 51: "[CLS]", 52: "[SEP]", 53: "[MASK]"}
PIECES = [SPECIAL.get(row, f"##p{row}" if row % 3 == 0 else f"p{row}") for row in range(VOCABULARY)]
LINES = ["[CLS] p70 ##p102 p190 [MASK]", "[CLS] p100", "[CLS] p85 p85 neverseen p95 p100 p110 p191", "[CLS] ##p99 p58"]
ARGUMENTS = {"seq_len": SEQUENCE, "diffusion_steps": 500, "noise_schedule": "trunc_cos", "predict_xstart": True,
             "rescale_timesteps": True, "vocab": "bert", "hidden_dim": 32, "lr": 1e-4}
OPTIONS = ["--solver", "ddpm", "--ddpm-variance", "beta", "--clamping", "--diffusion-steps", "12", "--cpu",
           "--task", "seq2seq_diffusion", "--num-workers", "0", "--seed", "1"]


@pytest.fixture(scope="module")
def reference():
    return torch.load(FILE, weights_only=True)


def convert(folder, state, *options, pieces=PIECES):
    """Save `state` and a vocabulary, and convert them; the folder that was written."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "released.pt")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    main([str(folder / "released.pt"), "--vocab", str(folder / "vocab.txt"), "--output", str(folder / "ours"),
          "--attention-heads", str(HEADS), "--sequence-length", str(SEQUENCE), *options])
    return folder / "ours"


def loaded_from(folder):
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(folder / "checkpoint.pt")])
    return model.eval(), task


@pytest.fixture(scope="module")
def ours(reference, tmp_path_factory):
    return convert(tmp_path_factory.mktemp("convert"), reference["state_dict"])


@pytest.fixture(scope="module")
def loaded(ours):
    """Model and task, as fairseq makes them of the file alone."""
    return loaded_from(ours)


def to_ours(dictionary):
    """Released token id -> ours, told by the words alone."""
    names = {"[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[unused0]": "<s>"}
    return torch.tensor([dictionary.indices[names.get(piece, piece)] for piece in PIECES])


def nothing_given(model, rows):
    return model.encode(torch.full((rows, 1), model.pad))._replace(fixed=None)


def test_converted_forward_equals_the_released_one(loaded, reference):
    model, inputs = loaded[0], reference["forward"]
    with torch.no_grad():
        pred_x0 = model.denoise(inputs["x"], inputs["t"], nothing_given(model, len(inputs["x"])))
    torch.testing.assert_close(pred_x0, inputs["output"], **CLOSE)


def test_every_piece_keeps_its_row(loaded, reference):
    model, task = loaded
    state, rows = reference["state_dict"], to_ours(task.source_dictionary)
    assert task.source_dictionary == task.target_dictionary and sorted(rows.tolist()) == list(range(VOCABULARY))
    assert torch.equal(model.embedding.weight[rows], state["word_embedding.weight"])
    assert torch.equal(model.rounding_bias[rows], state["lm_head.bias"])
    assert torch.equal(model.positions.weight, state["position_embeddings.weight"][:SEQUENCE])


def test_settings_of_the_checkpoint_are_the_published_ones(loaded, ours):
    model = loaded[0]
    assert (model.schedule.num_timesteps, model.parameterization, model.length_model) == (2000, "x0", "fixed")
    assert model.double_separator and model.jitters_given and not model.noises_given and model.marks is None
    assert model.longest_sequence == SEQUENCE and model.max_positions() == (16, 15)
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(ours / "checkpoint.pt")) == []


def test_the_sequence_is_the_published_one(loaded):
    """[CLS] x [SEP] [SEP] [CLS] y [SEP] [PAD] ... to the whole length (DiffuSeq, text_datasets.py)."""
    model, task = loaded
    source, target = (task.source_dictionary.encode_line(f"[CLS] {text}", add_if_not_exist=False).long()[None]
                      for text in ("p70 p71", "p73"))
    sequence = model.modelled_target(model.sequence(model.encode(source), target))[0]
    pieces = "[CLS] p70 p71 [SEP] [SEP] [CLS] p73 [SEP]".split() + ["[PAD]"] * (SEQUENCE - 8)
    assert sequence.tolist() == to_ours(task.source_dictionary)[[PIECES.index(piece) for piece in pieces]].tolist()


def test_the_released_size_is_diffuseq_base():
    """The layout at the published sizes has the shapes of --arch diffuseq_base."""
    sizes = Sizes(30522, 128, 768, 3072, 128, 512, 12)
    with torch.device("meta"):
        released = {name: torch.empty(shape) for name, shape in released_layout(sizes).items()
                    if name != "lm_head.weight"}
        own = DiffuSeqModel(OmegaConf.structured(config_of(sizes, 12, 512, 255, {})), 30522, 1, 2).state_dict()
    del own["longest_target"], own["met_tokens"]
    assert {name: t.shape for name, t in from_published(released).items()} == {n: t.shape for n, t in own.items()}
    assert Sizes.of(released) == sizes


def test_training_args_beside_the_checkpoint_are_read(reference, tmp_path):
    (tmp_path / "training_args.json").write_text(json.dumps(ARGUMENTS))
    model, _ = loaded_from(convert(tmp_path, reference["state_dict"], "--target-length", "10"))
    assert model.schedule.num_timesteps == 500 and model.max_positions() == (21, 10)
    assert model.schedule.betas[0] == pytest.approx(0.0203, abs=1e-3)  # trunc_cos


@pytest.mark.parametrize("text, message", [
    ("{", r"training_args\.json is no JSON"), ("[]", r"holds no options"),
    (json.dumps({**ARGUMENTS, "noise_schedule": "odd", "vocab": "own"}), r"noise_schedule 'odd', vocab 'own', which"),
    (json.dumps({**ARGUMENTS, "diffusion_steps": "2000"}), r"has diffusion_steps '2000'"),
    (json.dumps({**ARGUMENTS, "rescale_timesteps": False}), r"has rescale_timesteps False"),
])
def test_training_args_that_cannot_be_repeated(reference, tmp_path, text, message):
    (tmp_path / "training_args.json").write_text(text)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, reference["state_dict"])
    assert not (tmp_path / "ours").exists()


QUERY = "input_transformers.layer.3.attention.self.query.weight"


@pytest.mark.parametrize("missing, changed, message", [
    ([QUERY, "LayerNorm.bias"], {}, rf"missing tensors: LayerNorm\.bias, {QUERY}$"),
    (["lm_head.bias"], {"x.y": torch.zeros(1)}, r"missing tensors: lm_head\.bias; unknown tensors: x\.y$"),
    ([], {QUERY: torch.zeros(64, 63)}, rf"wrong shapes: {QUERY} \(64, 63\), not \(64, 64\)$"),
    ([], {"lm_head.bias": torch.full((193,), math.nan)}, r"not finite: lm_head\.bias$"),
    ([], {"lm_head.weight": torch.zeros(193, 32)}, r"which DiffuSeq ties.*--embedding lm_head"),
])
def test_tensors_that_are_not_as_released_are_listed(reference, tmp_path, missing, changed, message):
    state = {name: tensor for name, tensor in {**reference["state_dict"], **changed}.items() if name not in missing}
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path, state)
    assert str(tmp_path / "released.pt") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("options, message", [
    (["--sequence-length", "65"], r"sequence of 65 pieces is none of 4 \.\. 64.*--sequence-length"),
    (["--target-length", "31"], r"--target-length 31 leaves no source: it is none of 1 \.\. 30"),
    (["--attention-heads", "7"], r"--model-dim 64.*--attention-heads 7"),
    (["--training-args", "nowhere.json"], r"nowhere\.json: No such file"),
])
def test_options_out_of_range(reference, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, reference["state_dict"], *options)
    assert not (tmp_path / "ours").exists()


def released_generation(reference, dictionary):
    """(score in bits, words) that the released weights make of each of LINES as the released code does, in its token
    ids: the whole sequence at once, the source put in its place again before every step.

    The noise is that of our generator, whose streams depend on our token ids.
    """
    sizes = Sizes.of(reference["state_dict"])
    cfg = DiffuSeqConfig(
        model_dim=sizes.hidden, ffn_dim=sizes.ffn, attention_heads=HEADS, encoder_layers=sizes.layers,
        latent_dim=sizes.latent, time_dim=sizes.time, max_source_positions=1,
        max_target_positions=sizes.positions - 1)
    model = DiffuSeqModel(OmegaConf.structured(cfg), VOCABULARY, 0, PIECES.index("[SEP]"))
    model.load_state_dict({**from_published(reference["state_dict"]), "longest_target": torch.tensor(0.0)})
    sep, unk = PIECES.index("[SEP]"), PIECES.index("[UNK]")
    texts = [[PIECES.index(w) if w in PIECES else unk for w in line.split()] + [sep, sep] for line in LINES]
    given = torch.tensor([text + [0] * (SEQUENCE - len(text)) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    return model.eval(), given, torch.arange(SEQUENCE) < lengths[:, None], to_ours(dictionary)


@torch.no_grad()
def sampled(model, given, fixed, rows):
    """The tokens and the scores in bits of a reverse process of 12 steps."""
    unused = torch.arange(VOCABULARY) == PIECES.index("[unused0]")
    clean = model.embedding(given)
    # The stream is that of the source without the separator, which the model adds.
    keys = combine(sequence_keys(rows[given[:, :-1]], fixed[:, 1:], 1), 0)
    levels = [model.schedule.at(t) for t in model.schedule.grid(12, "uniform")]
    nothing, estimates = nothing_given(model, len(given)), []

    def paste(x):
        return torch.where(fixed[..., None], clean, x)

    def denoise(xt, t, previous):
        estimates.append(model.denoise(paste(xt), t, nothing))
        return clamp_to_tokens(estimates[-1], model.embedding.weight, unused)

    def noise(counter):
        return gaussian_noise(keys, counter, SEQUENCE, model.embedding.embedding_dim)

    state = SamplerState(noise(0), None, levels[0])
    list(sample(partial(ddpm_step, variance="beta"), denoise, state, levels, lambda i: noise(1 + i)))
    tokens = nearest_tokens(estimates[-1], model.embedding.weight, unused)
    logits = model.round_logits(estimates[-1]).masked_fill(unused, -torch.inf)
    return tokens, logits.log_softmax(dim=-1).gather(2, tokens[..., None]).squeeze(2) / math.log(2)


def in_words(scores, tokens):
    """The score and the text up to the first [SEP] or [PAD], which counts for the score, in fairseq's words."""
    ends = [i for i, token in enumerate(tokens) if PIECES[token] in ("[SEP]", "[PAD]")]
    words = ["<unk>" if PIECES[t] == "[UNK]" else PIECES[t] for t in tokens[: ends[0] if ends else len(tokens)]]
    return float(scores[: len(words) + bool(ends)].mean()), words


def assert_same(output, expected):
    found = {int(number): (float(score), text.split())
             for number, score, text in re.findall(r"^H-(\d+)\t([^\t]+)\t(.*)$", output, re.M)}
    assert sorted(found) == list(range(len(LINES)))
    for i, (score, words) in enumerate(expected):
        assert found[i][1] == words and math.isclose(found[i][0], score, rel_tol=1e-5, abs_tol=1e-5), i


@pytest.mark.slow
def test_interactive_and_generate_give_the_text_of_the_released_weights(ours, loaded, reference, tmp_path):
    model, given, fixed, rows = released_generation(reference, loaded[1].source_dictionary)
    expected = [in_words(score[~own], line[~own].tolist())
                for line, score, own in zip(*sampled(model, given, fixed, rows), fixed)]
    assert len({tuple(words) for _, words in expected}) > 2
    done = run_module("interactive", ours, *OPTIONS, "--source-lang", "src", "--target-lang", "tgt", "--path",
                      ours / "checkpoint.pt", "--buffer-size", "5", "--batch-size", "2",
                      stdin="".join(f"{line}\n" for line in LINES))
    assert_same(done.stdout, expected)
    for side in ("src", "tgt"):
        (tmp_path / f"text.{side}").write_text("".join(f"{line}\n" for line in LINES))
    run_module("preprocess", "--source-lang", "src", "--target-lang", "tgt", "--srcdict", ours / "dict.src.txt",
               "--joined-dictionary", "--destdir", tmp_path / "bin", "--testpref", tmp_path / "text", plugin=False)
    done = run_module("generate", tmp_path / "bin", *OPTIONS, "--path", ours / "checkpoint.pt")
    assert_same(done.stdout, expected)
