"""Fake-quantized modules to train with, and the reference modules they become: one set of numbers.

``prepare`` swaps classes inside a transformers model (nothing else of it changes, so Trainer conveniences,
hidden states and dynamic shapes keep working); ``convert`` replaces them by modules with explicit
quantize/dequantize operators, the canonical form of docs/architecture.md. Weights are quantized by one function
for both, so what was trained is what is shipped, bit for bit.

The patch embedding of a vision transformer is a convolution only by name: its kernels never overlap. It becomes a
linear layer, exactly. Any other convolution is refused, because it would stay in float and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeGuard

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
import torch.nn.functional as F
from torch import nn

from edgekd.errors import BadInput

qd = torch.ops.quantized_decomposed
QMIN, QMAX = -128, 127  # activations: int8, affine
WMAX = 127  # weights: int8, symmetric, -128 unused
BIAS_MAX = 2**30  # leaves the other half of the int32 accumulator to the products
SMALL_TABLE = 16  # embedding tables of at most so many rows stay in float (token types)


def weight_scale(weight_OI: torch.Tensor) -> torch.Tensor:
    """Symmetric int8 scale of each row, [O] float32: max |w| / 127 (a zero row gets the smallest normal step)."""
    return (weight_OI.detach().float().abs().amax(1) / WMAX).clamp_min(torch.finfo(torch.float32).eps)


def quantize_weight(weight_OI: torch.Tensor, scale_O: torch.Tensor) -> torch.Tensor:
    """Integers in [-127, 127] as float32, rounded half to even."""
    return (weight_OI.detach().float() / scale_O[:, None]).round().clamp(-WMAX, WMAX)


def linear_numbers(
    weight_OI: torch.Tensor, bias_O: torch.Tensor | None, in_scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The numbers of a quantized linear layer: integer weights [O, I], their scales [O], the bias [O], all float32.

    The bias is a multiple of ``in_scale * scale`` as the kernels add it (zeros where there is none). A row whose
    weights are so small beside its bias that the bias would not fit int32 gets the coarser scale that fits.
    """
    bias_O = torch.zeros(len(weight_OI)) if bias_O is None else bias_O.detach()
    fits_O = (bias_O.double().abs() / (in_scale * BIAS_MAX)).float()
    scale_O = torch.maximum(weight_scale(weight_OI), fits_O)
    grid_O = in_scale * scale_O.double()
    return quantize_weight(weight_OI, scale_O), scale_O, ((bias_O.double() / grid_O).round() * grid_O).float()


