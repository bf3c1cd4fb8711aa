"""The gate: a million random cases beside a plain model, and rights that are revoked in a race."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import Boot
from gate_model import compare

from aios.agents import connect

pytestmark = pytest.mark.faults

# Has a helper use a right of its over and over, and takes it back meanwhile. Once that is said to
# be done, the helper's very next call must be denied.
GIVER = """
helper = aios.spawn(task['helper'], {'pid': aios.pid, 'rounds': task['rounds']}, name='helper')
for number in range(task['rounds']):
    grant = aios.grant('/giver/helper', 'proc.control', '/giver')
    aios.send(helper, 'use it')
    aios.recv(helper)
    aios.revoke(grant)
    aios.send(helper, 'it is gone')
    aios.recv(helper)
return aios.wait(helper).result
"""
HELPER = """
used = denied = late = 0
def allowed():
    try:
        aios.nice(0, task['pid'])
    except AiosError as error:
        assert error.code == 'access.denied'
        return False
    return True
for number in range(task['rounds']):
    aios.recv(task['pid'])
    used += allowed()
    aios.send(task['pid'], 'used')
    told = aios.start('msg.recv')
    while not told.ended:
        allowed()
    told.wait()
    late += allowed()
    aios.send(task['pid'], 'denied')
return [used, late]
"""


@pytest.mark.parametrize("seed", range(4))
def test_the_gate_says_what_the_plain_model_says(seed: int, full: bool) -> None:
    said = compare(250_000 if full else 2_500, seed)
    print(said)
    assert all(said.values())


def test_a_revoked_right_fails_on_the_very_next_call(
    boot: Boot, program: Callable[[str], str], full: bool
) -> None:
    rounds = 10_000 if full else 100
    with connect(boot(slots=1).home, "test") as aios:
        task = {"helper": program(HELPER), "rounds": rounds}
        pid = aios.spawn(program(GIVER), task, name="giver")
        assert aios.wait(pid, timeout=600).result == [rounds, 0], aios.log(pid).data.decode()
        assert aios.grants() == []
        assert aios.check() == []
