"""The catalogue of Stem's lifecycle signals: 27 names, and where one was told how to publish it."""

from enum import StrEnum


class SignalName(StrEnum):
    """`StemEvent.eventName` of every signal Stem dispatches (`packages/stem/lib/src/signals/stem_signals.dart`)."""

    BEFORE_TASK_PUBLISH = "before-task-publish"
    AFTER_TASK_PUBLISH = "after-task-publish"
    TASK_RECEIVED = "task-received"
    TASK_PRERUN = "task-prerun"
    TASK_POSTRUN = "task-postrun"
    TASK_RETRY = "task-retry"
    TASK_SUCCEEDED = "task-succeeded"
    TASK_FAILED = "task-failed"
    TASK_REVOKED = "task-revoked"
    WORKER_INIT = "worker-init"
    WORKER_READY = "worker-ready"
    WORKER_STOPPING = "worker-stopping"
    WORKER_SHUTDOWN = "worker-shutdown"
    WORKER_HEARTBEAT = "worker-heartbeat"
    WORKER_CHILD_INIT = "worker-child-init"
    WORKER_CHILD_SHUTDOWN = "worker-child-shutdown"
    WORKFLOW_RUN_STARTED = "workflow-run-started"
    WORKFLOW_RUN_SUSPENDED = "workflow-run-suspended"
    WORKFLOW_RUN_RESUMED = "workflow-run-resumed"
    WORKFLOW_RUN_COMPLETED = "workflow-run-completed"
    WORKFLOW_RUN_FAILED = "workflow-run-failed"
    WORKFLOW_RUN_CANCELLED = "workflow-run-cancelled"
    SCHEDULE_ENTRY_DUE = "schedule-entry-due"
    SCHEDULE_ENTRY_DISPATCHED = "schedule-entry-dispatched"
    SCHEDULE_ENTRY_FAILED = "schedule-entry-failed"
    CONTROL_COMMAND_RECEIVED = "control-command-received"
    CONTROL_COMMAND_COMPLETED = "control-command-completed"


SIGNAL_NAMES = frozenset(SignalName)


UNREGISTERED = "unregistered-task"
"""Reason of a dead letter whose task no worker had a handler for: the one end that has no record."""


class TaskState(StrEnum):
    """`TaskState` as `task-postrun` and result records name it; terminal are the last three."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRIED = "retried"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
