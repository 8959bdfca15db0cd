"""Smoothing: the mean map of several versions of an image, as wrappers over any method.

A wrapper has the ``explain`` and the call of the CAM that it wraps, and can be wrapped itself. The class is decided
once, on the images as they are, and all versions are explained for it. The versions of all images run together,
``batch_size`` at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, final, runtime_checkable

from torch import Tensor, nn

from .._core.base import BaseCAM
from .._core.checks import check_count, check_std
from .._core.explanation import Explanation, ModelExplainer
from .._core.inputs import ImageOf, Inputs, following_rows, positional
from .._core.outputs import Classes
from .._core.versions import (
    Array,
    Augmentations,
    HeatmapCall,
    NoisyCopies,
    Versions,
    averaged_call,
    image_argument,
    mean_of_versions,
    unchanged,
    versionable,
)
from ..targets import OutputTarget


@runtime_checkable
class Smoothable(ModelExplainer, HeatmapCall, Protocol):
    """What can be smoothed: whatever has the two ways of use that the CAMs of this library and their wrappers have.

    Attributes:
        outputs: The logits of the last call.
    """

    def explain(self, input_tensor: Any = None, classes: Any = None, *args: Any, **kwargs: Any) -> Explanation:
        """See :meth:`diffgradcam.BaseCAM.explain`."""
        ...


class WrappedCAM:
    """What wrappers share: they explain images as they are, and others in their place.

    Attributes:
        cam: The CAM, or another wrapper.
    """

    cam: ModelExplainer

    @property
    def model(self) -> nn.Module:
        """The model of the CAM."""
        return self.cam.model

    @property
    def image(self) -> ImageOf:
        """Which argument of the model is the image, as the CAM says."""
        return image_argument(self.cam)

    def _explained(self, inputs: Inputs, classes: Any) -> Explanation:
        first, *further = inputs.args or (None,)
        return self.cam.explain(first, classes, *further, **inputs.kwargs)

    def _following(self, inputs: Inputs, logits: Tensor) -> tuple[Tensor, ...]:
        return following_rows(inputs, logits, lambda others: self._explained(others, None).logits)


class SmoothedCAM(WrappedCAM):
    """The mean of what a CAM explains for several versions of each image.

    Args:
        cam: The CAM, or another wrapper.
        versions: Which versions.
        batch_size: How many versions of images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is not a CAM.
        ValueError: If ``batch_size`` is not at least 1.
    """

    def __init__(self, cam: Smoothable, versions: Versions, *, batch_size: int = 32) -> None:
        if not isinstance(cam, Smoothable) or isinstance(cam, type):
            raise TypeError(_no_cam(self, cam))
        check_count("batch_size", batch_size)
        self.cam: Smoothable = cam
        self.batch_size = batch_size
        self.outputs: Tensor | None = None
        self._versions = versions

    def __repr__(self) -> str:
        """The wrapper and what it wraps."""
        return f"{type(self).__name__}({self.cam!r})"

    def explain(self, input_tensor: Any = None, classes: Classes = None, *args: Any, **kwargs: Any) -> Explanation:
        """Decide on the images as they are, and explain all their versions.

        Args:
            input_tensor: As in the CAM's own.
            classes: As in the CAM's own.
            *args: Further arguments of the model. Those that have a row for each image follow the images.
            **kwargs: Further keyword arguments of the model, likewise.

        Returns:
            ``(logits, classes, maps)``: the logits of the images as they are, and the mean map.

        Raises:
            TypeError: If the images are not a floating-point tensor; otherwise as the CAM's own.
            ValueError: As the CAM's own.
            RuntimeError: As the CAM's own.
        """
        inputs = Inputs(positional(input_tensor, args, kwargs), kwargs, self.image)
        images = versionable(self, inputs)

        first = self._explained(inputs, classes)
        following = self._following(inputs, first.logits)
        # Targets that are not a class have an index of -1; each version is then explained for the target itself.
        targets = list(classes) if isinstance(classes, Sequence) and any(map(callable, classes)) else None

        def again(versions: Tensor, rows: Tensor) -> Tensor:
            chosen = first.classes[rows] if targets is None else [targets[row] for row in rows.tolist()]
            return self._explained(inputs.replaced(versions, rows, following), chosen).maps

        lead = first.classes.ndim
        return first._replace(maps=mean_of_versions(self._versions, images, first.maps, lead, again, self.batch_size))

    def __call__(
        self,
        input_tensor: Any = None,
        targets: Sequence[OutputTarget | int] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
        **kwargs: Any,
    ) -> Array:
        """Heat maps at input size, the mean of the versions' heat maps: the call of pytorch-grad-cam.

        Args:
            input_tensor: As in the CAM's own call.
            targets: As in the CAM's own call.
            aug_smooth: As in the CAM's own call, for each version.
            eigen_smooth: As in the CAM's own call, for each version.
            **kwargs: Further keyword arguments of the model. Those that have a row for each image follow the images.

        Returns:
            float32, ``(B, H, W)``, in [0, 1], or in [-1, 1] where the CAM is signed: a mean of scaled maps, itself not
            scaled again. The logits of the images as they are, are in ``outputs``.

        Raises:
            TypeError: As :meth:`explain`.
            ValueError: As :meth:`explain`.
            RuntimeError: As :meth:`explain`.
        """
        inputs = Inputs(positional(input_tensor, (), kwargs), kwargs, self.image)
        versionable(self, inputs)
        heatmaps, self.outputs = averaged_call(
            self.cam,
            self._versions,
            inputs,
            targets,
            self.batch_size,
            aug_smooth=aug_smooth,
            eigen_smooth=eigen_smooth,
        )
        return heatmaps


@final
class AugSmooth(SmoothedCAM):
    """Augmentation smoothing: the mean map of mirrored, dimmed and resized versions of each image.

    All combinations of ``flips``, ``factors`` and ``scales`` are explained; maps of mirrored versions are mirrored
    back, maps of resized ones resized to those of the image as it is. The defaults are those of
    ``cam(images, aug_smooth=True)``, which is this.

    Args:
        cam: The CAM, or another wrapper.
        flips: Along which spatial dimensions to mirror or not: -1 is left and right, -2 up and down.
        factors: By which numbers to multiply the pixel values.
        scales: By which numbers to multiply the size; others than 1 need a model that takes images of any size.
        batch_size: How many versions of images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is not a CAM.
        ValueError: If a flip is not negative or given twice, a factor or scale is not positive, there are none, or
            ``batch_size`` is not at least 1.

    Reference:
        ``aug_smooth`` of the library pytorch-grad-cam, which decides on the class of each version anew; no paper.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> cam = AugSmooth(GradCAM(model, "0"), flips=(-1, -2), scales=(1, 1.5))
        >>> cam.explain(torch.rand(5, 3, 8, 8), "all").maps.shape
        torch.Size([5, 4, 6, 6])
    """

    def __init__(
        self,
        cam: Smoothable,
        *,
        flips: Sequence[int] = (-1,),
        factors: Sequence[float] = (0.9, 1.0, 1.1),
        scales: Sequence[float] = (1.0,),
        batch_size: int = 32,
    ) -> None:
        super().__init__(cam, Augmentations(flips, factors, scales), batch_size=batch_size)
        self.flips = tuple(flips)
        self.factors = tuple(factors)
        self.scales = tuple(scales)


@final
class NoiseSmooth(SmoothedCAM):
    """Noise smoothing: the mean map of noisy copies of each image, as SmoothGrad does with gradients.

    Every image gets the same noise, from the seed alone, so its map does not depend on its batch.

    Args:
        cam: The CAM, or another wrapper.
        samples: How many noisy copies. The image without noise decides on the class and does not count.
        std: Standard deviation of the noise, relative to the range of the image (largest minus smallest value).
        seed: Of the noise. The global random numbers are left alone.
        batch_size: How many noisy images run at once, beside the images as they are, which run as they come.

    Raises:
        TypeError: If ``cam`` is not a CAM.
        ValueError: If ``samples`` or ``batch_size`` is not at least 1, or ``std`` is negative or not finite.

    Reference:
        Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017 (arXiv 1706.03825), here with any map.

    Example:
        >>> from diffgradcam import DiffGradCAM
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> NoiseSmooth(DiffGradCAM(model, "0"), samples=10).explain(torch.rand(5, 3, 8, 8)).maps.shape
        torch.Size([5, 6, 6])
    """

    def __init__(
        self,
        cam: Smoothable,
        *,
        samples: int = 25,
        std: float = 0.15,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        check_count("samples", samples)
        check_std(std)
        super().__init__(cam, NoisyCopies(samples, std, seed), batch_size=batch_size)
        self.samples = samples
        self.std = std
        self.seed = seed


@final
class EigenSmooth(SmoothedCAM):
    """Eigen smoothing: the first principal component of the weighted activations instead of their sum.

    The same as ``cam(images, eigen_smooth=True)``, for ``explain`` too;
    :func:`diffgradcam.heatmaps.principal_component` says how the sign is chosen. A method whose map is not
    a sum over the channels, such as Eigen-CAM, stays as it is.

    Args:
        cam: The CAM itself; wrap the result to smooth further, as in ``AugSmooth(EigenSmooth(cam))``.

    Raises:
        TypeError: If ``cam`` is not a CAM.

    Reference:
        ``eigen_smooth`` of the library pytorch-grad-cam, after Muhammad and Yeasin, "Eigen-CAM", 2020 (arXiv
        2008.00299).
    """

    def __init__(self, cam: BaseCAM) -> None:
        if not isinstance(cam, BaseCAM):
            raise TypeError(_no_cam(self, cam))
        super().__init__(cam.summed_by_principal_component(), unchanged)


def _no_cam(wrapper: SmoothedCAM, cam: object) -> str:
    if isinstance(cam, SmoothedCAM):
        name = type(cam).__name__
        return (
            f"cam is {name}; {type(wrapper).__name__} changes how a CAM sums up its channels, so it comes first: "
            f"{name}({type(wrapper).__name__}(cam))"
        )
    given = f"the class {cam.__name__}" if isinstance(cam, type) else type(cam).__name__
    return f"cam is {given}; {type(wrapper).__name__} expects a CAM, such as GradCAM(model, 'layer4')"
