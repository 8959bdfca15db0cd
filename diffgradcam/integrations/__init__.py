"""Saliency guidance, maps and audits in the trainers of other libraries, each imported by its own name.

``diffgradcam.integrations.lightning`` has callbacks for Lightning, ``diffgradcam.integrations.hugging_face`` a trainer
and callbacks for Hugging Face's ``Trainer``. A loop of your own needs neither: it calls the functions of
:mod:`diffgradcam.training` that these are made of.
"""
