"""Simulation: whole nodes in one process, in virtual time, under seeded faults. A failing seed replays exactly."""
