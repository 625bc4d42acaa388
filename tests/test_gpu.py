"""On a GPU: the text of the CPU, no wait for the device between steps, and every precision of fairseq's trainer."""

import math

import pytest
import torch
from helpers import (
    make_ddlm,
    make_dictionary,
    make_diffuseq,
    make_diffusion_lm,
    make_prompts,
    make_sample,
    run_module,
    see_time,
)
from test_cli import MODEL, TRAIN, assert_same, hypotheses, preprocess_pairs_and_lines
from test_generator import generate, make_generator, rows_of, sharp_genie
from test_more_models_cli import LM, losses

from diffusion_fairseq.diffusion.noise import gaussian_noise, sequence_keys
from diffusion_fairseq.models.compilation import compile_layers

GPU = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
TRAIN_ON_GPU = [option for option in TRAIN if option != "--cpu"]
TRAIN_LM = [*LM, *TRAIN_ON_GPU[TRAIN_ON_GPU.index("--optimizer"):]]
KINDS = {
    "genie": [*TRAIN_ON_GPU, "--timestep-sampler", "loss-second-moment"],
    "diffuseq": [*TRAIN_ON_GPU, "--arch", "diffuseq_tiny", "--noising", "partial"],
    "diffusion_lm": [*TRAIN_LM, "--arch", "diffusion_lm_tiny", "--criterion", "diffusion_anchor"],
    "ddlm": [*TRAIN_LM, "--arch", "ddlm_tiny", "--criterion", "score_interpolation", "--masking", "span",
             "--timestep-sampler", "time-warp"],
}
PRECISIONS = {
    "fp32": [], "fp16": ["--fp16"], "memory-efficient fp16": ["--memory-efficient-fp16"], "amp": ["--amp"],
    "bf16": ["--bf16"],
}
SOLVERS = {
    "ddpm": {"solver": "ddpm", "clamping": True}, "ddim": {"solver": "ddim", "ddim_eta": 0.5},
    "dpmpp-2m": {"solver": "dpmpp-2m", "exit_patience": 2}, "heun": {"solver": "heun", "candidates": 3},
}


def moved(sample):
    return {**sample, "net_input": {key: value.to(GPU) for key, value in sample["net_input"].items()}}


def made(kind):
    """A dictionary, a tiny model, a batch for it, and options of its generation."""
    dictionary = make_dictionary()
    if kind == "genie":
        return dictionary, sharp_genie(), make_sample(dictionary, [3 + i % 11 for i in range(40)]), {}
    if kind == "diffuseq":
        sample = make_sample(dictionary, [3 + i % 7 for i in range(40)])
        return dictionary, make_diffuseq(dictionary), sample, {}
    if kind == "ddlm":
        model = see_time(make_ddlm(dictionary))
        return dictionary, model, make_prompts(dictionary, "a__b.", "____c_.", "_d."), {"solver": "euler"}
    model = make_diffusion_lm(dictionary, length_model="given")
    return dictionary, model, make_prompts(dictionary, "_____", "________", "___"), {}


def texts(found):
    return [[h["tokens"].tolist() for h in hypotheses] for hypotheses in found]


def assert_alike(one, other):
    assert texts(one) == texts(other)
    for mine, theirs in zip(one, other):
        for a, b in zip(mine, theirs):
            assert abs(a["score"] - b["score"]) < 1e-4


