"""`stem-agent observe`: the state of a fleet, read from its Redis and from nothing else, and never changed."""

import typer

from agent.cli.observe import dead_letters, indicators, queues, schedules, tasks, workers
from agent.cli.stores import ProbeCommand, ProbeGroup

app = typer.Typer(
    cls=ProbeGroup,
    help="The state of the fleet, read from Redis without changing anything there.\n\n"
    "Exit codes, as monitoring plugins have them: 0 ok; 2 a threshold is passed; 3 unknown: no answer, an answer "
    "that nobody can give, or a wrong command.",
    no_args_is_help=True,
)
app.command("queues", cls=ProbeCommand)(queues.queues)
app.command("workers", cls=ProbeCommand)(workers.workers)
app.command("schedules", cls=ProbeCommand)(schedules.schedules)
app.command("dlq", cls=ProbeCommand)(dead_letters.dlq)
app.command("tasks", cls=ProbeCommand)(tasks.tasks)
app.command("metrics", cls=ProbeCommand)(indicators.metrics)
