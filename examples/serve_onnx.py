"""Serve a model with its maps: one ONNX file behind HTTP. What serves needs ONNX Runtime, NumPy and Pillow alone.

Makes output/lite0.onnx of a real model, serves it, posts a real photograph, and writes output/served.jpg.
Needs ``pip install "diffgradcam[onnx]"``.
"""

import io
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import onnxruntime
import torch
from photos import cat_beside_coffee, lite0, name, to_input
from PIL import Image

from diffgradcam import DiffGradCAM, layer_input, visualize
from diffgradcam.export import with_maps, write_onnx


class Explain(BaseHTTPRequestHandler):
    """Post an image: its class, the probability and the map come back."""

    session: onnxruntime.InferenceSession

    def do_POST(self):
        """Explain one image."""
        posted = Image.open(io.BytesIO(self.rfile.read(int(self.headers["Content-Length"]))))
        pixels = np.asarray(posted.convert("RGB").resize((224, 224)), np.float32)
        images = ((pixels - 127) / 128).transpose(2, 0, 1)[None]  # as the model expects them
        logits, classes, maps = self.session.run(None, {"images": images})
        powers = np.exp(logits[0] - logits[0].max())
        best = int(classes[0])
        answer = {"class": best, "probability": float(powers[best] / powers.sum()), "map": maps[0].tolist()}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    photo = cat_beside_coffee()
    cam = DiffGradCAM(lite0(), layer_input("_avg_pooling"))
    write_onnx(with_maps(cam, to_input([photo])), "output/lite0.onnx")

    Explain.session = onnxruntime.InferenceSession("output/lite0.onnx")
    server = HTTPServer(("127.0.0.1", 0), Explain)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    body = io.BytesIO()
    Image.fromarray(photo).save(body, "PNG")
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}", body.getvalue()) as response:
        answer = json.load(response)
    print(f"{name(answer['class'])}: {answer['probability']:.1%}")
    heat = np.array(answer["map"])
    Image.fromarray(visualize.overlay(photo, heat / heat.max())).save("output/served.jpg")
    server.shutdown()
