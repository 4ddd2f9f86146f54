"""Devices, process groups and the adaptations of megatron-core. Nothing else asks for CUDA."""
