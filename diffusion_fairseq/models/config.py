"""What the weights depend on: saved in the checkpoint, never given again at generation."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from diffusion_fairseq.diffusion.schedules import SCALED, SCHEDULES
from diffusion_fairseq.errors import UserError

PARAMETERIZATIONS = ("x0", "noise")
GIVEN_TOKENS = ("noised", "clean")
NOISING = ("partial", "full")
# Options that change what the weights compute, and no weight's shape: training that goes on needs the same.
FUNCTION_OPTIONS = (
    "diffusion_timesteps", "noise_schedule", "noise_gamma", "noise_points", "t_min", "t_max", "parameterization",
    "attention_heads", "length_model", "attend_source_padding", "given_tokens", "noising", "double_separator",
    "causal_source", "classification_time",
)


@dataclass
class LatentConfig(FairseqDataclass):
    """Options of every diffusion model."""

    latent_dim: int = field(
        default=128,
        metadata={"help": "width of the token embeddings that are noised; even. Smaller for small vocabularies"},
    )
    self_conditioning: bool = field(
        default=False,
        metadata={"help": "feed the network its previous estimate of x0; better text for about a sixth more "
                          "training time, nothing more per generation step"},
    )
    condition_dropout: float = field(
        default=0.0,
        metadata={"help": "probability with which a source is replaced by the empty condition in training, so that "
                          "generation can use --guidance-scale (classifier-free guidance); 0.1 is usual"},
    )
    length_model: str = field(
        default="fixed",
        metadata={"help": "how the model knows the target's length: fixed (padding up to --max-target-positions is "
                          "generated like words, GENIE's way), longest (the same up to the batch's longest target "
                          "and --length-margin: cheaper for short targets), predicted (a length head, no padding), "
                          "given (language models: as many positions as the prompt has)"},
    )
    length_margin: int = field(
        default=4,
        metadata={"help": "padding positions beyond the batch's longest target under --length-model longest"},
    )
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


@dataclass
class DiffusionModelConfig(LatentConfig):
    """Options of the models whose noise levels are a table of betas."""

    diffusion_timesteps: int = field(
        default=2000,
        metadata={"help": "T: levels of the noise schedule in training. Generation may take any smaller number of "
                          "steps (--diffusion-steps)"},
    )
    noise_schedule: str = field(
        default="sqrt",
        metadata={"help": f"noise as a function of time: {', '.join(SCHEDULES)} (see --noise-points)"},
    )
    noise_gamma: Optional[float] = field(
        default=None,
        metadata={"help": f"scale of the betas of {', '.join(SCALED)}; default 1000 / T, as published"},
    )
    noise_points: Optional[str] = field(
        default=None,
        metadata={"help": "what --noise-schedule points is drawn through, as in 0=0.9999,0.3=0.5,1=0.0001: alpha-bar, "
                          "the share of the signal's variance, at shares of the time; straight lines between"},
    )
    adaptive_schedule_updates: int = field(
        default=0,
        metadata={"help": "after every so many updates, move each target position's noise levels in time so that its "
                          "loss becomes linear in t, which makes every step as hard as the next (SeqDiffuSeq: every "
                          "20000). --noise-schedule is where they start; 0: they stay there"},
    )
    adaptive_schedule_start: int = field(
        default=0,
        metadata={"help": "first update at which --adaptive-schedule-updates may act: losses of an untrained model "
                          "say little (60000 in SeqDiffuSeq)"},
    )
    parameterization: str = field(
        default="x0",
        metadata={"help": "what the network predicts: x0 (the released GENIE) or noise (GENIE's eq. 4 and 10)"},
    )


@dataclass
class TransformerSizes(FairseqDataclass):
    """Sizes of a transformer."""

    model_dim: int = field(default=768, metadata={"help": "width of the transformer layers"})
    ffn_dim: int = field(default=3072, metadata={"help": "width of the feed-forward layers"})
    attention_heads: int = field(default=12, metadata={"help": "attention heads; must divide --model-dim"})
    encoder_layers: int = field(default=6, metadata={"help": "layers of the bidirectional encoder"})
    time_dim: int = field(default=128, metadata={"help": "width of the sinusoidal time features; even"})
    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})


@dataclass
class BertSizes(TransformerSizes):
    """Sizes of a transformer of BERT's layers."""

    encoder_normalize_before: bool = field(
        default=False,
        metadata={"help": "layer norm before each encoder sub-layer: trains from scratch with a short warm-up. "
                          "The published encoder (BERT) has it after"},
    )


def check_sizes(cfg: TransformerSizes) -> None:
    """Refuse sizes that make no transformer.

    Raises:
        UserError: naming the option.
    """
    for name in ("model_dim", "ffn_dim", "attention_heads", "encoder_layers", "time_dim"):
        if getattr(cfg, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(cfg, name)}")
    if cfg.model_dim % cfg.attention_heads:
        raise UserError(f"--model-dim {cfg.model_dim} must be a multiple of --attention-heads {cfg.attention_heads}")
    if cfg.time_dim % 2:
        raise UserError(f"--time-dim must be even, got {cfg.time_dim}")
    if not 0 <= cfg.dropout < 1:
        raise UserError(f"--dropout must be at least 0 and less than 1, got {cfg.dropout}")


@dataclass
class LatentClassifierConfig(BertSizes):
    """A classifier of a diffusion model's x_t."""

    diffusion_path: Optional[str] = field(
        default=None,
        metadata={"help": "checkpoint of the diffusion model whose x_t is classified, at every level of its noise; the "
                          "file that generation will use (an average of its weights is another model)"},
    )


