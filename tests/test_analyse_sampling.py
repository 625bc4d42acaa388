"""scripts/analyse_sampling.py: what is counted."""

import sys

import pytest
import torch
from helpers import REPOSITORY, make_ddlm, make_dictionary, make_diffuseq, make_prompts, make_sample, make_sampling

from diffusion_fairseq.generator import DiffusionGenerator

sys.path.insert(0, str(REPOSITORY / "scripts"))
import analyse_sampling  # noqa: E402, I001
import _checkpoint  # noqa: E402

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


@pytest.mark.parametrize("kept, said", [({"ema": {}}, "its own weights"), ({}, "its own weights"),
                                        ({"ema_fp32_params": 0.5}, "averaged weights (EMA)")])
def test_averaged_weights_are_taken_where_there_are_some(monkeypatch, kept, said):
    model = make_ddlm(DICTIONARY)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = {key: {name: tensor * share for name, tensor in own.items()} if share else {} for key, share in kept.items()}
    state = {"model": own, "extra_state": ema, "optimizer_history": [{"num_updates": 1}]}
    monkeypatch.setattr(analyse_sampling.checkpoint_utils, "load_checkpoint_to_cpu", lambda path: state)
    assert analyse_sampling.take_averaged(model, "model.pt") == said
    torch.testing.assert_close(model.embedding.weight, own["embedding.weight"] * (0.5 if "EMA" in said else 1))


def test_a_model_is_analysed_on_the_grid_that_it_has_learned(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["analyse_sampling.py", "bin", "--path", "model.pt", "--sampling-grid", "warped"])
    sampling = _checkpoint.sampling_config(analyse_sampling.parse_arguments())
    model = make_ddlm(DICTIONARY)
    model.timesteps = model.timestep_sampler("time-warp")
    assert sampling.sampling_grid == "warped" and len(DiffusionGenerator(model, DICTIONARY, sampling).levels) == 101


def test_a_solver_of_two_evaluations_a_step_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["analyse_sampling.py", "bin", "--path", "model.pt", "--solver", "heun"])
    with pytest.raises(SystemExit):
        analyse_sampling.parse_arguments()
    assert "--solver heun evaluates at two levels a step" in capsys.readouterr().err
