"""scripts/convert_genie.py: a released GENIE becomes a checkpoint and dictionaries that compute the same."""

import io
import math
import os
import re
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary
from helpers import REPOSITORY, clamped_sampling, run_module
from hostile import pickled_calls
from omegaconf import OmegaConf

from diffusion_fairseq.diffusion.noise import combine, gaussian_noise, sequence_keys
from diffusion_fairseq.diffusion.sampling import sample
from diffusion_fairseq.diffusion.solvers import SamplerState, ddpm_step
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.published_genie import from_published
from diffusion_fairseq.tasks.sampling_config import SamplingConfig
from diffusion_fairseq.text.embedding import clamp_to_tokens, nearest_tokens

sys.path.insert(0, str(REPOSITORY / "scripts"))
from convert_genie import Sizes, config_of, main, released_layout  # noqa: E402, I001

FILE = Path(__file__).parent / "data/genie_reference_tiny.pt"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
HEADS, TARGET, SOURCE = 4, 7, 16
VOCABULARY = 211
# As in BERT: padding first, the other special pieces somewhere later, unused ones between.
SPECIAL = {0: "[PAD]", 1: "[unused0]", 2: "[unused1]", 50: "[UNK]", 51: "[CLS]", 52: "[SEP]", 53: "[MASK]"}
PIECES = [SPECIAL.get(row, f"##p{row}" if row % 3 == 0 else f"p{row}") for row in range(VOCABULARY)]
LINES = ["[CLS] p70 ##p102 p200 [MASK]", "[CLS] p100", "[CLS] p85 p85 neverseen p95 p100 p110 p191", "[CLS] ##p99 p58",
         "[CLS] p61 ##p63 p65 p62"]
OPTIONS = ["--solver", "ddpm", "--ddpm-variance", "beta", "--clamping", "--diffusion-steps", "12", "--cpu",
           "--task", "seq2seq_diffusion", "--required-seq-len-multiple", str(SOURCE), "--num-workers", "0"]


@pytest.fixture(scope="module")
def reference():
    return torch.load(FILE, weights_only=True)


