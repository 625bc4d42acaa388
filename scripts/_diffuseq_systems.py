"""DiffuSeq for scripts/benchmark.py: ours beside the released code's structure on the same weights and noise."""

from typing import List

import torch
from _systems import AddedMemory, Ours, Work, clamped_by_distances, flops_of, seconds_of
from fairseq.data import Dictionary
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_fairseq.diffusion.noise import gaussian_noise
from diffusion_fairseq.diffusion.sampling import sample as reverse_process
from diffusion_fairseq.diffusion.solvers import ddpm_step, initial_state
from diffusion_fairseq.generator import START
from diffusion_fairseq.models.config import DiffuSeqConfig
from diffusion_fairseq.models.diffuseq import DiffuSeqModel
from diffusion_fairseq.models.presets import DIFFUSEQ
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.text.lengths import lengths_to_mask

SOURCE, TARGET, CANDIDATES = 15, 14, 10  # QQP's mean lengths in word pieces; as many candidates as the paper's MBR
PUBLISHED_SEQUENCE, PUBLISHED_STEPS = 128, 2000
# What the released network has not.
PLAIN = {"length_model": "fixed", "self_conditioning": False, "mark_source": False}


def make_diffuseq(arch: str, dictionary: Dictionary, device: str, **options) -> DiffuSeqModel:
    """Random weights at the sizes of a preset, for sequences of the published length."""
    torch.manual_seed(1)
    lengths = {"max_source_positions": PUBLISHED_SEQUENCE // 2, "max_target_positions": PUBLISHED_SEQUENCE // 2}
    cfg = OmegaConf.structured(DiffuSeqConfig(**{**DIFFUSEQ[arch], **PLAIN, **lengths, **options}))
    return DiffuSeqModel.of(cfg, len(dictionary), dictionary.pad(), dictionary.eos()).eval().to(device)


class PublishedDiffuSeq:
    """The released structure: the whole sequence padded to 128, fp32, one candidate at a time, the source put in its
    place again at every step, clamping by a matrix of distances, the sample of every step kept on the device.

    Padding is masked, which the released code does not do: it costs the same, and the outputs can be compared.
    """

    @torch.inference_mode()
    def __init__(self, model: DiffuSeqModel, work: Work):
        self.work, self.model, self.ours = work, model, Ours(model, work)
        prompt = model.encode(self.ours.sources)
        shape = (work.batch, PUBLISHED_SEQUENCE)
        self.given, self.clean = prompt.given(*shape)[..., None], prompt.values(*shape)
        self.nothing = prompt._replace(fixed=None)
        lengths = torch.full((work.batch,), work.source + work.target, device=work.device)
        self.packing = Packing.padded(lengths_to_mask(lengths, PUBLISHED_SEQUENCE))
        ((_, rows),) = self.ours.generator.buckets(prompt, self.ours.sources)
        self.keys = rows.keys.view(work.batch, -1)[:, 0]

    @torch.inference_mode()
    def x0(self) -> Tensor:
        """The last estimate of x0 at the target of each source's first candidate (batch, target, D)."""
        levels = self.ours.generator.levels
        samples: List[Tensor] = []
        state = initial_state(self.noise(START), levels[0])
        for reached in reverse_process(ddpm_step, self.denoise, state, levels, lambda i: self.noise(START + 1 + i)):
            samples.append(reached.xt)
        return self.estimate[:, self.work.source : self.work.source + self.work.target]

    def noise(self, draw: int) -> Tensor:
        return gaussian_noise(self.keys, draw, PUBLISHED_SEQUENCE, self.model.embedding.embedding_dim)

    def denoise(self, xt: Tensor, t: Tensor, _previous) -> Tensor:
        xt = torch.where(self.given, self.clean, xt)
        self.estimate = self.model.denoise(xt, t.to(xt.device), self.nothing, self.packing, None)
        return clamped_by_distances(self.estimate, self.model.embedding.weight, self.ours.generator.forbidden)


@torch.inference_mode()
def our_x0(ours: Ours) -> Tensor:
    """Our last estimate of x0 at the target of each source's first candidate (batch, target, D)."""
    work, generator = ours.work, ours.generator
    ((_, rows),) = generator.buckets(ours.model.encode(ours.sources), ours.sources)
    denoise = generator.denoiser(rows)
    state = initial_state(denoise.noise(START), generator.levels[0])
    list(reverse_process(generator.step, denoise, state, generator.levels, lambda i: denoise.noise(START + 1 + i)))
    return denoise.estimate[:: work.candidates, work.source : work.source + work.target]


def measure_diffuseq(bench) -> None:
    """QQP's shape: the published structure, two steps of it taken for each of 2,000, ours at --steps, and ours with
    --causal-source, which computes another function.

    sentences_per_s is of whole generations, so that its ratio is what a user waits less.
    """
    arch = bench.arguments.arch.replace("genie", "diffuseq")
    model = make_diffuseq(arch, bench.dictionary, bench.device)
    work = bench.work(bench.arguments.batch, SOURCE, TARGET, CANDIDATES)
    checked = work._replace(steps=2)
    system, memory = PublishedDiffuSeq(model, checked), AddedMemory(bench.device)
    memory.start()
    step = seconds_of(system.x0, bench.device, repeats=3) / checked.steps
    published = bench.add(
        shape="diffuseq qqp", structure="published", dtype="fp32", batch=work.batch, candidates=CANDIDATES,
        source=SOURCE, target=TARGET, steps=PUBLISHED_STEPS, encode_ms=0.0, added_mb=memory.megabytes(),
        ms_per_candidate_step=1e3 * step / work.batch,
        sentences_per_s=work.batch / (step * CANDIDATES * PUBLISHED_STEPS),
        peak=flops_of(system.x0) / (checked.steps * step) / bench.peaks["fp32"],
        difference=float((our_x0(system.ours) - system.x0()).abs().max()),
    )
    causal = make_diffuseq(arch, bench.dictionary, bench.device, causal_source=True)
    runs = [*((dtype, model, "ours") for dtype in dict.fromkeys(("fp32", bench.fastest))),
            (bench.fastest, causal, "ours, causal source")]
    for dtype, system, structure in runs:
        if dtype != "fp32":
            system.network_to(torch.bfloat16)
        row = bench.ours("diffuseq qqp", system, dtype, work)
        row["structure"] = structure
        row["faster"] = published["ms_per_candidate_step"] / row["ms_per_candidate_step"]
        row["faster_end_to_end"] = row["sentences_per_s"] / published["sentences_per_s"]
