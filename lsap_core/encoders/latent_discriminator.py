"""Tells codes that the mapping network made from codes that an encoder made (e4e)."""

from __future__ import annotations

from torch import Tensor, nn

LEAKY_SLOPE = 0.2


class LatentDiscriminator(nn.Module):
    """w -> realness logit: linear layers with leaky ReLU of slope 0.2 between them (Tov et al. 2021, sec. 4.2)."""

    def __init__(self, w_dim: int, num_layers: int = 4):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(w_dim, w_dim), nn.LeakyReLU(LEAKY_SLOPE)]
        self.mlp = nn.Sequential(*layers, nn.Linear(w_dim, 1))

    def forward(self, w: Tensor) -> Tensor:
        """Codes [N, w_dim] -> logits [N]; higher is more like a code of the mapping network."""
        logits: Tensor = self.mlp(w)
        return logits.squeeze(1)
