"""Experiments: tasks, evaluation, benchmarks, models to try things on."""
