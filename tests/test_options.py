"""Every option is declared once, documented and read; the list changes only on purpose."""

import ast
import dataclasses
from pathlib import Path

import pytest
from fairseq import options
from fairseq.tasks.translation import TranslationConfig

from diffusion_fairseq.criterions.anchor import DiffusionAnchorConfig
from diffusion_fairseq.criterions.base import DiffusionCriterionConfig, TimestepConfig
from diffusion_fairseq.criterions.latent_classification import LatentClassificationConfig
from diffusion_fairseq.criterions.score_interpolation import ScoreInterpolationConfig
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig
from diffusion_fairseq.models.config import (
    BertSizes,
    DDLMClassifierConfig,
    DDLMConfig,
    DDLMSizes,
    DiffuSeqConfig,
    DiffusionLMConfig,
    GenieConfig,
    LatentClassifierConfig,
    LatentConfig,
    TransformerConfig,
    TransformerSizes,
)
from diffusion_fairseq.models.presets import DDLM, DDLM_CLASSIFIER, DIFFUSEQ, DIFFUSION_LM, GENIE, LATENT_CLASSIFIER
from diffusion_fairseq.scoring.rouge import RougeScorerConfig
from diffusion_fairseq.tasks.cpd_pretrain import CPDPretrainConfig
from diffusion_fairseq.tasks.diffusion_lm import DiffusionLMTaskConfig
from diffusion_fairseq.tasks.eval_bound import EvalBoundConfig
from diffusion_fairseq.tasks.eval_rouge import EvalRougeConfig
from diffusion_fairseq.tasks.latent_classification import LatentClassificationTaskConfig
from diffusion_fairseq.tasks.sampling_config import SamplingConfig
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig

PACKAGE = Path(__file__).parent.parent / "diffusion_fairseq"
OPTIONS = {
    GenieConfig: {
        "latent_dim", "diffusion_timesteps", "noise_schedule", "noise_gamma", "noise_points",
        "adaptive_schedule_updates", "adaptive_schedule_start", "parameterization",
        "self_conditioning", "length_model", "length_margin", "dropout", "max_source_positions",
        "max_target_positions", "model_dim", "ffn_dim", "attention_heads", "encoder_layers", "denoiser_layers",
        "time_dim", "encoder_normalize_before", "share_embeddings", "copy_source", "attend_source_padding",
        "condition_dropout",
    },
    SamplingConfig: {
        "diffusion_steps", "solver", "sampling_grid", "exit_patience", "exit_entropy", "stride_as_published",
        "ddpm_variance", "ddim_eta", "clamping", "clamping_from", "candidates", "rank_by",
        "length_beam", "seed", "joint_sampling", "initial_noise_scale", "score_temperature", "guidance_scale",
        "classifier", "classifier_label", "classifier_scale", "classifier_steps", "classifier_fluency",
    },
    EvalBoundConfig: {"eval_bound"},
    EvalRougeConfig: {"eval_rouge", "eval_rouge_steps", "eval_rouge_sentences", "eval_rouge_remove_bpe"},
    Seq2SeqDiffusionConfig: {
        "left_pad_source", "max_source_positions", "max_target_positions", "compile_layers", "num_shards", "shard_id",
        "resume_generation",
    },
    CPDPretrainConfig: {
        "max_target_positions", "tokens_per_sample", "document_break", "paragraph_ratio", "min_document_tokens",
    },
    DiffusionVLBConfig: {
        "timestep_sampler", "skip_bad_batches", "timesteps_per_encoding", "padding_in_mean", "given_in_loss",
        "mse_weight", "rounding_weight", "prior_weight", "length_weight",
    },
    DiffusionAnchorConfig: {"rounding_weight", "anchor_weight", "label_smoothing", "detach"},
    DiffusionLMConfig: {"encoder_layers", "length_model", "given_tokens"},
    DDLMSizes: {
        "latent_dim", "model_dim", "ffn_dim", "attention_heads", "encoder_layers", "self_conditioning", "t_min",
        "t_max", "rotary",
    },
    DDLMConfig: {"length_model"},
    DDLMClassifierConfig: {"classification_time", "freeze_encoder", "max_positions"},
    ScoreInterpolationConfig: {"timestep_sampler", "label_smoothing"},
    DiffuSeqConfig: {"encoder_layers", "noising", "mark_source", "double_separator", "jitter_source",
                     "causal_source"},
    DiffusionLMTaskConfig: {
        "tokens_per_sample", "sample_break_mode", "masking", "given_positions", "prompt_length", "max_source_positions",
        "max_target_positions",
    },
    LatentClassifierConfig: {"diffusion_path"},
    LatentClassificationTaskConfig: {"data", "seed"},
    LatentClassificationConfig: set(),
    RougeScorerConfig: {"rouge_types", "rouge_no_stemmer"},
}
# Declared by one owner, taken over by another with an interpolation.
TAKEN_OVER = {"max_positions", "max_source_positions", "max_target_positions", "seed", "num_shards", "shard_id"}
# Options with another default for some models, criterions or tasks.
OTHER_DEFAULT = {"latent_dim", "model_dim", "ffn_dim", "attention_heads", "self_conditioning", "timestep_sampler",
                 "label_smoothing", "rounding_weight", "encoder_layers", "length_model", "tokens_per_sample"}


