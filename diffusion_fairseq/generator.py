"""Text from noise: encode once, keep one memory, denoise all candidates of all sources together."""

from collections import Counter
from functools import partial
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.data.filler import is_filler
from diffusion_fairseq.denoiser import START, Denoiser, Rows, aligned
from diffusion_fairseq.diffusion.noise import combine, sequence_keys
from diffusion_fairseq.diffusion.sampling import sample as reverse_process
from diffusion_fairseq.diffusion.schedules import CLEAN, NoiseLevel, SigmaEqualsT
from diffusion_fairseq.diffusion.solvers import SOLVERS, SamplerState, initial_state
from diffusion_fairseq.diffusion.time_laws import UniformTimes, warped_grid
from diffusion_fairseq.early_exit import Live, compaction, histogram
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.guidance import check_guidance, guided_step
from diffusion_fairseq.models.base import PADDING_MODELLED, DiffusionModel
from diffusion_fairseq.models.condition import Condition
from diffusion_fairseq.tasks.sampling_config import DEFAULT_STEPS, WARPED, SamplingConfig, check_sampling
from diffusion_fairseq.text.lengths import length_beam
from diffusion_fairseq.text.reranking import by_usefulness, rouge_mean

FIRST_WORD_PIECE = "[CLS]"  # begins every text of a model trained on BERT's word pieces, and is no word of it


class Drafts(NamedTuple):
    """What is generated, a row for each of the R sequences that were begun: tokens (R, L) and their log-probabilities
    scores (R, L), the steps (R,) they took, and with history the tokens after each step (K, R, L)."""

    tokens: Tensor
    scores: Tensor
    steps: Tensor
    history: Optional[Tensor]

    @classmethod
    def blank(cls, rows: Rows, num_steps: int, pad: int, retain_history: bool) -> "Drafts":
        """Padding alone for each of the rows, with scores and steps of 0."""
        tokens = rows.keys.new_full((len(rows.keys), rows.width), pad)
        history = tokens.expand(num_steps, -1, -1).clone() if retain_history else None
        return cls(tokens, torch.zeros(tokens.shape, device=tokens.device), torch.zeros_like(rows.keys), history)