def convert(folder, state, *options, pieces=PIECES):
    """Save `state` and a vocabulary, and convert them; the folder that was written."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "released")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    main([str(folder / "released"), "--vocab", str(folder / "vocab.txt"), "--output", str(folder / "ours"),
          "--attention-heads", str(HEADS), "--target-length", str(TARGET), *options])
    return folder / "ours"


@pytest.fixture(scope="module")
def ours(reference, tmp_path_factory):
    """The converted folder, from a file as the released training code saves it."""
    saved = {"model_dict": reference["state_dict"], "optimizer_dict": {"state": {}, "param_groups": []},
             "scheduler_dict": {"last_epoch": 3}, "offset": 3}
    return convert(tmp_path_factory.mktemp("convert"), saved)


@pytest.fixture(scope="module")
def loaded(ours):
    """Model and task, as fairseq makes them of the file alone."""
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(ours / "checkpoint.pt")])
    return model.eval(), task


def to_ours(dictionary):
    """Released token id -> ours, told by the words alone."""
    names = {"[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[unused0]": "<s>"}
    return torch.tensor([dictionary.indices[names.get(piece, piece)] for piece in PIECES])


def memory_of(model, tokens):
    with torch.no_grad():
        return model.memory(model.encode(tokens))


def reference_memory(loaded, reference):
    model, task = loaded
    inputs = reference["forward"]
    return memory_of(model, to_ours(task.source_dictionary)[inputs["src"].masked_fill(inputs["src_mask"] == 0, 0)])


def test_converted_forward_equals_the_released_one(loaded, reference):
    model, task = loaded
    inputs = reference["forward"]
    with torch.no_grad():
        pred_x0 = model.denoise(inputs["x"], inputs["t"], reference_memory(loaded, reference))
        logits = model.round_logits(inputs["x"])
    torch.testing.assert_close(pred_x0, inputs["output"], **CLOSE)
    torch.testing.assert_close(logits[..., to_ours(task.target_dictionary)], inputs["logits"], **CLOSE)


def test_converted_sampling_equals_the_released_one(loaded, reference):
    model, _ = loaded
    given = reference["sampling"]
    states = clamped_sampling(model, reference_memory(loaded, reference), given)
    assert len(states) == len(given["trajectory"])
    for state, theirs in zip(states, given["trajectory"]):
        torch.testing.assert_close(state.xt, theirs, **CLOSE)


def test_every_piece_keeps_its_row(loaded, reference):
    model, task = loaded
    state, rows = reference["state_dict"], to_ours(task.source_dictionary)
    assert task.source_dictionary == task.target_dictionary and sorted(rows.tolist()) == list(range(VOCABULARY))
    assert task.source_dictionary.unk() == rows[50] and task.source_dictionary.index("nowhere") == rows[50]
    assert torch.equal(model.embedding.weight[rows], state["word_embedding.weight"])
    assert torch.equal(model.encoder.tokens.weight[rows],
                       state["passage_encoder.embeddings.word_embeddings.weight"])
    assert torch.equal(model.rounding_bias[rows], state["lm_head.bias"])
    assert torch.equal(model.positions.weight, state["position_embeddings.weight"][:TARGET])


def test_settings_of_the_checkpoint_are_the_published_ones(loaded, ours):
    model, task = loaded
    assert (model.schedule.num_timesteps, model.parameterization, model.length_model) == (2000, "x0", "fixed")
    assert model.attend_source_padding and not model.self_conditioning
    assert model.max_positions() == (64, TARGET)
    if hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(str(ours / "checkpoint.pt")) == []


def test_the_released_size_is_genie_base():
    """The layout at the published sizes has the shapes of --arch genie_base."""
    sizes = Sizes(30522, 128, 768, 3072, 128, 512, 512, 6, 6)
    layout = released_layout(sizes)
    with torch.device("meta"):
        released = {name: torch.empty(shape) for name, shape in layout.items() if name != "lm_head.weight"}
        cfg = config_of(sizes, 12, 512)
        own = GenieModel(OmegaConf.structured(cfg), 30522, 30522, 1).state_dict()
    renamed = from_published(released)
    del own["longest_target"], own["met_tokens"]
    assert {name: t.shape for name, t in renamed.items()} == {name: t.shape for name, t in own.items()}
    assert Sizes.of(released) == sizes


def test_a_plain_state_dict_in_half_precision_gives_float32(reference, tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in reference["state_dict"].items()}
    folder = convert(tmp_path, state)
    weights = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    assert {t.dtype for t in weights.values()} == {torch.float32}


def test_another_run_writes_the_same_and_nothing_foreign_is_overwritten(reference, tmp_path):
    folder = convert(tmp_path, reference["state_dict"])
    first = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    again = torch.load(convert(tmp_path, reference["state_dict"]) / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(first[name], again[name]) for name in first)
    (folder / "dict.tgt.txt").write_text("word 1\n")
    with pytest.raises(UserError, match=r"dict\.tgt\.txt belongs to something else"):
        convert(tmp_path, reference["state_dict"])
    assert (folder / "dict.tgt.txt").read_text() == "word 1\n"


def change(state, name, value):
    return {**state, name: value}


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


QUERY = "passage_encoder.encoder.layer.3.attention.self.query.weight"
NAN = torch.full((64,), float("nan"))


@pytest.mark.parametrize("broken, message", [
    (lambda s: without(s, QUERY, "LayerNorm.bias"), rf"missing tensors: {QUERY}, LayerNorm\.bias$"),
    (lambda s: change(without(s, "lm_head.bias"), "x.y", NAN),
     r"missing tensors: lm_head\.bias; unknown tensors: x\.y$"),
    (lambda s: without(s, "word_embedding.weight"), r"missing tensors: word_embedding\.weight$"),
    (lambda s: without(s, *(n for n in s if "blocks.2." in n)), r"missing tensors: transformer_blocks\.2\.attn1"),
    (lambda s: change(s, QUERY, torch.zeros(64, 63)), rf"wrong shapes: {QUERY} \(64, 63\), not \(64, 64\)$"),
    (lambda s: change(s, "lm_head.bias", torch.zeros(210)), r"lm_head\.bias \(210,\), not \(211,\)$"),
    (lambda s: change(s, "LayerNorm.bias", torch.zeros(64).long()), r"wrong types: LayerNorm\.bias torch\.int64$"),
    (lambda s: change(s, "LayerNorm.bias", NAN), r"not finite: LayerNorm\.bias$"),
    (lambda s: change(s, "position_ids", torch.arange(64).flip(0)[None]), r"not count from 0: position_ids$"),
    (lambda s: change(s, "lm_head.weight", torch.zeros(211, 32)), r"ties.*--embedding lm_head"),
    (lambda s: {"weights": 3}, r"none of GENIE"),
    (lambda s: {}, r"none of GENIE"),
    (lambda s: list(s.values()), r"none of GENIE"),
])
def test_tensors_that_are_not_as_released_are_listed(reference, tmp_path, broken, message):
    with pytest.raises(UserError, match=message) as caught:
        convert(tmp_path, broken(reference["state_dict"]))
    assert str(tmp_path / "released") in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_averaged_weights_that_are_not_tied(reference, tmp_path):
    """The released code averages parameters: lm_head.weight, the same one as word_embedding.weight, is left out."""
    state = change(reference["state_dict"], "word_embedding.weight", torch.ones(211, 32))
    kept = torch.load(convert(tmp_path, state, "--embedding", "lm_head") / "checkpoint.pt", weights_only=True)["model"]
    assert sorted(kept["embedding.weight"].sum(1).tolist()) == sorted(state["lm_head.weight"].sum(1).tolist())
    averaged = convert(tmp_path, state, "--embedding", "word_embedding") / "checkpoint.pt"
    assert torch.load(averaged, weights_only=True)["model"]["embedding.weight"].eq(1).all()


@pytest.mark.parametrize("pieces, message", [
    (PIECES[:-1], r"holds 210 pieces, the checkpoint 211: .*bert-base-uncased"),
    ([*PIECES[:-1], "p70"], r"line 211: 'p70' is on line 71 too"),
    ([*PIECES[:-1], "two words"], r"line 211: 'two words' is no word"),
    ([*PIECES[:-1], ""], r"line 211: '' is no word"),
    ([*PIECES[:-1], "<pad>"], r"line 211: '<pad>' is no word"),
    ([p.replace("[CLS]", "cls") for p in PIECES], r"lacks \[CLS\]: "),
    ([p.replace("unused", "used") for p in PIECES], r"lacks \[unused0\]"),
])
def test_a_vocabulary_that_does_not_fit(reference, tmp_path, pieces, message):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, reference["state_dict"], pieces=pieces)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("options, message", [
    (["--target-length", "65"], r"--target-length 65 is none of 1 \.\. 64"),
    (["--target-length", "0"], r"--target-length 0"),
    (["--attention-heads", "7"], r"--model-dim 64.*--attention-heads 7"),
])
def test_options_out_of_range(reference, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        convert(tmp_path, reference["state_dict"], *options)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["system", "system in a Namespace", "eval", "exec"])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(reference, tmp_path, name):
    marker = tmp_path / "marker"
    with pytest.raises(UserError, match=r"released refused: it holds"):
        convert(tmp_path, change(reference["state_dict"], "x", pickled_calls(marker)[name]))
    assert not marker.exists()


def test_files_that_are_no_checkpoint(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ema", b"weights")
    whole = FILE.read_bytes()
    contents = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello", "packed": packed.getvalue()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "nowhere"]:
        with pytest.raises(UserError, match=rf"{name} (refused|cannot be read)"):
            main([str(tmp_path / name), "--vocab", os.devnull, "--output", str(tmp_path / "ours")])
    assert not (tmp_path / "ours").exists()


def hypotheses(output):
    """id -> (score in bits, pieces)."""
    found = re.findall(r"^H-(\d+)\t([^\t]+)\t(.*)$", output, re.M)
    return {int(number): (float(score), text.split()) for number, score, text in found}


def released_generation(reference, dictionary):
    """(score in bits, words) that the released weights make of each of LINES, in the released token ids: nothing of the
    conversion is used but the names of tensors.

    The noise is that of our generator, whose streams depend on our token ids.
    """
    sizes = Sizes.of(reference["state_dict"])
    unused, sep, unk = (PIECES.index(piece) for piece in ("[unused0]", "[SEP]", "[UNK]"))
    model = GenieModel(OmegaConf.structured(config_of(sizes, HEADS, sizes.target_positions)), VOCABULARY, VOCABULARY, 0)
    model.load_state_dict({**from_published(reference["state_dict"]), "longest_target": torch.tensor(0.0)})
    model.eval()
    source = torch.zeros(len(LINES), SOURCE, dtype=torch.int64)
    for row, line in zip(source, LINES):
        ids = [PIECES.index(word) if word in PIECES else unk for word in line.split()] + [sep]
        row[: len(ids)] = torch.tensor(ids)
    keys = combine(sequence_keys(to_ours(dictionary)[source], source != 0, 1), 0)
    levels = [model.schedule.at(t) for t in model.schedule.grid(12, "uniform")]
    memory, forbidden = memory_of(model, source), torch.arange(VOCABULARY) == unused
    estimates = []

    def denoise(xt, t, previous):
        estimates.append(model.denoise(xt, t, memory))
        return clamp_to_tokens(estimates[-1], model.embedding.weight, forbidden)

    def noise(counter):
        return gaussian_noise(keys, counter, TARGET, sizes.latent)

    with torch.no_grad():
        state = SamplerState(noise(0), None, levels[0])
        list(sample(partial(ddpm_step, variance="beta"), denoise, state, levels, lambda i: noise(1 + i)))
        tokens = nearest_tokens(estimates[-1], model.embedding.weight, forbidden)
        logits = model.round_logits(estimates[-1]).masked_fill(forbidden, -torch.inf)
        scores = logits.log_softmax(dim=-1).gather(2, tokens[..., None]).squeeze(2) / math.log(2)
    return [in_words(*rows) for rows in zip(scores, tokens.tolist())]


def in_words(scores, tokens):
    """The score and the text up to the first [SEP] or [PAD], which counts for the score, in fairseq's words."""
    ends = [i for i, token in enumerate(tokens) if PIECES[token] in ("[SEP]", "[PAD]")]
    words = ["<unk>" if PIECES[t] == "[UNK]" else PIECES[t] for t in tokens[: ends[0] if ends else len(tokens)]]
    return float(scores[: len(words) + bool(ends)].mean()), words


