"""Energy that an NVIDIA GPU has used, by NVML's own counter. There is no such figure on a CPU."""

import importlib
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)


class EnergyMeter:
    """Reads one GPU's energy counter; ``available`` says whether there is one."""

    def __init__(self, device: torch.device | None) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        if device is None or device.type != "cuda":
            logger.info("energy is not measured: no NVIDIA GPU is used")
            return
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._last_mj: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except Exception as error:  # NVML's errors share no base class with ImportError
            self._handle = None
            logger.info("energy is not measured: %s: %s (it needs nvidia-ml-py)", type(error).__name__, error)

    @property
    def available(self) -> bool:
        """Whether ``joules`` gives figures."""
        return self._handle is not None

    def joules(self) -> float:
        """Measure the energy used since the last call, in joules."""
        now_mj: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        used_mj, self._last_mj = now_mj - self._last_mj, now_mj
        return used_mj / 1000
