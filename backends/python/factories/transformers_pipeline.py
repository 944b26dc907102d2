"""`factory = "transformers"`: any pipeline of transformers.

Options: those of `transformers.pipeline` (`task`, `model`, ...). A call takes `inputs`, and the options of
the pipeline's own call. It computes on the GPU that the model is booked on, if it is on one.
"""

from __future__ import annotations

import importlib
import os
from typing import Any


class TransformersPipeline:
    """A pipeline."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("device", 0 if os.environ.get("CUDA_VISIBLE_DEVICES") else -1)
        self._pipeline = importlib.import_module("transformers").pipeline(**options)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """What the pipeline returns; its images are refused by name, because they are no arrays."""
        return self._pipeline(inputs, **options)