def assert_same(found, expected):
    assert sorted(found) == list(range(len(LINES)))
    for i, (score, words) in enumerate(expected):
        assert found[i][1] == words and math.isclose(found[i][0], score, rel_tol=1e-5, abs_tol=1e-5), i


@pytest.mark.slow
def test_interactive_and_generate_give_the_text_of_the_released_weights(ours, loaded, reference, tmp_path):
    model, task = loaded
    expected = released_generation(reference, task.source_dictionary)
    assert len({score for score, _ in expected}) == len(LINES) and len({tuple(words) for _, words in expected}) > 2
    assert_same({i: directly(model, task, line) for i, line in enumerate(LINES)}, expected)
    done = run_module("interactive", ours, *OPTIONS, "--source-lang", "src", "--target-lang", "tgt", "--path",
                      ours / "checkpoint.pt", "--buffer-size", "5", "--batch-size", "2", "--seed", "1",
                      stdin="".join(f"{line}\n" for line in LINES))
    assert_same(hypotheses(done.stdout), expected)
    done = run_module("generate", binarise(ours, tmp_path), *OPTIONS, "--path", ours / "checkpoint.pt", "--seed", "1")
    assert_same(hypotheses(done.stdout), expected)


def directly(model, task, line):
    """Score in bits and words of the library's hypothesis, without a command."""
    tokens = torch.full((1, SOURCE), task.source_dictionary.pad())
    encoded = task.source_dictionary.encode_line(line, add_if_not_exist=False)
    tokens[0, : len(encoded)] = encoded
    sampling = SamplingConfig(solver="ddpm", ddpm_variance="beta", clamping=True, diffusion_steps=12, seed=1)
    generator = DiffusionGenerator(model, task.target_dictionary, sampling)
    with torch.inference_mode():
        ((hypothesis,),) = generator.generate([model], {"net_input": {"src_tokens": tokens}})
    return hypothesis["score"] / math.log(2), task.target_dictionary.string(hypothesis["tokens"]).split()


