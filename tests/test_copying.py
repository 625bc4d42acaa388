import torch
from helpers import make_dictionary, make_genie, make_sample
from test_generator import generate, rows_of

from diffusion_fairseq.modules.copying import REACH, CopyHead
from diffusion_fairseq.modules.packing import Packing

DIM, LATENT = 8, 4
DICTIONARY = make_dictionary()


def pointed(head, lengths=(5, 3), candidates=1, gate=0.0, width=4):
    """What a head makes of zeros for `candidates` rows of each source, and the embeddings (B, S, D) it points at."""
    torch.nn.init.zeros_(head.gate.weight)
    torch.nn.init.constant_(head.gate.bias, gate)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    source, generator = Packing.of(mask), torch.Generator().manual_seed(1)
    hidden, embedded = (torch.randn(*mask.shape, size, generator=generator) for size in (DIM, LATENT))
    memory = head.memory(source.pack(hidden), source.pack(embedded), source)
    rows = Packing((len(lengths) * candidates, width))
    x = torch.randn(rows.shape[0], width, DIM, generator=generator)
    output = head(rows.pack(x), torch.zeros(x[..., 0].numel(), LATENT), rows, memory, source.mask)
    return rows.unpack(output), x, hidden, embedded


def test_a_shut_gate_leaves_the_estimate_and_an_open_one_gives_what_is_pointed_at():
    torch.manual_seed(0)
    head = CopyHead(DIM)
    with torch.no_grad():
        head.run.copy_(torch.arange(-REACH, REACH + 1) == 0)
    shut, *_ = pointed(head, gate=-100.0)
    torch.testing.assert_close(shut, torch.zeros_like(shut))
    opened, x, hidden, embedded = pointed(head, gate=100.0)
    for row, length in enumerate((5, 3)):
        scores = head.query(head.norm(x[row])) @ head.key(hidden[row, :length]).T / DIM**0.5
        torch.testing.assert_close(opened[row], scores.softmax(dim=-1) @ embedded[row, :length])


def test_a_sharp_pointer_copies_an_embedding():
    torch.manual_seed(0)
    head = CopyHead(DIM)
    with torch.no_grad():
        head.key.weight.mul_(1e4)
    copied, _, _, embedded = pointed(head, gate=100.0)
    for row, length in enumerate((5, 3)):
        nearest = torch.cdist(copied[row], embedded[row, :length]).min(dim=-1).values
        torch.testing.assert_close(nearest, torch.zeros(4), atol=1e-4, rtol=0)


def summed_along_runs(head, query, key):
    """The sum of CopyHead.scores for one row without padding, written out: queries (L, dim), keys (S, dim)."""
    scores = query @ key.T / DIM**0.5
    length, source = scores.shape
    summed = torch.zeros_like(scores)
    for i in range(length):
        for j in range(source):
            for k, weight in zip(range(-REACH, REACH + 1), head.run):
                if 0 <= i + k < length and 0 <= j + k < source:
                    summed[i, j] += weight * scores[i + k, j + k]
    return summed


@torch.no_grad()
def test_positions_hear_what_their_neighbours_point_at_and_padding_says_nothing():
    torch.manual_seed(0)
    head = CopyHead(DIM)
    head.run.normal_()
    lengths, widths = (7, 4, 2, 7), (9, 3)
    query, key = torch.randn(4, 7, DIM), torch.randn(2, 9, DIM)
    rows, source = (torch.arange(max(n)) < torch.tensor(n)[:, None] for n in (lengths, widths))
    found = head.scores(query, key, rows, source).view(4, 7, 9)
    for row, length in enumerate(lengths):
        width = widths[row // 2]
        expected = summed_along_runs(head, query[row, :length], key[row // 2, :width])
        torch.testing.assert_close(found[row, :length, :width], expected)


def test_one_sure_position_draws_its_neighbours_along():
    """Position 2 alone matches a source token, the 5th; the others point at the tokens around it, in order."""
    head = CopyHead(DIM)
    query, key = torch.zeros(1, 6, DIM), torch.zeros(1, 12, DIM)
    query[0, 2, 0] = key[0, 5, 0] = 100.0
    found = head.scores(query, key, None, torch.ones(1, 12, dtype=torch.bool))[0]
    assert found.argmax(dim=-1).tolist() == [3, 4, 5, 6, 7, 8]


def test_candidates_share_what_is_pointed_at():
    torch.manual_seed(0)
    head = CopyHead(DIM)
    three, x, hidden, embedded = pointed(head, lengths=(5, 5), candidates=3)
    source, rows = Packing((6, 5)), Packing((6, 4))
    memory = head.memory(*(source.pack(y.repeat_interleave(3, dim=0)) for y in (hidden, embedded)), source)
    each = head(rows.pack(x), torch.zeros(24, LATENT), rows, memory, None)
    torch.testing.assert_close(three, rows.unpack(each))


def test_text_and_score_have_the_same_bits_alone_and_in_a_batch():
    lengths = [3, 5, 8, 9, 12, 17, 20, 6, 4, 11]
    model = make_genie(DICTIONARY, copy_source=True, length_model="predicted")
    with torch.no_grad():
        model.copy_head.key.weight.mul_(5)
        model.copy_head.gate.bias.fill_(1.0)
    sample, options = make_sample(DICTIONARY, lengths), dict(clamping=True, candidates=3, nbest=3)
    for row, together in enumerate(generate(model, sample, **options)):
        for one, other in zip(generate(model, rows_of(sample, [row]), **options)[0], together):
            assert one["tokens"].equal(other["tokens"]) and one["score"] == other["score"]


def test_the_source_is_looked_up_in_the_target_embedding():
    """With a sharp pointer and an open gate every generated position is a token of the source."""
    model = make_genie(DICTIONARY, copy_source=True)
    with torch.no_grad():
        model.copy_head.key.weight.mul_(1e5)
        model.copy_head.gate.bias.fill_(100.0)
    tokens = make_sample(DICTIONARY, [6, 4])["net_input"]["src_tokens"]
    x = torch.randn(2, 5, model.embedding.embedding_dim)
    pred_x0 = model.denoise(x, torch.tensor(100), model.memory(model.encode(tokens)))
    for row in range(2):
        found = torch.cdist(pred_x0[row], model.vectors).argmin(dim=-1)
        assert set(found.tolist()) <= set(tokens[row].tolist()) - {DICTIONARY.pad()}
