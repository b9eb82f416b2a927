"""What the fleet works on: kinds of tasks, a workflow, schedules, and how each behaves."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of task: probabilities, and the median run time in seconds.

    `delay_s`: published for later. `expire`: published with an expiry that passes before it is due. `limited`: sent
    back by a rate limit. `again`: the handler itself asks for a retry. `forged`: its signature does not hold. `then`:
    the task that a success enqueues as its child, in a share of `follow`.
    """

    name: str
    queue: str
    run_s: float
    weight: float = 0.0
    priority: int = 0
    retry: float = 0.0
    fail: float = 0.0
    revoke: float = 0.0
    delay_s: float = 0.0
    expire: float = 0.0
    limited: float = 0.0
    again: float = 0.0
    forged: float = 0.0
    max_retries: int = 3
    then: str | None = None
    follow: float = 1.0
    error: str = "Exception: something went wrong"


KINDS = (
    Kind("email.send", "default", 0.020, 40, retry=0.06, fail=0.01, error="SocketException: Connection refused"),
    Kind(
        *("order.charge", "payments", 0.045, 20),
        priority=5,
        retry=0.03,
        fail=0.02,
        then="email.receipt",
        error="PaymentDeclined: insufficient funds",
    ),
    Kind(
        *("email.receipt", "default", 0.015),
        retry=0.05,
        error="SocketException: Connection reset by peer",
        then="receipt.archive",
        follow=0.2,
    ),
    Kind("receipt.archive", "media", 0.010),
    Kind("sms.send", "default", 0.020, 3, again=0.15, max_retries=1, error="GatewayBusy: try again later"),
    Kind("hook.deliver", "default", 0.020, 2, forged=0.1),
    Kind("video.encode", "media", 2.2, 0.2),
    Kind("image.resize", "media", 0.120, 10, fail=0.01, error="Bad state: unsupported colour profile"),
    Kind("report.build", "default", 0.800, 2, revoke=0.10, error="TimeoutException after 0:00:30.000000"),
    Kind("cart.remind", "default", 0.010, 8, delay_s=0.4, revoke=0.05, expire=0.05),
    Kind("search.index", "media", 0.015, 18, limited=0.03),
    Kind("gallery.thumbnail", "media", 0.060, fail=0.01, error="FormatException: Invalid image data"),
    Kind("gallery.publish", "default", 0.030),
    Kind("sessions.clean", "maintenance", 0.025),
    Kind(
        *("report.daily", "maintenance", 0.200),
        retry=0.1,
        error="StateError: Bad state: no rows",
        then="receipt.archive",
    ),
)
KIND = {kind.name: kind for kind in KINDS}

UNREGISTERED = Kind("legacy.sync", "default", 0.0, 0.5)
"""A task that no worker knows: it goes to the dead letters without a signal."""
GALLERY = Kind("gallery", "media", 0.0, 1.0)
"""Not a task: a chord of thumbnails, and a callback when all of them succeeded."""
GALLERY_SIZE = 3
ORDER = Kind("order.fulfil", "workflow", 0.0, 1.5)
"""Not a task: a workflow run."""
FORGED = "forged"
"""A signature that does not hold."""
CATALOGUE = Kind("catalogue", "media", 0.0, 0.4)
"""Not a task: a chain, each link of which is published when the one before has succeeded."""
CHAIN = ("image.resize", "search.index", "email.send")
CHOICES = tuple(kind for kind in (*KINDS, UNREGISTERED, GALLERY, ORDER, CATALOGUE) if kind.weight)
WEIGHTS = tuple(kind.weight for kind in CHOICES)

WORKFLOW_TASK = "stem.workflow.run"
WORKFLOW_QUEUE = "workflow"
WORKFLOW_RETRIES = 5
QUEUES = tuple(sorted({kind.queue for kind in KINDS} | {WORKFLOW_QUEUE}))


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the workflow: its run time and how often it fails, or how long the run sleeps after it."""

    name: str
    run_s: float
    fail: float = 0.0
    then_sleep_s: float = 0.0


STEPS = (
    Step("reserve", 0.020),
    Step("pay", 0.050, fail=0.15, then_sleep_s=0.6),
    Step("ship", 0.030),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """An entry of Beat's: it fires a task every so many seconds. `broken`: its dispatch fails."""

    entry_id: str
    task: str
    every_s: float
    enabled: bool = True
    broken: bool = False


SCHEDULES = (
    Schedule("clean-sessions", "sessions.clean", 1.0),
    Schedule("daily-report", "report.daily", 2.5),
    Schedule("close-billing", "billing.close", 4.0, broken=True),
    Schedule("old-newsletter", "email.send", 1.0, enabled=False),
)

STACK = """#0      SmtpClient.send (package:mailer/src/smtp.dart:118:7)
#1      EmailTask.run (package:shop/tasks/email.dart:42:5)
#2      Worker._execute (package:stem/src/worker/worker.dart:912:20)"""
