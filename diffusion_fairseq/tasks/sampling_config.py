"""Options of generation: given at generation, never saved with the weights."""

import math
from dataclasses import dataclass, field
from typing import Optional

from omegaconf import II

from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.solvers import SOLVERS, VARIANCES
from diffusion_fairseq.errors import UserError, one_of

DEFAULT_STEPS = 50
WARPED = "warped"  # a sampling grid that the model has learned
RANKINGS = ("score", "mbr")


@dataclass
class SamplingConfig:
    """How text is drawn from a trained model."""

    diffusion_steps: Optional[int] = field(
        default=None,
        metadata={"help": "reverse steps at generation, 1 .. T: a strided subset of the trained levels. More steps, "
                          f"slower and a little better; default {DEFAULT_STEPS} (or T, if that is smaller)"},
    )
    solver: str = field(
        default="ddpm",
        metadata={"help": f"rule of a reverse step: {', '.join(SOLVERS)}. ddpm is ancestral sampling; ddim see "
                          "--ddim-eta; euler is ddim without noise; dpmpp-2m is of order 2 at the same cost; heun is "
                          "of order 2 and evaluates the network twice a step"},
    )
    sampling_grid: str = field(
        default="uniform",
        metadata={"help": f"where the steps lie: {', '.join(GRIDS)} (in t; in its square root; in the 7th root of "
                          f"sigma / alpha; in the log of the signal-to-noise ratio) or {WARPED} (as training drew t "
                          "with --timestep-sampler time-warp or gumbel)"},
    )
    stride_as_published: bool = field(
        default=False,
        metadata={"help": "take ddpm steps of one trained level each and skip the levels between, as the released "
                          "GENIE does with fewer steps than T: text stays near noise. Only for comparison with it"},
    )
    exit_patience: Optional[int] = field(
        default=None,
        metadata={"help": "finish a sentence whose rounded tokens did not change for this many steps; finished "
                          "sentences leave the batch, so that few steps are paid for easy ones. Off by default"},
    )
    exit_entropy: Optional[float] = field(
        default=None,
        metadata={"help": "beside --exit-patience: finish a sentence only when the model is sure of it, too, that is "
                          "when the entropy of its tokens, their mean over the generated positions, is at most so many "
                          "nats. Lower takes more steps; off by default"},
    )
    ddpm_variance: str = field(
        default="posterior",
        metadata={"help": f"noise of a ddpm step: {', '.join(VARIANCES)} (beta: the larger one, as published)"},
    )
    ddim_eta: float = field(
        default=0.0, metadata={"help": "noise of a ddim step: 0 deterministic, 1 as much as ddpm"}
    )
    clamping: bool = field(
        default=False,
        metadata={"help": "replace each estimate of x0 by the nearest token embeddings (the clamping trick)"},
    )
    clamping_from: int = field(
        default=0,
        metadata={"help": "first step at which --clamping acts, counted from 0 (the noisiest); early estimates are "
                          "poor, and clamping them commits to wrong words"},
    )
    candidates: int = field(
        default=1,
        metadata={"help": "Gaussian samples per source; they share one encoding. --nbest prints the best of them"},
    )
    rank_by: str = field(
        default="score",
        metadata={"help": "which of the --candidates is best: score, the one that the model is surest of; or mbr, the "
                          "one most like the others (minimum Bayes risk by the mean of ROUGE-1, -2 and -L of subwords):"
                          " usually better, from 5 candidates on. What is printed as score stays the model's"},
    )
    length_beam: int = field(
        default=1,
        metadata={"help": "likeliest target lengths tried for each candidate (--length-model predicted)"},
    )
    initial_noise_scale: float = field(
        default=1.0,
        metadata={"help": "scale of the noise that generation starts from: below 1 likelier and more repetitive text, "
                          "above 1 more varied and less fluent (DDLM, table 8)"},
    )
    score_temperature: float = field(
        default=1.0,
        metadata={"help": "temperature of the token probabilities whose mean embedding is the estimate of x0, for "
                          "models that predict tokens: below 1 surer and less varied"},
    )
    joint_sampling: bool = field(
        default=False,
        metadata={"help": "write the source, too: pairs from nothing, each as long as a source of the data and what "
                          "belongs to it; the hypothesis is both, with <pad> between them. For diffuseq trained with "
                          "--noising full"},
    )
    guidance_scale: float = field(
        default=1.0,
        metadata={"help": "classifier-free guidance: go from the estimate without the condition so many times as far "
                          "as the one with it. Above 1 the text follows its source or prompt more closely and varies "
                          "less, at twice the cost of a step; needs a model trained with --condition-dropout. 1: off"},
    )
    classifier: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint of a latent_classifier of this model, that leads the text to --classifier-label"},
    )
    classifier_label: Optional[str] = field(
        default=None, metadata={"help": "the label that --classifier is to find in the text"}
    )
    classifier_scale: float = field(
        default=1.0,
        metadata={"help": "how strongly --classifier leads, against what the model itself would write; 0: not at all"},
    )
    classifier_steps: int = field(
        default=3,
        metadata={"help": "steps of Adagrad by --classifier after each reverse step; each costs a forward and a "
                          "backward pass of the classifier"},
    )
    classifier_fluency: float = field(
        default=0.01,
        metadata={"help": "weight of what holds the latents where the reverse step has put them, against --classifier: "
                          "more is more fluent and less to the label"},
    )
    seed: int = II("common.seed")


