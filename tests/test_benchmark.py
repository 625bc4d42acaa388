"""The benchmark measures what it says: that is tested on small systems, the figures are not."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from _benchmark_plot import plot  # noqa: E402, I001
from _diffuseq_systems import PublishedDiffuSeq, make_diffuseq, our_x0  # noqa: E402, I001
import _language_models as language_models  # noqa: E402, I001
from _language_models import Decoded, Denoised, make_ddlm, make_transformer_lm, masked_dictionary  # noqa: E402, I001
from _systems import Autoregressive, Ours, Published, Work, dictionary_of, make_genie, make_transformer, trainings  # noqa: E402, I001

from diffusion_fairseq.modules.packing import Packing  # noqa: E402

DICTIONARY = dictionary_of(300)


def make_model():
    return make_genie("genie_tiny", DICTIONARY, "cpu", length_model="fixed", self_conditioning=False).eval()


@pytest.mark.parametrize("source, target, candidates", [(37, 9, 3), (70, 20, 1), (512, 64, 1)])
def test_the_published_structure_gives_our_outputs(source, target, candidates):
    work, model = Work(DICTIONARY, "cpu", 2, source, target, candidates, 4), make_model()
    ours, published = Ours(model, work).x0(), Published(model, work).x0()
    assert ours.shape == (2 * candidates, target, 32) and ours.std() > 1e-2
    torch.testing.assert_close(ours[::candidates], published, rtol=1e-4, atol=1e-4)
    assert (ours[1:2] - published[:1]).abs().max() > 1e-3


def test_the_published_structure_encodes_at_every_step_and_pads():
    work, model, seen = Work(DICTIONARY, "cpu", 2, 37, 9, 3, 4), make_model(), []
    model.layers[0].ffn_norm.register_forward_hook(lambda layer, inputs, output: seen.append(tuple(output.shape)))
    encoded = []
    model.encoder.layers[0].register_forward_hook(lambda layer, inputs, output: encoded.append(tuple(output.shape)))
    Published(model, work).x0()
    assert encoded[-4:] == [(2 * 512, 64)] * 4 and seen == [(2 * 64, 64)] * 4
    seen.clear()
    encoded.clear()
    Ours(model, work).generate()
    assert encoded == [(80, 64)] and seen == [(2 * 3 * 9 + 10, 64)] * 4  # 74 and 54 positions, in whole registers


def test_beam_search_makes_targets_of_the_length_asked_for():
    system = Autoregressive(make_transformer("genie_tiny", DICTIONARY, "cpu").eval(),
                            Work(DICTIONARY, "cpu", 2, 12, 7, 1, 1))
    found = system.generator.generate([], system.sample)
    assert all(len(hypothesis["tokens"]) == 7 for hypotheses in found for hypothesis in hypotheses)
    assert all(len(hypotheses) == Autoregressive.BEAM for hypotheses in found)


def test_every_training_system_learns():
    for name, system in trainings("genie_tiny", Work(DICTIONARY, "cpu", 2, 9, 6, 1, 1), torch.float32):
        before = {key: value.clone() for key, value in system.model.named_parameters()}
        system.update()
        changed = [key for key, value in system.model.named_parameters() if not value.equal(before[key])]
        assert len(changed) > 0.9 * len(before), name


@pytest.mark.slow
def test_the_command_writes_table_and_json(tmp_path):
    file = tmp_path / "benchmark.json"
    words = [sys.executable, REPOSITORY / "scripts/benchmark.py", "--quick", "--arch", "genie_tiny", "--batch", "1",
             "--steps", "2", "--train-batch", "2", "--json", file]
    done = subprocess.run(words, text=True, capture_output=True, timeout=300, check=True)
    found = json.loads(file.read_text())
    assert {(row["shape"], row["structure"]) for row in found["rows"]} >= {
        (shape, structure) for shape in ("published", "xsum") for structure in ("published", "ours")}
    for row in found["rows"]:
        assert {"shape", "structure", "dtype", "batch", "candidates", "ms_per_candidate_step"} <= set(row)
        assert row["ms_per_candidate_step"] > 0 and row.get("difference", 0.0) < 1e-4
    assert {row["structure"] for row in found["training"]} == {"ours", "published", "transformer"}
    assert "candidates cost" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_command_measures_diffuseq_beside_its_structure(tmp_path):
    file = tmp_path / "benchmark.json"
    words = [sys.executable, REPOSITORY / "scripts/benchmark.py", "--parts", "diffuseq", "--arch", "genie_tiny",
             "--batch", "1", "--steps", "2", "--json", file]
    done = subprocess.run(words, text=True, capture_output=True, timeout=300, check=True)
    rows = json.loads(file.read_text())["rows"]
    assert [row["structure"] for row in rows if row["structure"] != "ours"] == ["published", "ours, causal source"]
    assert {row["dtype"] for row in rows if row["structure"] == "ours"} >= {"fp32"}
    assert rows[0]["difference"] < 1e-4
    assert all(row["ms_per_candidate_step"] > 0 and row["faster_end_to_end"] > 0 for row in rows[1:])
    assert "ours, causal source" in done.stdout and file.with_suffix(".png").exists()


def test_diffuseqs_structure_computes_the_same_as_ours():
    dictionary = dictionary_of(1000)
    model = make_diffuseq("diffuseq_tiny", dictionary, "cpu")
    system = PublishedDiffuSeq(model, Work(dictionary, "cpu", 2, 15, 14, 3, 4))
    theirs = system.x0()
    assert theirs.shape == (2, 14, 32) and system.estimate.shape[1] == 128
    torch.testing.assert_close(our_x0(system.ours), theirs, rtol=1e-4, atol=1e-4)


def test_language_models_are_of_one_size_and_write_texts_of_one_length():
    dictionary = masked_dictionary(300)
    assert len(dictionary) == 300
    work = Work(dictionary, "cpu", 2, 0, 20, 1, 3)
    ours, transformer = (make("ddlm_tiny", dictionary, "cpu") for make in (make_ddlm, make_transformer_lm))
    theirs = transformer.decoder.layers
    assert len(theirs) == len(ours.layers)
    assert theirs[0].fc1.weight.shape == ours.layers[0].ffn[0].weight.shape
    seen, computed = [], []
    theirs[0].register_forward_hook(lambda layer, inputs, output: seen.append(tuple(inputs[0].shape)))
    ours.layers[0].register_forward_hook(lambda layer, inputs, output: computed.append(tuple(inputs[0].shape)))
    found = Decoded(transformer, work).generate()
    assert [len(text) for text in found] == [1, 1] and all(len(text[0]["tokens"]) == 20 for text in found)
    assert seen == [(1, 2, 64)] * 20  # one position of each text at a time
    texts = Denoised(ours, work).generate()
    assert all(text[0]["steps"] == 3 and len(text[0]["tokens"]) <= 20 for text in texts)
    assert computed == [(48, 64)] * 3  # 40 positions, in whole registers
    assert texts[0][0]["tokens"].tolist() != texts[1][0]["tokens"].tolist()


def test_language_models_run_as_often_as_is_asked_for(monkeypatch):
    calls = []
    for system in (Denoised, Decoded):
        monkeypatch.setattr(system, "generate", lambda self: calls.append(type(self)))
    monkeypatch.setattr(language_models, "STEPS", (2,))
    arguments = SimpleNamespace(arch="genie_tiny", batch=1, repeats=50)
    bench = SimpleNamespace(arguments=arguments, fastest="fp32", device="cpu", dictionary=DICTIONARY,
                            add=lambda **row: row)
    language_models.measure_language_models(bench, lengths=(16,))
    assert calls == [Decoded] * 51 + [Denoised] * 51, "and one to warm up"


def test_rotary_positions_bound_no_length():
    """A text far beyond --max-target-positions is seen as the same one at the beginning: distances alone count."""
    dictionary = masked_dictionary(100)
    model = make_ddlm("ddlm_tiny", dictionary, "cpu")
    assert model.positions is None and model.max_positions() == (512, 512)
    x, t = torch.randn(1, 30, 32), torch.tensor(2.0)
    seen = []
    for begin in (0, 900):
        mask = torch.arange(begin + 30) >= begin
        memory = model.encode(torch.full((1, begin + 30), model.mask))
        packing = Packing.of(mask[None])
        with torch.no_grad():
            hidden = model.network(torch.nn.functional.pad(x, (0, 0, begin, 0)), t, memory, packing, None)
        seen.append(packing.unpack(hidden)[0, begin:])
    torch.testing.assert_close(*seen, rtol=1e-3, atol=1e-4)
    assert seen[0].std() > 0.1 and len(Denoised(model, Work(dictionary, "cpu", 1, 0, 600, 1, 1)).generate()[0]) == 1


@pytest.mark.slow
def test_the_command_measures_language_models(tmp_path):
    file = tmp_path / "benchmark.json"
    words = [sys.executable, REPOSITORY / "scripts/benchmark.py", "--parts", "language_models", "--arch", "genie_tiny",
             "--batch", "1", "--json", file]
    done = subprocess.run(words, text=True, capture_output=True, timeout=600, check=True)
    rows = json.loads(file.read_text())["rows"]
    assert {(row["structure"], row["steps"]) for row in rows if row["structure"] == "ours"} == {
        ("ours", 20), ("ours", 50), ("ours", 200)}
    assert [row["target"] for row in rows if row["structure"] == "transformer_lm"] == [16, 32, 64, 128, 256, 512]
    assert all(row["sentences_per_s"] > 0 for row in rows) and len(rows) == 24
    assert "200 steps are faster than transformer_lm" in done.stdout and file.with_suffix(".png").exists()


def test_the_picture_has_a_panel_for_each_part_that_was_measured(tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    row = {"structure": "ours", "dtype": "fp32", "target": 16, "candidates": 1, "batch": 4, "steps": 20, "faster": 0.5,
           "ms_per_candidate_step": 1.0, "sentences_per_s": 2.0}
    kinds = [("sweeps", "lengths"), ("sweeps", "batches"), ("shapes", "xsum"), ("autoregressive", "autoregressive"),
             ("language_models", "language_models")]
    rows = [{**row, "part": part, "shape": shape, "target": target} for part, shape in kinds for target in (16, 512)]
    panels, subplots = [], pyplot.subplots
    monkeypatch.setattr(pyplot, "subplots", lambda *given, **more: panels.append(given[1]) or subplots(*given, **more))
    for chosen in (rows, rows[-2:]):
        plot(chosen, tmp_path / "benchmark.png")
        assert (tmp_path / "benchmark.png").stat().st_size > 5000
    plot([], tmp_path / "none.png")
    assert panels == [5, 1] and not (tmp_path / "none.png").exists()
