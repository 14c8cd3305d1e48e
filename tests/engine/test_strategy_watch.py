"""What ranks think of one another's silence, without clocks; and what is said when the store is gone."""

import json

import pytest
import torch.distributed as dist

from xtuner.engine.strategy import world
from xtuner.engine.strategy.watch import CAUSE, DEAD, Neighbour
from xtuner.engine.strategy.world import Place, Processes, open_world, read_minutes
from xtuner.errors import UserError

LIMIT = 60.0


def looks(*signs: tuple[float, int, int]) -> list[str]:
    """What a rank says after each look, of (moment, meeting points of the other, of its own); all signs are new."""
    neighbour = Neighbour(0.0, LIMIT)
    found = (neighbour.look(f"{reached} {now}", count, now) for now, reached, count in signs)
    return [blame[0] if blame else "" for blame in found]


def test_who_loads_long_has_kept_nobody_waiting_until_another_is_done():
    assert looks((1, 3, 3), (500, 3, 3), (501, 3, 4), (555, 3, 4)) == [""] * 4
    assert looks((1, 3, 3), (500, 3, 3), (550, 3, 4), (560, 4, 4), (900, 4, 4), (950, 4, 5)) == [""] * 6


def test_who_keeps_others_waiting_is_blamed():
    late = "It kept the others waiting for 1 minutes."
    assert looks((1, 3, 3), (500, 3, 3), (560, 3, 4), (561, 3, 4)) == ["", "", "", late]
    assert looks((1, 3, 3), (2, 3, 4), (60, 3, 4), (62, 3, 4)) == ["", "", "", late]
    assert looks((1, 3, 9), (50, 4, 9), (100, 5, 9), (161, 5, 9)) == ["", "", "", late]  # it moved meanwhile


def test_who_gives_no_sign_is_blamed_and_rest_counts_from_then():
    neighbour = Neighbour(0.0, LIMIT)
    assert neighbour.look("", 1, DEAD) is None
    assert neighbour.look("", 1, DEAD + 1)[0].startswith("It gave no sign of life")
    assert neighbour.look("1 1", 1, DEAD + 2) is None
    assert neighbour.look("1 1", 1, 2 * DEAD + 3)[0].startswith("It gave no sign of life")
    neighbour.rest(2 * DEAD + 3)
    assert neighbour.look("1 1", 1, 2 * DEAD + 4) is None


class Gone:
    """A store whose server died with the launcher."""

    def check(self, keys):
        raise dist.DistNetworkError("failed to recv, got 0 bytes")

    def compare_set(self, *words):
        raise dist.DistNetworkError("broken pipe")


def peer(store) -> Processes:
    processes = Processes.__new__(Processes)
    processes.rank, processes.size, processes.store = 0, 2, store
    return processes


def test_a_launcher_that_is_gone_is_a_sentence(monkeypatch):
    """The connection to another rank breaks too then, and who asks the store why finds none."""
    monkeypatch.setattr(world.signal, "signal", lambda *_: None)
    error = peer(Gone()).explain(RuntimeError("[gloo/tcp.cc:1] Connection closed by peer"))
    assert isinstance(error, UserError)
    assert str(error).startswith("The launcher of this run is gone. ")
    assert "--resume" in error.fix
    peer(Gone()).publish(UserError("a", "b"))  # what happened is still raised


def test_the_first_cause_counts():
    store = dist.HashStore()
    processes = peer(store)
    processes.publish(UserError("first", "fix", 3))
    processes.publish(ValueError("second"))
    assert json.loads(store.get(CAUSE)) == {"rank": 0, "what": "first", "fix": "fix", "exit_code": 3}


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf"])
def test_time_limits_that_are_none_are_refused(monkeypatch, text):
    monkeypatch.setenv("XTUNER_TIMEOUT", text)
    monkeypatch.setattr(Place, "read", lambda: Place(0, 2, 0, 2, 0))
    with pytest.raises(UserError, match=f"XTUNER_TIMEOUT is {text}, not a number of minutes") as caught, open_world():
        pass
    assert caught.value.exit_code == 2


def test_time_limits(monkeypatch):
    assert read_minutes("XTUNER_TIMEOUT", 30) == 30
    for text, minutes in (("", 30), ("0.2", 0.2), (" 45 ", 45)):
        monkeypatch.setenv("XTUNER_TIMEOUT", text)
        assert read_minutes("XTUNER_TIMEOUT", 30) == minutes
