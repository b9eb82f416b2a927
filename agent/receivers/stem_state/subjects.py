"""All subjects of a fleet's state, and what each has to know of the others. Pure."""

from zoneinfo import ZoneInfo

from agent.core.kept import KeptStateError
from agent.receivers.stem_state.config import StemStateConfig
from agent.receivers.stem_state.letters import LetterSurvey
from agent.receivers.stem_state.notes import Notes
from agent.receivers.stem_state.queues import PauseSurvey, QueueSurvey
from agent.receivers.stem_state.schedules import ScheduleSurvey
from agent.receivers.stem_state.workers import WorkerSurvey
from agent.receivers.stem_state.workflows import WorkflowSurvey
from agent.stem.keys import Keys


class Subjects:
    """One survey of each; a leader begins with new ones."""

    def __init__(self, config: StemStateConfig, now_ns: int) -> None:
        zone, budget = ZoneInfo(config.assume_timezone), config.scan_budget
        common = config.namespace, zone, now_ns
        broker, results = Keys(config.store_namespace), Keys(config.results.namespace)
        self.queues = QueueSurvey(broker, config.queues, *common, budget=budget, most=config.max_queues)
        self.letters = LetterSurvey(broker, *common)
        self.workers = WorkerSurvey(
            results, *common, timeout=config.heartbeat_timeout, ttl=config.worker_ttl, most=config.max_workers
        )
        self.pauses = PauseSurvey(*common)
        self.schedules = ScheduleSurvey(Keys(config.schedules.namespace), *common, most=config.max_schedules)
        self.workflows = WorkflowSurvey(Keys(config.workflows.namespace), *common, budget=budget)
        self._about = f"{config.namespace} {broker.namespace} {config.schedules.namespace}"

    def notes(self, now_ns: int) -> Notes:
        """Return what the next leader has to know."""
        parts = self.queues.notes(), self.letters.notes(), self.schedules.notes()
        return Notes(self._about, now_ns, *parts)

    def restore(self, notes: Notes) -> None:
        """Go on from the notes of the leader before; raises `KeptStateError` for those about other stores."""
        if notes.about != self._about:
            raise KeptStateError("foreign", "it is about other stores: the agents differ in their configuration")
        self.queues.restore(notes.queues)
        self.letters.restore(notes.letters)
        self.schedules.restore(notes.schedules)

    def prepare(self) -> None:
        """Let each subject know what the others found."""
        self.queues.met(self.workers.queues)
        self.letters.queues = self.pauses.queues = self.queues.queues
        self.letters.new = self.queues.new
        self.pauses.namespaces = self.workers.namespaces
