import pytest
import torch
import torch.nn.functional as F
from helpers import make_dictionary, make_genie, make_sample, make_sampling
from omegaconf import OmegaConf

from diffusion_fairseq.diffusion.noise import gaussian_noise
from diffusion_fairseq.diffusion.solvers import initial_state
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import START, DiffusionGenerator
from diffusion_fairseq.text.reranking import by_usefulness, pairwise

DICTIONARY = make_dictionary()
PAD, EOS, BOS = DICTIONARY.pad(), DICTIONARY.eos(), DICTIONARY.bos()
SOLVERS = [{"solver": "ddpm"}, {"solver": "ddpm", "ddpm_variance": "beta"}, {"solver": "ddim"},
           {"solver": "ddim", "ddim_eta": 0.7}]


def make_generator(model, nbest=1, retain_history=False, max_len_a=0.0, max_len_b=200, **options):
    options = {"diffusion_steps": 6, **options}
    return DiffusionGenerator(model, DICTIONARY, make_sampling(**options), nbest, max_len_a, max_len_b, retain_history)


def sharp_genie(**options):
    """Random weights whose output is large, so that different noise rounds to different tokens."""
    model = make_genie(DICTIONARY, **options)
    with torch.no_grad():
        model.down_projection[2].weight.mul_(8)
    return model


def generate(model, sample, **options):
    with torch.no_grad():
        return make_generator(model, **options).generate([model], sample)


def rows_of(sample, rows, extra=0):
    tokens = sample["net_input"]["src_tokens"][rows]
    width = int((tokens != PAD).sum(dim=1).max())
    tokens = torch.nn.functional.pad(tokens[:, :width], (0, extra), value=PAD)
    return {"net_input": {"src_tokens": tokens}}


@pytest.mark.parametrize("length_model", ["fixed", "predicted"])
@pytest.mark.parametrize("clamping", [False, True])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: "-".join(map(str, s.values())))
def test_same_text_alone_in_a_batch_and_in_reversed_order(solver, clamping, length_model):
    model = sharp_genie(length_model=length_model)
    sample = make_sample(DICTIONARY, [3 + i % 11 for i in range(64)])
    options = dict(solver, clamping=clamping)
    batch = generate(model, sample, **options)
    reversed_batch = generate(model, rows_of(sample, list(range(63, -1, -1)), extra=2), **options)
    assert len({tuple(h[0]["tokens"].tolist()) for h in batch}) > 30
    for i in (0, 5, 10, 63):
        alone = generate(model, rows_of(sample, [i]), **options)[0][0]
        for other in (batch[i][0], reversed_batch[63 - i][0]):
            assert other["tokens"].equal(alone["tokens"])
            assert abs(other["score"] - alone["score"]) < 1e-5


def test_bf16_computes_the_network_alone_and_does_not_depend_on_the_batch():
    model = sharp_genie()
    precise = generate(model, make_sample(DICTIONARY, [7] * 8), clamping=True, diffusion_steps=1)
    model.prepare_for_inference_(OmegaConf.create({"common": {"bf16": True}, "generation": {}}))
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {"embedding.weight", "rounding_bias"}
    rounded = generate(model, make_sample(DICTIONARY, [7] * 8), clamping=True, diffusion_steps=1)
    pairs = [(a[0]["positional_scores"], b[0]["positional_scores"]) for a, b in zip(precise, rounded)]
    assert any(not a.equal(b) for a, b in pairs if len(a) == len(b))
    sample = make_sample(DICTIONARY, [3 + i % 11 for i in range(40)])
    batch = generate(model, sample, clamping=True)
    for i in range(0, 40, 7):
        alone = generate(model, rows_of(sample, [i]), clamping=True)[0][0]
        assert alone["tokens"].equal(batch[i][0]["tokens"]) and abs(alone["score"] - batch[i][0]["score"]) < 1e-5


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "heun", "dpmpp-2m"])
def test_a_model_that_predicts_noise_generates(solver):
    model = sharp_genie(parameterization="noise")
    found = generate(model, make_sample(DICTIONARY, [5, 8]), solver=solver, clamping=True)
    assert all(len(hypotheses[0]["tokens"]) >= 1 for hypotheses in found)


