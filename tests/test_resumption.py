"""Which sentences an interrupted generation has written, and which are left."""

import pytest

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.tasks.resumption import left_to_generate

BATCHES = [[4, 1], [0, 3, 2], [5]]
LOG = b"2026-01-01 00:00:00 | INFO | fairseq_cli.generate | {'_name': None}\n"


def lines(number):
    kinds = {"S": "a b", "T": "a", "H": "-1.5\tc S-9\u2028", "D": "-1.5\tc", "P": "-1.5"}
    text = "".join(f"{kind}-{number}\t{rest}\n" for kind, rest in kinds.items())
    return f"{text}E-{number}_0\tc\n".encode()


WHOLE = LOG + b"".join(lines(number) for batch in ([1, 4], [2, 0, 3], [5]) for number in batch)


@pytest.mark.parametrize("again", [b"", LOG])
def test_wherever_the_file_ends_it_is_cut_at_a_batch_and_the_rest_is_left(tmp_path, again):
    """The process that goes on has printed something by then, which may stand on a line that was cut short."""
    file, starts = tmp_path / "out", [len(LOG), WHOLE.index(b"S-2\t"), WHOLE.index(b"S-5\t")]
    for end in range(len(WHOLE) + 1):
        file.write_bytes(WHOLE[:end] + again)
        left = left_to_generate(BATCHES, str(file))
        done = len(BATCHES) - len(left)
        assert list(left) == BATCHES[done:]
        # A batch is whole where the next one has begun.
        assert done == sum(end >= start + len(b"S-5\t") for start in starts[1:])
        if end >= len(LOG) + len(b"S-1\t"):
            assert file.read_bytes() == WHOLE[: starts[done]]
        file.write_bytes(file.read_bytes() + b"".join(lines(number) for batch in left for number in batch))
        found = [line for line in file.read_bytes().split(b"\n") if line.startswith(b"P-")]
        assert sorted(found) == [b"P-%d\t-1.5" % number for number in range(6)]


@pytest.mark.parametrize("numbers", [[1, 4, 2, 9], [3], [1, 4, 2, 0, 3, 5, 1], [1, 2]])
def test_a_file_of_other_batches_is_refused_and_left_as_it_is(tmp_path, numbers):
    file = tmp_path / "out"
    file.write_bytes(b"".join(map(lines, numbers)))
    before = file.read_bytes()
    with pytest.raises(UserError, match=f"sentence {numbers[-1]} is not where these options generate it"):
        left_to_generate(BATCHES, str(file))
    assert file.read_bytes() == before
