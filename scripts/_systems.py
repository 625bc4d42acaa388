"""The systems that scripts/benchmark.py measures: ours, the published structure, fairseq's transformer."""

import ctypes
import gc
import math
import statistics
import time
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple
from unittest.mock import patch

import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import diffusion_fairseq  # noqa: F401  registers the task and the models
from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.denoiser import START, aligned
from diffusion_fairseq.diffusion.noise import gaussian_noise
from diffusion_fairseq.diffusion.sampling import sample as reverse_process
from diffusion_fairseq.diffusion.solvers import ddpm_step, initial_state
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.config import GenieConfig
from diffusion_fairseq.models.genie import GenieModel
from diffusion_fairseq.models.presets import GENIE
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.tasks.sampling_config import SamplingConfig
from diffusion_fairseq.text.lengths import lengths_to_mask

PUBLISHED_SOURCE, PUBLISHED_TARGET = 512, 64  # what the published code pads to
LONGEST = 512
SLOW_PRODUCT = 0.1  # seconds


def dictionary_of(num_tokens: int) -> Dictionary:
    dictionary = Dictionary()
    for number in range(num_tokens - len(dictionary)):
        dictionary.add_symbol(str(number))
    return dictionary


def make_genie(arch: str, dictionary: Dictionary, device: str, **options) -> GenieModel:
    """Random weights."""
    torch.manual_seed(1)
    preset = {"max_source_positions": LONGEST, "max_target_positions": LONGEST, **GENIE[arch], **options}
    cfg = OmegaConf.structured(GenieConfig(**preset))
    return GenieModel(cfg, len(dictionary), len(dictionary), dictionary.pad()).to(device)


def make_transformer(arch: str, dictionary: Dictionary, device: str) -> TransformerModel:
    """fairseq's encoder-decoder with the widths, layers and dropouts (of attention weights too) of a GENIE, embeddings
    shared; random weights."""
    torch.manual_seed(1)
    cfg = GenieConfig(**GENIE[arch])
    args = Namespace(
        encoder_embed_dim=cfg.model_dim, encoder_ffn_embed_dim=cfg.ffn_dim, encoder_layers=cfg.encoder_layers,
        encoder_attention_heads=cfg.attention_heads, decoder_layers=cfg.denoiser_layers,
        decoder_attention_heads=cfg.attention_heads, share_all_embeddings=True, dropout=cfg.dropout,
        attention_dropout=cfg.dropout, max_source_positions=LONGEST + 1, max_target_positions=LONGEST + 1,
    )
    base_architecture(args)
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return TransformerModel.build_model(args, task).to(device)


