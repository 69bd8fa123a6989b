"""Who is measured: the file that compresses for each peer, and what its environment needs."""

from __future__ import annotations

from accuracy_parts.environments import TORCH

MODULES = {
    "fxcompress": "peer_fxcompress",
    "torch.ao": "peer_torch_ao",
    "torchao PT2E": "peer_torchao",
    "NNCF": "peer_nncf",
    "ModelOpt": "peer_modelopt",
    "Brevitas": "peer_brevitas",
    "qsparse": "peer_qsparse",
}
PACKAGES = {
    "torch.ao": (TORCH, "numpy"),
    "torchao PT2E": (TORCH, "torchao==0.18.0", "numpy"),
    "NNCF": (TORCH, "nncf==3.4.0", "torchao==0.18.0"),
    "ModelOpt": (TORCH, "nvidia-modelopt==0.47.0", "requests", "huggingface_hub"),
    "Brevitas": (TORCH, "brevitas==0.13.4"),
    "qsparse": (TORCH, "qsparse==2.0.1"),
}
"""Ours runs in the environment of the program."""
DISTRIBUTIONS = {
    "fxcompress": "fxcompress",
    "torch.ao": "torch",
    "torchao PT2E": "torchao",
    "NNCF": "nncf",
    "ModelOpt": "nvidia-modelopt",
    "Brevitas": "brevitas",
    "qsparse": "qsparse",
}
"""The package whose version is told."""