def test_candidates_do_not_depend_on_how_many_there_are():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8])
    texts = [{tuple(h["tokens"].tolist()) for h in hypotheses} for hypotheses in generate(model, sample, candidates=7)]
    fewer = [{tuple(h["tokens"].tolist()) for h in hypotheses} for hypotheses in generate(model, sample, candidates=3)]
    assert all(few <= many and len(many) > 3 for few, many in zip(fewer, texts))


def test_seed_changes_the_text_and_repeats_it():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8])
    one, again, other = (generate(model, sample, seed=seed)[1][0]["tokens"].tolist() for seed in (3, 3, 4))
    assert one == again != other


def test_mbr_puts_the_one_most_like_the_others_first_and_changes_no_text():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8, 11])
    for surest, usual in zip(*(generate(model, sample, candidates=6, rank_by=by) for by in ("score", "mbr"))):
        words = [[f"w{token}" for token in h["tokens"].tolist() if token != EOS] for h in surest]
        texts = [" ".join(line) for line in words]
        order = by_usefulness(pairwise(texts, "rouge"))
        assert order != list(range(6)) and [h["score"] for h in usual] == [surest[i]["score"] for i in order]
        assert all(h["tokens"].equal(surest[i]["tokens"]) for h, i in zip(usual, order))


def test_hypotheses_are_sorted_by_the_mean_log_probability_of_their_tokens():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8])
    for hypotheses in generate(model, sample, candidates=5, length_beam=2):
        assert len(hypotheses) == 10
        scores = [h["score"] for h in hypotheses]
        assert scores == sorted(scores, reverse=True) and max(scores) < 0
        for h in hypotheses:
            assert len(h["positional_scores"]) == len(h["tokens"]) >= 1
            assert h["score"] == pytest.approx(h["positional_scores"].mean().item())


def test_score_is_the_probability_of_the_unclamped_estimate():
    """A clamped x0 is an embedding and sure of itself; the score says how sure the estimate was."""
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5])
    tokens = sample["net_input"]["src_tokens"]
    generator = make_generator(model, clamping=True, diffusion_steps=1)
    hypothesis = generator.generate([model], sample)[0][0]
    with torch.no_grad():
        ((_, rows),) = generator.buckets(model.encode(tokens), tokens)
        noise = gaussian_noise(rows.keys, START, rows.width, model.embedding.embedding_dim)
        estimate = model.denoise(noise, torch.tensor(1999), rows.memory, rows.packing)
        logits = model.round_logits(estimate)[0].masked_fill(generator.forbidden, -torch.inf)
    kept = len(hypothesis["tokens"])
    expected = logits.log_softmax(-1)[range(kept), hypothesis["tokens"]]
    torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=1e-4, atol=1e-4)
    assert hypothesis["score"] < -1e-3


def test_length_beam_tries_the_likeliest_lengths():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5])
    logits = model.length_logits(model.encode(sample["net_input"]["src_tokens"]))[0]
    wanted = (logits[1:].topk(3).indices + 1).tolist()
    generator = make_generator(model, length_beam=3)
    tokens = sample["net_input"]["src_tokens"]
    ((_, rows),) = generator.buckets(model.encode(tokens), tokens)
    assert rows.lengths.tolist() == wanted


def test_max_len_bounds_the_target():
    sample = make_sample(DICTIONARY, [3, 12])
    for length_model in ("fixed", "predicted"):
        model = sharp_genie(length_model=length_model)
        generator = make_generator(model, max_len_a=0.5, max_len_b=1)
        tokens = sample["net_input"]["src_tokens"]
        for sources, rows in generator.buckets(model.encode(tokens), tokens):
            assert (rows.lengths <= torch.tensor([2, 7])[sources]).all()