def binarise(ours, folder):
    for side in ("src", "tgt"):
        (folder / f"text.{side}").write_text("".join(f"{line}\n" for line in LINES))
    run_module("preprocess", "--source-lang", "src", "--target-lang", "tgt", "--srcdict", ours / "dict.src.txt",
               "--joined-dictionary", "--destdir", folder / "bin", "--trainpref", folder / "text", "--validpref",
               folder / "text", "--testpref", folder / "text", plugin=False)
    return folder / "bin"


@pytest.mark.slow
def test_fine_tuning_starts_from_the_converted_weights(ours, reference, tmp_path, capsys):
    convert(tmp_path / "again", reference["state_dict"])
    options = re.search(r"^model: (.*)$", capsys.readouterr().out, re.M)[1].split()
    data = binarise(ours, tmp_path)
    done = run_module("train", data, "--task", "seq2seq_diffusion", *options, "--criterion", "diffusion_vlb",
                      "--finetune-from-model", ours / "checkpoint.pt", "--padding-in-mean", "--timestep-sampler",
                      "loss-second-moment", "--required-seq-len-multiple", SOURCE, "--optimizer", "adam", "--lr",
                      "1e-5", "--batch-size", "4", "--max-update", "2", "--cpu", "--num-workers", "0", "--save-dir",
                      tmp_path / "ck", "--disable-validation")
    assert "loading pretrained model from" in done.stdout
    before = torch.load(ours / "checkpoint.pt", weights_only=True)["model"]
    after = torch.load(tmp_path / "ck/checkpoint_last.pt", weights_only=True)
    assert after["optimizer_history"][-1]["num_updates"] == 2
    for name in ("embedding.weight", "encoder.layers.5.ffn.0.weight", "layers.5.cross_attention.query.weight"):
        difference = (after["model"][name] - before[name]).abs().max()
        assert 0 < difference < 1e-4, name


def test_the_dictionary_files_are_fairseqs(ours):
    dictionary = Dictionary.load(str(ours / "dict.src.txt"))
    assert len(dictionary) == VOCABULARY and (ours / "vocab.txt").read_text().split("\n")[:-1] == PIECES
    line = dictionary.encode_line("[CLS] p70 [MASK]", add_if_not_exist=False)
    assert dictionary.string(line) == "[CLS] p70 [MASK]" and dictionary.unk() not in line
