"""Lets torchvision be imported beside a torch without its compiled operators; `make harness-full` puts it there as sitecustomize.

torchvision describes two operators at import that its library would have defined. Nothing here computes with them: the
kit's import of its models needs the names only.
"""

import sys


class Operators:
    """A finder of no module: defines the operators when torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )


sys.meta_path.insert(0, Operators())
