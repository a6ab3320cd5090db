"""What is reported of an inversion, one value for each image."""

from lsap_core.metrics.reconstruction import mse, psnr

__all__ = ["mse", "psnr"]
