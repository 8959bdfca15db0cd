"""Saliency-guided training on three binary stand-in tasks: CE, CYBORG and the losses with both classes' maps."""
