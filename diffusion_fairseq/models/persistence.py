"""What is saved with a diffusion model and checked when it is loaded."""

import hashlib
import logging
from typing import Any, Dict, List, Optional

import torch
from fairseq.data import Dictionary
from torch import Tensor

from diffusion_fairseq.diffusion.processes import max_over_processes
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import FUNCTION_OPTIONS
from diffusion_fairseq.models.learned_timesteps import LearnsTimesteps

logger = logging.getLogger(__name__)

# Ends of the names of tables with a row for each position or length, from 0 on.
LENGTH_TABLES = ("positions.weight", "length_predictor.absolute.weight", "length_predictor.absolute.bias",
                 "schedule.log_snr", "schedule.losses", "schedule.counts")
# The buffers that note what training's targets were.
MET = ("longest_target", "met_tokens")


class Persistent(LearnsTimesteps):
    """A model that takes over tables of other lengths, and refuses the weights of another dictionary.

    Args:
        num_tokens: size of the target dictionary.
    """

    # What the host is to compare with a checkpoint's options, whose weights do not show it.
    function_options = FUNCTION_OPTIONS

    def __init__(self, num_tokens: int):
        super().__init__()
        # Fingerprints of the source and target dictionaries, where the task gives them: kept beside the weights.
        self.dictionaries: Dict[str, str] = {}
        # Since weights were loaded and until the next update: their tables that had other lengths.
        self._refitted: Optional[List[str]] = None
        # The longest target met in training; floating point, because EMA also averages buffers.
        self.register_buffer("longest_target", torch.zeros(()))
        # Above 0 for the tokens that training has generated, as far as is known.
        self.register_buffer("met_tokens", torch.zeros(num_tokens))

    def _apply(self, fn, *args, **kwargs):
        # A length is counted, and never cast: bfloat16 has no odd ones above 256.
        longest = self.longest_target
        super()._apply(fn, *args, **kwargs)
        self.longest_target = longest.to(self.longest_target.device)
        return self

    def meet_tokens(self, tokens: Tensor, mask: Tensor) -> None:
        """Take note of the tokens (B, L) that training generates, where mask (B, L) bool is True."""
        self.met_tokens.scatter_reduce_(0, tokens.flatten(), mask.flatten().to(self.met_tokens), "amax")

    def unmet_tokens(self) -> Tensor:
        """True for the tokens (V,) that training never generated: their embeddings lie where chance put them, and an
        estimate of x0 that is unsure of itself may be nearest to them."""
        return (self.met_tokens == 0) & self.met_tokens.any()

    def end_update(self) -> None:
        """As LearnsTimesteps; the longest target and the tokens that any process has met."""
        super().end_update()
        for name in MET:
            met = getattr(self, name)
            met.copy_(max_over_processes(met))

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """As LearnsTimesteps; take over tables of other lengths. Of a file that does not say which tokens were met,
        none is unmet."""
        super().upgrade_state_dict_named(state_dict, name)
        prefix = name + "." if name else ""
        state_dict.setdefault(prefix + "met_tokens", torch.ones_like(self.met_tokens))
        self._fit_lengths(state_dict, prefix)

    def _fit_lengths(self, state_dict: Dict[str, Any], prefix: str) -> None:
        """Take over the rows that a longer or shorter table of positions or lengths has in common with ours; further
        ones of ours stay as they were initialised. Losses by timestep are of no use to another number of them."""
        self._refitted = []
        for key, own in self.state_dict().items():
            theirs = state_dict.get(prefix + key, own)
            if theirs.shape == own.shape or theirs.shape[1:] != own.shape[1:]:
                continue
            if f".{key}".endswith(tuple("." + table for table in LENGTH_TABLES)):
                rows = min(len(theirs), len(own))
                state_dict[prefix + key] = torch.cat([theirs[:rows].to(own), own[rows:]])
            elif key.startswith("timesteps."):
                state_dict[prefix + key] = own
            else:
                continue
            self._refitted.append(f"{key} {len(theirs)} -> {len(own)}")
        if self._refitted:
            logger.info(f"weights of other lengths taken over: {', '.join(self._refitted)}")

    def set_num_updates(self, num_updates: int) -> None:
        """What the host calls before each update; 0 after weights were loaded means that they are fine-tuned.

        Raises:
            UserError: training goes on with tables of other lengths, for which the optimizer's state does not fit.
        """
        super().set_num_updates(num_updates)
        if self._refitted is None:
            return
        if num_updates and self._refitted:
            raise UserError(f"training cannot go on with other lengths ({', '.join(self._refitted)}): give the options "
                            "the checkpoint was trained with, or start anew from it with --finetune-from-model")
        if not num_updates:
            # Of the targets of another task.
            for name in MET:
                getattr(self, name).zero_()
        self._refitted = None

    def state_dict(self, *args, **kwargs):
        """As torch's; the metadata says which dictionaries the weights belong to."""
        state = super().state_dict(*args, **kwargs)
        if self.dictionaries:
            state._metadata[kwargs.get("prefix", "")[:-1]]["dictionaries"] = dict(self.dictionaries)
        return state

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq's; what a checkpoint holds is checked first.

        Raises:
            UserError: weights that are not finite, or of another dictionary.
        """
        if strict:
            self._check_weights(state_dict)
        return super().load_state_dict(state_dict, strict=strict, model_cfg=model_cfg, args=args)

    def _check_weights(self, state_dict: Dict[str, Tensor]) -> None:
        own = self.state_dict()
        for key in ("embedding.weight", "encoder.tokens.weight"):
            # encoder.tokens is a projection where the embeddings are shared.
            embeds = key in own and isinstance(self.get_submodule(key.rpartition(".")[0]), torch.nn.Embedding)
            if embeds and key in state_dict and len(own[key]) != len(state_dict[key]):
                # Pre-training needs the word, other data may have been binarised without it.
                remedy = ("if it lacks <mask>, append '<mask> 0' to its dictionaries"
                          if len(state_dict[key]) == len(own[key]) + 1 else "use the data it was trained with")
                raise UserError(f"the checkpoint was trained with a dictionary of {len(state_dict[key])} types, the "
                                f"data folder's has {len(own[key])} ({key}): {remedy}")
        lacking = [key for key in own if key.startswith("schedule.") and key not in state_dict]
        if lacking:
            raise UserError(f"the checkpoint lacks its adaptive noise schedule ({lacking[0]}): use a file that "
                            "training wrote, or leave --adaptive-schedule-updates out")
        # A host that has sent the weights to other processes has lost the metadata.
        theirs = getattr(state_dict, "_metadata", {}).get("", {}).get("dictionaries", {})
        for side in self.dictionaries.keys() & theirs.keys():
            if theirs[side] != self.dictionaries[side]:
                raise UserError(f"the checkpoint was trained with another {side} dictionary, of as many types: "
                                "binarise with the one it was trained with (--srcdict and --tgtdict of "
                                "fairseq-preprocess, --dictionary of scripts/binarise.py)")
        check_finite(state_dict)


def check_finite(weights: Dict[str, Tensor]) -> None:
    """Refuse weights that are not finite.

    Raises:
        UserError: naming the first of them.
    """
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise UserError(f"the checkpoint's weights are not finite ({broken[0]}{more}): training diverged; take an "
                        "earlier checkpoint")


def fingerprint(dictionary: Dictionary) -> str:
    """A short text that is another one for other words, or for the same ones in another order."""
    return hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()[:16]
