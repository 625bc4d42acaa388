"""The benchmark measures what it says: that is tested on small systems, the figures are not."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from _diffuseq_systems import PublishedDiffuSeq, make_diffuseq, our_x0  # noqa: E402, I001
from _systems import Autoregressive, Ours, Published, Work, dictionary_of, make_genie, make_transformer, trainings  # noqa: E402, I001

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


def test_diffuseqs_structure_computes_the_same_as_ours():
    dictionary = dictionary_of(1000)
    model = make_diffuseq("diffuseq_tiny", dictionary, "cpu")
    system = PublishedDiffuSeq(model, Work(dictionary, "cpu", 2, 15, 14, 3, 4))
    theirs = system.x0()
    assert theirs.shape == (2, 14, 32) and system.estimate.shape[1] == 128
    torch.testing.assert_close(our_x0(system.ours), theirs, rtol=1e-4, atol=1e-4)
