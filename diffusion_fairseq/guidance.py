"""Leading the reverse process: towards its condition without a classifier, or towards a label by one."""

from functools import partial
from typing import Callable, Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.process import like
from diffusion_fairseq.diffusion.schedules import NoiseLevel
from diffusion_fairseq.diffusion.solvers import VARIANCES, SamplerState
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.condition import Condition
from diffusion_fairseq.models.latent_classifier import LatentClassifierModel
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

STEP_SIZE = 0.1  # of Adagrad: that of the released Diffusion-LM
# Adagrad's sums of squares start here, not at 0: gradients much below 1 keep their proportions, so that the scale means
# something; those much above 1 move x_s by STEP_SIZE at most.
INITIAL_SQUARES = 1.0


class ConditionGuidance:
    """`model.denoise`, led on from what the model estimates without its condition to what it estimates with it, and
    beyond where the scale exceeds 1 (Ho & Salimans, 2022, eq. 6: of x_0, which is linear in the noise).

    Given tokens are clean where they are the condition, and at the noise level of the others where they are not. `free`
    keeps the last estimate without the condition.

    Args:
        model: trained with --condition-dropout.
        scale: 0 is the unconditional model, 1 the conditional one.
        denoise: the model's, with the options of the generation bound.
    """

    def __init__(self, model: DiffusionModel, scale: float, denoise: Callable[..., Tensor]):
        self.model, self.scale, self.denoise = model, scale, denoise
        self._memories: Optional[tuple] = None
        self.free: Optional[Tensor] = None

    def __call__(self, xt: Tensor, t: Tensor, memory: Condition, packing: Optional[Packing] = None,
                 previous: Optional[Tensor] = None) -> Tensor:
        """As `DiffusionModel.denoise`; both estimates go on from the previous guided one."""
        if self._memories is None or self._memories[0] is not memory:
            self._memories = memory, self.model.unconditional(memory)
        # What is given would be told by the guided estimate, which holds it.
        blind = None if previous is None else memory.impose(previous, self.free)
        self.free = self.denoise(xt, t, self._memories[1], packing, blind)
        # Last, so that what is watched of the model is what it sees with its condition.
        conditional = self.denoise(xt, t, memory, packing, previous)
        return memory.impose(self.free + self.scale * (conditional - self.free))

    def select(self, index: Tensor, width: int) -> None:
        """Go on with some rows, by index, cut to `width` positions."""
        self.free = self.free[index, :width]


class ClassifierGuidance:
    """Steps of Adagrad on x_s that raise log p(label | x_s, s), after every reverse step (Li et al., 2022, section 5).

    The objective is scale * log p(label | x) - fluency * |x - x_s|^2 / (2 var), var that of the reverse step from t to
    s. The second term is that of Gaussian draws round the step's result; the released code takes its mean, which draws
    x_s there, too, where the classifier has no say. It is taken implicitly (composite Adagrad: Duchi et al., 2011,
    section 5), so that it never overshoots, however small the step. All is float32, and nothing is kept between
    reverse steps.

    Args:
        classifier: of the model's own latents.
        label: index of the label that is wanted.
        scale, steps, fluency: weight of the classifier, steps of Adagrad, and weight of what holds x_s.
    """

    def __init__(self, classifier: LatentClassifierModel, label: int, scale: float, steps: int, fluency: float):
        self.classifier, self.label = classifier, label
        self.scale, self.steps, self.fluency = scale, steps, fluency

    @torch.no_grad()
    def __call__(self, xs: Tensor, s: NoiseLevel, t: NoiseLevel, packing: Packing, given: Optional[Tensor]) -> Tensor:
        """x_s (R, L, D), moved where it is generated: neither at given (R, L) positions nor at padding."""
        pull = self.fluency / like(VARIANCES["posterior"](s, t), xs)
        time = torch.full_like(s.t, s.t.item(), device=xs.device)  # filled: a copy would wait for the device
        offset, squares = torch.zeros_like(xs), torch.full_like(xs, INITIAL_SQUARES)
        for _ in range(self.steps):
            gradient = self.scale * self.gradient(xs + offset, time, packing)
            squares = squares + gradient.square()
            rate = STEP_SIZE / squares.sqrt()
            offset = (offset + rate * gradient) / (1 + rate * pull)
        return xs + offset if given is None else torch.where(given[..., None], xs, xs + offset)

    def gradient(self, x: Tensor, t: Tensor, packing: Packing) -> Tensor:
        """The gradient of log p(label | x, t) at each x (R, L, D)."""
        # What was made in inference mode cannot be differentiated; a copy made outside of it can.
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            packing = packing._replace(**{name: value.clone() for name, value in packing._asdict().items()
                                          if isinstance(value, Tensor)})
            log_p = self.classifier.logits(x, t, packing).log_softmax(dim=-1)[:, self.label]
            return torch.autograd.grad(log_p.sum(), x)[0]


def check_guidance(model: DiffusionModel, scale: float) -> None:
    """Refuse a scale other than 1 for a model that does not know the empty condition.

    Raises:
        UserError: naming the option.
    """
    if scale != 1 and not model.condition_dropout:
        raise UserError(f"--guidance-scale {scale:g} needs a model trained with --condition-dropout: this one has not "
                        "learned to write without its condition")


def guided_step(step: Callable[..., SamplerState], model: DiffusionModel,
                sampling: SamplingConfig) -> Callable[..., SamplerState]:
    """A solver's step followed by the classifier's, or the step itself where none is asked for.

    Raises:
        UserError: a classifier of other latents than the model's, or without that label.
    """
    if sampling.classifier is None or sampling.classifier_scale == 0:
        return step
    if model.longest_sequence != model.max_target_positions:
        raise UserError("--classifier has no use with a model that denoises its source together with the text")
    classifier = LatentClassifierModel.of_checkpoint(sampling.classifier)
    classifier.space.check_belongs(model, sampling.classifier)
    label = classifier.label_index(sampling.classifier_label)
    guidance = ClassifierGuidance(classifier.to(model.embedding.weight.device), label, sampling.classifier_scale,
                                  sampling.classifier_steps, sampling.classifier_fluency)
    return partial(_led_step, step, guidance)


def _led_step(step: Callable[..., SamplerState], guidance: ClassifierGuidance, denoise, state: SamplerState,
              s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor]) -> SamplerState:
    reached = step(denoise, state, s, t, noise)
    if not s.sigma.any():
        # Text is what the last estimate rounds to, and x_0 is read no more.
        return reached
    given = denoise.rows.memory.given(*reached.xt.shape[:2])
    return reached._replace(xt=guidance(reached.xt, s, t, denoise.rows.packing, given))