@dataclass
class TransformerConfig(BertSizes, DiffusionModelConfig):
    """A diffusion model that is a transformer."""


@dataclass
class GenieConfig(TransformerConfig):
    """Sizes of a GENIE: bidirectional encoder and cross-attending denoiser."""

    denoiser_layers: int = field(default=6, metadata={"help": "layers of the denoiser"})
    share_embeddings: bool = field(
        default=False,
        metadata={"help": "make the encoder's token vectors a projection of the target's embeddings: words that "
                          "source and target share are learned once. Needs a joined dictionary"},
    )
    copy_source: bool = field(
        default=False,
        metadata={"help": "let the estimate of x0 move to the embedding of a source token, as far as a learned gate "
                          "says, and neighbouring positions to neighbouring tokens: names, rare words and phrases are "
                          "copied. Not in the published model. Needs a joined dictionary"},
    )
    attend_source_padding: bool = field(
        default=False,
        metadata={"help": "let the denoiser attend to source padding, as the published code does: the text then "
                          "depends on the batch. Only for comparison with it"},
    )


@dataclass
class DiffusionLMConfig(TransformerConfig):
    """Sizes of a Diffusion-LM: one bidirectional encoder over the sequence that is generated."""

    encoder_layers: int = field(default=12, metadata={"help": "layers of the bidirectional encoder"})
    length_model: str = field(
        default="given",
        metadata={"help": "given (a sequence has as many positions as its prompt), fixed or longest (padding is "
                          "generated like words, up to --tokens-per-sample or the batch's longest)"},
    )
    given_tokens: str = field(
        default="noised",
        metadata={"help": "how the network sees the given tokens of a prompt: noised (all positions are noised in "
                          "training, and given tokens enter at the noise level of the others: Diffusion-LM), clean "
                          "(trained with --masking other than full: given tokens are never noised)"},
    )


@dataclass
class DiffuSeqConfig(TransformerConfig):
    """Sizes of a DiffuSeq: one bidirectional encoder over source and target."""

    encoder_layers: int = field(default=12, metadata={"help": "layers of the bidirectional encoder"})
    noising: str = field(
        default="partial",
        metadata={"help": "what is noised: partial (the target; the source is given: DiffuSeq) or full (source and "
                          "target, denoised together; in generation the source enters at the level of the target)"},
    )
    mark_source: bool = field(
        default=False,
        metadata={"help": "tell the network which positions are source; not in the published model, learns sooner. "
                          "With --noising full none is marked"},
    )
    double_separator: bool = field(
        default=False, metadata={"help": "a second end of sentence between source and target, as published"}
    )
    jitter_source: bool = field(
        default=False,
        metadata={"help": "in training with --noising partial add the noise of the first level to the source, as "
                          "published; generation never does"},
    )
    causal_source: bool = field(
        default=False,
        metadata={"help": "let source positions attend to the source only, so that it is computed once per sentence, "
                          "not at every step: faster the longer the sources are. Not in the published model"},
    )


@dataclass
class DDLMSizes(TransformerSizes):
    """Sizes and noise levels of a DDLM's bidirectional transformer with conditional layer norms."""

    latent_dim: int = field(
        default=256, metadata={"help": "width d of the token embeddings, whose length is sqrt(d); even"}
    )
    model_dim: int = field(default=1024, metadata={"help": "width of the transformer layers"})
    ffn_dim: int = field(default=4096, metadata={"help": "width of the feed-forward layers"})
    attention_heads: int = field(default=8, metadata={"help": "attention heads; must divide --model-dim"})
    encoder_layers: int = field(default=8, metadata={"help": "layers of the bidirectional transformer"})
    self_conditioning: bool = field(
        default=False, metadata={"help": "feed the network its previous estimate of x0: better text"}
    )
    t_min: float = field(
        default=1.0,
        metadata={"help": "least noise of training: sigma = t. At 1 the embeddings of a width of 256 are easily told "
                          "apart; narrow embeddings and large vocabularies need less"},
    )
    t_max: float = field(
        default=10.0,
        metadata={"help": "most noise of training, where generation starts: 10 (DDLM) or up to 300 with "
                          "--timestep-sampler time-warp (CDCD); too little leaves hints in x_t, too much makes text "
                          "that repeats itself"},
    )
    rotary: bool = field(
        default=False, metadata={"help": "rotate queries and keys by their positions in place of learned positions"}
    )


@dataclass
class DDLMConfig(DDLMSizes, LatentConfig):
    """A DDLM: the transformer predicts tokens."""

    length_model: str = field(
        default="given",
        metadata={"help": "given (a sequence has as many positions as its prompt), fixed or longest (padding is "
                          "generated like words)"},
    )


@dataclass
class DDLMClassifierConfig(DDLMSizes):
    """A classifier of texts that has the layers of a DDLM."""

    classification_time: float = field(
        default=1.0,
        metadata={"help": "time t at which the layers read the text, from --t-min to --t-max: they were trained to see "
                          "embeddings with that much noise, and get none. 1, 5 and 10 were tried for GLUE"},
    )
    freeze_encoder: bool = field(
        default=False,
        metadata={"help": "train nothing but the head, which is then one linear layer: a probe of what the layers "
                          "know"},
    )
    max_positions: int = II("task.max_positions")
