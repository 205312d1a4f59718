"""The job around a run: lock, signals, restarts, versions, faults, the watchdog. No torch."""
