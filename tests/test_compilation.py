import copy
import logging
import shutil

import pytest
import torch
from helpers import make_dictionary, make_genie, make_sample

from diffusion_fairseq.models.compilation import compile_layers

DICTIONARY = make_dictionary()


def outputs(model):
    tokens = make_sample(DICTIONARY, [6, 4])["net_input"]["src_tokens"]
    xt = torch.randn(2, 5, model.embedding.embedding_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.denoise(xt, torch.tensor([70]), model.memory(model.encode(tokens)))


def test_without_a_compiler_the_layers_stay_and_one_warning_says_so(monkeypatch, caplog):
    def compile(*_, **__):
        raise RuntimeError("\nno compiler found\nmore words")

    monkeypatch.setattr(torch, "compile", compile)
    model = make_genie(DICTIONARY)
    before = outputs(model)
    with caplog.at_level(logging.WARNING):
        compile_layers(model.transformer_layers())
    assert [r.getMessage() for r in caplog.records] == [
        "--compile-layers is left out, for torch.compile does not work here: no compiler found"]
    assert outputs(model).equal(before)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and not torch.cuda.is_available(), reason="no C++ compiler")
def test_compiled_layers_compute_the_same_and_can_be_copied():
    model = make_genie(DICTIONARY)
    before = outputs(model)
    compile_layers(model.transformer_layers())
    assert all(layer._compiled_call_impl is not None for layer in model.layers)
    torch.testing.assert_close(outputs(model), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs(copy.deepcopy(model)), before, rtol=1e-5, atol=1e-5)  # as EMA does
    assert not any("_compiled" in key or "_orig_mod" in key for key in model.state_dict())
