"""Read back what was logged."""

import io

import numpy as np
import pytest
from PIL import Image


def pictures_of(folder):
    """Step and picture of each picture ``maps`` in TensorBoard's files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    images = events.Images("maps") if "maps" in events.Tags()["images"] else []
    return [(each.step, np.asarray(Image.open(io.BytesIO(each.encoded_image_string)))) for each in images]
