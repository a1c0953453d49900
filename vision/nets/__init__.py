"""The nets. Importing this package fills the registry in `vision.spec`; a new backbone is one more line here."""

from vision.nets import mobilenet_v1, mobilenet_v2, mobilenet_v3, squeezenet, vgg

__all__ = ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "squeezenet", "vgg"]