INHERITED = {
    Seq2SeqDiffusionConfig: (SamplingConfig, EvalRougeConfig, EvalBoundConfig, TranslationConfig),
    CPDPretrainConfig: (Seq2SeqDiffusionConfig,),
    DiffusionLMTaskConfig: (Seq2SeqDiffusionConfig,),
    DiffusionAnchorConfig: (DiffusionVLBConfig,),
    DiffusionLMConfig: (TransformerConfig,),
    DiffuSeqConfig: (TransformerConfig,),
    DDLMSizes: (TransformerSizes,),
    DDLMConfig: (DDLMSizes, LatentConfig),
    DDLMClassifierConfig: (DDLMSizes,),
    ScoreInterpolationConfig: (DiffusionCriterionConfig,),
    LatentClassifierConfig: (BertSizes,),
    LatentClassificationConfig: (TimestepConfig,),
}


def own_fields(config):
    inherited = {f.name for base in INHERITED.get(config, ()) for f in dataclasses.fields(base)}
    return [f for f in dataclasses.fields(config)
            if f.name != "_name" and (f.name not in inherited or f.name in config.__annotations__)]


@pytest.mark.parametrize("config", OPTIONS, ids=lambda c: c.__name__)
def test_the_list_of_options_is_frozen(config):
    assert {f.name for f in own_fields(config)} == OPTIONS[config]


def test_every_option_has_one_owner():
    owners = {}
    for config, names in OPTIONS.items():
        for name in names - TAKEN_OVER - OTHER_DEFAULT:
            assert owners.setdefault(name, config) is config, f"{name} is declared twice"


@pytest.mark.parametrize("config", OPTIONS, ids=lambda c: c.__name__)
def test_every_option_says_what_it_does(config):
    for field in own_fields(config):
        if isinstance(field.default, str) and field.default.startswith("${"):
            assert field.name in TAKEN_OVER
        else:
            assert len(field.metadata["help"]) > 15, field.name
        assert field.default is not True, f"--{field.name} would turn itself off"


@pytest.mark.parametrize("config", OPTIONS, ids=lambda c: c.__name__)
def test_every_option_is_read(config):
    read = {node.attr for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and of_options(node.value)}
    assert OPTIONS[config] - read == set()


def of_options(node):
    """Whether an expression is named as what holds options: cfg, self.cfg, sampling, ..."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("cfg", "sampling")


@pytest.mark.parametrize("parser, words, shown", [
    (options.get_training_parser, "--task seq2seq_diffusion --arch genie_base --criterion diffusion_vlb",
     ["--latent-dim", "--mse-weight", "--eval-rouge", "--timestep-sampler"]),
    (options.get_generation_parser, "--task diffusion_lm", ["--diffusion-steps", "--given-positions"]),
    (options.get_training_parser, "", ["--optimizer"]),
])
def test_help_shows_the_options_of_what_is_named_beside_it(parser, words, shown, capsys):
    with pytest.raises(SystemExit) as ended:
        options.parse_args_and_arch(parser(), [*words.split(), "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and all(option in said for option in shown) and "shown with them" in said


def shown_help(parser, words, capsys):
    with pytest.raises(SystemExit):
        options.parse_args_and_arch(parser, [*words.split(), "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words, shown", [
    ("--arch genie_small", "--model-dim MODEL_DIM width of the transformer layers (default: 192)"),
    ("--arch=genie_base", "--model-dim MODEL_DIM width of the transformer layers (default: 768)"),
    ("-a transformer_tiny", "--encoder-layers ENCODER_LAYERS encoder: number of layers (default: 2)"),
    ("--arch genie_base --task seq2seq_diffusion", "--seed SEED pseudo random number generator seed (default: 1)"),
])
def test_help_says_what_an_option_is_where_it_is_not_given(words, shown, capsys):
    assert shown in shown_help(options.get_training_parser(), words, capsys)


def test_help_shows_no_default_twice_and_none_that_says_nothing(capsys):
    said = shown_help(options.get_training_parser(), "--arch genie_small", capsys)
    assert all(f"(default: {nothing})" not in said for nothing in (None, False, ""))
    assert "${" not in said and "default 1000 / T, as published --noise-points" in said


@pytest.mark.parametrize("words, shown", [("", False), ("--arch genie_base", True)])
def test_help_of_generation_shows_no_architecture_that_nobody_named(words, shown, capsys):
    parser = options.get_generation_parser()
    parser.add_argument("--arch", "-a", default="genie_base")  # fairseq-generate's own default is wav2vec2
    said = shown_help(parser, f"--task seq2seq_diffusion {words}", capsys)
    assert "--diffusion-steps" in said and ("--latent-dim" in said) == shown


def test_presets_name_real_options():
    for presets, config in ((GENIE, GenieConfig), (DIFFUSION_LM, DiffusionLMConfig), (DIFFUSEQ, DiffuSeqConfig),
                            (LATENT_CLASSIFIER, LatentClassifierConfig), (DDLM, DDLMConfig),
                            (DDLM_CLASSIFIER, DDLMClassifierConfig)):
        for arch, preset in presets.items():
            assert set(preset) <= {field.name for field in dataclasses.fields(config)} - TAKEN_OVER, arch


def test_no_getattr_lists():
    for path in PACKAGE.rglob("*.py"):
        assert path.read_text().count("getattr(args,") == 0, path
