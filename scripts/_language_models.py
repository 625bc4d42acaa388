"""Language models for scripts/benchmark.py: DDLM beside fairseq's transformer_lm, which decodes incrementally."""

import math
from argparse import Namespace

import torch
from _data import MASK
from _systems import LONGEST, AddedMemory, Work, dictionary_of, seconds_of
from fairseq.data import Dictionary
from fairseq.models.transformer_lm import TransformerLanguageModel, base_lm_architecture
from fairseq.search import Sampling
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf

from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.config import DDLMConfig
from diffusion_fairseq.models.ddlm import DDLMModel
from diffusion_fairseq.models.presets import DDLM
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

PART = "language_models"
LENGTHS, STEPS = (16, 32, 64, 128, 256, 512), (20, 50, 200)


def masked_dictionary(num_tokens: int) -> Dictionary:
    dictionary = dictionary_of(num_tokens - 1)
    dictionary.add_symbol(MASK)
    return dictionary


def make_ddlm(arch: str, dictionary: Dictionary, device: str) -> DDLMModel:
    """Random weights at the sizes of a preset, with rotary positions, which bound no length."""
    torch.manual_seed(1)
    lengths = {"max_source_positions": LONGEST, "max_target_positions": LONGEST}
    cfg = OmegaConf.structured(DDLMConfig(**{**DDLM[arch], **lengths, "rotary": True}))
    return DDLMModel(cfg, len(dictionary), dictionary.pad(), dictionary.index(MASK)).eval().to(device)


def make_transformer_lm(arch: str, dictionary: Dictionary, device: str) -> TransformerLanguageModel:
    """fairseq's decoder with the widths and layers of a DDLM, embeddings shared with the output; random weights."""
    torch.manual_seed(1)
    cfg = DDLMConfig(**DDLM[arch])
    args = Namespace(
        decoder_embed_dim=cfg.model_dim, decoder_ffn_embed_dim=cfg.ffn_dim, decoder_layers=cfg.encoder_layers,
        decoder_attention_heads=cfg.attention_heads, share_decoder_input_output_embed=True, activation_fn="gelu",
        max_target_positions=LONGEST + 1,
    )
    base_lm_architecture(args)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return TransformerLanguageModel.build_model(args, task).eval().to(device)


class Denoised:
    """Texts from nothing by the generator as fairseq-generate runs it, with the solver of the paper."""

    def __init__(self, model: DDLMModel, work: Work):
        self.model = model
        sampling = SamplingConfig(diffusion_steps=work.steps, solver="euler", seed=1)
        self.generator = DiffusionGenerator(model, work.dictionary, sampling)
        prompts = torch.full((work.batch, work.target), model.mask, device=work.device)
        self.sample = {"net_input": {"src_tokens": prompts}, "id": torch.arange(work.batch, device=work.device)}

    @torch.inference_mode()
    def generate(self) -> list:
        return self.generator.generate([self.model], self.sample)


class Decoded:
    """Texts from nothing by fairseq's incremental decoding: one hypothesis a text, sampled, of the whole length."""

    def __init__(self, model: TransformerLanguageModel, work: Work):
        words = work.target - 1  # and an end of sentence
        self.generator = SequenceGenerator(
            [model], work.dictionary, beam_size=1, max_len_a=0, max_len_b=words, min_len=words,
            search_strategy=Sampling(work.dictionary),
        ).to(work.device)
        begin = torch.full((work.batch, 1), work.dictionary.eos(), device=work.device)
        self.sample = {"net_input": {"src_tokens": begin, "src_lengths": torch.ones_like(begin[:, 0])}}

    @torch.inference_mode()
    def generate(self) -> list:
        return self.generator.generate([], self.sample)


def measure_language_models(bench, lengths=LENGTHS) -> None:
    """Texts a second by length: the transformer's, and ours with few and many steps (seed DDLM, figure 3)."""
    arch, dtype = bench.arguments.arch.replace("genie", "ddlm"), bench.fastest
    repeats = bench.arguments.repeats
    runs = {"repeats": 2} if repeats is None else {"repeats": repeats, "at_least": math.inf}
    dictionary = masked_dictionary(len(bench.dictionary))
    ours = make_ddlm(arch, dictionary, bench.device)
    transformer = make_transformer_lm(arch, dictionary, bench.device)
    if dtype != "fp32":
        ours.network_to(torch.bfloat16)
        transformer.to(torch.bfloat16)

    def measured(system, structure: str, work: Work, **more) -> dict:
        memory = AddedMemory(bench.device)
        memory.start()
        seconds = seconds_of(system.generate, bench.device, **runs)
        return bench.add(shape=PART, structure=structure, dtype=dtype, batch=work.batch, candidates=1, source=0,
                         target=work.target, steps=work.steps, repeats=repeats, added_mb=memory.megabytes(),
                         sentences_per_s=work.batch / seconds, **more,
                         ms_per_candidate_step=1e3 * seconds / work.batch / work.steps)

    for length in lengths:
        work = Work(dictionary, bench.device, bench.arguments.batch, 0, length, 1, length)
        decoded = measured(Decoded(transformer, work), "transformer_lm", work)
        for steps in STEPS:
            work = work._replace(steps=steps)
            row = measured(Denoised(ours, work), "ours", work)
            row["faster"] = row["sentences_per_s"] / decoded["sentences_per_s"]
