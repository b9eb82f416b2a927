"""Short runs of the fidelity harness: what the agent tells is what the fleet did."""

import asyncio

from tests.fidelity.run import SCENARIOS, play

SECONDS = 6.0
SHORT = ("none", "loss=1%")


async def test_short_runs_reach_the_targets() -> None:
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in SHORT]
    played = await asyncio.gather(*(play(scenario, duration=SECONDS, rate=60) for scenario in scenarios))
    missed = [text for each in played for text in each.missed()]
    examples = [text for each in played for text in each.result.examples[:5]]
    assert not missed, "\n".join((*missed, *examples))
    assert all(each.fidelity.attempts > 300 for each in played)
