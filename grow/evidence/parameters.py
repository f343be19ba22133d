"""Evidence about existing connections, by differentiating with respect to the weights as they are stored.

Legend: E connections of a layer; "stored" is (E,) for a compressed layer and (O, I, *kernel), zero where none exists, for a dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grow.evidence.products import Layer
from grow.evidence.watch import computed_densely
from grow.network import Network
from grow.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from grow.task import Batch

Loss = Callable[[Tensor, Tensor], Tensor]


def taylor(network: Network, layers: Mapping[str, Layer], batches: Sequence[Batch], loss: Loss) -> dict[str, Tensor]:
    """Mean over the batches of |g w|, stored. The gradient's mean would vanish at a minimum, where its size in a batch does not."""
    total = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for inputs, targets in batches:
        for name, g in _gradients(network, layers, loss(network(inputs), targets)).items():
            total[name] += (g * layers[name].weight.detach()).abs() / len(batches)
    return total


def hutchinson(
    network: Network, layers: Mapping[str, Layer], batches: Sequence[Batch], loss: Loss, probes: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean of z * (H z) over vectors z of random signs: the diagonal of the Hessian of the mean loss in expectation, stored.

    The variance of an entry is the sum of the squares of the other entries of its row of H, over the number of probes (Bekas,
    Kokiopoulou, Saad 2007). Needs a second derivative of everything in the network.
    """
    samples = sum(len(targets) for _, targets in batches)
    weights = [layer.weight for layer in layers.values()]
    total = [torch.zeros_like(weight) for weight in weights]
    with computed_densely(layers):
        for inputs, targets in batches:
            share = len(targets) / samples / probes
            gradients = _connected(loss(network(inputs), targets), weights)
            pairs = [(sum_, w, g) for sum_, w, g in zip(total, weights, gradients, strict=True) if g is not None and g.requires_grad]
            for probe in range(probes):
                signs = [_signs(w, generator) for _, w, _ in pairs]
                products: tuple[Tensor | None, ...] = torch.autograd.grad(
                    [g for _, _, g in pairs], [w for _, w, _ in pairs], signs, retain_graph=probe + 1 < probes, allow_unused=True
                )
                for (sum_, _, _), z, product in zip(pairs, signs, products, strict=True):
                    if product is not None:
                        sum_.addcmul_(z, product, value=share)
    return dict(zip(layers, total, strict=True))


def hessian_gradient(network: Network, layers: Mapping[str, Layer], batches: Sequence[Batch], loss: Loss) -> dict[str, Tensor]:
    """H g of the mean loss over all batches, stored: the gradient first, then one product with the Hessian a batch."""
    samples = sum(len(targets) for _, targets in batches)
    weights = [layer.weight for layer in layers.values()]
    mean, total = [torch.zeros_like(weight) for weight in weights], [torch.zeros_like(weight) for weight in weights]
    with computed_densely(layers):
        for inputs, targets in batches:
            found = _gradients(network, layers, loss(network(inputs), targets))
            for sum_, g in zip(mean, found.values(), strict=True):
                sum_ += g * (len(targets) / samples)
        for inputs, targets in batches:
            gradients = _connected(loss(network(inputs), targets), weights)
            inner = [(g * m).sum() for g, m in zip(gradients, mean, strict=True) if g is not None]
            products: tuple[Tensor | None, ...] = torch.autograd.grad(torch.stack(inner).sum(), weights, allow_unused=True)
            for sum_, product in zip(total, products, strict=True):
                if product is not None:
                    sum_ += product * (len(targets) / samples)
    return dict(zip(layers, total, strict=True))


def synflow(network: Network, layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """dR/dw w, stored, in float64: R is the sum of the outputs for an input of ones, all weights taken absolute.

    Biases are left out and batch norms are made the identity, so that R is linear in every layer's weights: the scores of each
    layer that every path goes through add up to R. Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467.
    """
    tensors = {name: tensor.double() for name, tensor in network.module.state_dict().items() if tensor.is_floating_point()}
    for path, module in network.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_var is None:
                raise ValueError(f"batch norm {path!r} has no running statistics, but synflow must neutralise them; track them")
            neutral = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - module.eps}
            for leaf, value in neutral.items():
                if f"{path}.{leaf}" in tensors:
                    tensors[f"{path}.{leaf}"] = torch.full_like(tensors[f"{path}.{leaf}"], value)
        elif isinstance(module, (LayerNorm, GroupNorm, InstanceNorm, RMSNorm)):
            raise ValueError(f"module {path!r} is a {type(module).__name__}, but synflow knows batch norm only; use snip or magnitude")
        elif f"{path}.bias" in tensors:
            tensors[f"{path}.bias"] = torch.zeros_like(tensors[f"{path}.bias"])
    if not network.example.is_floating_point():
        raise ValueError(f"example has dtype {network.example.dtype}, but must be floating for an input of ones; use snip or magnitude")
    weights = {name: tensors[f"{name}.weight"].abs().requires_grad_() for name in layers}
    tensors.update({f"{name}.weight": weight for name, weight in weights.items()})
    ones = torch.ones_like(network.example, dtype=torch.float64, device=network.device)
    with computed_densely(layers):
        total = functional_call(network.module, tensors, (ones,)).sum()
        found: tuple[Tensor | None, ...] = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    if not bool(total.isfinite()):
        raise ValueError(f"the sum of the outputs is {float(total)}, but must be finite; synflow overflows in a network as deep as this")
    return {
        name: torch.zeros_like(weight) if g is None else (g * weight).detach()
        for (name, weight), g in zip(weights.items(), found, strict=True)
    }


def _gradients(network: Network, layers: Mapping[str, Layer], loss: Tensor) -> dict[str, Tensor]:
    """Gradient of the loss in every layer's weight, zero where it does not depend on it."""
    weights = [layer.weight for layer in layers.values()]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, weights, allow_unused=True)
    return {name: torch.zeros_like(w) if g is None else g for name, w, g in zip(layers, weights, found, strict=True)}


def _connected(loss: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradient of the loss in the weights, itself differentiable; None where the loss does not depend on a weight."""
    return torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, weight.shape, generator=generator, device=generator.device)
    return (drawn * 2 - 1).to(weight)
