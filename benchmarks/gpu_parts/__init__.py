"""The parts of ``benchmarks/gpu.py``; each has ``run()``, of which ``ok``, ``why``, ``lines``."""