def test_noise_is_that_of_the_cpu():
    tokens = torch.arange(12).reshape(3, 4)
    keys = sequence_keys(tokens, tokens > 0, seed=5)
    there = sequence_keys(tokens.to(GPU), tokens.to(GPU) > 0, seed=5)
    assert there.cpu().equal(keys)
    torch.testing.assert_close(gaussian_noise(there, 3, 7, 8).cpu(), gaussian_noise(keys, 3, 7, 8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_genie_writes_what_it_writes_on_the_cpu(solver):
    _, model, sample, _ = made("genie")
    here = generate(model, sample, **SOLVERS[solver])
    assert_alike(generate(model.to(GPU), moved(sample), **SOLVERS[solver]), here)


@pytest.mark.parametrize("kind", ["diffuseq", "diffusion_lm", "ddlm"])
def test_the_others_write_what_they_write_on_the_cpu(kind):
    dictionary, model, sample, options = made(kind)

    def written(batch):
        with torch.no_grad():
            return make_generator(model, max_len_b=None, **options).generate([model], batch)

    here = written(sample)
    model.to(GPU)
    assert_alike(written(moved(sample)), here)


def test_same_text_alone_and_in_a_batch():
    _, model, sample, _ = made("genie")
    model.to(GPU)
    batch = generate(model, moved(sample), clamping=True)
    for place in range(0, 40, 7):
        alone = generate(model, moved(rows_of(sample, [place])), clamping=True)
        assert_alike(alone, batch[place : place + 1])


@pytest.mark.parametrize("kind, options", [
    ("genie", {}), ("genie", {"clamping": True}), ("genie", {"solver": "ddim", "ddim_eta": 1.0}),
    ("genie", {"solver": "dpmpp-2m"}), ("diffuseq", {"clamping": True}), ("diffusion_lm", {}), ("ddlm", {}),
])
def test_no_step_waits_for_the_device(kind, options):
    dictionary, model, sample, own = made(kind)
    model.to(GPU)
    generator = make_generator(model, max_len_b=None, **{**own, **options})
    tokens = moved(sample)["net_input"]["src_tokens"]
    with torch.no_grad():
        for _, rows in generator.buckets(model.encode(tokens), tokens):
            steps = generator.trajectory(rows)
            next(steps)  # what is copied to the device once
            torch.cuda.set_sync_debug_mode("error")
            try:
                assert len(list(steps)) == 5
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_compiled_layers_compute_the_same():
    _, model, sample, _ = made("genie")
    model.to(GPU)
    tokens = moved(sample)["net_input"]["src_tokens"]
    xt = torch.randn(len(tokens), 8, model.embedding.embedding_dim, device=GPU)

    def x0():
        with torch.no_grad():
            return model.denoise(xt, torch.tensor([70], device=GPU), model.memory(model.encode(tokens)))

    before = x0()
    compile_layers(model.transformer_layers())
    torch.testing.assert_close(x0(), before, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return preprocess_pairs_and_lines(tmp_path_factory.mktemp("gpu"), 200, 21)


def trained(*command):
    """The loss of every update."""
    done = run_module("train", *command)
    return losses(done.stdout + done.stderr, "loss")


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_in_every_precision_resumes_and_generates(work, tmp_path, kind, precision):
    data, task = (work / "bin", MODEL) if kind in ("genie", "diffuseq") else (work / "lm", LM)
    options = [*KINDS[kind], *PRECISIONS[precision], "--save-dir", tmp_path, "--clip-norm", "1", "--store-ema",
               "--ema-decay", "0.9", "--ema-fp32", "--fp16-init-scale", "16", "--no-epoch-checkpoints"]
    found = trained(data, *options, "--max-update", "60")
    assert all(map(math.isfinite, found)) and sum(found[-5:]) < 0.9 * sum(found[:5])
    more = trained(data, *options, "--max-update", "64")
    assert len(more) == 4 and sum(more) / 4 < sum(found[:5]) / 5
    solver = ["--solver", "euler"] if kind == "ddlm" else ["--clamping"]
    half = [option for option in PRECISIONS[precision] if option in ("--fp16", "--bf16")]
    common = [*task, "--path", tmp_path / "checkpoint_last.pt", "--diffusion-steps", "6", *solver, *half]
    batch = hypotheses(run_module("generate", data, *common, "--batch-size", "21").stdout)
    assert len(batch) == 21
    if not half:
        assert_same(hypotheses(run_module("generate", data, *common, "--batch-size", "4").stdout), batch)
        assert_same(hypotheses(run_module("generate", data, *common, "--cpu").stdout), batch)
