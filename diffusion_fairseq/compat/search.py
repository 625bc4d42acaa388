"""Diverse beam search: sentences are found by their place in the batch."""

from fairseq.search import DiverseBeamSearch


def diverse_beam_search() -> None:
    """Give the search the places of sentences in the batch that was begun.

    Both hosts: the generator hands it the sentences' ids, which end in IndexError where one exceeds the batch's size.
    """
    stock = DiverseBeamSearch.step

    def step(self, step, lprobs, scores, prev_output_tokens=None, original_batch_idxs=None):
        if original_batch_idxs is not None:
            if step == 0:
                self.begun = original_batch_idxs.clone()
            original_batch_idxs = (original_batch_idxs[:, None] == self.begun[None]).int().argmax(dim=1)
        return stock(self, step, lprobs, scores, prev_output_tokens, original_batch_idxs)

    DiverseBeamSearch.step = step