class DiffusionGenerator:
    """Draws hypotheses from a diffusion model, with the interface of fairseq's SequenceGenerator.

    A sentence's noise depends on the seed, its source tokens and the candidate's number alone, so that its text
    is the same alone, in any batch and in any order.

    Args:
        model: the diffusion model.
        dictionary: the target dictionary.
        sampling: how to draw.
        nbest: hypotheses that will be printed per source.
        max_len_a, max_len_b: at most a * source length + b target tokens; b None: as many as the model takes.
        retain_history: keep the rounded tokens of every step.
        ends: whether a text ends at its end of sentence; False: a sequence is a block of running text, in which that
            is a token like the others.
    Raises:
        UserError: options that this model cannot serve.
    """

    def __init__(self, model: DiffusionModel, dictionary, sampling: SamplingConfig, nbest: int = 1,
                 max_len_a: float = 0.0, max_len_b: Optional[int] = None, retain_history: bool = False,
                 ends: bool = True):
        check_sampling(sampling)
        self.per_source = sampling.candidates * sampling.length_beam
        if nbest > self.per_source:
            raise UserError(f"--nbest {nbest} exceeds the hypotheses: --candidates times --length-beam is "
                            f"{self.per_source}")
        if sampling.length_beam > 1 and model.length_model != "predicted":
            raise UserError("--length-beam needs a model trained with --length-model predicted, which this one is not: "
                            "take --candidates instead")
        self.model, self.dictionary, self.sampling = model, dictionary, sampling
        self.max_len_a, self.max_len_b = max_len_a, max_len_b
        self.retain_history, self.ends = retain_history, ends
        self.levels = self._levels()
        options = {"ddpm": {"variance": sampling.ddpm_variance}, "ddim": {"eta": sampling.ddim_eta}}
        check_guidance(model, sampling.guidance_scale)
        if sampling.joint_sampling and (model.prompts or not model.noises_given):
            raise UserError("--joint-sampling writes source and target, which only a diffuseq trained with --noising "
                            "full has learned: leave it out")
        if sampling.score_temperature != 1 and not (model.predicts_tokens and sampling.guidance_scale == 1):
            raise UserError("--score-temperature acts on models that predict tokens (ddlm_base, ...), and not together "
                            "with --guidance-scale: leave it out")
        self.step = partial(SOLVERS[sampling.solver], **options.get(sampling.solver, {}))
        if sampling.stride_as_published:
            self.step = partial(_one_level_step, self.step, model.schedule)
        self.step = guided_step(self.step, model, sampling)
        self.steps_used: Counter = Counter()
        self.symbols_to_strip_from_output = {dictionary.eos(), dictionary.pad(), dictionary.bos()}
        if sampling.joint_sampling:  # it parts source and target; the host leaves out ends in any case
            self.symbols_to_strip_from_output.remove(dictionary.pad())
        if FIRST_WORD_PIECE in dictionary:
            self.symbols_to_strip_from_output.add(dictionary.index(FIRST_WORD_PIECE))
        self.fillers = [index for index, symbol in enumerate(dictionary.symbols) if is_filler(symbol)]
        self.forbidden = self._forbidden()

    @property
    def clamping_from(self) -> Optional[Tensor]:
        """The timestep from which on estimates are clamped."""
        return self.levels[self.sampling.clamping_from].t if self.sampling.clamping else None

    def _forbidden(self) -> Tensor:
        """The tokens (V,) that are never generated, by what the model has met so far."""
        forbidden = self.model.unmet_tokens().cpu()
        forbidden[self.dictionary.bos()] = True
        # Padding is a token only where the model generates it.
        forbidden[self.dictionary.pad()] = self.model.length_model not in PADDING_MODELLED
        if self.model.mask is not None:
            forbidden[self.model.mask] = True
        forbidden[self.fillers] = True
        return forbidden

    def _levels(self) -> List:
        """The levels from the noisiest to the clean one."""
        sampling, schedule = self.sampling, self.model.schedule
        trained = None if isinstance(schedule, SigmaEqualsT) else schedule.num_timesteps
        steps = min(DEFAULT_STEPS, trained or DEFAULT_STEPS) if sampling.diffusion_steps is None else \
            sampling.diffusion_steps
        if trained is not None and steps > trained:
            raise UserError(f"--diffusion-steps {steps} exceeds the {trained} timesteps the model was trained with")
        if sampling.clamping_from and not sampling.clamping:
            raise UserError("--clamping-from acts only with --clamping: give both")
        if sampling.clamping and sampling.clamping_from >= steps:
            raise UserError(f"--clamping-from {sampling.clamping_from} is not among the {steps} steps 0..{steps - 1}")
        grid = sampling.sampling_grid
        times = self._warped(steps) if grid == WARPED else schedule.grid(steps, grid)
        if sampling.stride_as_published:
            if trained is None:
                raise UserError("--stride-as-published skips trained timesteps, which this model does not have")
            times = torch.cat([torch.arange(steps - 1, -1, -1) * (trained // steps), torch.tensor([CLEAN])])
        return [schedule.at(t) for t in times]

    def _warped(self, steps: int) -> Tensor:
        law = getattr(self.model, "timesteps", None)
        if not isinstance(law, UniformTimes):
            raise UserError(f"--sampling-grid {WARPED} needs a model that was trained with --timestep-sampler "
                            "time-warp or gumbel")
        return warped_grid(law, steps)

    def generate(self, models, sample: Dict[str, Any], prefix_tokens: Optional[Tensor] = None,
                 constraints: Optional[Tensor] = None, **_) -> List[List[Dict[str, Any]]]:
        """Hypotheses for each source of a batch, the best first.

        Args:
            models: the model this generator was built with, alone in a list.
            sample: net_input.src_tokens (B, S).
        Returns:
            B lists of hypotheses: tokens (n,), ending in eos where one was written; positional_scores (n,), their
            log-probabilities in nats; score, the mean of these; steps; history with --retain-iter-history.
        """
        if prefix_tokens is not None or constraints is not None:
            raise UserError("--prefix-size and --constraints are not served by diffusion generation: leave them out")
        src_tokens = sample["net_input"]["src_tokens"]
        width = src_tokens.size(1)
        src_tokens = F.pad(src_tokens, (0, aligned(width) - width), value=self.model.pad)
        found: Dict[int, List[Dict[str, Any]]] = {}
        # Anew: a generator that validates is made before training, which moves a schedule and meets tokens.
        self.levels, self.forbidden = self._levels(), self._forbidden()
        encoded = self.model.encode(src_tokens)
        for sources, rows in self.buckets(encoded, src_tokens, sample.get("id") if self.model.numbered else None):
            hypotheses = self._hypotheses(self._denoise(rows), rows)
            for place, source in enumerate(sources):
                group = hypotheses[place * self.per_source : (place + 1) * self.per_source]
                found[source] = self._ranked(group)
        return [found[source] for source in range(len(src_tokens))]

    def _ranked(self, hypotheses: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
        """One source's hypotheses, the best by --rank-by first; the surer first of those that MBR finds equal."""
        surest = sorted(hypotheses, key=lambda hypothesis: -hypothesis["score"])
        if self.sampling.rank_by == "score":
            return surest
        texts = [[token for token in hypothesis["tokens"].tolist() if token not in self.symbols_to_strip_from_output]
                 for hypothesis in surest]
        return [surest[place] for place in by_usefulness(rouge_mean(texts))]

    def steps_histogram(self) -> str:
        """How many hypotheses took how many steps, a line for each tenth of the steps; empty before any was made."""
        return histogram(self.steps_used, len(self.levels) - 1)

    def trajectory(self, rows: Rows) -> Iterator[Tuple[Denoiser, SamplerState, SamplerState]]:
        """The states before and after every step of some rows, which all go through all steps, and what estimated."""
        denoise, levels = self.denoiser(rows, watched=True), [level.cut(rows.width) for level in self.levels]
        state = initial_state(denoise.noise(START) * self.sampling.initial_noise_scale, levels[0])
        draws = partial(_draw, denoise, START + 1)
        for reached in reverse_process(self.step, denoise, state, levels, draws):
            yield denoise, state, reached
            state = reached

    def denoiser(self, rows: Rows, watched: bool = False) -> Denoiser:
        """What the solver calls for some rows; watched: whether their tokens are asked for at every step."""
        return Denoiser(self.model, rows, self.forbidden.to(rows.keys.device), self.clamping_from,
                        self.sampling.guidance_scale, self.sampling.score_temperature, watched)

    def _denoise(self, rows: Rows) -> Drafts:
        """Run the reverse process; with early exit, rows whose tokens have settled leave it with their memory."""
        num_steps, patience = len(self.levels) - 1, self.sampling.exit_patience
        watched = patience is not None or self.retain_history
        drafts = Drafts.blank(rows, num_steps, self.dictionary.pad(), self.retain_history)
        denoise = self.denoiser(rows, watched)
        begin = denoise.noise(START) * self.sampling.initial_noise_scale
        state = initial_state(begin, self.levels[0].cut(rows.width))
        live = Live.begin(len(rows.keys), rows.width, rows.keys.device)
        step = 0
        while step < num_steps:
            draws = partial(_draw, denoise, START + 1 + step)
            levels = [level.cut(denoise.rows.width) for level in self.levels[step:]]
            for reached in reverse_process(self.step, denoise, state, levels, draws):
                state, step = reached, step + 1
                if step < num_steps and not watched:
                    continue
                live = live.after(denoise.tokens(state.pred_x0))
                if drafts.history is not None:
                    active = live.active
                    drafts.history[step - 1, live.origin[active], : denoise.rows.width] = live.tokens[active]
                settled = live.unchanged >= (num_steps if patience is None else patience)
                leaving = live.active if step == num_steps else self._sure(denoise, live.active & settled)
                if leaving.any():
                    self._keep(drafts, live, leaving, denoise, step)
                    live = live._replace(active=live.active & ~leaving)
                    if not live.active.any():
                        return drafts
                    stay = compaction(live.active, denoise.rows.memory.num_sources)
                    if stay is None:
                        denoise.compute(live.active)
                    else:
                        state, live = self._compact(denoise, state, live, *stay)
                        break
        return drafts

    def _sure(self, denoise: Denoiser, settled: Tensor) -> Tensor:
        """Which of the rows (R,) whose tokens have settled the model is sure of, as --exit-entropy asks."""
        if self.sampling.exit_entropy is None or not settled.any():
            return settled
        sure = settled.clone()
        sure[settled] = denoise.mean_entropy(settled) <= self.sampling.exit_entropy
        return sure

    def _keep(self, drafts: Drafts, live: Live, leaving: Tensor, denoise: Denoiser, step: int) -> None:
        """Write finished rows down. The clamped x0 is an embedding and sure of itself; the estimate that it was made
        from says how sure the model is of its tokens."""
        rows, tokens, width = live.origin[leaving], live.tokens[leaving], denoise.rows.width
        drafts.tokens[rows, :width] = tokens
        drafts.scores[rows, :width] = denoise.log_probabilities(leaving, tokens)
        drafts.steps[rows] = step
        self.steps_used.update({step: len(rows)})

    @staticmethod
    def _compact(denoise: Denoiser, state: SamplerState, live: Live, sources: Tensor, index: Tensor):
        """Go on with some sources (B',) and the rows (B' * N',) of theirs that stay."""
        denoise.select(sources, index, live.active[index])
        width = denoise.rows.width
        state = SamplerState(state.xt[index, :width], state.pred_x0[index, :width],
                             state.level.cut(width), state.pred_level.cut(width))
        return state, live.select(index, width)

    def buckets(self, encoded: Condition, src_tokens: Tensor,
                ids: Optional[Tensor] = None) -> Iterator[Tuple[List[int], Rows]]:
        """What is generated, every candidate at every length of the beam, by width: sources and their rows.

        Args:
            ids: (B,) numbers by which equal sources get texts of their own; None: equal ones get equal texts.
        """
        lengths = self._lengths(encoded)
        candidates = torch.arange(self.sampling.candidates, device=src_tokens.device)
        keys = sequence_keys(src_tokens, src_tokens != self.model.pad, self.sampling.seed)
        if ids is not None:
            keys = combine(keys, ids.to(keys.device))
        keys = combine(keys[:, None], candidates)
        lengths = lengths[:, None, :].expand(-1, len(candidates), -1).flatten(1)
        lengths = lengths + encoded.begins(len(lengths))[:, None]
        keys = keys[:, :, None].expand(-1, -1, self.sampling.length_beam).flatten(1)
        memory = self.model.memory(encoded)
        if self.sampling.joint_sampling:
            memory = memory._replace(fixed=None)
        widths = [aligned(longest) for longest in lengths.amax(dim=1).tolist()]
        for width in sorted(set(widths)):
            sources = [source for source, own in enumerate(widths) if own == width]
            index = torch.tensor(sources, device=src_tokens.device)
            bucket = memory if len(sources) == len(widths) else memory.select(index)
            yield sources, Rows.of(bucket, lengths[index].flatten(), keys[index].flatten())

    def _lengths(self, encoded: Condition) -> Tensor:
        """The target lengths (B, length_beam) that are tried for each source."""
        source_lengths = encoded.mask.sum(dim=1)
        if self.model.length_model == "given":
            return source_lengths[:, None]
        longest = self.model.max_target_positions
        limits = torch.full_like(source_lengths, self.model.longest_sequence) if self.max_len_b is None else \
            (self.max_len_a * source_lengths + self.max_len_b).long()
        if self.model.length_model != "predicted":
            # Modelled padding goes beyond the longest target where a sequence holds a short source, too.
            lengths = self.model.generation_lengths(limits.clamp(min=1), encoded)
            if self.model.prompts and encoded.fixed is not None:
                words = encoded.fixed & ~self._ends(encoded.tokens)
                places = torch.arange(1, words.size(1) + 1, device=words.device)
                lengths = torch.maximum(lengths, (words * places).amax(dim=1))
            return lengths[:, None]
        limits = limits.clamp(1, longest)
        logits = self.model.length_logits(encoded)
        too_long = torch.arange(logits.size(1), device=logits.device) > limits[:, None]
        lengths = length_beam(logits.masked_fill(too_long, -torch.inf), self.sampling.length_beam)
        return torch.minimum(lengths, limits[:, None])

    def _hypotheses(self, drafts: Drafts, rows: Rows) -> List[Dict[str, Any]]:
        """Cut each row at its end of sentence, on the host; never before a word that was given."""
        tokens, scores, steps = drafts.tokens.cpu(), drafts.scores.cpu(), drafts.steps.tolist()
        history = None if drafts.history is None else drafts.history.cpu()
        given = rows.memory.given(*drafts.tokens.shape)
        written = torch.ones_like(tokens, dtype=torch.bool) if given is None else ~given.cpu()
        words = None if given is None else ~written & ~self._ends(tokens)
        begins = rows.memory.begins(len(tokens)).tolist()
        hypotheses = []
        for row, (begin, end) in enumerate(zip(begins, rows.lengths.tolist())):
            text = slice(begin, end)
            given_words = None if words is None else words[row, text].nonzero()
            least = 0 if given_words is None or not len(given_words) else int(given_words.max()) + 1
            if self.sampling.joint_sampling:
                text = slice(0, end)
            kept, found = self._text(tokens[row, text], least)
            positional = scores[row, text][kept]
            # Given tokens count neither as sure nor as tokens.
            own = written[row, text][kept].sum().clamp(min=1)
            past = [] if history is None else history[: steps[row], row, text]
            hypotheses.append({
                "tokens": found, "positional_scores": positional,
                "score": float(positional.sum() / own), "attention": None, "alignment": None, "steps": steps[row],
                "history": [{"tokens": self._text(step, least)[1]} for step in past],
            })
        return hypotheses

    def _ends(self, tokens: Tensor) -> Tensor:
        """Which tokens (...) are padding or an end of sentence that ends the text."""
        padding = tokens == self.dictionary.pad()
        return padding | (tokens == self.dictionary.eos()) if self.ends else padding

    def _text(self, tokens: Tensor, least: int) -> Tuple[Tensor, Tensor]:
        """The places (n,) of a row's tokens (L,) that belong to its text, and the tokens there: at least so many, and
        up to the next end of sentence or padding, for which an end of sentence stands. With --joint-sampling those of
        source and target both, with padding for the ends between them."""
        ends = self._ends(tokens)
        first = ends & ~F.pad(ends, (1, 0))[:-1]
        marks = torch.full_like(tokens, self.dictionary.eos())
        if self.sampling.joint_sampling:
            before = first.cumsum(dim=0)
            kept = (~ends & (before < 2)) | (first & (before <= 2))
            marks[before == 1] = self.dictionary.pad()
        else:
            after = ends[least:]
            kept = torch.arange(len(tokens)) < (least + int(after.int().argmax()) + 1 if after.any() else len(tokens))
        return kept.nonzero().flatten(), torch.where(ends, marks, tokens)[kept]


def _one_level_step(step, schedule, denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise) -> SamplerState:
    """A step to the level just below t, whose result the next step takes for level s (the released GENIE)."""
    return step(denoise, state, schedule.at(t.t - 1).cut(state.xt.size(1)), t, noise)


def _draw(denoise: Denoiser, first: int, index: int) -> Tensor:
    return denoise.noise(first + index)
