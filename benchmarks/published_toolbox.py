"""PTI, SAM and e4e of GANInverter from a checkout of it, beside ours, with the same weights, image and networks."""

from __future__ import annotations

import contextlib
import importlib
from abc import ABC, abstractmethod
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from published_code import stand_in
from published_optimizers import LoopEndsError, Run, Watched, importing_toolbox, rosinality_network, stamp
from torch import Tensor

from lsap_core.encoders.checkpoints import build_encoder, from_encoder_document
from lsap_core.generators import Generator
from lsap_core.generators.checkpoints.rosinality import to_rosinality
from lsap_core.perceptual.lpips import LpipsDistance
from lsap_core.refinement import Embedded
from lsap_core.refinement.pti import PtiRefiner, PtiSettings
from lsap_core.refinement.sam import SAM_TOOLBOX, SamRefiner

PRIOR_SAMPLES = 600


class ToolboxSides(ABC):
    """One of GANInverter's methods, and ours.

    Its networks have the sizes of config-f in them, and SAM and e4e images of 256 pixels at least.
    """

    def __init__(
        self, checkout: Path, generator: Generator, perceptual: LpipsDistance, image: Tensor, device: torch.device
    ):
        self.generator, self.perceptual, self.image, self.device = generator, perceptual, image, device
        config = generator.config
        self.codes = 0.5 * torch.randn(1, config.num_ws, config.w_dim, generator=torch.Generator().manual_seed(2))
        self.codes = self.codes.to(device)
        self._import(checkout)

    def published(self, steps: int, *, keeps_terms: bool = False) -> Run:
        """Steps of the toolbox on the image."""
        run = Run()
        # Its loops end when their last step is done; what they would show or save is not wanted.
        to_device = patch.object(torch.Tensor, "cuda", lambda tensor: tensor.to(self.device))
        with contextlib.suppress(LoopEndsError), to_device:
            self._take(run, steps, keeps_terms)
        return run

    def ours(self, steps: int, batch_size: int) -> Run:
        """Steps of ours on a batch of that image."""
        run = Run()
        codes, target = (one.expand(batch_size, *one.shape[1:]) for one in (self.codes, self.image))
        self._take_ours(run, steps, codes, target)
        return run

    def ours_from_the_same(self, steps: int) -> Run:
        """What `ours` does on the one image; nothing is drawn."""
        return self.ours(steps, 1)

    def quality(self, run: Run) -> dict[str, float]:
        """Nothing that the terms of the steps do not say."""
        return {}

    def _stamp(self, run: Run) -> None:
        run.stamps.append(stamp(self.device))

    @abstractmethod
    def _import(self, checkout: Path) -> None: ...

    @abstractmethod
    def _take(self, run: Run, steps: int, keeps_terms: bool) -> None: ...

    @abstractmethod
    def _take_ours(self, run: Run, steps: int, codes: Tensor, target: Tensor) -> None: ...


class PtiSides(ToolboxSides):
    """Steps of pivotal tuning; what it does before the first step, such as making a second generator, is not timed."""

    def _import(self, checkout: Path) -> None:
        with importing_toolbox(checkout, self.perceptual):
            module = importlib.import_module("inference.pti_infer")
            criterion = importlib.import_module("criteria.lpips.lpips")
        self.sees = criterion.LPIPS("vgg").to(self.device).eval()
        self.inference = object.__new__(module.PTIInference)  # its __init__ opens files and names a GPU
        self.inference.device = self.device
        config = self.generator.config
        self.inference.checkpoint = {"decoder": to_rosinality(config, self.generator.state_dict())}

    def _take(self, run: Run, steps: int, keeps_terms: bool) -> None:
        self.inference.opts = Namespace(
            resolution=self.generator.config.resolution, pti_lr=3e-4, pti_step=steps, pti_lpips_lambda=1.0,
            pti_l2_lambda=1.0,
        )  # fmt: skip
        self.inference.lpips_loss = Watched(self.sees, run, self.device, keeps_terms)
        self.inference.inverse(self.image, None, None, self.codes, None, None)

    def _take_ours(self, run: Run, steps: int, codes: Tensor, target: Tensor) -> None:
        settings = PtiSettings(num_steps=steps, stop_at_lpips=None, record_every=1)
        refiner = PtiRefiner(self.generator, perceptual=self.perceptual, settings=settings)
        state = refiner.start(Embedded(codes), target, range(len(codes)))
        refiner.advance(state, target, after_step=lambda _: self._stamp(run))
        run.lpips = list(state.trace[0, :, settings.trace_terms.index("lpips")])