def test_sentences_of_like_widths_are_denoised_together():
    model = sharp_genie()
    with torch.no_grad():
        sample = make_sample(DICTIONARY, [4, 5, 20, 30, 6])
        tokens = sample["net_input"]["src_tokens"]
        generator = make_generator(model, candidates=3, length_beam=2)
        longest = torch.arange(25) * -0.01  # of equal scores the shortest
        model.length_logits = lambda encoded: longest + F.one_hot(encoded.mask.sum(dim=1).clamp(max=24), 25)
        buckets = list(generator.buckets(model.encode(tokens), tokens))
    assert [sources for sources, _ in buckets] == [[0, 1, 4], [2, 3]]
    assert [rows.width for _, rows in buckets] == [16, 32]
    assert [rows.memory.num_sources for _, rows in buckets] == [3, 2]
    assert buckets[0][1].lengths[::2].tolist() == [4] * 3 + [5] * 3 + [6] * 3


@pytest.mark.parametrize("interval, at_1000, at_0", [(1, (0.544, 0.840), (0.993, 0.138)),
                                                     (20, (0.053, 0.984), (0.178, 0.877))])
def test_the_published_stride_stays_near_noise(interval, at_1000, at_0):
    """Signal and noise that an oracle denoiser is fed, simulated once from the released code."""
    model = sharp_genie()
    options = {"solver": "ddpm", "ddpm_variance": "beta", "stride_as_published": True}
    generator = make_generator(model, diffusion_steps=2000 // interval, **options)
    x0 = torch.ones(1, 1, 20000, dtype=torch.float64)
    state, fed = initial_state(torch.randn(x0.shape, dtype=x0.dtype), generator.levels[0]), {}
    for t, s in zip(generator.levels, generator.levels[1:]):
        fed[int(t.t)] = (float(state.xt.mean()), float(state.xt.std()))
        state = generator.step(lambda *_: x0, state, s, t, lambda: torch.randn(x0.shape, dtype=x0.dtype))
    assert fed[1000] == pytest.approx(at_1000, abs=0.03) and fed[0] == pytest.approx(at_0, abs=0.03)


def test_longest_model_generates_what_it_was_trained_on():
    model = sharp_genie(length_model="longest")
    model.longest_target.fill_(6.7)
    sample = make_sample(DICTIONARY, [3, 12])
    generator = make_generator(model)
    tokens = sample["net_input"]["src_tokens"]
    ((_, rows),) = generator.buckets(model.encode(tokens), tokens)
    assert rows.lengths.tolist() == [7, 7]


def test_history_holds_every_step_and_ends_with_the_text():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8])
    for hypotheses in generate(model, sample, retain_history=True, clamping=True):
        history = hypotheses[0]["history"]
        assert len(history) == 6 == hypotheses[0]["steps"]
        assert history[-1]["tokens"].equal(hypotheses[0]["tokens"])
    assert generate(model, sample)[0][0]["history"] == []


def test_special_tokens_are_never_generated():
    for length_model in ("fixed", "predicted"):
        model = sharp_genie(length_model=length_model)
        with torch.no_grad():
            model.rounding_bias[[BOS, PAD]] = 50.0
        for hypotheses in generate(model, make_sample(DICTIONARY, [5, 8, 3]), candidates=4):
            for h in hypotheses:
                assert not {BOS, PAD} & set(h["tokens"].tolist())
                assert EOS not in h["tokens"][:-1].tolist()


def test_words_that_only_fill_the_dictionary_up_are_never_generated():
    dictionary = make_dictionary()
    dictionary.pad_to_multiple_(16)
    filler = [index for index, symbol in enumerate(dictionary.symbols) if symbol.startswith("madeupword")]
    model = make_genie(dictionary)
    with torch.no_grad():
        model.rounding_bias[filler] = 50.0
    generator = DiffusionGenerator(model, dictionary, make_sampling(diffusion_steps=6))
    with torch.no_grad():
        found = generator.generate([model], make_sample(dictionary, [5, 8, 3]))
    assert filler and not any(set(filler) & set(hypotheses[0]["tokens"].tolist()) for hypotheses in found)


