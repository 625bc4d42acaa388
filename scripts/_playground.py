"""What the playground does with a request: checks it, generates, and tells every step while it is taken."""

import reprlib
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from _checkpoint import load_model, setup
from _trace import Step, Trace, TracingGenerator
from _trace_page import Spelling, Strings, coded
from _typed import encoder, find_bpe_model
from fairseq import checkpoint_utils
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor

from diffusion_fairseq.data.prompt_dataset import lengthened
from diffusion_fairseq.data.typed_lines import mostly_unknown
from diffusion_fairseq.denoiser import Denoiser, Rows
from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import Drafts
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.tasks.sampling_config import SamplingConfig
from diffusion_fairseq.text.reranking import mbr

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
LARGEST_SEED = 2**31 - 1
LARGEST_GUIDANCE = 20.0
ANY_LENGTH = 1 << 20  # the model's own positions are the limit
Tell = Callable[[Dict[str, Any]], None]
Job = Callable[[Tell], None]


class Limits(NamedTuple):
    """The most that one request may ask for, and how many may wait while one is served."""

    steps: int
    candidates: int
    seconds: float
    waiting: int


class LiveGenerator(TracingGenerator):
    """Hypotheses of one source, each with its `number`; `told` hears of every step what it did to each of them."""

    told: Callable[[List[Trace]], None]

    def watched(self, rows: Rows) -> Iterator[Tuple[Denoiser, Step]]:
        for denoise, step in super().watched(rows):
            self.told(self.traces([step], rows))
            yield denoise, step

    def _hypotheses(self, drafts: Drafts, rows: Rows) -> List[Dict[str, Any]]:
        found = super()._hypotheses(drafts, rows)
        return [{**hypothesis, "number": number} for number, hypothesis in enumerate(found)]


class StepCoder:
    """What each step changed, as the page draws it; a string is sent once.

    Args:
        spelling: of the tokens.
    """

    def __init__(self, spelling: Spelling):
        self.spelling, self.strings = spelling, Strings()
        self.before: Dict[int, List[int]] = {}

    def __call__(self, traces: Sequence[Trace]) -> Dict[str, Any]:
        known, candidates = len(self.strings.places), []
        for number, trace in enumerate(traces):
            code = coded(trace, lambda token: self.strings(self.spelling[token]), self.before.get(number, ()))
            candidates.append({name: code[name][0] for name in ("changes", "confidence", "entropy", "norm")})
            self.before[number] = trace.tokens[0].tolist()
        return {"candidates": candidates, "strings": list(self.strings.places)[known:]}


class Playground:
    """The models that can be played with, by name.

    Args:
        models: what is served.
        limits: of a request.
    """

    def __init__(self, models: Dict[str, "Served"], limits: Limits):
        self.models, self.limits = models, limits

    def about(self) -> Dict[str, Any]:
        """What the page is told."""
        models = [{"name": name, **model.about(self.limits)} for name, model in self.models.items()]
        return {"models": models, "solvers": list(SOLVERS), "most": ranges(self.limits)}

    def job(self, asked: Any) -> Job:
        """What generates as a request asks, and tells of it.

        Raises:
            UserError: it asks for something that cannot be done.
        """
        name = asked.get("model") if isinstance(asked, dict) else None
        if not isinstance(name, str) or name not in self.models:
            raise UserError(f"unknown model {reprlib.repr(name)}: known are {', '.join(self.models)}")
        return self.models[name].job({key: value for key, value in asked.items() if key != "model"}, self.limits)


