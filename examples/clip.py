"""Why this prompt rather than another? A CLIP model, trained here for seconds, explains image-text similarity.

Needs transformers (pip install transformers). A similarity to each prompt is a logit for each prompt, so the contrast
is between prompts. ``output=`` compares the image's embedding with those of the texts. Writes output/clip.png.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from squares import NAMES, squares, transformers
from torch.nn.functional import cross_entropy, normalize

from diffgradcam import LayerCAM
from diffgradcam.scores import logit, logit_difference
from diffgradcam.tokens import tokens_to_grid
from diffgradcam.utils.image import show_cam_on_image
from diffgradcam.visualize import grid

LAYER = "encoder.layers.1.layer_norm1"  # before the last attention: after it, only the class token counts
PROMPTS = torch.tensor([[0, 2 + i, 1] for i in range(len(NAMES))])  # begin, the name of a colour, end


def main() -> None:
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": 6, "max_position_embeddings": 3, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**layers, "image_size": 32, "patch_size": 8}
    clip = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    optimizer = torch.optim.Adam(clip.parameters(), lr=3e-3)
    for _ in range(100):
        names = torch.randint(0, len(NAMES), (32,))
        similarities = clip(input_ids=PROMPTS, pixel_values=squares(names)).logits_per_image
        optimizer.zero_grad()
        cross_entropy(similarities, names).backward()
        optimizer.step()
    texts = normalize(clip.eval()(input_ids=PROMPTS, pixel_values=squares(names)).text_embeds, dim=-1).detach()

    def similarity(seen):
        return clip.logit_scale.exp() * normalize(clip.visual_projection(seen.pooler_output), dim=-1) @ texts.T

    image = squares(torch.tensor([0]), torch.tensor([2]))
    photo = np.float32(image[0].permute(1, 2, 0)) / 2 + 0.5
    pictures, titles = [np.uint8(255 * photo)], ["red and blue"]
    for prompt, other in ((0, 2), (2, 0)):
        for why, score in (("", logit), (f", not {NAMES[other]}", partial(logit_difference, baseline=other))):
            cam = LayerCAM(clip.vision_model, LAYER, tokens_to_grid, score=score, output=similarity)
            heatmap = cam(image, [prompt])[0]
            pictures.append(show_cam_on_image(photo, heatmap, use_rgb=True))
            titles.append(f"why {NAMES[prompt]}{why}?")
            print(f"{titles[-1]} left half {heatmap[:, :16].mean():.2f}, right half {heatmap[:, 16:].mean():.2f}")
    Path("output").mkdir(exist_ok=True)
    grid([pictures], [titles]).savefig("output/clip.png", dpi=80)
    print("wrote output/clip.png")


if __name__ == "__main__":
    main()
