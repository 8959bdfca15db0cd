"""A MILLION: explain a whole data set into a folder that is readable while it grows, and go on after a kill.

``run`` explains, ``store`` is the folder.
"""

from ..passes import Explainer
from .run import explain_dataset
from .store import Explanations, Row, open_explanations

__all__ = ["Explainer", "Explanations", "Row", "explain_dataset", "open_explanations"]