class Served:
    """A checkpoint with what its texts are typed in.

    Args:
        path: of the checkpoint; it says which task it belongs to, and whether its texts are lines or blocks.
        data: folder with its dictionaries.
        bpe_model: sentencepiece model that splits what is typed; None: one beside checkpoint or data, if there is any.
    Raises:
        UserError: one of them cannot be used.
    """

    def __init__(self, path: str, data: str, bpe_model: Optional[Path] = None):
        cfg = checkpoint_utils.load_checkpoint_to_cpu(path)["cfg"]
        prompts = getattr(ARCH_MODEL_REGISTRY.get(cfg["model"]["_name"]), "prompts", False)
        self.task = setup(Namespace(
            task="diffusion_lm" if prompts else "seq2seq_diffusion", data=data, seed=1, given_positions=None,
            sample_break_mode=cfg["task"].get("sample_break_mode", "eos"), max_source_positions=ANY_LENGTH,
            max_target_positions=ANY_LENGTH))
        self.model: DiffusionModel = load_model(self.task, path)
        self.encode = encoder(self.task, bpe_model or find_bpe_model(path, data))
        self.longest = self.model.max_positions()[0]

    def about(self, limits: Limits) -> Dict[str, Any]:
        """What the page shows for this model."""
        return {"prompts": self.task.prompts, "guidance": bool(self.model.condition_dropout), "longest": self.longest,
                "mask": self.task.source_dictionary[self.task.mask] if self.task.prompts else None,
                "defaults": self.defaults(limits)}

    def defaults(self, limits: Limits) -> Dict[str, Any]:
        """Every option of a request but the model, as it is where it is not given."""
        predicts = self.model.predicts_tokens
        return {"text": "", "length": min(64, self.longest), "steps": min(50 if predicts else 20, limits.steps),
                "solver": "euler" if predicts else "ddpm", "clamping": not predicts,
                "candidates": min(3, limits.candidates), "seed": 1, "guidance": 1.0}

    def job(self, asked: Dict[str, Any], limits: Limits) -> Job:
        options = checked(asked, self.defaults(limits), {**ranges(limits), "length": (2, self.longest)})
        sampling = SamplingConfig(
            diffusion_steps=options["steps"], solver=options["solver"], clamping=options["clamping"],
            candidates=options["candidates"], guidance_scale=options["guidance"], seed=options["seed"])
        tokens = self.tokens(options["text"], options["length"])
        generator = LiveGenerator(self.model, self.task.target_dictionary, sampling, ends=self.task.ends)
        return partial(self.run, generator, tokens)

    def tokens(self, text: str, length: int) -> Tensor:
        """A text as a source, or as a prompt, which is lengthened where it does not say itself what is to be written.

        Raises:
            UserError: the model cannot take it.
        """
        # Half of a surrogate pair is no text, and could not be encoded.
        tokens = self.encode(" ".join(text.encode("utf-8", "replace").decode("utf-8").split()))
        if len(tokens) > self.longest:
            raise UserError(f"the text has {len(tokens)} tokens, the model takes {self.longest}: shorten it")
        if mostly_unknown([tokens], self.task.source_dictionary):
            raise UserError("most words of the text are unknown to the model")
        if not self.task.prompts:
            if len(tokens) < 2:
                raise UserError("there is no text: type a source")
            return tokens
        if not (tokens == self.task.mask).any():
            end = self.task.source_dictionary.eos() if self.task.ends else None
            tokens = lengthened(tokens[:-1], length, self.task.mask, end)
            if not (tokens == self.task.mask).any():
                raise UserError(f"the prompt fills the length of {length} tokens: shorten it, or raise the length")
        return tokens

    @torch.inference_mode()
    def run(self, generator: LiveGenerator, tokens: Tensor, tell: Tell) -> None:
        """Generate; what `tell` raises ends that."""
        dictionary = self.task.target_dictionary
        spelling = Spelling(dictionary, generator.symbols_to_strip_from_output - {dictionary.eos()})
        coder, start = StepCoder(spelling), time.monotonic()

        def timed(event: str, **more) -> None:
            tell({"event": event, "seconds": round(time.monotonic() - start, 2), **more})

        timed("begin", times=[round(level.t.item(), 3) for level in generator.levels[:-1]],
              candidates=generator.sampling.candidates)
        generator.told = lambda traces: timed("step", **coder(traces))
        sources = tokens[None].to(next(self.model.parameters()).device)
        (found,) = generator.generate([self.model], {"net_input": {"src_tokens": sources}})
        texts = [spelling.text(one["trace"].tokens[-1, : one["trace"].text[-1]].tolist()) for one in found]
        chosen = mbr(texts)  # of equally good ones that of the best score
        timed("end", scores={one["number"]: round(one["score"], 3) for one in found}, chosen=found[chosen]["number"],
              text=texts[chosen])


def ranges(limits: Limits) -> Dict[str, Tuple[float, float]]:
    """The least and the most of the numbers that a request may hold."""
    return {"steps": (1, limits.steps), "candidates": (1, limits.candidates), "seed": (0, LARGEST_SEED),
            "guidance": (0, LARGEST_GUIDANCE)}


def checked(asked: Dict[str, Any], defaults: Dict[str, Any], within: Dict[str, Tuple[float, float]]) -> Dict[str, Any]:
    """The options of a request, with the defaults of those that it does not give.

    Raises:
        UserError: it holds unknown options, or values that they do not take.
    """
    for name, value in asked.items():
        if name not in defaults:
            raise UserError(f"unknown option {reprlib.repr(name)}: known are model, {', '.join(defaults)}")
        kind = type(defaults[name])
        # A whole number is a number, but true and false are none.
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise UserError(f"{name} must be {KINDS[kind]}, got {reprlib.repr(value)}")
        least, most = within.get(name, (None, None))
        if least is not None and not least <= value <= most:
            raise UserError(f"{name} must be from {least} to {most}, got {reprlib.repr(value)}")
    found = {**defaults, **asked}
    if found["solver"] not in SOLVERS:
        raise UserError(f"unknown solver {reprlib.repr(found['solver'])}: known are {', '.join(SOLVERS)}")
    return found
