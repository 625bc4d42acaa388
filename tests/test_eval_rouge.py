import pytest
import torch
from fairseq.logging import metrics
from helpers import make_dictionary, make_genie, make_sample, make_sampling

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics.overlap import rouge
from diffusion_fairseq.tasks.eval_rouge import EvalRouge, EvalRougeConfig, log_rouge

DICTIONARY = make_dictionary()


def make_eval(**options):
    cfg = EvalRougeConfig(**{"eval_rouge": True, "eval_rouge_steps": 3, "eval_rouge_remove_bpe": "none", **options})
    return EvalRouge(cfg, make_genie(DICTIONARY), DICTIONARY)


def sample_of(lengths, first_id=0):
    return {**make_sample(DICTIONARY, lengths), "id": torch.arange(len(lengths)) + first_id}


def test_the_first_sentences_are_generated_and_scored():
    evaluation, sample = make_eval(eval_rouge_sentences=4), sample_of([5, 6, 7, 8, 9, 4])
    with metrics.aggregate(new_root=True) as logged:
        log_rouge([evaluation.sums(sample), evaluation.sums(sample_of([5, 5], first_id=10))])
    generator = DiffusionGenerator(evaluation.generator.model, DICTIONARY,
                                   make_sampling(diffusion_steps=3, clamping=True))
    with torch.no_grad():
        found = generator.generate([], {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][:4]}})
    texts = [DICTIONARY.string(hypotheses[0]["tokens"]) for hypotheses in found]
    references = [DICTIONARY.string(row[row != DICTIONARY.pad()]) for row in sample["target"][:4]]
    expected = rouge(texts, references, ["rouge1", "rouge2", "rougeL"])
    values = logged.get_smoothed_values()
    assert values["rouge_l"] == pytest.approx(expected["rougeL"], abs=0.01)
    assert values["rouge_1"] == pytest.approx(expected["rouge1"], abs=0.01)


def test_no_sentence_in_a_batch_or_nothing_at_all():
    evaluation = make_eval(eval_rouge_sentences=4)
    assert set(evaluation.sums(sample_of([5, 5], first_id=4)).values()) == {0.0}
    with metrics.aggregate(new_root=True) as logged:
        log_rouge([evaluation.sums(sample_of([5], first_id=4)), {}])
    assert "rouge_l" not in logged.get_smoothed_values()


def test_words_are_not_joined_as_if_they_were_subwords():
    with pytest.raises(UserError, match="no subwords of sentencepiece.*give subword_nmt, or none"):
        make_eval(eval_rouge_remove_bpe="sentencepiece")


@pytest.mark.parametrize("option", ["eval_rouge_steps", "eval_rouge_sentences"])
def test_numbers_out_of_range(option):
    with pytest.raises(UserError, match="at least 1"):
        make_eval(**{option: 0})