class StraightThrough(torch.autograd.Function):
    """``rounded`` exactly, with the gradient of ``raw`` (Bengio et al. 2013, arXiv:1308.3432)."""

    @staticmethod
    def forward(ctx: object, raw: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


class Observer(Protocol):
    """Sees every tensor that reaches a quantizer during calibration."""

    def add(self, x: torch.Tensor) -> None: ...


class ActivationQuantizer(nn.Module):
    """Static affine int8 fake-quantizer of one tensor, with learned scale and zero point (LSQ+, arXiv:2004.09576).

    ``log_scale`` and ``zero_point`` have shape [1]. While it has an ``observer`` it passes its input through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.zero_point = nn.Parameter(torch.zeros(1))
        self.observer: Observer | None = None

    def set_range(self, low: float, high: float) -> None:
        """Cover [low, high] and zero with 255 steps."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / (QMAX - QMIN), 1e-8)
        with torch.no_grad():
            self.log_scale.fill_(scale).log_()
            self.zero_point.fill_(min(max(round(QMIN - low / scale), QMIN), QMAX))

    def numbers(self) -> tuple[float, int]:
        """Scale (a float32 value: every runtime stores that) and zero point, as they are shipped."""
        return float(self.log_scale.detach().exp()), int(self.zero_point.detach().round().clamp(QMIN, QMAX))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.observer is not None:
            self.observer.add(x)
            return x
        factor = 1.0 / (x.numel() * QMAX) ** 0.5  # gradient scale of LSQ (arXiv:1902.08153, section 2.2)
        return torch._fake_quantize_learnable_per_tensor_affine(
            x, self.log_scale.exp(), self.zero_point, QMIN, QMAX, factor
        )


class QATLinear(nn.Linear):
    """A linear layer with int8 weight, input and output, in training."""

    input_quantizer: ActivationQuantizer
    output_quantizer: ActivationQuantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_quantizer(x)
        if self.input_quantizer.observer is not None:  # calibration sees the float model
            return self.output_quantizer(F.linear(x, self.weight, self.bias))
        weight_q, scale_O, bias_O = linear_numbers(self.weight, self.bias, self.input_quantizer.numbers()[0])
        weight_OI = StraightThrough.apply(self.weight, weight_q * scale_O[:, None])
        if self.bias is not None:
            bias_O = StraightThrough.apply(self.bias, bias_O)
        return self.output_quantizer(F.linear(x, weight_OI, bias_O))


class QATEmbedding(nn.Embedding):
    """An embedding table with int8 rows, in training. Only the rows in use are quantized: the same numbers, cheaper."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = super().forward(ids)
        flat = rows.detach().reshape(-1, rows.shape[-1])
        scale = weight_scale(flat)
        return StraightThrough.apply(rows, (quantize_weight(flat, scale) * scale[:, None]).reshape_as(rows))


class PatchLinear(nn.Module):
    """A convolution whose kernels tile the image without overlap, as a linear layer of each patch: the same sums."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.patch_height, self.patch_width = convolution.kernel_size
        weight_OI = convolution.weight.detach().flatten(1)
        self.linear = nn.Linear(weight_OI.shape[1], len(weight_OI), bias=convolution.bias is not None)
        self.linear.weight = nn.Parameter(weight_OI.clone())
        if convolution.bias is not None:
            self.linear.bias = convolution.bias

    @property
    def weight(self) -> torch.Tensor:
        """Model code casts the pixels to ``.weight.dtype``."""
        return self.linear.weight

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, O, H / patch height, W / patch width]; no step has more than five axes (Core ML)."""
        batch, channels, height, width = pixels_BCHW.shape
        rows, columns = height // self.patch_height, width // self.patch_width
        bands = pixels_BCHW.reshape(batch, channels, rows, self.patch_height, width).transpose(1, 2)
        tiles = bands.reshape(batch, rows, channels * self.patch_height, columns, self.patch_width).transpose(2, 3)
        patches_BPI = tiles.reshape(batch, rows * columns, channels * self.patch_height * self.patch_width)
        found: torch.Tensor = self.linear(patches_BPI).transpose(1, 2).reshape(batch, -1, rows, columns)
        return found


class ReferenceLinear(nn.Module):
    """The canonical quantized linear layer: folded int8 weight, bias on the grid of the int32 accumulator."""

    def __init__(self, layer: QATLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.in_scale, self.in_zero = layer.input_quantizer.numbers()
        self.out_scale, self.out_zero = layer.output_quantizer.numbers()
        weight_q, scale_O, bias_O = linear_numbers(layer.weight, layer.bias, self.in_scale)
        self.register_buffer("weight_q", weight_q.to(torch.int8))
        self.register_buffer("w_scale", scale_O)
        self.register_buffer("w_zero", torch.zeros(len(scale_O), dtype=torch.int64))
        self.register_buffer("bias", bias_O)

    @property
    def weight(self) -> torch.Tensor:
        """Some model code looks at ``.weight.dtype`` or its device; it gets the scales."""
        return self.w_scale  # type: ignore[return-value]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _through_int8(x, self.in_scale, self.in_zero)
        weight = qd.dequantize_per_channel(self.weight_q, self.w_scale, self.w_zero, 0, -WMAX, WMAX, torch.int8)
        return _through_int8(F.linear(x, weight, self.bias), self.out_scale, self.out_zero)


def _through_int8(x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
    q = qd.quantize_per_tensor(x, scale, zero, QMIN, QMAX, torch.int8)
    return qd.dequantize_per_tensor(q, scale, zero, QMIN, QMAX, torch.int8)


class ReferenceEmbedding(nn.Module):
    """int8 rows gathered, cast, multiplied by their scale: plain operators that every exporter knows."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        scale_V = weight_scale(table.weight)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.register_buffer("weight_q", quantize_weight(table.weight, scale_V).to(torch.int8))
        self.register_buffer("w_scale", scale_V[:, None].clone())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids, self.weight_q).to(torch.float32) * F.embedding(ids, self.w_scale)


def prepare(model: nn.Module) -> nn.Module:
    """Swap every linear layer and every larger embedding table for its QAT class, in place; no dropout from here on.

    Raises BadInput for a convolution that is no patch embedding.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if not _tiles(module):
                raise BadInput(f"'{name}' is a convolution, which cannot be w8a8 yet", todo="fp32 works.")
            model.set_submodule(name, PatchLinear(module))
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = QATLinear
            module.input_quantizer, module.output_quantizer = ActivationQuantizer(), ActivationQuantizer()
        elif type(module) is nn.Embedding and module.num_embeddings > SMALL_TABLE:
            module.__class__ = QATEmbedding
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def _tiles(convolution: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether each pixel is read by one kernel position, and by all channels."""
    return (
        isinstance(convolution, nn.Conv2d)
        and tuple(convolution.kernel_size) == tuple(convolution.stride)
        and convolution.padding in ((0, 0), "valid")
        and tuple(convolution.dilation) == (1, 1)
        and convolution.groups == 1
    )


def share_inputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Give layers that read the same tensor (query, key, value) one input quantizer: one scale, one rounding."""
    readers: dict[int, list[QATLinear]] = {}
    alive: list[torch.Tensor] = []  # keeps every input alive for this pass, so that no id is used twice

    def note(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        alive.append(arguments[0])
        readers.setdefault(id(arguments[0]), []).append(layer)  # type: ignore[arg-type]

    hooks = [layer.register_forward_pre_hook(note) for _, layer in layers(model)]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    for group in readers.values():
        for layer in group[1:]:
            layer.input_quantizer = group[0].input_quantizer


def convert(model: nn.Module) -> nn.Module:
    """Replace the QAT modules by their reference modules, in place; the result is in eval mode, without gradients."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QATLinear):
            model.set_submodule(name, ReferenceLinear(module))
        elif isinstance(module, QATEmbedding):
            model.set_submodule(name, ReferenceEmbedding(module))
    return model.eval().requires_grad_(False)


def layers(model: nn.Module) -> Iterator[tuple[str, QATLinear]]:
    """The quantized linear layers by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, QATLinear))


def quantizers(model: nn.Module) -> Iterator[ActivationQuantizer]:
    """Every activation quantizer once."""
    return (module for module in model.modules() if isinstance(module, ActivationQuantizer))
