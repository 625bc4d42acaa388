"""Task diffusion_lm: the sequences it makes of text, and what it refuses or warns about."""

import logging
import re

import pytest
import torch
from helpers import make_dictionary
from omegaconf import OmegaConf
from test_cpd_task import make_data, write_split

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DDLMConfig, DiffuSeqConfig, DiffusionLMConfig, GenieConfig
from diffusion_fairseq.models.presets import DDLM, DIFFUSEQ, DIFFUSION_LM, GENIE
from diffusion_fairseq.tasks.cpd_pretrain import CPDPretrainConfig, CPDPretrainTask
from diffusion_fairseq.tasks.diffusion_lm import DiffusionLMTask, DiffusionLMTaskConfig
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig, Seq2SeqDiffusionTask

EOS, PAD, MASK = 2, 1, 34
COMMON = {"seed": 1, "train_subset": "train", "dataset_impl": None, "required_seq_len_multiple": 1, "num_shards": 1,
          "shard_id": 0}


def make_task(folder, **options):
    length = options.get("tokens_per_sample", 16)
    given = {"data": str(folder), "tokens_per_sample": length, "max_source_positions": length,
             "max_target_positions": length, **COMMON, **options}
    return DiffusionLMTask.setup_task(OmegaConf.merge(OmegaConf.structured(DiffusionLMTaskConfig), given))


def model_options(kind, preset, **options):
    sizes = {"max_source_positions": 16, "max_target_positions": 16, **preset, **options}
    return OmegaConf.structured(kind(**sizes))


def tiny(**options):
    cfg = model_options(DiffusionLMConfig, DIFFUSION_LM["diffusion_lm_tiny"], **options)
    cfg._name = "diffusion_lm_tiny"
    return cfg


def examples(task, split="train"):
    task.load_dataset(split)
    found = task.dataset(split)
    return [tuple(side.tolist() for side in found.example(index)) for index in range(len(found))]


@pytest.fixture
def data(tmp_path):
    """Lines of 20, 5, 0 and 15 words, train and test."""
    folder = make_data(tmp_path / "a", [20, 5, 0, 15])
    write_split(folder, "test", [[7] * 20, [8] * 5])
    return folder


def test_lines_are_sequences_and_long_ones_are_cut_with_a_warning(data, caplog):
    found = examples(make_task(data))
    assert [text for _, text in found] == [[4] * 15 + [EOS], [5] * 5 + [EOS], [EOS], [7] * 15 + [EOS]]
    assert all(source == [MASK] * len(text) for source, text in found)
    line, = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "1 of 4 lines cut to 16 tokens (--tokens-per-sample)" in line.getMessage()


def test_blocks_fill_the_samples_whatever_the_lines(data, caplog):
    found = examples(make_task(data, sample_break_mode="none"))
    assert [len(text) for _, text in found] == [16, 16, 12]
    assert sum((text for _, text in found), []) == [4] * 20 + [EOS] + [5] * 5 + [EOS] * 2 + [7] * 15 + [EOS]
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_masking_is_for_training_and_given_positions_for_the_rest(data):
    options = {"masking": "prefix", "given_positions": "0:2,-2:"}
    sources = [source for source, text in examples(make_task(data, **options))]
    assert all(source == sorted(source) for source in sources)
    assert [source for source, _ in examples(make_task(data, **options), "test")] == [
        [7, 7, *[MASK] * 12, 7, EOS], [8, 8, MASK, MASK, 8, EOS]]


def test_a_loaded_model_writes_to_the_training_text_like_to_any_other(data):
    task = make_task(data, given_positions="0:1", prompt_length=4)
    task.build_model(tiny(), from_checkpoint=True)
    task.load_dataset("train")
    found = task.dataset("train")
    assert [found.example(index)[0].tolist() for index in range(2)] == [[4, *[MASK] * 2, MASK], [5, *[MASK] * 3]]
    assert found.tgt is None


def test_prompts_of_a_length_keep_their_given_words(data):
    task = make_task(data, prompt_length=8, given_positions="0:3")
    task.load_dataset("test")
    sources = [task.dataset("test").example(index)[0].tolist() for index in range(2)]
    assert sources == [[7] * 3 + [MASK] * 5, [8] * 3 + [MASK] * 5]
    with pytest.raises(UserError, match="--prompt-length makes prompts without references"):
        task.valid_step(task.dataset("test").collater([task.dataset("test")[0]]), None, None)


