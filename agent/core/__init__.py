"""What every component stands on: clock, back-off, ledger, errors, the component protocol. Imports nothing of ours."""
