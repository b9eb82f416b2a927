"""`stem_state`: what the fleet is like now, read from Redis itself, without leaving a trace there.

config.py       what an operator writes
survey.py       one subject: its questions, and what their answers become
queues.py, letters.py, workers.py, schedules.py, workflows.py     the subjects, pure
receiver.py     the shell: asks every `interval`, while it leads
"""
