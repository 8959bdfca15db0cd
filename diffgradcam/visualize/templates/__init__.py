"""What the pages of :mod:`diffgradcam.visualize.pages` are made of: HTML, and the style and scripts that they share."""