class SamSides(ToolboxSides):
    """Steps of SAM, a band of the picture in each space: its predictor and segmenter are asked nothing."""

    def _import(self, checkout: Path) -> None:
        absent = {"models.invertibility.deeplab": "DeepLab", "models.segmenter": "SegmenterFace"}
        others = {name: stand_in(name, **{value: None}) for name, value in absent.items()}
        others["models.encoder"] = stand_in("models.encoder", Encoder=None)
        with importing_toolbox(checkout, self.perceptual, others):
            self.module = importlib.import_module("inference.sam_infer")
            model = importlib.import_module("models.stylegan2.model")
            criterion = importlib.import_module("criteria.lpips.lpips")
        self.sees = criterion.LPIPS("vgg").to(self.device).eval()
        settings = replace(SAM_TOOLBOX, record_every=1, prior_samples=PRIOR_SAMPLES)
        self.refiner = self._refiner(settings.num_steps)
        prior, spaces = self.refiner.loss.prior, settings.spaces
        assert prior is not None and spaces is not None
        side = self.generator.config.resolution
        bands = torch.arange(side) * len(spaces) // side
        self.choice = bands[None, :, None].expand(1, -1, side)
        inference = self.inference = object.__new__(self.module.SamInference)
        inference.device = self.device
        inference.decoder = rosinality_network(model, self.generator).to(self.device)
        inference.d_stats = {"mean_v": prior.mean, "inv_cov_v": prior.inverse_covariance}
        inference.seg_trans = inference.invert_predictor = lambda images: images
        inference.segmenter = Namespace(segment_pil=lambda _: self.choice[0].numpy())
        # A space is good enough for its own band, and for those of the spaces before it.
        inference.d_heads = {
            name: lambda _, place=place: (self.choice > place).float()[None] for place, name in enumerate(spaces)
        }

    def _refiner(self, steps: int) -> SamRefiner:
        settings = replace(SAM_TOOLBOX, num_steps=steps, record_every=1, prior_samples=PRIOR_SAMPLES)
        return SamRefiner(self.generator, predictor=None, segment=None, perceptual=self.perceptual, settings=settings)

    def _take(self, run: Run, steps: int, keeps_terms: bool) -> None:
        self.inference.opts = Namespace(
            latent_names="W+,F4,F6,F10", thresh=0.225, sam_lr=0.05, sam_step=steps, sam_rec_lambda=1.0,
            sam_rec_l2_lambda=1.0, sam_rec_lpips_lambda=1.0, sam_lat_lambda=1.0, sam_lat_mvg_lambda=1e-8,
            sam_lat_delta_lambda=1e-3, sam_lat_frec_lambda=5.0,
        )  # fmt: skip
        self.inference.lpips_loss = Watched(self.sees, run, self.device, keeps_terms)
        with patch.object(self.module, "print", lambda *_: None, create=True):
            self.inference.inverse(self.image, self.image, None, self.codes, None, None)

    def _take_ours(self, run: Run, steps: int, codes: Tensor, target: Tensor) -> None:
        refiner = self._refiner(steps)
        choice = self.choice.expand(len(codes), -1, -1)
        state = refiner.start(Embedded(codes), target, range(len(codes)), choice=choice)
        refiner.advance(state, target, after_step=lambda _: self._stamp(run))
        run.lpips = list(state.trace[0, :, refiner.settings.trace_terms.index("lpips")])


class EncoderSides(ToolboxSides):
    """Passes of e4e's encoder; a step is a pass."""

    def _import(self, checkout: Path) -> None:
        with importing_toolbox(checkout, self.perceptual):
            encoders = importlib.import_module("models.encoders.psp_encoders")
        config = self.generator.config
        options = {"input_nc": 3, "resolution": config.resolution}
        torch.manual_seed(3)
        self.encoder = encoders.Encoder4Editing(50, "ir_se", Namespace(**options)).to(self.device).eval()
        self.encoder.progressive_stage = config.num_ws
        document: dict[str, Any] = {
            "state_dict": {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()},
            "latent_avg": torch.zeros(config.num_ws, config.w_dim),
        }
        found = from_encoder_document(document, generator_config=config, heads="offsets")
        encoder = build_encoder(found).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.own = encoder.requires_grad_(False).eval()

    @torch.no_grad()
    def _take(self, run: Run, steps: int, keeps_terms: bool) -> None:
        self._pass(run, self.encoder, self.image, steps)

    @torch.no_grad()
    def _take_ours(self, run: Run, steps: int, codes: Tensor, target: Tensor) -> None:
        self._pass(run, self.own, target, steps)

    def _pass(self, run: Run, encoder: Any, images: Tensor, steps: int) -> None:
        for _ in range(steps):
            self._stamp(run)
            run.codes = encoder(images)
        self._stamp(run)
