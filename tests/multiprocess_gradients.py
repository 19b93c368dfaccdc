"""Gradients of one step of the tests' network, in one process or in several by DDP over gloo."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from spatialembed.generated.nuclei_and_shapes import SyntheticDataset
from spatialembed.method.loss import spatial_embedding_loss
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.loader import CropPlan, Crops, Share, collate
from spatialembed.types import Normalization


def gradients(world: int, folder: Path) -> dict[str, torch.Tensor]:
    """Mean gradient of 4 crops shared by ``world`` processes; no dropout, batch-norm fixed."""
    if world == 1:
        return _step(0, 1)
    torch.multiprocessing.spawn(_process, (world, str(folder)), nprocs=world)
    return torch.load(folder / "gradients.pt", weights_only=True)


def _process(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    result = _step(rank, world)
    if rank == 0:
        torch.save(result, Path(folder) / "gradients.pt")
    dist.destroy_process_group()


def _step(rank: int, world: int) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = SpatialEmbeddingNet(1)
    with torch.no_grad():  # at the start offsets are 0 and pixels tie
        nn.init.normal_(net.decoders[0].output_conv.weight, std=0.02)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
        elif isinstance(layer, nn.Dropout2d):
            layer.p = 0.0
    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    images = SyntheticDataset("shapes", (48, 48), 4, seed=2)
    crops = Crops(images, Normalization(), AugmentOptions(), CropPlan(32, 1.0, 4, 4, 0, 0))
    batch = collate([crops[i] for i in next(iter(Share(4, 4, rank, world)))])
    terms = spatial_embedding_loss(model(batch.images), batch.targets, center="learnable")
    terms.total().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
