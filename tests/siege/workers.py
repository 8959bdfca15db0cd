"""Data sets with a CAM inside, for the workers of a loader. In a module of their own, which a worker imports fast."""

from torch.utils.data import Dataset

from diffgradcam import DiffGradCAM
from tests.models import images, pooled


class Explained(Dataset):
    """Explains its images when they are read."""

    def __init__(self, attached=False):
        self.model = pooled()
        self.cam = DiffGradCAM(self.model, "features", baseline="max")
        self.images = images(6)
        if attached:
            self.cam.attach()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.cam.explain(self.images[index : index + 1], 2).maps[0]


class Training(Explained):
    """Attaches its CAM when an image is read."""

    def __getitem__(self, index):
        with self.cam:
            return self.cam.maps(self.model(self.images[index : index + 1]), 2)[0].detach()