@pytest.mark.parametrize("clamping", [False, True])
def test_tokens_that_no_training_target_had_are_never_generated(clamping):
    dictionary = make_dictionary()
    model, sample = make_genie(dictionary), make_sample(dictionary, [6, 4])
    with torch.no_grad():
        model.rounding_bias[20:] = 50.0
        model.vectors[20:] *= 0.01
    free = generate(model, sample, clamping=clamping, candidates=4)
    assert any((hypotheses[0]["tokens"] >= 20).any() for hypotheses in free)
    model.met_tokens[:20] = 1
    found = generate(model, sample, clamping=clamping, candidates=4)
    assert not any((hypotheses[0]["tokens"] >= 20).any() for hypotheses in found)


def test_clamping_from_acts_from_that_step_on():
    model, sample = sharp_genie(), make_sample(DICTIONARY, [8])
    tokens = [generate(model, sample, clamping=True, clamping_from=n, retain_history=True)[0][0]["history"]
              for n in (0, 3)]
    free = generate(model, sample, retain_history=True)[0][0]["history"]
    late = [h["tokens"].tolist() for h in tokens[1]]
    assert late[:3] == [h["tokens"].tolist() for h in free[:3]]
    assert late != [h["tokens"].tolist() for h in tokens[0]]


def test_one_step_and_all_steps_run():
    model = sharp_genie(diffusion_timesteps=20)
    for steps in (1, 20):
        assert generate(model, make_sample(DICTIONARY, [5]), diffusion_steps=steps)[0][0]["steps"] == steps
    assert make_generator(model, diffusion_steps=None).levels[0].t == 19


def test_half_precision_network_keeps_a_float32_state():
    model = sharp_genie().to(torch.bfloat16)
    hypothesis = generate(model, make_sample(DICTIONARY, [5]))[0][0]
    assert hypothesis["positional_scores"].dtype == torch.float32


@pytest.mark.parametrize("options, message", [
    ({"diffusion_steps": 0}, "--diffusion-steps must be at least 1"),
    ({"diffusion_steps": 2001}, "--diffusion-steps 2001 exceeds the 2000"),
    ({"solver": "euler9"}, "--solver 'euler9'.*ddpm, ddim"),
    ({"ddpm_variance": "big"}, "--ddpm-variance 'big'.*posterior, beta"),
    ({"ddim_eta": 1.5}, "--ddim-eta"),
    ({"candidates": 0}, "--candidates"),
    ({"rank_by": "beam"}, "--rank-by 'beam'.*score, mbr"),
    ({"length_beam": 0}, "--length-beam"),
    ({"nbest": 2}, "--nbest 2"),
    ({"clamping_from": 2}, "--clamping"),
    ({"clamping": True, "clamping_from": 6}, "--clamping-from 6 is not among the 6 steps 0..5"),
])
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        make_generator(make_genie(DICTIONARY), **options)
    assert "\n" not in str(error.value)


def test_length_beam_needs_a_length_head():
    with pytest.raises(UserError, match="--length-model predicted"):
        make_generator(make_genie(DICTIONARY, length_model="fixed"), length_beam=2)


def test_prefixes_and_constraints_are_refused():
    model, sample = make_genie(DICTIONARY), make_sample(DICTIONARY, [5])
    with pytest.raises(UserError, match="--prefix-size"):
        make_generator(model).generate([model], sample, prefix_tokens=torch.zeros(1, 1))


def test_a_generator_that_was_made_before_training_follows_the_model():
    """As the generator of a validation is: the schedule may move, and tokens are met, after it was made."""
    model, sample = sharp_genie(), make_sample(DICTIONARY, [5, 8])
    before = make_generator(model, clamping=True)
    model.schedule = sharp_genie(noise_schedule="cosine").schedule
    model.met_tokens.fill_(0)[5:20] = 1
    with torch.no_grad():
        found, expected = (generator.generate([model], sample)
                           for generator in (before, make_generator(model, clamping=True)))
    for one, other in zip(found, expected):
        assert one[0]["tokens"].equal(other[0]["tokens"]) and one[0]["score"] == other[0]["score"]
        assert set(one[0]["tokens"].tolist()) <= {*range(5, 20), EOS, PAD}