def random_sources(dictionary: Dictionary, batch: int, length: int, width: int, device: str) -> Tensor:
    """Sources (batch, width) of `length` random words, their end of sentence included, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((batch, width), dictionary.pad())
    tokens[:, :length] = torch.randint(dictionary.nspecial, len(dictionary), (batch, length), generator=generator)
    tokens[:, length - 1] = dictionary.eos()
    return tokens.to(device)


class Work(NamedTuple):
    """What a system is asked to do, and where."""

    dictionary: Dictionary
    device: str
    batch: int
    source: int
    target: int
    candidates: int
    steps: int


def run(step: Callable, denoise: Callable, levels: List, noise: Callable[[int], Tensor]) -> None:
    """The whole reverse process, its noise drawn as the generator draws it."""
    state = initial_state(noise(START), levels[0])
    for _ in reverse_process(step, denoise, state, levels, lambda index: noise(START + 1 + index)):
        pass


class Ours:
    """The generator as fairseq-generate runs it, clamped."""

    def __init__(self, model: GenieModel, work: Work):
        self.work, self.model = work, model
        sampling = SamplingConfig(diffusion_steps=work.steps, candidates=work.candidates, clamping=True, seed=1)
        self.generator = DiffusionGenerator(model, work.dictionary, sampling, max_len_b=work.target)
        width = aligned(work.source)
        self.sources = random_sources(work.dictionary, work.batch, work.source, width, work.device)

    @torch.inference_mode()
    def encode(self) -> None:
        self.model.memory(self.model.encode(self.sources))

    @torch.inference_mode()
    def generate(self) -> None:
        self.generator.generate([self.model], {"net_input": {"src_tokens": self.sources}})

    @torch.inference_mode()
    def x0(self) -> Tensor:
        """The last estimate of x0 before clamping (batch * candidates, target, D)."""
        ((_, rows),) = self.generator.buckets(self.model.encode(self.sources), self.sources)
        denoise = self.generator.denoiser(rows)
        run(self.generator.step, denoise, self.generator.levels, denoise.noise)
        return denoise.estimate[:, : self.work.target]


def clamped_by_distances(estimate: Tensor, embedding: Tensor, forbidden: Tensor) -> Tensor:
    """The nearest embedding for each latent (..., D), by the matrix of all distances, as the published codes do."""
    flat = estimate.flatten(0, 1)
    distances = embedding.square().sum(1)[:, None] + flat.square().sum(1)[None] - 2 * embedding @ flat.t()
    distances[forbidden.to(estimate.device)] = torch.inf
    nearest = distances.clamp(min=0).topk(1, dim=0, largest=False).indices[0]
    return embedding[nearest].view_as(estimate)


class Published:
    """The published structure on the same weights and noise: the encoder and all keys and values at every step, padded,
    one candidate at a time, clamping by a matrix of distances to every embedding."""

    @torch.inference_mode()
    def __init__(self, model: GenieModel, work: Work):
        self.work, self.model = work, model
        self.ours = Ours(model, work)
        source = max(PUBLISHED_SOURCE, work.source)
        self.width = aligned(max(PUBLISHED_TARGET, work.target))
        self.sources = random_sources(work.dictionary, work.batch, work.source, source, work.device)
        lengths = torch.full((work.batch,), work.target, device=work.device)
        self.packing = Packing.padded(lengths_to_mask(lengths, self.width))
        ((_, rows),) = self.ours.generator.buckets(model.encode(self.ours.sources), self.ours.sources)
        self.keys = rows.keys.view(work.batch, -1)[:, 0]

    @torch.inference_mode()
    def x0(self) -> Tensor:
        """The last estimate of x0 of the first candidate of each source (batch, target, D)."""
        with patch.object(Packing, "of", Packing.padded):
            run(ddpm_step, self.denoise, self.ours.generator.levels, self.noise)
        return self.estimate[:, : self.work.target]

    def noise(self, draw: int) -> Tensor:
        return gaussian_noise(self.keys, draw, self.width, self.model.embedding.embedding_dim)

    def denoise(self, xt: Tensor, t: Tensor, _previous: Optional[Tensor]) -> Tensor:
        memory = self.model.memory(self.model.encode(self.sources))
        self.estimate = self.model.denoise(xt, t.to(xt.device), memory, self.packing, None)
        return clamped_by_distances(self.estimate, self.model.embedding.weight, self.ours.generator.forbidden)


class Autoregressive:
    """fairseq's beam search, every hypothesis as long as the target."""

    BEAM = 5

    def __init__(self, model: TransformerModel, work: Work):
        words = work.target - 1  # and an end of sentence
        self.generator = SequenceGenerator(
            [model], work.dictionary, beam_size=self.BEAM, max_len_a=0, max_len_b=words, min_len=words,
        ).to(work.device)
        tokens = random_sources(work.dictionary, work.batch, work.source, work.source, work.device)
        lengths = torch.full((work.batch,), work.source, device=work.device)
        self.sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}

    @torch.inference_mode()
    def generate(self) -> None:
        self.generator.generate([], self.sample)


