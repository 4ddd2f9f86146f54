"""What a GPU's tensor cores reach by its data sheet: bfloat16, dense, in FLOP/s."""

PEAK_FLOPS = {
    "B300": 2250e12,
    "B200": 2250e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "A40": 150e12,
}
"""By a part of the device's name; the longest that fits counts."""


def peak_flops(device_name: str) -> float | None:
    """Return the peak of a device, or None if it is not known.

    Args:
        device_name: as ``torch.cuda.get_device_name`` has it.
    """
    words = device_name.replace("-", " ").split()
    fitting = [name for name in PEAK_FLOPS if set(name.split()) <= set(words)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None