@pytest.mark.parametrize("options, line, expected", [
    ({}, [4, 5, EOS], [4, 5, *[MASK] * 13, EOS]),
    ({"prompt_length": 6}, [4, 5, EOS], [4, 5, *[MASK] * 3, EOS]),
    ({"prompt_length": 6, "sample_break_mode": "none"}, [4, 5, EOS], [4, 5, *[MASK] * 4]),
    ({"prompt_length": 6}, [4, MASK, MASK, 5, EOS], [4, MASK, MASK, 5, EOS]),
    ({}, [EOS], [*[MASK] * 15, EOS]),
    ({}, [4] * 30 + [EOS], [4] * 15 + [EOS]),
    ({}, [MASK] + [4] * 30 + [EOS], [MASK] + [4] * 14 + [EOS]),
    ({"sample_break_mode": "none"}, [4, MASK] + [4] * 30 + [EOS], [4, MASK] + [4] * 14),
])
def test_typed_lines_become_prompts(data, options, line, expected):
    found = make_task(data, **options).build_dataset_for_inference([torch.tensor(line)], [len(line)])
    assert found[0]["source"].tolist() == expected and found.tgt is None
    assert found.collater([found[0]])["target"] is None


def test_a_typed_line_that_is_too_long_is_warned_about(data, caplog):
    make_task(data).build_dataset_for_inference([torch.tensor([MASK] + [4] * 30 + [EOS])], [32])
    assert "a line of 32 tokens cut to 16 (--tokens-per-sample)" in caplog.text and "nothing is left" not in caplog.text
    make_task(data).build_dataset_for_inference([torch.tensor([4] * 30 + [MASK, EOS])], [32])
    assert "nothing is left to write" in caplog.text


@pytest.mark.parametrize("options, option", [({}, "16 .--tokens-per-sample"), ({"prompt_length": 8}, "8 .--prompt-l")])
def test_a_line_to_continue_that_leaves_no_room_is_warned_about(data, caplog, options, option):
    length = options.get("prompt_length", 16)
    make_task(data, **options).build_dataset_for_inference([torch.tensor([4] * (length - 2) + [EOS])], [length - 1])
    assert not caplog.text
    make_task(data, **options).build_dataset_for_inference([torch.tensor([4] * (length - 1) + [EOS])], [length])
    assert re.search(f"a line of {length - 1} tokens fills {option}.*nothing is left to write", caplog.text)


@pytest.mark.parametrize("options", [{"num_shards": 2}, {"resume_generation": "out.txt"}])
def test_typed_lines_are_neither_shared_out_nor_resumed(data, options):
    with pytest.raises(UserError, match="--num-shards and --resume-generation are of fairseq-generate"):
        make_task(data, **options).build_dataset_for_inference([torch.tensor([4, EOS])], [2])


def test_what_is_typed_is_not_kept(data):
    task = make_task(data)
    task.load_dataset("train")
    typed = task.build_dataset_for_inference([torch.tensor([4, EOS])], [2])
    assert not task.can_reuse_epoch_itr(typed) and not task.can_reuse_epoch_itr(task.dataset("train"))
    task.datasets["valid"] = task.dataset("train")
    assert task.can_reuse_epoch_itr(task.dataset("valid"))


def test_a_space_before_a_typed_gap_is_no_given_token(data):
    task = make_task(data)
    line = torch.tensor([4, 5, MASK, 5, MASK, 5, EOS])
    assert task.build_dataset_for_inference([line], [len(line)])[0]["source"].equal(line)
    task.src_dict.symbols[5] = "\u2581"
    task.src_dict.indices["\u2581"] = 5
    found = task.build_dataset_for_inference([line], [len(line)])[0]["source"]
    assert found.tolist() == [4, MASK, MASK, 5, EOS]


def test_lines_of_unknown_words_are_warned_about(data, caplog):
    task, unknown = make_task(data), 3
    task.build_dataset_for_inference([torch.tensor([4, EOS])], [2])
    assert "not in the dictionary" not in caplog.text
    task.build_dataset_for_inference([torch.tensor([4, unknown, EOS])], [3])
    assert "1 tokens are not in the dictionary and are written as <unk>" in caplog.text
    assert "most words" not in caplog.text
    task.build_dataset_for_inference([torch.tensor([4, unknown, unknown, unknown, EOS])], [5])
    assert "most words are not in the dictionary" in caplog.text


def test_sequences_are_cut_to_what_a_checkpoint_takes(data):
    task = make_task(data, tokens_per_sample=64)
    task.build_model(tiny(), from_checkpoint=True)
    assert [len(text) for _, text in examples(task, "test")] == [16, 6]
    task = make_task(data, tokens_per_sample=64, prompt_length=20)
    with pytest.raises(UserError, match="--prompt-length 20 exceeds the 16 positions of the model"):
        task.build_model(tiny(), from_checkpoint=True)


