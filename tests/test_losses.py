import torch

from diffusion_fairseq.diffusion.losses import masked_mse, prior_term, weighted_sum

GENERATOR = torch.Generator().manual_seed(0)
PRED, TARGET = torch.randn(2, 3, 4, generator=GENERATOR), torch.randn(2, 3, 4, generator=GENERATOR)
NLL = torch.rand(2, 3, generator=GENERATOR)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_terms_are_sums_over_counted_positions():
    mse, nll, prior = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for b in range(2):
        for position in range(3):
            if MASK[b, position]:
                mse[b] += ((PRED[b, position] - TARGET[b, position]) ** 2).mean()
                nll[b] += NLL[b, position]
                prior[b] += (0.3 * TARGET[b, position]).square().mean()
    torch.testing.assert_close(masked_mse(PRED, TARGET, MASK), mse)
    torch.testing.assert_close(weighted_sum(NLL, MASK), nll)
    torch.testing.assert_close(prior_term(TARGET, torch.tensor(0.3, dtype=torch.float64), MASK), prior)


def test_positions_that_do_not_count_have_no_gradient():
    pred = PRED.clone().requires_grad_()
    masked_mse(pred, TARGET, MASK).sum().backward()
    assert pred.grad[~MASK].eq(0).all() and pred.grad[MASK].ne(0).all()


def test_padding_changes_no_sum():
    def pad(x):
        return torch.cat([x, torch.full_like(x, 3)], dim=1)

    mask = torch.cat([MASK, torch.zeros_like(MASK)], dim=1)
    torch.testing.assert_close(masked_mse(pad(PRED), pad(TARGET), mask), masked_mse(PRED, TARGET, MASK))
    torch.testing.assert_close(weighted_sum(pad(NLL), mask), weighted_sum(NLL, MASK))


def test_weights_scale_positions():
    torch.testing.assert_close(masked_mse(PRED, TARGET, MASK * 0.5), masked_mse(PRED, TARGET, MASK) / 2)
