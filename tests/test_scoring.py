"""--scoring rouge, as fairseq builds and calls it."""

import importlib.util
from argparse import Namespace

import pytest
from fairseq import options, scoring
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap
from diffusion_fairseq.scoring import rouge

REFERENCES = ["the cats sat on a mat", "it rains"]
HYPOTHESES = ["sat the cat", "it rains"]


def scorer_from_command_line(*arguments):
    parser = options.get_generation_parser(default_task="translation")
    args = options.parse_args_and_arch(
        parser, ["data", "--path", "model.pt", "--scoring", "rouge", *arguments]
    )
    scorer = scoring.build_scorer(convert_namespace_to_omegaconf(args).scoring, tgt_dict=None)
    for reference, hypothesis in zip(REFERENCES, HYPOTHESES, strict=True):
        scorer.add_string(reference, hypothesis)
    return scorer


def test_defaults_report_three_types_and_score_rouge_l():
    scorer = scorer_from_command_line()
    expected = overlap.rouge(HYPOTHESES, REFERENCES)
    assert scorer.score() == pytest.approx(expected["rougeL"])
    result = scorer.result_string()
    assert "\n" not in result
    assert [f"{name} = {score:.2f}" for name, score in expected.items()] == result.split(" (")[0].split(", ")
    assert "2 sentences" in result and overlap.rouge_signature() in result


def test_options_choose_types_and_turn_the_stemmer_off():
    scorer = scorer_from_command_line("--rouge-types", "rouge1, rouge3", "--rouge-no-stemmer")
    assert scorer.types == ["rouge1", "rouge3"]
    unstemmed = overlap.rouge(HYPOTHESES, REFERENCES, use_stemmer=False)
    assert scorer.score() == pytest.approx(unstemmed["rougeL"])
    assert unstemmed["rougeL"] < overlap.rouge(HYPOTHESES, REFERENCES)["rougeL"]
    assert scorer.result_string().startswith(f"rouge1 = {unstemmed['rouge1']:.2f}, rouge3 = ")
    assert "stem:no" in scorer.result_string()


def test_an_unknown_type_is_refused_at_construction():
    with pytest.raises(UserError, match="'rougeX'; known are rouge1 to rouge9, rougeL, rougeLsum"):
        scorer_from_command_line("--rouge-types", "rouge1,rougeX")


def test_a_missing_package_is_noticed_at_construction(monkeypatch):
    monkeypatch.setattr(overlap, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        scorer_from_command_line()


def test_nothing_to_score_is_said_in_one_line():
    with pytest.raises(UserError, match="no sentences"):
        rouge.RougeScorer(Namespace(rouge_types="rouge1", rouge_no_stemmer=False)).result_string()


def test_a_second_import_under_another_name_does_not_clash():
    spec = importlib.util.spec_from_file_location("another_name_for_rouge", rouge.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert scoring.SCORER_REGISTRY["rouge"] is rouge.RougeScorer