def check_sampling(cfg: SamplingConfig) -> None:
    """Refuse numbers that no model can serve.

    Raises:
        UserError: naming the option and its range.
    """
    one_of("--solver", cfg.solver, tuple(SOLVERS))
    one_of("--ddpm-variance", cfg.ddpm_variance, tuple(VARIANCES))
    one_of("--sampling-grid", cfg.sampling_grid, (*GRIDS, WARPED))
    one_of("--rank-by", cfg.rank_by, RANKINGS)
    at_least = {"--diffusion-steps": (cfg.diffusion_steps, 1), "--candidates": (cfg.candidates, 1),
                "--length-beam": (cfg.length_beam, 1), "--exit-patience": (cfg.exit_patience, 1),
                "--exit-entropy": (cfg.exit_entropy, 0),
                "--clamping-from": (cfg.clamping_from, 0), "--guidance-scale": (cfg.guidance_scale, 0),
                "--classifier-scale": (cfg.classifier_scale, 0), "--classifier-steps": (cfg.classifier_steps, 1),
                "--classifier-fluency": (cfg.classifier_fluency, 0)}
    for option, (value, least) in at_least.items():
        if value is not None and not least <= value < math.inf:
            raise UserError(f"{option} must be at least {least}, got {value}")
    for option, value in (("--initial-noise-scale", cfg.initial_noise_scale),
                          ("--score-temperature", cfg.score_temperature)):
        if not 0 < value < math.inf:
            raise UserError(f"{option} must be above 0, got {value}")
    if cfg.stride_as_published and (cfg.solver, cfg.sampling_grid) != ("ddpm", "uniform"):
        raise UserError("--stride-as-published is a way of taking ddpm steps on the uniform grid: leave --solver and "
                        "--sampling-grid at their defaults")
    if cfg.exit_entropy is not None and cfg.exit_patience is None:
        raise UserError("--exit-entropy acts on sentences that have settled: give --exit-patience, too")
    if (cfg.classifier is None) != (cfg.classifier_label is None):
        raise UserError("--classifier and --classifier-label belong together: give both")
    if not 0 <= cfg.ddim_eta <= 1:
        raise UserError(f"--ddim-eta must be from 0 to 1, got {cfg.ddim_eta}")
    stock, alone = SamplingConfig, cfg.classifier is None
    for option, value, default, unused, needed in (
        ("--ddim-eta", cfg.ddim_eta, stock.ddim_eta, cfg.solver != "ddim", "--solver ddim"),
        ("--ddpm-variance", cfg.ddpm_variance, stock.ddpm_variance, cfg.solver != "ddpm", "--solver ddpm"),
        ("--rank-by", cfg.rank_by, stock.rank_by, cfg.candidates * cfg.length_beam == 1, "--candidates above 1"),
        ("--classifier-scale", cfg.classifier_scale, stock.classifier_scale, alone, "--classifier"),
        ("--classifier-steps", cfg.classifier_steps, stock.classifier_steps, alone, "--classifier"),
        ("--classifier-fluency", cfg.classifier_fluency, stock.classifier_fluency, alone, "--classifier"),
    ):
        if unused and value != default:
            raise UserError(f"{option} acts only with {needed}: give both, or leave it out")
