"""scripts/analyse_sampling.py: what is counted."""

import sys

import pytest
import torch
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_diffuseq, make_prompts, make_sample, make_sampling

from diffusion_fairseq.generator import DiffusionGenerator

sys.path.insert(0, str(REPOSITORY / "scripts"))
import analyse_sampling  # noqa: E402

DICTIONARY = make_dictionary()
DICTIONARY.add_symbol("<mask>")


def traced(model, tokens):
    generator = DiffusionGenerator(model, DICTIONARY, make_sampling(diffusion_steps=3, solver="euler"))
    with torch.inference_mode():
        (_, rows), = generator.buckets(model.encode(tokens), tokens)
        return analyse_sampling.trace(generator, rows), list(generator.trajectory(rows)), rows


def test_given_positions_and_padding_count_nowhere():
    tokens = make_prompts(DICTIONARY, "abcd____efgh", "ab_")["net_input"]["src_tokens"]
    (found, count), steps, _ = traced(make_ddlm(DICTIONARY), tokens)
    assert count == 5
    for name, state in (("pred_x0_norm", "pred_x0"), ("xt_norm", "xt")):
        for value, (_, _, reached) in zip(found[name], steps):
            latents = getattr(reached, state)
            expected = latents[0, 4:8].norm(dim=-1).sum() + latents[1, 2].norm()
            assert value == pytest.approx(float(expected), rel=1e-5)
    assert found["score_cosine"][-1] == pytest.approx(5) and max(found["switches"]) <= 5


def test_of_source_and_target_in_one_sequence_only_the_target_counts():
    tokens = make_sample(DICTIONARY, [5, 9])["net_input"]["src_tokens"]
    (_, count), _, rows = traced(make_diffuseq(DICTIONARY, length_model="fixed"), tokens)
    assert count == int(rows.lengths.sum()) - 5 - 9


def test_a_solver_of_two_evaluations_a_step_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyse_sampling.py", "bin", "--path", "model.pt", "--solver", "heun"])
    with pytest.raises(SystemExit):
        analyse_sampling.parse_arguments()
    assert "--solver heun evaluates at two levels a step" in capsys.readouterr().err
