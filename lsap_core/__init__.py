"""The method of LSAP: generators, latent spaces, SNCD, embedding by optimization.

Torch and numpy only. Nothing here opens a file, reads the environment or names a device.
"""
