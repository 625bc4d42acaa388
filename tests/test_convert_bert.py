"""scripts/convert_bert.py: a BERT of the transformers library becomes the start of a diffusion language model."""

import json
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from fairseq import checkpoint_utils
from helpers import REPOSITORY, run_module
from hostile import pickled_calls

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.modules.packing import Packing

sys.path.insert(0, str(REPOSITORY / "scripts"))
from convert_bert import main  # noqa: E402, I001

HIDDEN, FFN, HEADS, LAYERS, POSITIONS, VOCABULARY = 16, 24, 4, 3, 20, 50
CONFIG = {"model_type": "bert", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_attention_heads": HEADS,
          "num_hidden_layers": LAYERS, "max_position_embeddings": POSITIONS, "vocab_size": VOCABULARY,
          "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}
WORDS = [f"word{i}" for i in range(30)]


def bert_state(seed=0):
    """The tensors of a BertModel."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    state = {"embeddings.word_embeddings.weight": drawn(VOCABULARY, HIDDEN),
             "embeddings.position_embeddings.weight": drawn(POSITIONS, HIDDEN),
             "embeddings.token_type_embeddings.weight": drawn(2, HIDDEN),
             "embeddings.LayerNorm.weight": 1 + drawn(HIDDEN), "embeddings.LayerNorm.bias": drawn(HIDDEN),
             "pooler.dense.weight": drawn(HIDDEN, HIDDEN), "pooler.dense.bias": drawn(HIDDEN)}
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        for part, outputs, inputs in (("attention.self.query", HIDDEN, HIDDEN), ("attention.self.key", HIDDEN, HIDDEN),
                                      ("attention.self.value", HIDDEN, HIDDEN), ("intermediate.dense", FFN, HIDDEN),
                                      ("attention.output.dense", HIDDEN, HIDDEN), ("output.dense", HIDDEN, FFN)):
            state.update({f"{name}.{part}.weight": drawn(outputs, inputs), f"{name}.{part}.bias": drawn(outputs)})
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            state.update({f"{name}.{part}.weight": 1 + drawn(HIDDEN), f"{name}.{part}.bias": drawn(HIDDEN)})
    return state


def with_heads(state):
    """As bert-base-uncased is distributed: under a prefix, beside heads, with the old names of the layer norms."""
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in state.items()}
    return {**{f"bert.{name}": tensor for name, tensor in old.items()}, "cls.predictions.bias": torch.zeros(VOCABULARY),
            "cls.seq_relationship.weight": torch.zeros(2, HIDDEN)}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data-bin"
    folder.mkdir()
    (folder / "dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS) + "<mask> 0\n")
    return folder


def bert_folder(folder, state, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def convert(folder, data, *options):
    output = folder.parent / "ours" / "bert.pt"
    main([str(folder), "--data", str(data), "--output", str(output), *options])
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(output)])
    return model.eval(), output


def reference_layers(state, x, counts):
    """What BERT's layers make of x (B, L, HIDDEN), of which `counts` positions of each row count: plain torch."""
    hidden = padded = torch.arange(x.size(1)) >= counts[:, None]

    def linear(name, value):
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, value):
        return F.layer_norm(value, (HIDDEN,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    def heads(value):
        return value.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    hidden = norm("embeddings.LayerNorm", x + state["embeddings.position_embeddings.weight"][: x.size(1)]
                  + state["embeddings.token_type_embeddings.weight"][0])
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(f"{name}.attention.self.{part}", hidden))
                             for part in ("query", "key", "value"))
        scores = query @ key.transpose(-1, -2) / math.sqrt(HIDDEN // HEADS)
        scores = scores.masked_fill(padded[:, None, None], -torch.inf)
        context = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        hidden = norm(f"{name}.attention.output.LayerNorm", hidden + linear(f"{name}.attention.output.dense", context))
        inner = F.gelu(linear(f"{name}.intermediate.dense", hidden))
        hidden = norm(f"{name}.output.LayerNorm", hidden + linear(f"{name}.output.dense", inner))
    return hidden


def layers_of_ours(model, x, counts):
    packing = Packing.of(torch.arange(x.size(1)) < counts[:, None])
    with torch.no_grad():
        hidden = packing.pack(model.norm(x + model.positions.weight[: x.size(1)]))
        for layer in model.layers:
            hidden = layer(hidden, packing)
    return packing.unpack(model.final_norm(hidden))


def inputs():
    return torch.randn(3, 12, HIDDEN, generator=torch.Generator().manual_seed(5)), torch.tensor([12, 7, 1])


@pytest.mark.parametrize("form", [dict, with_heads], ids=["bare", "with heads"])
def test_the_layers_compute_what_berts_do(tmp_path, data, form):
    state = bert_state()
    model, _ = convert(bert_folder(tmp_path / "bert", form(state)), data)
    x, counts = inputs()
    counted = torch.arange(12) < counts[:, None]
    torch.testing.assert_close(layers_of_ours(model, x, counts)[counted], reference_layers(state, x, counts)[counted],
                               rtol=1e-5, atol=1e-5)
    assert len(model.embedding.weight) == 35 and model.mask == 34


def test_the_layers_compute_what_the_transformers_library_does(tmp_path, data):
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertModel(transformers.BertConfig(**CONFIG)).eval()
    bert.save_pretrained(tmp_path / "bert")
    model, _ = convert(tmp_path / "bert", data)
    x, counts = inputs()
    counted = torch.arange(12) < counts[:, None]
    with torch.no_grad():
        theirs = bert(inputs_embeds=x, attention_mask=counted.long()).last_hidden_state
    torch.testing.assert_close(layers_of_ours(model, x, counts)[counted], theirs[counted], rtol=1e-5, atol=1e-5)


def test_the_rest_is_drawn_by_the_seed(tmp_path, data, capsys):
    folder = bert_folder(tmp_path / "bert", bert_state())
    states = [convert(folder, data, *options)[0].state_dict() for options in
              ([], [], ["--seed", "2"], ["--self-conditioning", "--given-tokens", "clean", "--latent-dim", "8"])]
    taken = {name for name in states[0] if re.match(r"layers\.|positions|norm\.", name)}
    drawn = {"embedding.weight", "up_projection.0.weight", "time_embedding.0.weight", "down_projection.2.weight"}
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert all(states[0][name].equal(states[2][name]) and states[0][name].equal(states[3][name]) for name in taken)
    assert not any(states[0][name].equal(states[2][name]) for name in drawn)
    assert states[3]["up_projection.0.weight"].shape == (HIDDEN, 16) and "marks.weight" in states[3]
    said = capsys.readouterr().out
    assert "model: --arch diffusion_lm_base --latent-dim 8 --self-conditioning --model-dim 16 --ffn-dim 24 " in said
    assert "-positions" not in said


BROKEN = {"missing tensors: encoder.layer.1.output.dense.bias": lambda s: s.pop("encoder.layer.1.output.dense.bias"),
          "unknown tensors: encoder.layer.0.crossattention.x": lambda s: s.update({
              "encoder.layer.0.crossattention.x": torch.zeros(2)}),
          r"wrong shapes: encoder.layer.2.output.dense.weight \(16, 23\), not \(16, 24\)": lambda s: s.update({
              "encoder.layer.2.output.dense.weight": torch.zeros(16, 23)}),
          "not finite: embeddings.LayerNorm.bias": lambda s: s["embeddings.LayerNorm.bias"].fill_(math.nan)}


@pytest.mark.parametrize("message", BROKEN)
def test_broken_tensors_are_listed(tmp_path, data, message):
    state = bert_state()
    BROKEN[message](state)
    with pytest.raises(UserError, match=message):
        convert(bert_folder(tmp_path / "bert", state), data)


@pytest.mark.parametrize("config, message", [
    ({"model_type": "roberta"}, "model_type 'roberta', not 'bert'"), ({"hidden_act": "relu"}, "hidden_act 'relu'"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05, not 1e-12"),
    ({"num_attention_heads": 3}, "--model-dim 16 must be a multiple of --attention-heads 3"),
    ({"num_hidden_layers": 4}, "not what config.json says: num_hidden_layers 3, not 4"),
    ({"num_attention_heads": None}, "is no config.json of a BERT"),
])
def test_other_models_are_refused(tmp_path, data, config, message):
    with pytest.raises(UserError, match=message):
        convert(bert_folder(tmp_path / "bert", bert_state(), **config), data)


def test_bad_folders_are_refused(tmp_path, data, monkeypatch):
    folder = tmp_path / "bert"
    with pytest.raises(UserError, match="config.json: No such file"):
        convert(folder, data)
    bert_folder(folder, pickled_calls(tmp_path / "marker")["system"])
    with pytest.raises(UserError, match="refused"):
        convert(folder, data)
    assert not (tmp_path / "marker").exists()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds neither model.safetensors nor pytorch_model.bin"):
        convert(folder, data)
    (folder / "model.safetensors").write_bytes(b"no")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(UserError, match="needs a package: pip install safetensors"):
        convert(folder, data)
    bert_folder(folder, bert_state())
    convert(folder, data)  # from the other file
    (data / "dict.txt").write_text("word1 1\n")
    with pytest.raises(UserError, match="lacks the word <mask>"):
        convert(folder, data)


def test_safetensors_are_read_and_bad_ones_named(tmp_path, data):
    safetensors = pytest.importorskip("safetensors.torch")
    folder = bert_folder(tmp_path / "bert", {})
    safetensors.save_file(with_heads(bert_state()), folder / "model.safetensors")
    model, _ = convert(folder, data)
    assert model.layers[2].ffn[0].weight.equal(bert_state()["encoder.layer.2.intermediate.dense.weight"])
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        convert(folder, data)


@pytest.mark.slow
def test_fine_tuning_starts_from_it(tmp_path, data, capsys):
    lines = [" ".join(WORDS[i % 30] for i in range(first, first + 9)) + "\n" for first in range(40)]
    for split in ("train", "valid"):
        (tmp_path / split).write_text("".join(lines))
    binary = tmp_path / "binary"
    run_module("preprocess", "--only-source", "--trainpref", tmp_path / "train", "--validpref", tmp_path / "valid",
               "--srcdict", data / "dict.txt", "--destdir", binary, plugin=False)
    model, file = convert(bert_folder(tmp_path / "bert", with_heads(bert_state())), binary)
    options = re.search(r"^model: (.*)$", capsys.readouterr().out, re.M)[1].split()
    done = run_module("train", binary, "--task", "diffusion_lm", "--tokens-per-sample", "16", *options, "--criterion",
                      "diffusion_anchor", "--finetune-from-model", file, "--optimizer", "adam", "--lr", "1e-5",
                      "--batch-size", "8", "--max-update", "2", "--cpu", "--num-workers", "0", "--save-dir",
                      tmp_path / "ck", "--no-epoch-checkpoints")
    assert "positions.weight 20 -> 16" in done.stdout
    after = torch.load(tmp_path / "ck/checkpoint_last.pt", weights_only=True)["model"]
    for name in ("embedding.weight", "layers.2.ffn.0.weight", "norm.weight"):
        difference = (after[name] - model.state_dict()[name]).abs().max()
        assert 0 < difference < 1e-4, name
