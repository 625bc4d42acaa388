"""Noise schedules, the forward process, solvers, timestep samplers and losses: torch only, no fairseq."""