@pytest.mark.parametrize("masking, given, message", [
    ("span", "noised", "--masking span shapes validation only"),
    ("full", "clean", "--given-tokens clean never sees a given token with --masking full"),
    ("full", "noised", None), ("span", "clean", None),
])
def test_masking_without_effect_is_warned_about_in_training(data, caplog, masking, given, message):
    task = make_task(data, masking=masking)
    task.build_model(tiny(given_tokens=given), from_checkpoint=True)
    assert "--masking" not in caplog.text
    task.build_model(tiny(given_tokens=given))
    assert (message in caplog.text) if message else "--masking" not in caplog.text


@pytest.mark.parametrize("masking, warned", [("full", True), ("span", False)])
def test_a_ddlm_is_told_of_no_option_that_it_has_not(data, caplog, masking, warned):
    cfg = model_options(DDLMConfig, DDLM["ddlm_tiny"])
    cfg._name = "ddlm_tiny"
    make_task(data, masking=masking).build_model(cfg)
    assert ("a DDLM never sees a given token with --masking full" in caplog.text) == warned
    assert "--given-tokens" not in caplog.text


@pytest.mark.parametrize("options, message", [
    ({"masking": "magic"}, "--masking 'magic' is unknown: choose one of full, prefix, random, mixed, span"),
    ({"sample_break_mode": "complete"}, "--sample-break-mode 'complete' is unknown: choose one of eos, none"),
    ({"given_positions": "3"}, "--given-positions: '3' are no positions: give slices such as 0:32"),
    ({"given_positions": "0:2:4"}, "--given-positions: '0:2:4' are no positions"),
    ({"given_positions": ""}, "--given-positions: '' are no positions"),
    ({"prompt_length": 1}, r"--prompt-length must be from 2 to --tokens-per-sample \(16\), got 1"),
    ({"prompt_length": 17}, r"--prompt-length must be from 2 to --tokens-per-sample \(16\), got 17"),
    ({"tokens_per_sample": 1}, "--tokens-per-sample must be at least 2"),
    ({"eval_rouge": True}, "--eval-rouge and --eval-bleu compare with a reference"),
    ({"eval_bleu": True}, "--eval-rouge and --eval-bleu compare with a reference"),
    ({"seed": -1}, "--seed must not be negative"),
    ({"source_lang": "en"}, "--source-lang has no use here"),
    ({"exit_patience": 0}, "--exit-patience must be at least 1"),
    ({"solver": "magic"}, "--solver 'magic'"),
])
def test_bad_options_are_refused(data, options, message):
    with pytest.raises(UserError, match=message):
        make_task(data, **options)


def test_bad_data_is_refused(tmp_path, data):
    bare = make_data(tmp_path / "bare", mask=None)
    with pytest.raises(UserError, match="lacks the word <mask>: append the line '<mask> 0'"):
        make_task(bare)
    with pytest.raises(UserError, match="no such data folder: .*nowhere"):
        make_task(tmp_path / "nowhere")
    task = make_task(data)
    with pytest.raises(UserError, match="holds no holdout.idx"):
        task.load_dataset("holdout")
    write_split(data, "empty", [[], []])
    with pytest.raises(UserError, match="empty lines only"):
        task.load_dataset("empty")


@pytest.mark.parametrize("kind, preset", [(GenieConfig, GENIE["genie_tiny"]),
                                          (DiffuSeqConfig, DIFFUSEQ["diffuseq_tiny"])])
def test_models_that_read_a_source_are_refused(data, kind, preset):
    cfg = model_options(kind, preset)
    cfg._name = kind.__name__.removesuffix("Config").lower()
    with pytest.raises(UserError, match="reads a source and cannot run under .*: pass --task seq2seq_diffusion"):
        make_task(data).build_model(cfg)


@pytest.mark.parametrize("task, config", [(Seq2SeqDiffusionTask, Seq2SeqDiffusionConfig),
                                          (CPDPretrainTask, CPDPretrainConfig)])
def test_other_tasks_refuse_a_model_that_fills_prompts(data, task, config):
    dictionary = make_dictionary(30)
    cfg = OmegaConf.merge(OmegaConf.structured(config), {"data": str(data), **COMMON})
    with pytest.raises(UserError, match="fills prompts and cannot run under .*: pass --task diffusion_lm"):
        task(cfg, dictionary, dictionary).build_model(tiny())


def test_models_of_the_host_are_refused(data):
    cfg = OmegaConf.create({"_name": "transformer"})
    with pytest.raises(UserError, match="architecture 'transformer'.*it takes ddlm, .*diffusion_lm_tiny$"):
        make_task(data).build_model(cfg)
