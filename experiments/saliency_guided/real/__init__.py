"""Saliency-guided training on real images: magnetic tiles, manipulated faces, altered fingerprints, chest X-rays."""