class Training:
    """One update of a model by its criterion: forward, backward, Adam."""

    def __init__(self, model, criterion, sources: Tensor, targets: Tensor, dictionary: Dictionary, dtype: torch.dtype):
        self.model, self.criterion, self.dtype = model.train(), criterion, dtype
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
        lengths = (sources != dictionary.pad()).sum(dim=1)
        shifted = targets.roll(1, dims=1)
        shifted[:, 0] = dictionary.eos()
        self.sample = {
            "net_input": {"src_tokens": sources, "src_lengths": lengths, "prev_output_tokens": shifted},
            "target": targets, "ntokens": int((targets != dictionary.pad()).sum()), "nsentences": len(sources),
        }

    def update(self) -> None:
        on = self.sample["target"].device.type
        with torch.autocast(on, self.dtype) if self.dtype != torch.float32 else nullcontext():
            loss = self.criterion(self.model, self.sample)[0]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def trainings(arch: str, work: Work, dtype: torch.dtype) -> Iterator[Tuple[str, Training]]:
    """Ours, the published structure, and fairseq's transformer on the same pairs of sentences."""
    def pairs(source_width: int, target_width: int) -> Tuple[Tensor, Tensor]:
        return tuple(random_sources(work.dictionary, work.batch, length, width, work.device)
                     for length, width in ((work.source, source_width), (work.target, target_width)))

    task = Namespace(target_dictionary=work.dictionary, source_dictionary=work.dictionary)
    vlb = DiffusionVLBCriterion(DiffusionVLBConfig(), task)
    ours = make_genie(arch, work.dictionary, work.device, share_embeddings=True, length_model="predicted")
    yield "ours", Training(ours, vlb, *pairs(work.source, work.target), work.dictionary, dtype)
    padded = make_genie(arch, work.dictionary, work.device, attend_source_padding=True, length_model="fixed",
                        max_target_positions=max(PUBLISHED_TARGET, work.target), self_conditioning=False)
    wide = pairs(max(PUBLISHED_SOURCE, work.source), max(PUBLISHED_TARGET, work.target))
    yield "published", Training(padded, vlb, *wide, work.dictionary, torch.float32)
    transformer = make_transformer(arch, work.dictionary, work.device)
    smoothed = LabelSmoothedCrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    yield "transformer", Training(transformer, smoothed, *pairs(work.source, work.target), work.dictionary, dtype)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_once(call: Callable[[], object], device: str) -> float:
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def seconds_of(call: Callable[[], object], device: str, at_least: float = 1.0, repeats: int = 3) -> float:
    """The median duration of a call, after one to warm up; repeated for `at_least` seconds, `repeats` times at most."""
    first = seconds_once(call, device)
    if first > 20 * at_least:  # warming up is nothing beside it
        return first
    durations: List[float] = []
    while len(durations) < repeats and sum(durations) < at_least or not durations:
        durations.append(seconds_once(call, device))
    return statistics.median(durations)


def seconds_of_each(calls: List[Callable[[], object]], device: str, at_least: float = 5.0) -> List[float]:
    """The median duration of each call that is warm already. They take turns until each has had `at_least` seconds, so
    that a machine that slows down meanwhile slows all of them; a long one has three turns and the others go on."""
    durations: List[List[float]] = [[] for _ in calls]
    while True:
        waiting = [place for place, own in enumerate(durations) if sum(own) < at_least or len(own) < 3]
        if not waiting:
            return [statistics.median(own) for own in durations]
        for place in waiting:
            durations[place].append(seconds_once(calls[place], device))


def flops_of(call: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products and attentions of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_peak(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product; of a dtype that is slow a smaller one."""
    size, largest = (8192, 8192) if device == "cuda" else (512, 2048)
    while True:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = seconds_of(partial(torch.matmul, a, b), device, repeats=20)
        if size == largest or seconds > SLOW_PRODUCT:
            return 2 * size**3 / seconds
        size *= 2


class AddedMemory:
    """Megabytes beyond those held at `start` that were held at most since then: of the device, or of this process
    where there is none. What else is alive, such as weights, is in neither."""

    def __init__(self, device: str):
        self.device = device

    def start(self) -> None:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated() / 2**20
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)  # else what was freed but kept would be taken again without a trace
            Path("/proc/self/clear_refs").write_text("5")
        except (AttributeError, OSError):
            self.held = math.nan  # no such library, or no right to reset the peak, which is that of the whole run then
        else:
            self.held = resident_megabytes()

    def megabytes(self) -> float:
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else _status("VmHWM")
        return max(0.0, peak - self.held)


def resident_megabytes() -> float:
    """What this process holds now."""
    return _status("VmRSS")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


