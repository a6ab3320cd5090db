"""The networks of refiners that come with the digits: whose they are, and what they do for held-out digits."""

import pytest
import torch
from torch import Tensor

from domains.digits.data import load_split
from domains.domain import load_domain
from lsap_core.images import from_uint8
from lsap_core.inversion.by_encoder import EncoderEmbedder, EncoderSettings
from lsap_core.refinement import Embedded, RefinementParts
from lsap_core.refinement.sam import SamRefiner
from lsap_core.refinement.sam_networks import SamNetworks
from tasks.weights.encoders import load_encoder
from tasks.weights.generators import load_generator
from tasks.weights.networks import load_perceptual
from tasks.weights.published import Published
from tasks.weights.refiners import load_refiner_networks
from tasks.weights.segmenters import Superpixels, SuperpixelSettings


@torch.no_grad()
@pytest.mark.parametrize(
    ("encoder_name", "networks"),
    [("lsap_e", "hfgi"), ("e4e", "e4e/hfgi"), ("lsap_e", "hyperstyle"), ("lsap_e", "sfe")],
)
def test_networks_bring_back_what_the_codes_of_their_encoder_lost(encoder_name: str, networks: str) -> None:
    digits = load_domain("digits")
    assert digits.generator is not None
    loaded, encoder = load_generator(digits.generator), load_encoder(digits.encoders[encoder_name])
    found = load_refiner_networks(digits.refiners[networks], loaded.config)
    assert (found.generator_digest, found.encoder_digest) == (loaded.digest, encoder.digest)

    target = from_uint8(load_split("test").images[:48, :, :, None])
    generator, judge = loaded.generator.freeze(), load_perceptual("digits-judge", Published(None))  # in no loss
    codes = EncoderEmbedder(generator, encoder.encoder, EncoderSettings()).codes(target)
    refiner = digits.refiner(networks.rpartition("/")[2]).settings.refiner(
        RefinementParts(generator, judge, found.networks)
    )
    state = refiner.start(Embedded(codes), target, range(len(target)))
    refiner.advance(state, target)
    refined = refiner.finish(state).refined.synthesize()

    def errors(images: Tensor) -> Tensor:
        distance = judge.distance(judge.features(images), judge.features(target))
        return torch.stack([(images - target).square().mean(dim=(1, 2, 3)), distance])  # [2, N]

    left = errors(refined) / errors(generator.synthesize(codes))
    assert (left.median(dim=1).values < 0.75).all()
    assert ((left < 1).float().mean(dim=1) > 0.9).all()  # a digit whose code shows another shape may get worse


def test_sam_leaves_what_it_can_to_w_plus_and_takes_every_space_somewhere() -> None:
    digits = load_domain("digits")
    assert digits.generator is not None
    loaded = load_generator(digits.generator)
    found = load_refiner_networks(digits.refiners["sam"], loaded.config)
    assert (found.kind, found.generator_digest) == ("sam", loaded.digest)
    assert isinstance(found.networks, SamNetworks)

    perceptual = load_perceptual(digits.perceptual, Published(None))
    networks = SamNetworks(found.networks.predictor, Superpixels(SuperpixelSettings()))
    refiner = digits.refiner("sam").settings.refiner(RefinementParts(loaded.generator.freeze(), perceptual, networks))
    assert isinstance(refiner, SamRefiner)
    choice = refiner.choose(from_uint8(load_split("test").images[256:288, :, :, None]))
    shares = torch.stack([(choice == space).float().mean() for space in range(3)])
    assert 0.6 < shares[0] < 0.9 and (shares > 0.02).all()
    empty = refiner.choose(torch.full((1, 1, 32, 32), -1.0))
    assert (empty == 0).all()
