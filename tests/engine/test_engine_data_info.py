"""The sample that is shown before training: whole if it is short, its two ends if it is long."""

from xtuner.engine.callbacks.data_info import MOST_HEAD, MOST_TAIL, render_example


class Words:
    """A tokenizer whose tokens are numbers."""

    def decode(self, ids: list[int]) -> str:
        """Write them down."""
        return " ".join(map(str, ids))


def test_a_short_sample_is_shown_whole() -> None:
    ids = list(range(MOST_HEAD + MOST_TAIL))
    assert render_example(Words(), ids) == Words().decode(ids)


def test_of_a_long_one_the_ends() -> None:
    ids = list(range(MOST_HEAD + MOST_TAIL + 12345))
    lines = render_example(Words(), ids).splitlines()
    assert lines == [
        Words().decode(ids[:MOST_HEAD]),
        "... 12,345 tokens are not shown ...",
        Words().decode(ids[-MOST_TAIL:]),
    ]
