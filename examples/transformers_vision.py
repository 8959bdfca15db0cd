"""ViT, DeiT, Swin, ConvNeXt and ResNet of Hugging Face, without a wrapper: each learns for seconds to name a colour.

Needs transformers (pip install transformers). Tiny models on red, green, blue and yellow squares; writes
output/transformers_vision.png. For models with weights: ``AutoModelForImageClassification.from_pretrained(name)``.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from squares import NAMES, squares, transformers

from diffgradcam import LayerCAM
from diffgradcam.scores import logit_difference
from diffgradcam.tokens import tokens_to_grid
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.visualize import grid

TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1]}
MODELS = {  # options, and a layer before the last attention: after it, only the class token counts
    "ViT": (TOKENS, "layernorm_before"),
    "DeiT": (TOKENS, "layernorm_before"),
    "Swin": (SWIN, "swin.layernorm"),
    "ConvNext": ({**STAGES, "num_stages": 2, "patch_size": 2}, "stages.1"),
    "ResNet": ({**STAGES, "embedding_size": 16, "layer_type": "basic"}, "stages.1"),
}


def main() -> None:
    torch.manual_seed(0)
    image = squares(torch.tensor([0]), torch.tensor([2]))
    photo = np.float32(image[0].permute(1, 2, 0)) / 2 + 0.5
    pictures, titles = [np.uint8(255 * photo)], ["red and blue"]
    for kind, (options, suffix) in MODELS.items():
        config = getattr(transformers, f"{kind}Config")(image_size=32, num_labels=len(NAMES), **options)
        model = getattr(transformers, f"{kind}ForImageClassification")(config)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(60):
            names = torch.randint(0, len(NAMES), (32,))
            optimizer.zero_grad()
            model(squares(names), labels=names).loss.backward()
            optimizer.step()
        layer = [name for name, _ in model.eval().named_modules() if name.endswith(suffix)][-1]
        cam = LayerCAM(model, layer, tokens_to_grid, score=partial(logit_difference, baseline=2))
        heatmap = cam(image, [0])[0]  # why red (0), not blue (2)?
        print(f"{kind} {layer}: left half {heatmap[:, :16].mean():.2f}, right half {heatmap[:, 16:].mean():.2f}")
        pictures.append(show_cam_on_image(photo, heatmap, use_rgb=True))
        titles.append(f"{kind}: why red, not blue?")
    Path("output").mkdir(exist_ok=True)
    grid([pictures], [titles]).savefig("output/transformers_vision.png", dpi=80)
    print("wrote output/transformers_vision.png")


if __name__ == "__main__":
    main()
